"""Sampling grids of affine maps."""

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, in_float32, ints
from xrt.kernels.host.registry import kernel


@kernel("AffineGrid")
@in_float32
def affine_grid(theta: Array, size: Array, *, align_corners: int = 0) -> Array:
    """Where each pixel of an image of `size` lies after the map `theta`, as GridSample takes it.

    `theta` is (batch, 2, 3) for sizes (N, C, H, W), (batch, 3, 4) for (N, C, D, H, W); coordinates
    go from -1 to 1, the first being the fastest axis. As torch.nn.functional.affine_grid has it, a
    lone pixel lies at 0.
    """
    batch, _, *spatial = ints(size)
    if theta.shape != (batch, len(spatial), len(spatial) + 1):
        raise ValueError(f"theta {theta.shape} does not fit the size {ints(size)}")
    rank = len(spatial)
    terms = theta[:, :, rank].reshape(-1, *(1,) * rank, rank)
    for axis, count in enumerate(spatial):
        base = _positions(count, bool(align_corners), theta.dtype)
        base = base.reshape(*(-1 if a == axis else 1 for a in range(rank)), 1)
        # Spatial axes are listed from the slowest, columns of theta from the fastest.
        column = theta[:, :, rank - 1 - axis].reshape(-1, *(1,) * rank, rank)
        terms = terms + base * column
    return np.asarray(terms)


def _positions(count: int, align_corners: bool, dtype: np.dtype[np.generic]) -> Array:
    """The centres of `count` pixels between -1 and 1, the outer ones on the ends if asked."""
    if count < 2:
        return np.zeros(count, dtype)
    edge = 1.0 if align_corners else 1 - 1 / count
    return np.linspace(-edge, edge, count).astype(dtype)
