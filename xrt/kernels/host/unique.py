"""Unique elements and slices."""

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, contiguous, normalize_axes, product, widen
from xrt.kernels.host.registry import kernel


@kernel("Unique")
def unique(
    x: Array, *, axis: int | None = None, sorted: int = 1
) -> tuple[Array, Array, Array, Array]:
    """The distinct elements, or slices along `axis`: they, where, which, how many.

    Slices are sorted by their elements in turn. All NaN count as one.
    """
    if axis is None:
        x = x.reshape(-1)
        codes, axis = x, 0
    else:
        (axis,) = normalize_axes((axis,), x.ndim)
        slices = np.moveaxis(x, axis, 0)
        codes = _codes(slices.reshape(len(slices), product(slices.shape[1:])))
    _, first, inverse, counts = np.unique(
        widen(codes), return_index=True, return_inverse=True, return_counts=True
    )
    if not sorted:
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        first, inverse, counts = first[order], rank[inverse], counts[order]
    y = contiguous(np.take(x, first, axis))
    return y, first.astype(np.int64), inverse.astype(np.int64), counts.astype(np.int64)


def _codes(rows: Array) -> Array:
    """For each row bytes that sort as the row does: the ranks of its elements, big-endian."""
    if not rows.shape[1]:
        return np.zeros(len(rows), np.int8)
    _, ranks = np.unique(widen(rows), return_inverse=True)
    big = np.ascontiguousarray(ranks.reshape(rows.shape), ">u8")
    return big.view(np.dtype((np.void, big.dtype.itemsize * big.shape[1]))).reshape(-1)
