"""Operators that rearrange, create or describe tensors."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.kernels.host.common import (
    Array,
    contiguous,
    ints,
    normalize_axes,
    numpy_dtype,
    pad_constant,
)
from xrt.kernels.host.registry import kernel


@kernel("Reshape")
def reshape(data: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """`data` in another shape; 0 keeps a dimension unless `allowzero`, -1 is inferred."""
    wanted = list(ints(shape))
    if not allowzero:
        wanted = [data.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted and data.size == 0:
        # NumPy cannot infer a dimension beside one of 0.
        wanted[wanted.index(-1)] = 0
    return data.reshape(wanted)


@kernel("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """`x` as a matrix: dimensions before `axis` are rows."""
    split = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:split]))
    return x.reshape(rows, int(np.prod(x.shape[split:])))


@kernel("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Permute the dimensions, copied so that readers find contiguous memory."""
    return contiguous(np.transpose(x, perm))


@kernel("Squeeze")
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Remove dimensions of 1."""
    return np.squeeze(x, None if axes is None else normalize_axes(ints(axes), x.ndim))


@kernel("Unsqueeze")
def unsqueeze(x: Array, axes: Array) -> Array:
    """Insert dimensions of 1."""
    return np.expand_dims(x, normalize_axes(ints(axes), x.ndim + axes.size))


@kernel("Concat")
def concat(*inputs: Array, axis: int) -> Array:
    """Join along an axis."""
    return np.concatenate(inputs, axis)


@kernel("Split")
def split(
    x: Array,
    sizes: Array | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    output_count: int = 1,
) -> tuple[Array, ...]:
    """Cut along an axis: by `sizes`, or evenly with a smaller last part."""
    if sizes is None:
        count = num_outputs or output_count
        part = -(-x.shape[axis] // count)
        bounds = [min(part * i, x.shape[axis]) for i in range(1, count)]
    else:
        if int(sizes.sum()) != x.shape[axis]:
            raise ValueError(f"sizes {sizes.tolist()} do not add up to {x.shape[axis]}")
        bounds = np.cumsum(sizes)[:-1].tolist()
    return tuple(contiguous(part) for part in np.split(x, bounds, axis))


@kernel("Slice")
def slice_(
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    """A part along axes."""
    first, last = ints(starts), ints(ends)
    where = range(len(first)) if axes is None else normalize_axes(ints(axes), x.ndim)
    by = (1,) * len(first) if steps is None else ints(steps)
    index: list[slice] = [slice(None)] * x.ndim
    for axis, start, end, step in zip(where, first, last, by, strict=True):
        if step < 0 and start < -x.shape[axis]:
            start = 0  # ONNX clamps to the first element where Python's slices would be empty
        index[axis] = slice(start, end, step)
    return contiguous(x[tuple(index)])


@kernel("Expand")
def expand(x: Array, shape: Array) -> Array:
    """Broadcast `x` and `shape` with each other."""
    wanted = np.broadcast_shapes(x.shape, ints(shape))
    return np.array(np.broadcast_to(x, wanted))


@kernel("Tile")
def tile(x: Array, repeats: Array) -> Array:
    """Repeat along each dimension."""
    return np.tile(x, ints(repeats))


@kernel("Pad")
def pad(
    x: Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
    *,
    mode: str = "constant",
) -> Array:
    """Add elements at both ends of dimensions; negative counts remove them."""
    counts = ints(pads)
    where = range(x.ndim) if axes is None else normalize_axes(ints(axes), x.ndim)
    edges = [(0, 0)] * x.ndim
    for i, axis in enumerate(where):
        edges[axis] = (counts[i], counts[i + len(counts) // 2])
    bounds = zip(x.shape, edges, strict=True)
    x = x[tuple(slice(max(0, -lo), n + min(0, hi)) for n, (lo, hi) in bounds)]
    added = [(max(0, lo), max(0, hi)) for lo, hi in edges]
    if mode == "constant":
        fill: Any = 0 if value is None else value.reshape(())
        if value is None and x.dtype.kind == "O":
            fill = ""
        return contiguous(pad_constant(x, added, fill))
    return np.pad(x, added, mode=mode)  # type: ignore[call-overload]


@kernel("CenterCropPad")
def center_crop_pad(x: Array, shape: Array, *, axes: Sequence[int] | None = None) -> Array:
    """Crop or pad with zeros about the centre."""
    where = range(x.ndim) if axes is None else normalize_axes(axes, x.ndim)
    for axis, wanted in zip(where, ints(shape), strict=True):
        surplus = x.shape[axis] - wanted
        if surplus >= 0:
            before = surplus // 2
            x = np.take(x, np.arange(before, before + wanted), axis)
        else:
            edges = [(0, 0)] * x.ndim
            edges[axis] = (-surplus // 2, -surplus - -surplus // 2)
            x = pad_constant(x, edges)
    return x


@kernel("Shape")
def shape(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """The dimensions of `x` from `start` to `end`."""
    return np.array(x.shape[slice(start, end)], np.int64)


@kernel("Size")
def size(x: Array) -> Array:
    """The number of elements."""
    return np.array(x.size, np.int64)


@kernel("ConstantOfShape")
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """A tensor filled with one value."""
    filler = np.zeros(1, np.float32) if value is None else value
    return np.full(ints(shape), filler.reshape(-1)[0], filler.dtype)


@kernel("Constant")
def constant(
    *,
    sparse_value: Any = None,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
) -> Array:
    """The tensor that the node's attribute holds."""
    if value is not None:
        return value
    choices: tuple[tuple[Any, Any], ...] = (
        (value_float, np.float32),
        (value_floats, np.float32),
        (value_int, np.int64),
        (value_ints, np.int64),
        (value_string, object),
        (value_strings, object),
    )
    for given, dtype in choices:
        if given is not None:
            return np.array(given, dtype)
    raise ValueError("no attribute holds a dense value")


@kernel("Range")
def range_(start: Array, limit: Array, delta: Array, *, stash_type: int = 1) -> Array:
    """start, start + delta, ... before limit."""
    dtype = start.dtype
    if dtype.kind in "iu":
        first, last, step = (int(v.reshape(())) for v in (start, limit, delta))
        return np.arange(first, last, step).astype(dtype)
    low, high, width = (float(v.reshape(())) for v in (start, limit, delta))
    count = max(0, math.ceil((high - low) / width))
    kind = numpy_dtype(stash_type) if dtype.itemsize < 4 else dtype
    base, by = start.reshape(()).astype(kind), delta.reshape(()).astype(kind)
    return (base + np.arange(count).astype(kind) * by).astype(dtype)


@kernel("EyeLike")
def eye_like(x: Array, *, dtype: int | None = None, k: int = 0) -> Array:
    """Ones on a diagonal, in the shape of `x`."""
    return np.eye(x.shape[0], x.shape[1], k).astype(
        x.dtype if dtype is None else numpy_dtype(dtype)
    )


@kernel("Trilu")
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """The upper or lower triangle of the last two dimensions, else zeros."""
    offset = 0 if k is None else int(k.reshape(()))
    mask = np.tri(x.shape[-2], x.shape[-1], offset - bool(upper), np.bool_)
    keep = ~mask if upper else mask
    return np.where(keep, x, np.zeros((), x.dtype))


@kernel("DepthToSpace")
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Move blocks of channels into space."""
    n, c, h, w = x.shape
    depth = c // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(n, blocksize, blocksize, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, blocksize, blocksize, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, depth, h * blocksize, w * blocksize)


@kernel("SpaceToDepth")
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Move blocks of space into channels."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)
