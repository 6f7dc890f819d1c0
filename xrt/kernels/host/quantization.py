"""Linear quantization, and products of quantized integers, exact in int32.

What the standard leaves open: NaN quantizes to the lowest integer, as in ONNX Runtime, and
DynamicQuantizeLinear overlooks it. The scale found for zeros alone is 0, as the formula says.
"""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from xrt.kernels.host.common import NARROW_FLOATS, Array, normalize_axes, numpy_dtype
from xrt.kernels.host.conv import conv
from xrt.kernels.host.registry import kernel

_PACKED = frozenset(
    np.dtype(kind) for kind in (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4)
)
_HALF = frozenset(map(np.dtype, (np.float16, ml_dtypes.bfloat16)))
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)

_LARGEST = 255 * 255
"""The largest product of two values of 8 bits less their zero points."""


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" or dtype in _PACKED


def _aligned(values: Array, shape: Sequence[int], axis: int, block_size: int) -> Array:
    """Scales or zero points to broadcast with `shape`: one for all, along `axis`, or in blocks.

    Raises:
        ValueError: They fit none of these.
    """
    if values.shape in ((), (1,)):
        return values.reshape(())
    rank = len(shape)
    # The standard's default, axis 1, does not exist in a vector.
    axis = 0 if rank == 1 else normalize_axes((axis,), rank)[0]
    wanted: list[int] = [1] * rank
    if block_size and values.ndim == rank:
        wanted = list(shape)
        wanted[axis] = -(-shape[axis] // block_size)
        if values.shape == tuple(wanted):
            repeated = np.repeat(values, block_size, axis=axis)
            return repeated[(slice(None),) * axis + (slice(shape[axis]),)]
    elif values.shape == (shape[axis],):
        wanted[axis] = shape[axis]
        return values.reshape(wanted)
    raise ValueError(
        f"scales or zero points of shape {values.shape} are neither one value, nor one for each of "
        f"axis {axis} of {tuple(shape)}, nor one for each block of {block_size} there"
    )


def _quantized(y: Array, zero: Array | None, dtype: np.dtype[Any], saturate: bool = True) -> Array:
    """round(y) + zero, limited to the range of an integer type; y + zero in a narrow float.

    `y` is fp32 or wider and is overwritten.
    """
    if _is_integer(dtype):
        np.rint(y, out=y)
        if zero is not None:
            y += zero.astype(y.dtype)
        limits = ml_dtypes.iinfo(dtype)
        np.fmax(y, y.dtype.type(int(limits.min)), out=y)
        np.fmin(y, y.dtype.type(int(limits.max)), out=y)
        return y.astype(dtype)
    if zero is not None:
        offset = zero.astype(y.dtype)
        np.add(y, offset, out=y, where=offset != 0)  # keeps the sign of -0
    if saturate:
        limit = float(ml_dtypes.finfo(dtype).max)
        np.clip(y, -limit, limit, out=y)
    return y.astype(dtype)


def _quotient(x: Array, scale: Array, dtype: np.dtype[Any]) -> Array:
    """x / scale, rounded to `dtype`, in fp32 or wider."""
    if dtype == np.int32:  # float64 holds both, and their quotient to more than one half
        return np.asarray(np.divide(x, scale, dtype=np.float64))
    if dtype == _E8M0:  # a power of two, which is no precision
        dtype = np.dtype(np.float32)
    wide = np.dtype(np.float32) if dtype in _HALF else dtype
    if dtype in _HALF:
        x, scale = x.astype(dtype), scale.astype(dtype)
    quotient = np.asarray(x.astype(wide, copy=False) / scale.astype(wide, copy=False))
    return quotient.astype(dtype).astype(wide) if dtype in _HALF else quotient


@kernel("QuantizeLinear")
def quantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Array:
    """round(x / scale) + zero_point, limited to the range of the output type.

    The division is that of `precision`, or of the scale's type.
    """
    dtype = numpy_dtype(output_dtype) if output_dtype else np.dtype(np.uint8)
    zero = None
    if zero_point is not None:
        dtype = zero_point.dtype
        zero = _aligned(zero_point, x.shape, axis, block_size)
    scale = _aligned(scale, x.shape, axis, block_size)
    narrow = numpy_dtype(precision) if precision else scale.dtype
    return _quantized(_quotient(x, scale, narrow), zero, dtype, bool(saturate))


@kernel("DequantizeLinear")
def dequantize_linear(
    x: Array,
    scale: Array,
    zero_point: Array | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Array:
    """(x - zero_point) scale, computed in fp32."""
    dtype = numpy_dtype(output_dtype) if output_dtype else scale.dtype
    factor = _aligned(scale, x.shape, axis, block_size).astype(np.float32)
    if zero_point is not None and (zero_point != 0).any():
        offset = _aligned(zero_point, x.shape, axis, block_size)
        wide = np.int64 if x.dtype == np.int32 else np.float32  # fp32 holds up to 24 bits
        x = np.asarray(x.astype(wide) - offset.astype(wide))
    result = np.asarray(x.astype(np.float32))
    result *= factor
    return result.astype(dtype, copy=False)


@kernel("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """Quantize to uint8 with the range of `x` itself, which is widened to hold 0."""
    low, high = np.fmin.reduce(x, axis=None, initial=0), np.fmax.reduce(x, axis=None, initial=0)
    scale = np.asarray((high - low) / np.float32(255), np.float32)
    # For zeros alone 0 / 0 quantizes to the lowest value, which is 0.
    zero = _quantized(np.asarray(-low / scale, np.float32), None, np.dtype(np.uint8))
    return _quantized(np.asarray(x / scale), zero, np.dtype(np.uint8)), scale, zero


def _rows(values: Array | None) -> Array | None:
    """Parameters of a left operand, one for all or one for each row, shaped [..., M, 1]."""
    if values is None or values.size == 1:
        return None if values is None else values.reshape(())
    return values[:, None] if values.ndim == 1 else values


def _columns(values: Array | None) -> Array | None:
    """Parameters of a right operand, one for all or one for each column, shaped [..., 1, N]."""
    return values.reshape(()) if values is not None and values.size == 1 else values


def _centred(x: Array, zero: Array | None, dtype: Any) -> Array:
    wide = x.astype(dtype)
    return wide if zero is None else wide - zero.astype(dtype)


def _exact(depth: int) -> Any:
    """The float type in which sums of `depth` products are exact; BLAS has no integers."""
    return np.float32 if depth * _LARGEST < 1 << 24 else np.float64


def _int32(sums: Array, depth: int) -> Array:
    """Exact float sums of `depth` products as int32, wrapping."""
    if depth * _LARGEST < 1 << 31:
        return sums.astype(np.int32)
    return sums.astype(np.int64).astype(np.int32)


def _product(a: Array, b: Array, a_zero: Array | None, b_zero: Array | None) -> Array:
    """The product of matrices less their zero points: int32, or fp32 for those of float8."""
    depth = a.shape[-1]
    real = a.dtype in NARROW_FLOATS or b.dtype in NARROW_FLOATS
    dtype = np.float32 if real else _exact(depth)
    sums = np.matmul(_centred(a, _rows(a_zero), dtype), _centred(b, _columns(b_zero), dtype))
    return sums if real else _int32(sums, depth)


def _matrices(a: Array, b: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Vectors as the matrices that a product takes them for, and the axes to drop behind it."""
    drop = (-2,) * (a.ndim == 1) + (-1,) * (b.ndim == 1)
    return a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b, drop


@kernel("MatMulInteger")
def matmul_integer(
    a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> Array:
    """Matrix product of integers in int32; zero points for each row of a and column of b."""
    a, b, drop = _matrices(a, b)
    return np.squeeze(_product(a, b, a_zero_point, b_zero_point), axis=drop)


@kernel("QLinearMatMul")
def qlinear_matmul(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
) -> Array:
    """Matrix product of quantized values, quantized again; float8 ones accumulate in fp32."""
    a, b, drop = _matrices(a, b)
    product = _product(a, b, a_zero_point, b_zero_point)
    scale = _combined_scale(_rows(a_scale), _columns(b_scale), _columns(y_scale))
    result = _requantized(product, scale, _columns(y_zero_point), y_zero_point.dtype)
    return np.squeeze(result, axis=drop)


def _combined_scale(x: Array | None, w: Array | None, y: Array | None) -> Array:
    """x w / y in fp32: the accumulator's unit in the output's."""
    assert x is not None
    assert w is not None
    assert y is not None
    return np.asarray(x.astype(np.float32) * w.astype(np.float32) / y.astype(np.float32))


def _requantized(acc: Array, scale: Array, zero: Array | None, dtype: np.dtype[Any]) -> Array:
    return _quantized(np.asarray(acc.astype(np.float32) * scale), zero, dtype)


def _convolution(
    x: Array, x_zero: Array | None, w: Array, w_zero: Array | None, attributes: dict[str, Any]
) -> Array:
    """Convolution of integers less their zero points, in int32."""
    depth = math.prod(w.shape[1:])
    dtype = _exact(depth)
    shape = (-1, *(1,) * (w.ndim - 1))
    sums = conv(
        _centred(x, None if x_zero is None else x_zero.reshape(()), dtype),
        _centred(w, None if w_zero is None else w_zero.reshape(shape), dtype),
        **attributes,
    )
    return _int32(sums, depth)


@kernel("ConvInteger")
def conv_integer(
    x: Array,
    w: Array,
    x_zero_point: Array | None = None,
    w_zero_point: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of integers in int32; a zero point of w for each output channel."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    return _convolution(x, x_zero_point, w, w_zero_point, {"group": group, **window})


@kernel("QLinearConv")
def qlinear_conv(
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    w: Array,
    w_scale: Array,
    w_zero_point: Array,
    y_scale: Array,
    y_zero_point: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of integers, quantized again; scales and zero points of w by output channel."""
    window = {"auto_pad": auto_pad, "dilations": dilations, "pads": pads, "strides": strides}
    acc = _convolution(x, x_zero_point, w, w_zero_point, {"group": group, **window})
    channels = (-1, *(1,) * (w.ndim - 2))
    if b is not None:
        acc += b.reshape(channels)
    scale = _combined_scale(x_scale.reshape(()), w_scale.reshape(channels), y_scale.reshape(()))
    return _requantized(acc, scale, y_zero_point.reshape(()), y_zero_point.dtype)
