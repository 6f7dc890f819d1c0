"""Sampling at computed places: GridSample and the AffineGrid that feeds it.

Samples are rows of a channels-last image, so a tap reads all channels of a pixel at once: 2.5 ms
against 9 ms for channel-wise reads on the deformable attention of Mask2Former (8 heads of 32
channels, 64x64, 21,504 samples).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.memory import pinned
from xrt.graph import Support

_CUBIC_A = -0.75
_MODES = {"linear": 2, "bilinear": 2, "nearest": 1, "cubic": 4, "bicubic": 4}
"""Taps along each axis; the names with "bi" are those of opset 16."""
_FEW_CHANNELS = 4
"""Up to so many channels, a nearest pixel is read from each: 3x512x512 takes 1.0 ms and 2.0 ms by
pixels; 64x128x128 takes 2.7 ms and 1.6 ms by pixels, the transposes included."""


def _supports(node: ir.Node) -> Support:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "linear"
    if mode not in _MODES:
        return Support.no(f"GridSample mode {mode!r} is unknown. Known: linear, nearest, cubic")
    if 0 in (G.static_shape(node.inputs[0]) or ()):
        return Support.no("GridSample of a tensor without elements")
    return windows.check_rank(node)


@lowering("GridSample", supports=_supports, layouts=True)
def grid_sample(
    ctx: Context,
    x: Operand,
    grid: Operand,
    *,
    mode: str = "linear",
    padding_mode: str = "zeros",
    align_corners: int = 0,
) -> Operand:
    """Interpolate `x` at the places that `grid` names in [-1, 1], last axis first."""
    spatial = [np.shape(x.array)[x.axis(axis)] for axis in range(2, x.rank)]
    places = grid.plain()
    wide = np.float64 if places.dtype == np.float64 else np.float32
    axes = []
    for axis, size in enumerate(spatial):
        at = jnp.asarray(places[..., len(spatial) - 1 - axis]).astype(wide)
        at = _denormalized(at, size, bool(align_corners))
        axes.append(list(_axis_taps(at, size, mode, padding_mode, bool(align_corners))))
    taps = _joined(axes, spatial)
    if mode != "nearest":
        return _interpolated(x, taps)
    ((row, weight),) = taps
    if not x.channels_last and np.shape(x.array)[1] <= _FEW_CHANNELS:
        return _nearest_by_channel(jnp.asarray(x.array), row, weight)
    sample = jnp.take(*_pixels(pinned(jnp.asarray(x.last())), row), axis=0, mode="clip")
    return Operand(pinned(_masked(weight[..., None], sample)), True)


def _joined(axes: Sequence[Sequence[tuple[Any, Any]]], sizes: Sequence[int]) -> list[Any]:
    """From the taps of each axis those of a pixel: (place in the flattened image, weight)."""
    result = []
    for taps in itertools.product(*axes):
        row: Any = 0
        weight: Any = None
        stride = 1
        for size, (place, share) in zip(reversed(sizes), reversed(taps), strict=True):
            row = row + place * np.int32(stride)
            weight = share if weight is None else weight * share
            stride *= size
        result.append((row, weight))
    return result


def _interpolated(x: Operand, taps: Sequence[tuple[Any, Any]]) -> Operand:
    """The weighted sum of the taps."""
    array = pinned(jnp.asarray(x.last()))
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    compute = jnp.promote_types(array.dtype, np.float32) if floating else np.float32
    result: Any = 0
    for row, weight in taps:
        sample = jnp.take(*_pixels(array, row), axis=0, mode="clip")
        result = result + sample.astype(compute) * weight.astype(compute)[..., None]
    return Operand(pinned(result.astype(array.dtype)), True)


def _pixels(array: Any, place: Any) -> tuple[Any, Any]:
    """The pixels of a channels-last batch as rows, and `place` in each image as a row number."""
    images = np.arange(array.shape[0], dtype=np.int32) * math.prod(array.shape[1:-1])
    rows = images.reshape((-1,) + (1,) * (place.ndim - 1)) + place
    return jnp.reshape(array, (-1, array.shape[-1])), rows


def _nearest_by_channel(array: Any, place: Any, weight: Any) -> Operand:
    """The pixel at `place` in each image, where `weight` is not 0, read channel by channel."""
    n, channels, *spatial = array.shape
    # The barrier: what is fused with the reads is computed again for each channel.
    place, weight = lax.optimization_barrier((place, weight))  # type: ignore[no-untyped-call]
    planes = np.arange(n * channels, dtype=np.int32) * math.prod(spatial)
    planes = planes.reshape((n, channels) + (1,) * (place.ndim - 1))
    sample = jnp.take(array.reshape(-1), planes + place[:, None], mode="clip")
    return Operand(_masked(weight[:, None], sample))


def _masked(weight: Any, sample: Any) -> Any:
    # A zero of its own type: with a Python number booleans would become integers.
    return jnp.where(weight > 0, sample, jnp.zeros((), sample.dtype))


def _denormalized(at: Any, size: int, align_corners: bool) -> Any:
    return (at + 1) / 2 * (size - 1) if align_corners else ((at + 1) * size - 1) / 2


def _axis_taps(
    at: Any, size: int, mode: str, padding: str, align_corners: bool
) -> Iterator[tuple[Any, Any]]:
    """(place, weight) of each tap along one axis; a weight of zero where padding is zeros."""
    if mode == "nearest":
        at = jnp.round(at)  # to even, as torch
    if padding == "border" and mode not in ("cubic", "bicubic"):
        at = jnp.clip(at, 0, size - 1)
    elif padding == "reflection":
        # Cubic reflects its taps again: only they can still be outside.
        at = _reflected(at, size, align_corners)
    count = _MODES[mode]
    left = jnp.floor(at)
    for tap, weight in enumerate(_weights(at - left, count)):
        place = left + (tap - (count - 1) // 2)
        if padding == "zeros":
            weight = jnp.where((place >= 0) & (place < size), weight, 0)
        elif padding == "reflection":
            place = jnp.trunc(_reflected(place, size, align_corners))
        yield jnp.clip(place, 0, size - 1).astype(np.int32), weight


def _weights(fraction: Any, count: int) -> Sequence[Any]:
    if count == 1:
        return [jnp.ones_like(fraction)]
    if count == 2:
        return [1 - fraction, fraction]
    return [_cubic(fraction + 1), _cubic(fraction), _cubic(1 - fraction), _cubic(2 - fraction)]


def _cubic(x: Any) -> Any:
    """Keys' kernel at distance `x`."""
    a = _CUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return jnp.where(x <= 1, near, far)


def _reflected(at: Any, size: int, align_corners: bool) -> Any:
    """`at` mirrored at the borders until it lies between them."""
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    length = high - low
    if length == 0:
        return at * 0
    distance = jnp.abs(at - low)
    turns = jnp.floor(distance / length)
    rest = distance - turns * length
    return jnp.where(turns % 2 == 0, low + rest, high - rest)


@lowering("AffineGrid", static=(1,))
def affine_grid(
    ctx: Context, theta: Any, size: np.ndarray[Any, Any], *, align_corners: int = 0
) -> Any:
    """The places that an affine map takes a regular grid to, last axis first."""
    spatial = [int(extent) for extent in size[2:]]
    lines = [_regular(extent, bool(align_corners)) for extent in spatial]
    mesh = np.meshgrid(*lines, indexing="ij")[::-1]
    points = np.stack([*mesh, np.ones(spatial)], axis=-1)
    theta = jnp.asarray(theta)
    wide = theta.dtype if theta.dtype == np.float64 else np.float32
    # Multiplied and added elementwise: a matrix product would not round like the reference.
    terms = points.astype(wide)[None, ..., None, :] * jnp.expand_dims(
        theta.astype(wide), tuple(range(1, 1 + len(spatial)))
    )
    return jnp.sum(terms, axis=-1).astype(theta.dtype)


def _regular(extent: int, align_corners: bool) -> np.ndarray[Any, Any]:
    if align_corners:
        return np.linspace(-1.0, 1.0, extent) if extent > 1 else np.zeros(extent)
    return (np.arange(extent) * 2 + 1) / max(extent, 1) - 1
