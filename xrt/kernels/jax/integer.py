"""Arithmetic of quantized networks: exact integer products, and rounding to narrow types.

XLA's CPU backend has two fast integer products: uint8 by int8 with VNNI, and int8 by int8, which it
widens to 16 bits (YNNPACK, jaxlib 0.10.2). Other types, and uint8 by int8 as JAX writes it, fall
into a scalar loop. So bytes are recoded: int8 to uint8 by adding 128, or back, and the zero point
moves with them, which leaves x - zero as it was. What zero points add is apart from the product::

    sum (a - az) (b - bz)  =  sum a b  -  az (sum b - K bz)  -  bz sum a

Microseconds on two cores with VNNI (on a shared machine, medians or lower quartiles)::

    product                fp32    int8 by int8    uint8 by int8
    3136 x 64 x 64         127     92              40
    3136 x 64 x 256        498     358             133
    784 x 1152 x 128       1091    773             298
    196 x 2304 x 256       1296    807             297
    49 x 4608 x 512        1302    1048            355
    128 x 768 x 3072       3532    2145            809
    12544 x 148 x 64       2045    803             329
    1 x 2048 x 1000        195     486             95      (padded to two rows; as it is: 533)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import lax

from xrt.kernels.jax.mixed import mixed_dot

Array = np.ndarray[Any, Any]

_SHIFT = 128

_MAGIC = np.float32(3 << 22)
"""Added to |y| < 2^22 it rounds y, half to even, and leaves the integer in the low bits."""
_MAGIC_BITS = int(_MAGIC.view(np.int32))


def is_integer(dtype: Any) -> bool:
    """Whether `dtype` is an integer type, those of 2 and 4 bits included."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def quantized(y: Any, zero: Any, dtype: Any, *, saturate: bool = True) -> Any:
    """round(y) + zero, limited to the range of an integer `dtype`; y + zero in a narrow float.

    Args:
        y: Values in units of the scale, fp32 or wider.
        zero: The zero point, of any integer (float) type, broadcasting to y; None for 0.
        dtype: An integer type of at most 16 bits, or a float type of at most 8.
        saturate: For floats: whether what is too large becomes the largest number, not infinity.

    Rounds half to even. NaN becomes the lowest integer, as in ONNX Runtime and onnx.reference.
    """
    if not is_integer(dtype):
        return _to_float(y, zero, dtype, saturate)
    if y.dtype == jnp.float64:
        y = jnp.round(jnp.clip(y, -(2.0**20), 2.0**20)).astype(jnp.float32)
    info = ml_dtypes.iinfo(np.dtype(dtype))
    offset = np.int32(0) if zero is None else jnp.asarray(zero).astype(jnp.int32)
    low = jnp.asarray(int(info.min) - offset).astype(jnp.float32)
    high = jnp.asarray(int(info.max) - offset).astype(jnp.float32)
    y = jnp.where(y > low, y, low)  # false for NaN; one instruction, unlike maximum
    y = jnp.where(y < high, y, high)
    bits = lax.bitcast_convert_type(y + _MAGIC, jnp.int32)
    return (bits - (_MAGIC_BITS - offset)).astype(dtype)


def _to_float(y: Any, zero: Any, dtype: Any, saturate: bool) -> Any:
    if zero is not None:
        offset = jnp.asarray(zero).astype(y.dtype)
        y = jnp.where(offset == 0, y, y + offset)  # keeps the sign of -0
    if saturate:
        limit = float(ml_dtypes.finfo(np.dtype(dtype)).max)
        y = jnp.clip(y, -limit, limit)
    return y.astype(dtype)


def requantize(acc: Any, scale: Any, zero: Any, dtype: Any) -> Any:
    """`acc`, in units of its own scale, as `dtype`: round(acc scale) + zero, saturated.

    `scale` is the accumulator's scale over the output's, fp32, and broadcasts to `acc` as `zero`
    does: one for each channel lies along the last axis.
    """
    return quantized(acc.astype(jnp.float32) * scale, zero, dtype)


def dequantized(x: Any, zero: Any, scale: Any, dtype: Any) -> Any:
    """(x - zero) scale, computed in fp32 and rounded to the float type `dtype`."""
    x = jnp.asarray(x)
    if zero is not None and (not isinstance(zero, np.ndarray) or np.any(zero != 0)):
        wide = jnp.float32
        if is_integer(x.dtype):
            wide = jnp.int64 if x.dtype == jnp.int32 else jnp.int32
        x = x.astype(wide) - jnp.asarray(zero).astype(wide)
    return (x.astype(jnp.float32) * jnp.asarray(scale).astype(jnp.float32)).astype(dtype)


def recoded(x: Any, dtype: Any) -> Any:
    """An int8 or uint8 array in the other type: x - 128 or x + 128; NumPy arrays stay so."""
    if x.dtype == dtype:
        return x
    flipped = x ^ x.dtype.type(np.uint8(_SHIFT).astype(x.dtype))
    if isinstance(x, np.ndarray):
        return flipped.view(dtype)
    return lax.bitcast_convert_type(flipped, dtype)


def recoded_zero(zero: Any, source: Any, dtype: Any) -> Any:
    """The zero point of an array of type `source` once it is `recoded`, in int32.

    None, taken and given, stands for 0.
    """
    moved = (0 if zero is None else zero.astype(np.int32)) + _shift(source, dtype)
    known = isinstance(moved, np.ndarray | np.generic) and not np.any(moved)
    return None if known else moved


def _shift(source: Any, dtype: Any) -> np.int32:
    if np.dtype(source) == np.dtype(dtype):
        return np.int32(0)
    return np.int32(_SHIFT if np.dtype(dtype) == np.uint8 else -_SHIFT)


def signed(x: Any) -> Any:
    """An int8 or uint8 array as int8, see `recoded`."""
    return recoded(x, np.dtype(np.int8))


def signed_zero(dtype: Any, zero: Any) -> Any:
    """The zero point of an array of `dtype` after `signed`, in int32; None for one known as 0."""
    return recoded_zero(zero, dtype, np.int8)


def sums(w: Any, axes: Sequence[int]) -> Any:
    """The sums of an int8 or uint8 array, as `signed` makes it, over `axes`, in int32."""
    return signed(w).sum(axis=tuple(axes), dtype=np.int32)


@dataclass(frozen=True)
class Form:
    """Which integer products a device is fast at; the right factor is always int8.

    Attributes:
        left: Type of the left factor, int8 or uint8.
        columns: Convolutions are products of patches, where those are not too large.
        patch_bytes: How large they may be.
    """

    left: np.dtype[Any]
    columns: bool
    patch_bytes: float = math.inf


VNNI = Form(np.dtype(np.uint8), columns=True, patch_bytes=16 << 20)
"""x86 CPUs with VNNI or AMX."""
SIGNED = Form(np.dtype(np.int8), columns=False)
"""Other CPUs."""
GPU = Form(np.dtype(np.int8), columns=True)
"""XLA's GPU backend has integer products, but hardly any integer convolution."""


def integer_dot(
    a: Any, b: Any, a_zero: Any = None, b_zero: Any = None, *, b_sums: Any = None, form: Form
) -> Any:
    """(a - a_zero) (b - b_zero) in int32, exact, wrapping beyond 32 bits.

    Args:
        a: int8 or uint8 [..., M, K].
        b: int8 or uint8 [..., K, N]; leading dimensions broadcast.
        a_zero: Zero points that broadcast to [..., M, 1]; None for 0.
        b_zero: Zero points that broadcast to [..., 1, N]; None for 0.
        b_sums: `sums(b, (-2,))`, if known at compile time.
        form: The products to use.
    """
    product, excess = dot_terms(a, b, a_zero, b_zero, b_sums=b_sums, form=form)
    return product if excess is None else product - excess


def dot_terms(
    a: Any, b: Any, a_zero: Any = None, b_zero: Any = None, *, b_sums: Any = None, form: Form
) -> tuple[Any, Any]:
    """`integer_dot` as a difference: int32 [..., M, N], and what it exceeds the result by.

    The second is None for nothing, or broadcasts, and is known at compile time if `b_sums` and
    `a_zero` are: scaled, it can join a bias.
    """
    a_zero = recoded_zero(a_zero, a.dtype, form.left)
    if a_zero is not None:
        b_sums = (sums(b, (-2,)) if b_sums is None else b_sums)[..., None, :]
    b_zero = signed_zero(b.dtype, b_zero)
    a, b = recoded(a, form.left), signed(b)
    result = product(jnp.asarray(a), jnp.asarray(b))
    if b_zero is not None:
        result = result - b_zero * jnp.sum(a, axis=-1, keepdims=True, dtype=jnp.int32)
        if a_zero is not None:
            b_sums = b_sums - np.int32(a.shape[-1]) * b_zero
    return result, None if a_zero is None else a_zero * b_sums


def product(a: Any, b: Any) -> Any:
    """The product of int8 or uint8 by int8 as numpy.matmul broadcasts it."""
    if b.ndim != 2:
        return _batched(a, b)
    count = math.prod(a.shape[:-1])
    rows = jnp.reshape(a, (count, a.shape[-1]))
    if count == 1:  # a single row would go to a scalar loop
        rows = lax.optimization_barrier(rows)  # type: ignore[no-untyped-call]
        rows = jnp.concatenate([rows, jnp.zeros_like(rows)])
    result = mixed_dot(rows, b)[:count]
    return jnp.reshape(result, (*a.shape[:-1], b.shape[-1]))


def _batched(a: Any, b: Any) -> Any:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = (jnp.broadcast_to(each, (*batch, *each.shape[-2:])) for each in (a, b))
    return mixed_dot(a, b)
