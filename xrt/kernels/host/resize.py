"""Resampling: Resize and GridSample."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, along, is_float, normalize_axes, widen
from xrt.kernels.host.registry import kernel

Weights = tuple[Array, Array]
"""Source indices and their weights, both of shape (output length, taps)."""


@kernel("Resize")
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """Resample; every mode is separable, so each axis is done by itself."""
    where = normalize_axes(range(x.ndim) if axes is None else axes, x.ndim)
    factors, lengths = _target(x, where, scales, sizes, keep_aspect_ratio_policy)
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    result = x if mode == "nearest" else widen(x)
    if result.dtype.kind in "iu" and mode != "nearest":
        result = result.astype(np.float64)
    for i, (axis, factor, length) in enumerate(zip(where, factors, lengths, strict=True)):
        if factor == 1 and length == x.shape[axis] and not crop:
            continue
        span = _span(roi, i, len(where)) if crop else (0.0, 1.0)
        at = _coordinates(coordinate_transformation_mode, x.shape[axis], length, factor, span)
        if mode == "nearest":
            taps = _nearest(at, nearest_mode)
        else:
            spread = max(1.0, 1 / factor) if antialias else 1.0
            taps = _filter(at, mode, spread, cubic_coeff_a)
        result = _apply(result, axis, taps, bool(exclude_outside), mode == "nearest")
        if crop:
            outside = along((at < 0) | (at > x.shape[axis] - 1), axis, x.ndim)
            result = np.where(outside, np.asarray(extrapolation_value, result.dtype), result)
    return _round_to(result, x.dtype)


def _round_to(result: Array, dtype: np.dtype[Any]) -> Array:
    if result.dtype == dtype or is_float(dtype):
        return result.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(result), limits.min, limits.max).astype(dtype)


def _target(
    x: Array, axes: Sequence[int], scales: Array | None, sizes: Array | None, policy: str
) -> tuple[list[float], list[int]]:
    """Factor and output length for each of `axes`."""
    if scales is not None and scales.size:
        factors = [float(s) for s in scales]
        return factors, [math.floor(x.shape[a] * s) for a, s in zip(axes, factors, strict=True)]
    if sizes is None:
        raise ValueError("neither scales nor sizes are given")
    lengths = [int(n) for n in sizes]
    factors = [n / x.shape[a] for a, n in zip(axes, lengths, strict=True)]
    if policy == "stretch":
        return factors, lengths
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [factor] * len(axes), [int(factor * x.shape[a] + 0.5) for a in axes]


def _span(roi: Array | None, index: int, count: int) -> tuple[float, float]:
    if roi is None or not roi.size:
        raise ValueError("tf_crop_and_resize needs roi")
    return float(roi[index]), float(roi[index + count])


def _coordinates(
    mode: str, size: int, length: int, factor: float, span: tuple[float, float]
) -> Array:
    """Where each output element lies in the input."""
    y = np.arange(length, dtype=np.float64)
    width = factor * size
    if mode == "align_corners":
        return y * 0 if width == 1 else y * (size - 1) / (width - 1)
    if mode == "asymmetric":
        return y / factor
    if mode == "tf_crop_and_resize":
        start, end = span
        if width == 1:
            return y * 0 + (end + start) * (size - 1) / 2
        return start * (size - 1) + y * (end - start) * (size - 1) / (width - 1)
    if mode == "pytorch_half_pixel" and width == 1:
        return y * 0 - 0.5
    centred: Array = (y + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":
        centred += size / 2 * (1 - length / width)
    elif mode not in ("half_pixel", "pytorch_half_pixel"):
        raise ValueError(f"coordinate_transformation_mode {mode!r} is unknown")
    return centred


_NEAREST: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _nearest(at: Array, mode: str) -> Weights:
    index = _NEAREST[mode](at).astype(np.intp)[:, None]
    return index, np.ones(index.shape)


def _filter(at: Array, mode: str, spread: float, a: float) -> Weights:
    """Taps of the linear or cubic filter, stretched by `spread` where it also removes aliasing."""
    radius = (2 if mode == "cubic" else 1) * spread
    first = np.floor(at - radius).astype(np.intp)[:, None] + 1
    index = first + np.arange(math.ceil(2 * radius))
    distance = np.abs(index - at[:, None]) / spread
    weights = _cubic(distance, a) if mode == "cubic" else np.maximum(0, 1 - distance)
    return index, weights / weights.sum(axis=1, keepdims=True)


def _cubic(distance: Array, a: float) -> Array:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _apply(x: Array, axis: int, taps: Weights, exclude_outside: bool, nearest: bool) -> Array:
    index, weights = taps
    size = x.shape[axis]
    if exclude_outside and not nearest:
        weights = np.where((index < 0) | (index >= size), 0, weights)
        weights = weights / weights.sum(axis=1, keepdims=True)
    index = np.clip(index, 0, size - 1)
    result = np.take(x, index[:, 0], axis)
    if nearest:
        return result
    factors = weights.astype(x.dtype)
    result *= along(factors[:, 0], axis, x.ndim)
    for tap in range(1, index.shape[1]):
        part = np.take(x, index[:, tap], axis)
        part *= along(factors[:, tap], axis, x.ndim)
        result += part
    return result


@kernel("GridSample")
def grid_sample(
    x: Array,
    grid: Array,
    *,
    align_corners: int = 0,
    mode: str = "linear",
    padding_mode: str = "zeros",
) -> Array:
    """Elements of `x` at coordinates, which run from -1 to 1 across each dimension."""
    sizes = x.shape[2:]
    corners, cubic = bool(align_corners), mode in ("cubic", "bicubic")
    at = []
    for axis, size in enumerate(sizes):
        place = _denormalized(widen(grid[..., -1 - axis]), size, corners)
        # Cubic brings its taps inside, not the place itself.
        at.append(place if cubic else _inside(place, size, corners, padding_mode))
    flat = x.reshape(*x.shape[:2], -1)
    if mode == "nearest":
        result = _sample(flat, [np.rint(a) for a in at], sizes)
    else:
        flat = widen(flat) if is_float(x.dtype) else flat.astype(np.float32)
        if cubic:
            inside = functools.partial(_inside, align_corners=corners, padding_mode=padding_mode)
            result = _cubic_sample(flat, at, sizes, inside)
        else:
            result = _linear_sample(flat, at, sizes)
    return result.reshape(*x.shape[:2], *grid.shape[1:-1]).astype(x.dtype, copy=False)


def _denormalized(at: Array, size: int, align_corners: bool) -> Array:
    """Coordinates in elements."""
    return (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2


def _inside(place: Array, size: int, align_corners: bool, padding_mode: str) -> Array:
    """Coordinates in elements, brought inside unless padding is zeros."""
    if padding_mode == "border":
        return np.clip(place, 0, size - 1)
    if padding_mode == "reflection":
        low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
        span = high - low
        if span <= 0:
            return np.zeros_like(place)
        offset = np.mod(place - low, 2 * span)
        return np.clip(low + np.where(offset > span, 2 * span - offset, offset), 0, size - 1)
    return place


def _cubic_sample(
    flat: Array, at: Sequence[Array], sizes: Sequence[int], inside: Callable[[Array, int], Array]
) -> Array:
    """Keys' cubic kernel over four taps along each axis."""
    below = [np.floor(a) for a in at]
    rest = [a - b for a, b in zip(at, below, strict=True)]
    result: Array | None = None
    for taps in itertools.product(range(-1, 3), repeat=len(sizes)):
        shares = (_cubic(np.abs(r - tap), -0.75) for r, tap in zip(rest, taps, strict=True))
        weight: Array = functools.reduce(np.multiply, shares)
        places = [inside(b + tap, size) for b, tap, size in zip(below, taps, sizes, strict=True)]
        part = _sample(flat, places, sizes)
        part *= weight.reshape(weight.shape[0], 1, -1)
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None
    return result


def _linear_sample(flat: Array, at: Sequence[Array], sizes: Sequence[int]) -> Array:
    below = [np.floor(a) for a in at]
    rest = [a - b for a, b in zip(at, below, strict=True)]
    result: Array | None = None
    for corner in itertools.product((0, 1), repeat=len(sizes)):
        shares = (r if c else 1 - r for r, c in zip(rest, corner, strict=True))
        weight: Array = functools.reduce(np.multiply, shares)
        part = _sample(flat, [b + c for b, c in zip(below, corner, strict=True)], sizes)
        part *= weight.reshape(weight.shape[0], 1, -1)
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None
    return result


def _sample(flat: Array, at: Sequence[Array], sizes: Sequence[int]) -> Array:
    """Elements of `flat` (batch, channels, positions) at whole coordinates; zero outside."""
    inside: Array = np.ones(at[0].shape, np.bool_)
    index: Array = np.zeros(at[0].shape, np.intp)
    for place, size in zip(at, sizes, strict=True):
        inside &= (place >= 0) & (place < size)
        index = index * size + np.clip(np.nan_to_num(place), 0, size - 1).astype(np.intp)
    batch = flat.shape[0]
    index, inside = index.reshape(batch, -1), inside.reshape(batch, -1)
    result = np.stack([np.take(f, i, axis=1) for f, i in zip(flat, index, strict=True)])
    result *= inside[:, None]
    return result
