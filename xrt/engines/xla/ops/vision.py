"""Detection and segmentation: regions of interest, folding and unpooling.

As in `grid_sample`, what is sampled are rows of a channels-last image: all channels of a pixel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.numerics import single, wide
from xrt.graph import Support
from xrt.kernels.jax.elementwise import divide


@lowering("Col2Im", static=(1, 2))
def col2im(
    ctx: Context,
    x: Any,
    image_shape: np.ndarray[Any, Any],
    block_shape: np.ndarray[Any, Any],
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Any:
    """Blocks back into an image, added up where they overlap; one dimension after the other."""
    batch, channels, *image = ctx.output_shape()
    block = [int(size) for size in block_shape]
    rank = len(block)
    strides, dilations = strides or (1,) * rank, dilations or (1,) * rank
    pads = pads or (0,) * (2 * rank)
    counts = [
        (size + pads[axis] + pads[axis + rank] - (taps - 1) * dilation - 1) // stride + 1
        for axis, (size, taps, dilation, stride) in enumerate(
            zip(image, block, dilations, strides, strict=True)
        )
    ]
    folded = jnp.reshape(wide(x), (batch, channels, *block, *counts))
    for axis in reversed(range(rank)):
        # (batch, channels, block[: axis + 1], counts[: axis + 1], image[axis + 1 :])
        folded = _overlap_add(
            folded,
            2 + axis,
            2 * (axis + 1),
            image[axis],
            strides[axis],
            dilations[axis],
            pads[axis],
        )
    return folded.astype(x.dtype)


def _overlap_add(
    x: Any, taps: int, places: int, size: int, stride: int, dilation: int, before: int
) -> Any:
    """Taps of a block and places of blocks, as axes of `x`, to one axis of `size` elements.

    `places` is counted without the axis `taps`.
    """
    # Taps at the positions of a dense block, which is cut into pieces as long as the stride: the
    # same piece of all blocks lies side by side in the image.
    span = (x.shape[taps] - 1) * dilation + 1
    pieces = -(-span // stride)
    zero = jnp.zeros((), x.dtype)
    config = [(0, 0, 0)] * x.ndim
    config[taps] = (0, pieces * stride - span, dilation - 1)
    x = lax.pad(x, zero, config)
    x = jnp.reshape(x, (*x.shape[:taps], pieces, stride, *x.shape[taps + 1 :]))
    x = jnp.moveaxis(x, (taps, taps + 1), (0, places + 2))
    # (pieces, ..., places, stride, ...)
    x = jnp.reshape(x, (*x.shape[: places + 1], -1, *x.shape[places + 3 :]))
    length = x.shape[places + 1]
    result: Any = None
    for piece in range(pieces):
        start = piece * stride - before
        config = [(0, 0, 0)] * (x.ndim - 1)
        config[places] = (start, size - start - length, 0)
        part = lax.pad(x[piece], zero, config)
        result = part if result is None else result + part
    return result


def _supports_unpool(node: ir.Node) -> Support:
    natural = _unpooled(node)
    wanted = (G.static_shape(node.outputs[0]) or ())[2:]
    if any(size > room for size, room in zip(natural, wanted, strict=True)):
        return Support.no(f"MaxUnpool of {natural} elements into an output of {list(wanted)}")
    return Support.yes()


def _unpooled(node: ir.Node) -> list[int]:
    """Spatial dimensions that pooling would have made the input from."""
    spatial = (G.static_shape(node.inputs[0]) or ())[2:]
    rank = len(spatial)
    kernel, strides, pads = (
        node.attributes[name].as_ints() if name in node.attributes else default
        for name, default in (
            ("kernel_shape", ()),
            ("strides", (1,) * rank),
            ("pads", (0,) * (2 * rank)),
        )
    )
    return [
        (spatial[axis] - 1) * strides[axis] + kernel[axis] - pads[axis] - pads[axis + rank]
        for axis in range(rank)
    ]


@lowering("MaxUnpool", static=(2,), supports=_supports_unpool)
def max_unpool(
    ctx: Context,
    x: Any,
    indices: Any,
    output_shape: np.ndarray[Any, Any] | None = None,
    **_: Any,
) -> Any:
    """Each element at its index, zeros elsewhere.

    The indices count in the tensor that the attributes describe; a larger `output_shape` adds zeros
    behind, as ONNX's own test of it has it.
    """
    shape, natural = ctx.output_shape(), _unpooled(ctx.node)
    count = math.prod(shape[:2]) * math.prod(natural)
    flat = jnp.zeros((count,), x.dtype)
    flat = flat.at[jnp.ravel(indices)].set(jnp.ravel(x), mode="drop")
    grown = [(0, room - size) for size, room in zip(natural, shape[2:], strict=True)]
    return jnp.pad(jnp.reshape(flat, (*shape[:2], *natural)), [(0, 0), (0, 0), *grown])


def _supports_rois(node: ir.Node) -> Support:
    if 0 in (G.static_shape(node.inputs[0]) or ()):
        return Support.no(f"{node.op_type} of a tensor without elements")
    return windows.check_rank(node, 2, 2)


def _rows(images: Any, down: Any, across: Any, width: int) -> Any:
    """Row numbers of pixels: image (rois), row (rois, height) and column (rois, width) of each."""
    return images[:, None, None] + down[:, :, None] * np.int32(width) + across[:, None, :]


@lowering("RoiAlign", supports=_supports_rois, layouts=True)
def roi_align(
    ctx: Context,
    x: Operand,
    rois: Operand,
    batch_indices: Operand,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Operand:
    """Average or maximum of samples in the bins of each region.

    The samples of a bin are visited one after the other, of all bins at once. The maximum is that
    of the four weighted neighbours of each sample, as ONNX's tests have it.
    """
    image = jnp.asarray(x.last())
    corners = wide(rois.plain()) * single(spatial_scale)
    half = coordinate_transformation_mode.lower() == "half_pixel"
    corners = corners - 0.5 if half else corners
    extents = corners[:, 2:] - corners[:, :2]
    extents = extents if half else jnp.maximum(extents, 1)
    down, across = (
        _Samples.of(corners[:, axis], extents[:, axis], count, size, sampling_ratio)
        for axis, count, size in (
            (1, output_height, image.shape[1]),
            (0, output_width, image.shape[2]),
        )
    )
    pixels = jnp.reshape(image, (-1, image.shape[-1]))
    first = jnp.asarray(batch_indices.plain()).astype(np.int32) * math.prod(image.shape[1:3])
    combine = jnp.add if mode.lower() == "avg" else jnp.maximum

    def visit(row: Any, column: Any, total: Any) -> Any:
        result = total
        pairs = itertools.product(down.neighbours(row), across.neighbours(column))
        for (high, share), (wide_, part) in pairs:
            weight = share[:, :, None] * part[:, None, :]
            sample = jnp.take(pixels, _rows(first, high, wide_, image.shape[2]), 0, mode="clip")
            result = combine(result, sample.astype(total.dtype) * _tail(weight, total))
        inside = (row < down.visits) & (column < across.visits)
        return jnp.where(inside[:, None, None, None], result, total)

    shape = (corners.shape[0], output_height, output_width, image.shape[-1])
    samples = (down.counts * across.counts)[:, 0]
    if mode.lower() == "avg":
        total = _visited(down.most, across.most, visit, jnp.zeros(shape, wide(image).dtype))
        result = total / _tail(jnp.maximum(samples, 1), total)
    else:
        total = _visited(down.most, across.most, visit, jnp.full(shape, -np.inf, wide(image).dtype))
        # Samples that were not visited lie outside the image, where it is zero.
        total = jnp.where(_tail(down.complete & across.complete), total, jnp.maximum(total, 0))
        result = jnp.where(_tail(samples == 0), 0, total)
    return Operand(result.astype(image.dtype), True)


def _tail(values: Any, like: Any = None) -> Any:
    """`values` of bins or regions with axes of size one behind, up to rank 4."""
    values = values if like is None else values.astype(like.dtype)
    return jnp.reshape(values, values.shape + (1,) * (4 - values.ndim))


@dataclass(frozen=True)
class _Samples:
    """Where RoiAlign samples along one axis.

    Attributes:
        size: Pixels of the image.
        begin: Where each bin begins, (regions, bins).
        width: How wide a bin is, (regions, 1).
        counts: Samples of a bin, (regions, 1).
        skipped: How many of them, from the first, are not visited, (regions, bins).
        visits: How many of them are visited, (regions,).
        most: The largest of `visits`.
    """

    size: int
    begin: Any
    width: Any
    counts: Any
    skipped: Any
    visits: Any
    most: Any

    @classmethod
    def of(cls, start: Any, extent: Any, bins: int, size: int, ratio: int) -> _Samples:
        """Samples of regions from `start`, `ratio` in a bin; 0 stands for one each pixel."""
        width = divide(extent, bins)[:, None]
        begin = start[:, None] + np.arange(bins, dtype=width.dtype) * width
        if ratio:
            counts = jnp.full_like(width, ratio)
            return cls(size, begin, width, counts, 0, counts[:, 0], ratio)
        counts = jnp.maximum(jnp.where(jnp.isfinite(width), jnp.ceil(width), 1), 0)
        # A bin may be much larger than the image: leave out the samples before and behind it. Such
        # samples are nearly a pixel apart.
        visits = jnp.minimum(counts, 2 * size + 8)
        before = jnp.floor((-1 - begin) * counts / width) - 2
        skipped = jnp.where(counts > visits, jnp.clip(before, 0, counts - visits), 0)
        most = jnp.max(visits, initial=0).astype(np.int32)
        return cls(size, begin, width, counts, skipped, visits[:, 0], most)

    @property
    def complete(self) -> Any:
        """Whether every sample of a region is visited."""
        return self.counts[:, 0] == self.visits

    def neighbours(self, step: Any) -> list[tuple[Any, Any]]:
        """Index and weight of the two pixels around a visited sample of each bin."""
        at = self.begin + divide((step + self.skipped + 0.5) * self.width, self.counts)
        outside = (at < -1) | (at > self.size)
        at = jnp.clip(at, 0, self.size - 1)
        low = jnp.clip(jnp.floor(at), 0, max(self.size - 2, 0))
        index, share = low.astype(np.int32), at - low
        above = jnp.minimum(index + 1, self.size - 1)
        return [(index, jnp.where(outside, 0, 1 - share)), (above, jnp.where(outside, 0, share))]


def _visited(rows: Any, columns: Any, visit: Callable[..., Any], start: Any) -> Any:
    """`start` after `visit(row, column, total)` of every row and column."""

    def step(number: Any, total: Any) -> Any:
        return visit(number // columns, number % columns, total)

    return lax.fori_loop(0, rows * columns, step, start)


@lowering("MaxRoiPool", supports=_supports_rois, layouts=True)
def max_roi_pool(
    ctx: Context,
    x: Operand,
    rois: Operand,
    *,
    pooled_shape: Sequence[int],
    spatial_scale: float = 1.0,
) -> Operand:
    """Maximum of the pixels in the bins of each region, 0 in an empty one (Fast R-CNN)."""
    image = jnp.asarray(x.last())
    size = np.asarray(image.shape[1:3], np.int32)
    regions = wide(rois.plain())
    # Halves are rounded away from zero.
    scaled = regions[:, 1:] * single(spatial_scale)
    corners = jnp.trunc(scaled + jnp.copysign(0.5, scaled))
    first, last = corners[:, 1::-1], corners[:, :1:-1]
    extents = jnp.maximum(last - first + 1, 1)
    bins = [divide(extents[:, axis, None], count) for axis, count in enumerate(pooled_shape)]

    def edges(axis: int) -> tuple[Any, Any]:
        cells = np.arange(pooled_shape[axis], dtype=first.dtype)
        low, high = jnp.floor(cells * bins[axis]), jnp.ceil((cells + 1) * bins[axis])
        limits = (jnp.clip(e + first[:, axis, None], 0, size[axis]) for e in (low, high))
        begin, end = (limit.astype(np.int32) for limit in limits)
        return begin, end

    (top, bottom), (left, right) = edges(0), edges(1)
    pixels = jnp.reshape(image, (-1, image.shape[-1]))
    images = regions[:, 0].astype(np.int32) * np.int32(image.shape[1] * image.shape[2])

    def visit(down: Any, across: Any, best: Any) -> Any:
        row, column = top + down, left + across
        sample = jnp.take(pixels, _rows(images, row, column, image.shape[2]), axis=0, mode="clip")
        inside = (row < bottom)[:, :, None] & (column < right)[:, None, :]
        return jnp.where(inside[..., None], jnp.maximum(best, sample), best)

    shape = (regions.shape[0], *pooled_shape, image.shape[-1])
    high, broad = (jnp.max(e - b, initial=0) for b, e in ((top, bottom), (left, right)))
    best = _visited(high, broad, visit, jnp.full(shape, -np.inf, image.dtype))
    empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
    return Operand(jnp.where(empty[..., None], jnp.zeros((), image.dtype), best), True)
