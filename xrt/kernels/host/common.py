"""What the kernel families share: types, narrow floats, axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir

Array: TypeAlias = np.ndarray[Any, Any]
F = TypeVar("F", bound=Callable[..., Any])

NARROW_FLOATS = frozenset(
    np.dtype(kind)
    for kind in (
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
        ml_dtypes.float8_e8m0fnu,
        ml_dtypes.float4_e2m1fn,
    )
)
"""Floats that are too narrow to accumulate in; kernels compute on them in float32."""


def widen(x: Array) -> Array:
    """`x` in float32 if its dtype is a narrow float, else `x` itself."""
    return x.astype(np.float32) if x.dtype in NARROW_FLOATS else x


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is a floating-point type, those of ml_dtypes included."""
    return dtype.kind == "f" or dtype in NARROW_FLOATS


def in_float32(function: F) -> F:
    """Make a kernel compute in float32 when its first input is a narrow float.

    Every array is widened first; outputs of dtype float32 go back to the first input's dtype.
    """

    @functools.wraps(function)
    def wrapped(x: Array, *rest: Array | None, **attributes: Any) -> Any:
        if x.dtype not in NARROW_FLOATS:
            return function(x, *rest, **attributes)
        wide = (None if r is None else widen(r) for r in rest)
        result = function(widen(x), *wide, **attributes)
        if isinstance(result, tuple):
            return tuple(_narrow(r, x.dtype) for r in result)
        return _narrow(result, x.dtype)

    return cast(F, wrapped)


def _narrow(result: Any, dtype: np.dtype[Any]) -> Any:
    return result.astype(dtype) if result.dtype == np.float32 else result


def numpy_dtype(code: int) -> np.dtype[Any]:
    """The NumPy dtype of an ONNX data type number."""
    return ir.DataType(code).numpy()


def ints(values: Array | Iterable[int]) -> tuple[int, ...]:
    """The elements of a 0-d or 1-d integer tensor as Python ints."""
    if isinstance(values, np.ndarray):
        return tuple(values.reshape(-1).tolist())
    return tuple(int(v) for v in values)


def normalize_axes(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Axes counted from the front; raises ValueError for one out of range."""
    result = []
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(f"axis {axis} is out of range for rank {rank}")
        result.append(axis % rank)
    return tuple(result)


def along(values: Array, axis: int, rank: int) -> Array:
    """1-d `values` shaped to broadcast along `axis` of a tensor of `rank` dimensions."""
    return values.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))


def pad_constant(x: Array, pads: Sequence[tuple[int, int]], value: Any = 0) -> Array:
    """`x` padded with `value`; the same as `np.pad` but several times faster."""
    if not any(before or after for before, after in pads):
        return x
    shape = tuple(n + before + after for n, (before, after) in zip(x.shape, pads, strict=True))
    out = np.full(shape, value, x.dtype)
    middle = tuple(slice(lo, lo + n) for n, (lo, _) in zip(x.shape, pads, strict=True))
    out[middle] = x
    return out


def contiguous(x: Array) -> Array:
    """`x` in C order; unlike `np.ascontiguousarray` it leaves a 0-d array 0-d."""
    return x if x.flags.c_contiguous else x.copy(order="C")


def in_blocks(function: Callable[[Array, Array], None], x: Array, size: int = 1 << 15) -> Array:
    """Apply ``function(block, out)`` to pieces of `x` that fit the cache, elementwise."""
    flat = contiguous(x).reshape(-1)
    out = np.empty_like(flat)
    for start in range(0, flat.size, size):
        function(flat[start : start + size], out[start : start + size])
    return out.reshape(x.shape)


def product(values: Iterable[int]) -> int:
    """The product of `values` as a Python int."""
    return math.prod(values)
