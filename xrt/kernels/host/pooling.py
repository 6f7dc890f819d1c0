"""Pooling."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, along, in_float32, is_float, pad_constant, widen
from xrt.kernels.host.registry import kernel
from xrt.kernels.host.spatial import Windows, windows

ALL = slice(None)


def _lowest(dtype: np.dtype[Any]) -> object:
    return -np.inf if is_float(dtype) else np.iinfo(dtype).min


def _padded(x: Array, plan: Windows, value: object) -> Array:
    return pad_constant(x, ((0, 0), (0, 0), *plan.needed_pads(x.shape[2:])), value)


@kernel("MaxPool")
def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    output_count: int = 1,
) -> Array | tuple[Array, Array]:
    """Greatest element of each window; with two outputs also its index in the flattened input."""
    plan = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    padded = _padded(x, plan, _lowest(x.dtype))
    best = np.full((*x.shape[:2], *plan.out), _lowest(x.dtype), x.dtype)
    if output_count == 1:
        for offset in np.ndindex(*plan.kernel):
            np.maximum(best, padded[(ALL, ALL, *plan.tap(offset))], out=best)
        return best
    places = _places(x.shape, plan, storage_order)
    index = np.full(best.shape, -1, np.int64)
    for offset in np.ndindex(*plan.kernel):
        tap = (ALL, ALL, *plan.tap(offset))
        value, place = padded[tap], places[tap]
        nan = (value != value) & (best == best)
        better = ((value > best) | nan | (index < 0)) & (place >= 0)
        best = np.where(better, value, best)
        index = np.where(better, place, index)
    return best, index


def _places(shape: tuple[int, ...], plan: Windows, storage_order: int) -> Array:
    """The flat index of every element of the padded input; -1 in the padding."""
    order = (*shape[:2], *shape[:1:-1]) if storage_order else shape
    flat = np.arange(math.prod(shape), dtype=np.int64).reshape(order)
    if storage_order:
        flat = flat.transpose(0, 1, *range(len(shape) - 1, 1, -1))
    return _padded(flat, plan, -1)


@kernel("AveragePool")
@in_float32
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Mean of each window; padding counts if `count_include_pad`, what ceil_mode adds never."""
    plan = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    total = _sum(x, plan)
    for axis, (n, (lo, hi)) in enumerate(zip(x.shape[2:], plan.pads, strict=True)):
        starts = np.arange(plan.out[axis])[:, None] * plan.strides[axis] - lo
        at = starts + np.arange(plan.kernel[axis]) * plan.dilations[axis]
        inside = (at >= -lo) & (at < n + hi) if count_include_pad else (at >= 0) & (at < n)
        total /= along(inside.sum(axis=1).astype(total.dtype), axis + 2, x.ndim)
    return total


def _sum(x: Array, plan: Windows) -> Array:
    padded = _padded(x, plan, 0)
    total = np.zeros((*x.shape[:2], *plan.out), x.dtype)
    for offset in np.ndindex(*plan.kernel):
        total += padded[(ALL, ALL, *plan.tap(offset))]
    return total


@kernel("LpPool")
@in_float32
def lp_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """p-norm of each window."""
    plan = windows(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    return np.power(_sum(np.power(np.abs(x), p), plan), 1 / p)


@kernel("GlobalAveragePool")
@in_float32
def global_average_pool(x: Array) -> Array:
    """Mean over the spatial dimensions."""
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


@kernel("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    """Greatest element over the spatial dimensions."""
    return np.asarray(widen(x).max(axis=tuple(range(2, x.ndim)), keepdims=True)).astype(x.dtype)


@kernel("GlobalLpPool")
@in_float32
def global_lp_pool(x: Array, *, p: int = 2) -> Array:
    """p-norm over the spatial dimensions."""
    total = np.power(np.abs(x), p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
    return np.power(total, 1 / p)
