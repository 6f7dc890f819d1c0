"""Linear quantization to integers of 8 and more bits; other targets are left to the reference."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, RareCaseError, along, normalize_axes, numpy_dtype, widen
from xrt.kernels.host.conv import conv
from xrt.kernels.host.registry import kernel


def _shaped(values: Array, axis: int, rank: int, block_size: int) -> Array:
    """A scale or zero point shaped to broadcast: one for all, or one along `axis`."""
    if values.size == 1 and values.ndim <= 1:
        return values.reshape(())
    if values.ndim != 1 or block_size:
        raise RareCaseError
    (axis,) = normalize_axes((axis,), rank)
    return along(values, axis, rank)


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
    """round(x / scale) + zero_point, limited to the range of the output type."""
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    if zero_point is not None:
        dtype = zero_point.dtype
    elif output_dtype:
        dtype = numpy_dtype(output_dtype)
    if dtype.kind not in "iu" or precision or scale.dtype != np.float32 or x.dtype.kind != "f":
        raise RareCaseError
    y = np.rint(x / _shaped(scale, axis, x.ndim, block_size))
    if zero_point is not None:
        y = y + _shaped(zero_point, axis, x.ndim, block_size)
    limits = np.iinfo(dtype)
    return np.clip(y, limits.min, limits.max).astype(dtype)


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
    """(x - zero_point) scale."""
    if x.dtype.kind not in "iu" or output_dtype or scale.dtype != np.float32:
        raise RareCaseError
    factor = _shaped(scale, axis, x.ndim, block_size)
    if zero_point is not None and zero_point.any():
        offset = _shaped(zero_point, axis, x.ndim, block_size).astype(np.int32)
        x = x.astype(np.int32) - offset
    return np.multiply(x, factor, dtype=np.float32)


def _centred(x: Array, zero_point: Array | None, axis: int) -> Array:
    """x - zero_point in float64, which holds every sum of 8-bit products exactly, and is fast."""
    wide = x.astype(np.float64)
    return wide if zero_point is None else wide - _shaped(zero_point, axis, x.ndim, 0)


@kernel("MatMulInteger")
def matmul_integer(
    a: Array, b: Array, a_zero_point: Array | None = None, b_zero_point: Array | None = None
) -> Array:
    """Matrix product of integers in int32."""
    left = _centred(a, a_zero_point, max(a.ndim - 2, 0))
    right = _centred(b, b_zero_point, b.ndim - 1)
    return np.matmul(left, right).astype(np.int32)


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
    """Convolution of integers in int32."""
    result = conv(
        _centred(x, x_zero_point, 1),
        _centred(w, w_zero_point, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return np.asarray(result).astype(np.int32)


@kernel("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Array) -> tuple[Array, Array, Array]:
    """Quantize to uint8 with the range of `x` itself, which is widened to hold 0."""
    wide = widen(x)
    low, high = min(wide.min(initial=0), 0), max(wide.max(initial=0), 0)
    scale = np.asarray((high - low) / 255, np.float32)
    if scale == 0:
        return np.zeros(x.shape, np.uint8), scale, np.zeros((), np.uint8)
    zero = np.clip(np.rint(-low / scale), 0, 255).astype(np.uint8)
    y = np.clip(np.rint(wide / scale) + zero, 0, 255).astype(np.uint8)
    return y, scale, np.asarray(zero)
