"""Operators that read or write elements by index."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, contiguous, normalize_axes
from xrt.kernels.host.registry import kernel

_SCATTER: dict[str, Any] = {
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


@kernel("Gather")
def gather(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Slices of `data` along an axis; negative indices count from its end."""
    return np.take(data, indices, axis=axis)


def _at(indices: Array, axis: int) -> tuple[Array, ...]:
    """An index of every position of `indices`, which itself stands for `axis`."""
    grid = list(np.ogrid[tuple(slice(n) for n in indices.shape)])
    grid[axis] = indices
    return tuple(grid)


@kernel("GatherElements")
def gather_elements(data: Array, indices: Array, *, axis: int = 0) -> Array:
    """Elements at the positions of `indices`, moved along an axis as it says."""
    (axis,) = normalize_axes((axis,), data.ndim)
    return data[_at(indices, axis)]


@kernel("ScatterElements")
def scatter_elements(
    data: Array, indices: Array, updates: Array, *, axis: int = 0, reduction: str = "none"
) -> Array:
    """A copy of `data` with `updates` written where `gather_elements` would read."""
    (axis,) = normalize_axes((axis,), data.ndim)
    return _scatter(data, _at(indices, axis), updates, reduction)


def _scatter(data: Array, where: tuple[Array, ...], updates: Array, reduction: str) -> Array:
    result = data.copy()
    if reduction == "none":
        result[where] = updates
    else:
        _SCATTER[reduction].at(result, where, updates)
    return result


@kernel("GatherND")
def gather_nd(data: Array, indices: Array, *, batch_dims: int = 0) -> Array:
    """Slices of `data` at coordinates in the last dimension of `indices`."""
    coordinates = np.moveaxis(indices, -1, 0)
    batch = np.ogrid[tuple(slice(n) for n in data.shape[:batch_dims])]
    tail = (1,) * (indices.ndim - 1 - batch_dims)
    index = (*(b.reshape(*b.shape, *tail) for b in batch), *coordinates)
    return contiguous(np.asarray(data[index]))


@kernel("ScatterND")
def scatter_nd(data: Array, indices: Array, updates: Array, *, reduction: str = "none") -> Array:
    """A copy of `data` with slices written at coordinates."""
    return _scatter(data, tuple(np.moveaxis(indices, -1, 0)), updates, reduction)


@kernel("Compress")
def compress(x: Array, condition: Array, *, axis: int | None = None) -> Array:
    """Slices along an axis where `condition` holds."""
    return np.compress(condition, x, axis)


@kernel("NonZero")
def non_zero(x: Array) -> Array:
    """Coordinates of the elements that are not zero, one column each."""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.array(np.nonzero(x), np.int64).reshape(x.ndim, -1)


@kernel("OneHot")
def one_hot(indices: Array, depth: Array, values: Array, *, axis: int = -1) -> Array:
    """values[1] at the index along a new axis, else values[0]."""
    count = int(depth.reshape(-1)[0])
    (where,) = normalize_axes((axis,), indices.ndim + 1)
    # Indices may be floats; those out of range match nothing.
    hot = np.where(indices < 0, indices + count, indices)
    classes = np.arange(count).reshape(-1, *(1,) * (indices.ndim - where))
    return np.where(np.expand_dims(hot, where) == classes, values[1], values[0]).astype(
        values.dtype
    )


@kernel("ReverseSequence")
def reverse_sequence(
    x: Array, sequence_lens: Array, *, batch_axis: int = 1, time_axis: int = 0
) -> Array:
    """Reverse the first elements of each sequence."""
    batch_axis, time_axis = normalize_axes((batch_axis, time_axis), x.ndim)
    lengths = sequence_lens.reshape([-1 if a == batch_axis else 1 for a in range(x.ndim)])
    steps = np.arange(x.shape[time_axis]).reshape(
        [-1 if a == time_axis else 1 for a in range(x.ndim)]
    )
    order = np.where(steps < lengths, lengths - 1 - steps, steps)
    return np.take_along_axis(x, order.astype(np.int64), time_axis)
