"""Detection and segmentation: regions of interest, deformable convolution, folding, unpooling."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_float32, ints
from xrt.kernels.host.registry import kernel
from xrt.kernels.host.spatial import Windows, windows

ALL = slice(None)


@kernel("Col2Im")
@in_float32
def col2im(
    x: Array,
    image_shape: Array,
    block_shape: Array,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Blocks back into an image, added up where they overlap."""
    image, block = ints(image_shape), ints(block_shape)
    plan = windows(image, block, strides, dilations, pads)
    if x.shape[1] % math.prod(block) or x.shape[2] != math.prod(plan.out):
        raise ValueError(
            f"columns of shape {x.shape}; {math.prod(plan.out)} blocks of {block} fit into an "
            f"image of {image}"
        )
    columns = x.reshape(x.shape[0], -1, *block, *plan.out)
    room = (n + lo + hi for n, (lo, hi) in zip(image, plan.pads, strict=True))
    result = np.zeros((*columns.shape[:2], *room), x.dtype)
    for offset in np.ndindex(*block):
        result[(ALL, ALL, *plan.tap(offset))] += columns[(ALL, ALL, *offset)]
    inner = (slice(lo, lo + n) for n, (lo, _) in zip(image, plan.pads, strict=True))
    return contiguous(result[(ALL, ALL, *inner)])


@kernel("MaxUnpool")
def max_unpool(
    x: Array,
    indices: Array,
    output_shape: Array | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Each element at its index, zeros elsewhere.

    The indices count in the tensor that the attributes describe; a larger `output_shape` adds zeros
    behind, as ONNX's own test of it has it.
    """
    rank = x.ndim - 2
    steps, edges = strides or (1,) * rank, pads or (0,) * (2 * rank)
    natural = tuple(
        (x.shape[2 + axis] - 1) * steps[axis]
        + kernel_shape[axis]
        - edges[axis]
        - edges[axis + rank]
        for axis in range(rank)
    )
    flat = np.zeros(math.prod((*x.shape[:2], *natural)), x.dtype)
    if indices.size and not 0 <= indices.min() <= indices.max() < flat.size:
        raise ValueError(
            f"indices from {indices.min()} to {indices.max()} in a tensor of {flat.size} elements, "
            f"which kernel_shape, strides and pads make {(*x.shape[:2], *natural)}"
        )
    flat[indices.reshape(-1)] = x.reshape(-1)
    unpooled = flat.reshape(*x.shape[:2], *natural)
    if output_shape is None:
        return unpooled
    result = np.zeros(ints(output_shape), x.dtype)
    result[tuple(slice(n) for n in unpooled.shape)] = unpooled
    return result


class _Taps(NamedTuple):
    """Samples along one axis and the two pixels around each, arrays of (bins, samples)."""

    low: Array
    high: Array
    share: Array
    inside: Array


def _samples(start: Any, extent: Any, bins: int, size: int, ratio: int) -> _Taps:
    """Samples of a region, `ratio` in each bin; 0 stands for one for each pixel of the image."""
    width = extent / extent.dtype.type(bins)
    count = ratio or (max(int(np.ceil(width)), 0) if np.isfinite(width) else 1)
    steps = np.arange(count, dtype=width.dtype) + width.dtype.type(0.5)
    cells = np.arange(bins, dtype=width.dtype)[:, None]
    at = start + cells * width + steps * width / width.dtype.type(max(count, 1))
    inside = ~((at < -1) | (at > size))
    at = np.clip(at, 0, size - 1)
    low = np.where(np.isnan(at), 0, at).astype(np.int64)
    return _Taps(low, np.minimum(low + 1, size - 1), at - low, inside)


@kernel("RoiAlign")
@in_float32
def roi_align(
    x: Array,
    rois: Array,
    batch_indices: Array,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Array:
    """Average or maximum of samples in the bins of each region (Mask R-CNN).

    The maximum is that of the four weighted neighbours of each sample, as ONNX's tests have it.
    """
    half = coordinate_transformation_mode.lower() == "half_pixel"
    corners = rois * rois.dtype.type(spatial_scale) - rois.dtype.type(0.5 if half else 0)
    extents = corners[:, 2:] - corners[:, :2]
    extents = extents if half else np.maximum(extents, 1)
    pool = _average if mode.lower() == "avg" else _maximum
    result = np.empty((len(rois), x.shape[1], output_height, output_width), x.dtype)
    for number, image in enumerate(batch_indices.reshape(-1)):
        down, across = (
            _samples(corners[number, axis], extents[number, axis], bins, size, sampling_ratio)
            for axis, bins, size in ((1, output_height, x.shape[2]), (0, output_width, x.shape[3]))
        )
        result[number] = pool(x[image], down, across)
    return result


def _average(image: Array, down: _Taps, across: _Taps) -> Array:
    """Mean of all samples of each bin: bilinear sampling is a matrix product along each axis."""
    rows, columns = (
        _weights(taps, size, image.dtype)
        for taps, size in ((down, image.shape[1]), (across, image.shape[2]))
    )
    return np.matmul(np.matmul(rows, image), columns.T)


def _weights(taps: _Taps, size: int, dtype: np.dtype[Any]) -> Array:
    """The share of each pixel in the mean of each bin, (bins, size)."""
    result = np.zeros((len(taps.low), size), dtype)
    cells = np.broadcast_to(np.arange(len(taps.low))[:, None], taps.low.shape)
    count = max(taps.low.shape[1], 1)
    np.add.at(result, (cells, taps.low), np.where(taps.inside, 1 - taps.share, 0) / count)
    np.add.at(result, (cells, taps.high), np.where(taps.inside, taps.share, 0) / count)
    return result


def _maximum(image: Array, down: _Taps, across: _Taps) -> Array:
    """Maximum of the weighted neighbours of all samples of each bin."""
    shape = (len(image), len(down.low), len(across.low))
    if not down.low.size or not across.low.size:
        return np.zeros(shape, image.dtype)
    result = np.empty(shape, image.dtype)
    for i, j in np.ndindex(*shape[1:]):
        rows, columns = list(_neighbours(down, i)), list(_neighbours(across, j))
        # A sample outside the image counts as zero.
        whole = down.inside[i].all() and across.inside[j].all()
        best = np.full(len(image), -np.inf if whole else 0.0, image.dtype)
        for (y, high), (z, wide) in itertools.product(rows, columns):
            values = image[:, y[:, None], z] * (high[:, None] * wide)
            best = np.maximum(best, values.max(axis=(1, 2), initial=-np.inf))
        result[:, i, j] = best
    return result


def _neighbours(taps: _Taps, cell: int) -> Iterator[tuple[Array, Array]]:
    """Index and weight of the lower and then the higher pixel of the samples inside the image."""
    inside = taps.inside[cell]
    share = taps.share[cell][inside]
    yield taps.low[cell][inside], 1 - share
    yield taps.high[cell][inside], share


@kernel("MaxRoiPool")
@in_float32
def max_roi_pool(
    x: Array, rois: Array, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0
) -> Array:
    """Maximum of the pixels in the bins of each region, 0 in an empty one (Fast R-CNN)."""
    scaled = rois[:, 1:] * rois.dtype.type(spatial_scale)
    # Halves are rounded away from zero.
    corners = np.trunc(scaled + np.copysign(0.5, scaled).astype(x.dtype))
    result = np.zeros((len(rois), x.shape[1], *pooled_shape), x.dtype)
    for number, image in enumerate(rois[:, 0].astype(np.int64)):
        left, top, right, bottom = corners[number]
        rows = _bins(top, bottom, pooled_shape[0], x.shape[2])
        columns = _bins(left, right, pooled_shape[1], x.shape[3])
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            part = x[image, :, row, column]
            if part.size:
                result[number, :, i, j] = part.max(axis=(1, 2))
    return result


def _bins(first: Any, last: Any, count: int, size: int) -> list[slice]:
    """The pixels of each bin of a region along one axis, those outside the image left out."""
    width = np.maximum(last - first + 1, 1) / first.dtype.type(count)
    cells = np.arange(count + 1, dtype=width.dtype)
    begin = np.clip(np.floor(cells[:-1] * width) + first, 0, size).astype(np.int64)
    end = np.clip(np.ceil(cells[1:] * width) + first, 0, size).astype(np.int64)
    return [slice(*pair) for pair in zip(begin.tolist(), end.tolist(), strict=True)]


@kernel("DeformConv")
@in_float32
def deform_conv(
    x: Array,
    w: Array,
    offset: Array,
    b: Array | None = None,
    mask: Array | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution that reads each tap at a place of its own, between the pixels.

    The taps of an image are gathered into columns, then each group is one matrix product.
    """
    plan = windows(x.shape[2:], w.shape[2:], strides, dilations, pads)
    taps, points, rank = math.prod(plan.kernel), math.prod(plan.out), len(plan.out)
    expected = (len(x), offset_group * taps * rank, *plan.out)
    if offset.shape != expected:
        raise ValueError(f"offsets of shape {offset.shape}; the windows need {expected}")
    filters = w.reshape(group, w.shape[0] // group, -1)
    result = np.empty((len(x), w.shape[0], points), x.dtype)
    for number, image in enumerate(x):
        shifts = offset[number].reshape(offset_group, taps, rank, points)
        columns = _tap_columns(image, shifts, plan)  # (channels, taps, points)
        if mask is not None:
            shares = mask[number].reshape(offset_group, 1, taps, points)
            columns = (columns.reshape(offset_group, -1, taps, points) * shares).reshape(
                columns.shape
            )
        columns = columns.reshape(group, -1, points)
        result[number] = np.matmul(filters, columns).reshape(w.shape[0], points)
    if b is not None:
        result += b[:, None]
    return result.reshape(len(x), w.shape[0], *plan.out)


def _tap_columns(image: Array, shifts: Array, plan: Windows) -> Array:
    """The taps of all windows of an image, interpolated linearly, zero outside."""
    groups, taps, rank, points = shifts.shape
    tap = np.indices(plan.kernel).reshape(rank, taps, 1)
    point = np.indices(plan.out).reshape(rank, 1, points)
    axes = []
    for axis, size in enumerate(image.shape[1:]):
        fixed = tap[axis] * plan.dilations[axis] + point[axis] * plan.strides[axis]
        at = shifts[:, :, axis] + (fixed - plan.pads[axis][0]).astype(shifts.dtype)
        axes.append(list(_linear(at, size)))
    pixels = image.reshape(groups, len(image) // groups, -1)
    result = np.zeros((*pixels.shape[:2], taps, points), image.dtype)
    for corner in itertools.product(*axes):
        index: Any = 0
        weight: Any = 1
        for (place, share), size in zip(corner, image.shape[1:], strict=True):
            index, weight = index * size + place, weight * share
        for number in range(groups):
            result[number] += pixels[number][:, index[number]] * weight[number]
    return result.reshape(-1, taps, points)


def _linear(at: Array, size: int) -> Iterator[tuple[Array, Array]]:
    """Index and weight of the two pixels around places along an axis; outside they weigh 0."""
    low = np.floor(at)
    for place, weight in ((low, 1 - (at - low)), (low + 1, at - low)):
        outside = (place < 0) | (place >= size)
        index = np.where(np.isnan(place), 0, np.clip(place, 0, size - 1)).astype(np.int64)
        yield index, np.where(outside, 0, weight).astype(at.dtype)
