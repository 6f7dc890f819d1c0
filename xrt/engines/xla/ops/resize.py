"""Resize: every mode is, axis by axis, a few weighted taps whose places are known beforehand."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.graph import Support

Array = np.ndarray[Any, Any]

_MOST_GATHERS = 64
"""Taps up to which an axis is resized by that many gathers, which fuse into one pass over the
result; above, by a matrix. Shrinking 8x3x512x512 to 224 rows with antialiasing takes 1.4 ms by
gathers (6 taps; 10 taps 2.0) and 23 ms by a matrix on one AVX-512 core."""
_GATHERS_PER_ROW = 4, 100
"""Along the last axis a gather reads single elements, 2 ns each, and a matrix product multiplies
50 in a nanosecond: gathers win up to four taps, and up to one for 100 elements of the axis. To 224
columns: 2.3 ms (6 taps) and 4.2 ms (10) by gathers, 1.8 ms by a matrix; 2048 to 512 columns: 5 ms
(8 taps) by gathers, 15 ms by a matrix."""


@dataclass(frozen=True)
class Taps:
    """How one axis is resized: result i is the sum over t of weights[i, t] * x[places[i, t]].

    Attributes:
        places: Indices into the input, (output, taps).
        weights: Their weights, (output, taps).
        outside: Results that are the extrapolation value instead, (output,); None for none.
    """

    places: Array
    weights: Array
    outside: Array | None


def _supports(node: ir.Node) -> Support:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    if mode not in ("nearest", "linear", "cubic"):
        return Support.no(f"Resize mode {mode!r} is unknown. Known modes: nearest, linear, cubic")
    if 0 in (G.static_shape(node.inputs[0]) or ()) + (G.static_shape(node.outputs[0]) or ()):
        return Support.no("Resize from or to a tensor without elements")
    return Support.yes()


@lowering("Resize", static=(1, 2, 3), supports=_supports, layouts=True)
def resize(
    ctx: Context,
    x: Operand,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    axes: Sequence[int] | None = None,
    extrapolation_value: float = 0.0,
    mode: str = "nearest",
    keep_aspect_ratio_policy: str = "stretch",
    **how: Any,
) -> Operand:
    """Interpolate along each axis whose size or region changes."""
    chosen = [axis % x.rank for axis in (axes if axes is not None else range(x.rank))]
    factors = _factors(ctx, x, chosen, scales, sizes, keep_aspect_ratio_policy)
    region = roi if roi is not None and roi.size else None
    source = jnp.asarray(x.array)
    array = source if mode == "nearest" else source.astype(_wide(source.dtype))
    for index, axis in enumerate(chosen):
        position = x.axis(axis)
        span = (0.0, 1.0)
        if region is not None:
            span = (float(region[index]), float(region[index + len(chosen)]))
        size, output = array.shape[position], ctx.output_shape()[axis]
        if size == output and np.isclose(factors[index], 1.0) and np.allclose(span, (0, 1)):
            continue
        taps = axis_taps(size, output, factors[index], span, mode, **how)
        array = _interpolated(array, position, taps, extrapolation_value)
    return Operand(_cast(array, source.dtype), x.channels_last)


def _factors(
    ctx: Context,
    x: Operand,
    axes: Sequence[int],
    scales: Array | None,
    sizes: Array | None,
    policy: str,
) -> list[float]:
    """The scale along each of `axes`, which need not be the ratio of the sizes."""
    if scales is not None and scales.size:
        return [float(scale) for scale in scales]
    assert sizes is not None, "ONNX asks for scales or sizes"
    inputs = [np.shape(x.array)[x.axis(axis)] for axis in axes]
    ratios = [int(want) / size for want, size in zip(sizes, inputs, strict=True)]
    if policy == "not_larger":
        return [min(ratios)] * len(ratios)
    if policy == "not_smaller":
        return [max(ratios)] * len(ratios)
    return ratios


def axis_taps(
    size: int,
    output: int,
    scale: float,
    span: tuple[float, float],
    mode: str,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    antialias: int = 0,
) -> Taps:
    """The taps of one axis from `size` to `output` elements."""
    at = _coordinates(coordinate_transformation_mode, size, output, scale, span)
    outside = None
    if coordinate_transformation_mode == "tf_crop_and_resize":
        outside = (at < 0) | (at > size - 1)
        outside = outside if outside.any() else None
    if mode == "nearest":
        places = _nearest(at, nearest_mode)[:, None]
        weights = np.ones(places.shape)
    else:
        places, weights = _weights(at, mode, scale if antialias else 1.0, cubic_coeff_a)
        if exclude_outside:
            weights = np.where((places < 0) | (places >= size), 0.0, weights)
            weights = weights / weights.sum(axis=1, keepdims=True)
    return Taps(np.clip(places, 0, size - 1), weights, outside)


def _coordinates(
    mode: str, size: int, output: int, scale: float, span: tuple[float, float]
) -> Array:
    """The place in the input of each result."""
    step = np.arange(output, dtype=np.float64)
    width = scale * size
    if mode == "align_corners":
        return step * 0.0 if width == 1 else step * (size - 1) / (width - 1)
    if mode == "asymmetric":
        return step / scale
    if mode == "tf_crop_and_resize":
        start, end = span
        if width == 1:
            return step * 0.0 + (start + end) * (size - 1) / 2
        return start * (size - 1) + step * (end - start) * (size - 1) / (width - 1)
    if mode == "pytorch_half_pixel" and width == 1:
        return np.full(output, -0.5)
    shift = size / 2 * (1 - output / width) if mode == "half_pixel_symmetric" else 0.0
    return shift + (step + 0.5) / scale - 0.5


def _nearest(at: Array, mode: str) -> Array:
    rounded: dict[str, Array] = {
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "round_prefer_ceil": np.floor(at + 0.5),
        "round_prefer_floor": np.ceil(at - 0.5),
    }
    return rounded[mode].astype(np.int64)


def _weights(at: Array, mode: str, scale: float, a: float) -> tuple[Array, Array]:
    """Places, not yet clamped, and weights of linear or cubic interpolation.

    A scale below 1 stretches the kernel, which is what antialiasing means.
    """
    scale = min(scale, 1.0)
    reach = 1 if mode == "linear" else 2
    # ONNX numbers the taps from the left neighbour of `at`, which for a whole `at` is one less.
    left = np.ceil(at).astype(np.int64) - 1
    first = int(np.floor(-reach / scale)) + 1
    offsets = np.arange(first, 2 - first if mode == "cubic" or scale < 1 else 2)
    places = left[:, None] + offsets
    distance = np.abs(places - at[:, None]) * scale
    kernel = np.clip(1 - distance, 0, None) if mode == "linear" else _cubic(distance, a)
    if scale < 1:
        kernel = kernel / kernel.sum(axis=1, keepdims=True)
    return places, kernel


def _cubic(x: Array, a: float) -> Array:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _interpolated(array: Any, axis: int, taps: Taps, extrapolation: float) -> Any:
    """`array` with one axis resized."""
    count = taps.places.shape[1]
    least, per_tap = _GATHERS_PER_ROW
    most = _MOST_GATHERS
    if axis == array.ndim - 1:
        most = min(most, max(least, array.shape[axis] // per_tap))
    shape = [1] * array.ndim
    shape[axis] = -1
    if count == 1:
        result = jnp.take(array, taps.places[:, 0], axis=axis, mode="clip")
    elif count <= most:
        parts = (
            jnp.take(array, taps.places[:, tap], axis=axis, mode="clip")
            * taps.weights[:, tap].astype(array.dtype).reshape(shape)
            for tap in range(count)
        )
        result = functools.reduce(jnp.add, parts)
    else:
        rows = np.arange(len(taps.places))[:, None]
        matrix = np.zeros((len(taps.places), array.shape[axis]))
        np.add.at(matrix, (rows, taps.places), taps.weights)
        result = jnp.tensordot(array, matrix.astype(array.dtype), axes=(axis, 1))
        result = jnp.moveaxis(result, -1, axis)
    if taps.outside is not None:
        value = np.asarray(extrapolation).astype(array.dtype)
        result = jnp.where(taps.outside.reshape(shape), value, result)
    return result


def _wide(dtype: Any) -> Any:
    dtype = np.dtype(dtype)
    return np.float32 if dtype.itemsize < 4 or dtype == np.float32 else np.float64


def _cast(array: Any, dtype: Any) -> Any:
    """Round and saturate into integers; plain rounding into narrower floats."""
    if array.dtype == dtype:
        return array
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        # As floats: JAX takes the largest uint64 for an int64 that overflows.
        array = jnp.clip(jnp.round(array), float(info.min), float(info.max))
    return array.astype(dtype)
