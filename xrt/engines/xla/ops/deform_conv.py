"""Deformable convolution: each tap of each window reads where the network says.

As in `grid_sample`, samples are rows of a channels-last image: a group's channels of a pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.numerics import wide
from xrt.graph import Support


def _supports(node: ir.Node) -> Support:
    if 0 in (G.static_shape(node.inputs[0]) or ()):
        return Support.no("DeformConv of a tensor without elements")
    return windows.check_rank(node)


@lowering("DeformConv", supports=_supports, layouts=True)
def deform_conv(
    ctx: Context,
    x: Operand,
    w: Operand,
    offset: Operand,
    b: Operand | None = None,
    mask: Operand | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Operand:
    """Convolution that reads each tap at a place of its own, between the pixels.

    Every tap of every window is gathered, then each group is one matrix product.
    """
    image, weights = wide(x.last()), wide(w.plain())
    batch, *spatial, channels = image.shape
    kernel, output = weights.shape[2:], ctx.output_shape()[2:]
    window = windows.resolve(spatial, output, kernel, strides, dilations, pads, "NOTSET")
    taps, points = math.prod(kernel), math.prod(output)
    places = _tap_places(wide(offset.plain()), window, offset_group)
    columns = _sampled(image, places)  # (batch, points, taps, offset groups, channels)
    if mask is not None:
        shares = jnp.reshape(wide(mask.plain()), (batch, offset_group, taps, points, 1))
        columns = columns * jnp.transpose(shares, (0, 3, 2, 1, 4))
    # Spelled out: an einsum over taps and channels is three to five times slower.
    columns = jnp.reshape(columns, (batch * points, taps, group, channels // group))
    columns = jnp.reshape(jnp.moveaxis(columns, 2, 0), (group, batch * points, -1))
    filters = jnp.reshape(weights, (group, weights.shape[0] // group, channels // group, taps))
    filters = jnp.reshape(jnp.transpose(filters, (0, 3, 2, 1)), (group, columns.shape[2], -1))
    result = jnp.moveaxis(jnp.matmul(columns, filters), 0, 1)
    result = jnp.reshape(result, (batch, *output, weights.shape[0]))
    if b is not None:
        result = result + wide(b.plain())
    return Operand(result.astype(x.array.dtype), True)


def _tap_places(offset: Any, window: windows.Window, groups: int) -> list[Any]:
    """Along each axis, where the taps lie: (batch, points, taps, offset groups)."""
    rank, taps = len(window.kernel), math.prod(window.kernel)
    points = math.prod(window.output)
    shifts = jnp.reshape(offset, (offset.shape[0], groups, taps, rank, points))
    shifts = jnp.transpose(shifts, (3, 0, 4, 2, 1))
    tap = np.indices(window.kernel).reshape(rank, 1, taps, 1)
    point = np.indices(window.output).reshape(rank, points, 1, 1)
    return [
        shifts[axis]
        + (
            tap[axis] * window.dilations[axis]
            + point[axis] * window.strides[axis]
            - window.pads[axis][0]
        ).astype(offset.dtype)
        for axis in range(rank)
    ]


def _sampled(image: Any, places: Sequence[Any]) -> Any:
    """A channels-last image interpolated at places (batch, ..., groups) for groups of channels."""
    batch, *spatial, channels = image.shape
    shape = places[0].shape
    groups = shape[-1]
    pixels = jnp.reshape(image, (-1, channels // groups))
    first = np.arange(batch, dtype=np.int32).reshape(-1, *(1,) * (len(shape) - 1))
    axes = [_neighbours(at, size) for at, size in zip(places, spatial, strict=True)]
    result: Any = 0
    for corner in itertools.product(*axes):
        row: Any = first
        weight: Any = 1
        for (index, share), size in zip(corner, spatial, strict=True):
            row, weight = row * np.int32(size) + index, weight * share
        row = row * np.int32(groups) + np.arange(groups, dtype=np.int32)
        result = result + jnp.take(pixels, row, axis=0, mode="clip") * weight[..., None]
    return result


def _neighbours(at: Any, size: int) -> list[tuple[Any, Any]]:
    """The two neighbours, index and weight, of places along an axis; outside they weigh 0."""
    low = jnp.floor(at)
    pairs = []
    for place, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
        share = jnp.where((place < 0) | (place >= size), 0, weight)
        pairs.append((jnp.clip(place, 0, size - 1).astype(np.int32), share))
    return pairs
