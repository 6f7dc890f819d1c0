"""Winograd's minimal filtering for 3x3 convolution with stride 1.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015
(arXiv:1509.09308). ``Y = A^T [(G g G^T) * (B^T d B)] A`` on tiles d of (m+2) x (m+2) inputs, which
give m x m outputs with (m+2)^2 instead of 9 m^2 multiplications. The matrices come from the
interpolation points, so that F(2,3) and F(4,3) are two rows of one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# F(4x4,3x3) as published uses the points 0, +-1, +-2. The points +-1/2 instead of one of +-2 would
# lower the error a little, at the price of matrices that are no longer symmetric.
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 2.0, -2.0)}
_TAPS = 3


def matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``A^T`` [m, t], ``G`` [t, 3] and ``B^T`` [t, t] of F(m, 3) with t = m + 2, in float64.

    Toom-Cook: evaluate both polynomials at the points and at infinity, multiply, interpolate; then
    transpose the whole. ``B^T`` follows from requiring exactness, which is a linear system.
    """
    points = np.array(_POINTS[m])
    tile = m + _TAPS - 1
    infinity = np.zeros((1, tile))
    infinity[0, -1] = 1.0
    evaluate = np.concatenate([np.vander(points, tile, increasing=True), infinity])
    at = np.concatenate([np.vander(points, m, increasing=True), np.eye(m)[-1:]]).T
    g = np.concatenate([np.vander(points, _TAPS, increasing=True), np.eye(_TAPS)[-1:]])
    bt = np.linalg.inv(evaluate).T
    # Scale each product so that B^T is free of fractions: the activations stay exact longest.
    scale = np.array([np.prod(p - np.delete(points, i)) for i, p in enumerate(points)] + [1.0])
    return at, g / scale[:, None], bt * scale[:, None]


def winograd_weight(w_oihw: np.ndarray, m: int) -> np.ndarray:
    """Transform a weight [O, I, 3, 3] to [(m+2)^2, I, O], in float64, rounded once to its dtype."""
    _, g, _ = matrices(m)
    u = np.einsum("ah,ochw,bw->abco", g, w_oihw.astype(np.float64), g)
    return np.ascontiguousarray(u.reshape(-1, *u.shape[2:])).astype(w_oihw.dtype)


def _combine(rows: Sequence[Sequence[float]], parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Return ``rows @ parts`` written out, without the zeros and without multiplying by one."""
    out = []
    for row in rows:
        total = None
        for factor, part in zip(row, parts, strict=True):
            if factor == 0:
                continue
            term = part if abs(factor) == 1 else part * jnp.asarray(abs(factor), part.dtype)
            if total is None:
                total = term if factor > 0 else -term
            else:
                total = total + term if factor > 0 else total - term
        assert total is not None
        out.append(total)
    return out


def winograd(x: jax.Array, u: jax.Array, *, m: int, pads: tuple[int, int, int, int]) -> jax.Array:
    """Convolve x [N, H, W, C] with a transformed weight u [(m+2)^2, C, O]; 3x3, stride 1.

    `pads` is (top, left, bottom, right). Returns [N, H', W', O] in x's dtype; the products
    accumulate in fp32 or better.
    """
    at, _, bt = (matrix.tolist() for matrix in matrices(m))
    n, h, w, c = x.shape
    tile = m + _TAPS - 1
    out_h, out_w = h + pads[0] + pads[2] - 2, w + pads[1] + pads[3] - 2
    tiles_h, tiles_w = -(-out_h // m), -(-out_w // m)
    # Every tile reads m fresh rows and the first two of its right or lower neighbour.
    low = (pads[0], pads[1])
    high = (tiles_h * m + 2 - h - pads[0], tiles_w * m + 2 - w - pads[1])
    compute = jnp.promote_types(x.dtype, jnp.float32)
    config = [(0, 0, 0), *((a, b, 0) for a, b in zip(low, high, strict=True)), (0, 0, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), config).astype(compute)
    padded = lax.optimization_barrier(padded)  # type: ignore[no-untyped-call]

    def at_offset(i: int, j: int) -> jax.Array:
        limit = (n, i + (tiles_h - 1) * m + 1, j + (tiles_w - 1) * m + 1, c)
        return lax.slice(padded, (0, i, j, 0), limit, (1, m, m, 1))

    columns = [_combine(bt, [at_offset(i, j) for i in range(tile)]) for j in range(tile)]
    v = [_combine(bt, [columns[j][a] for j in range(tile)]) for a in range(tile)]
    stacked = jnp.stack([v[a][b] for a, b in product(range(tile), repeat=2)])
    stacked = stacked.reshape(tile * tile, n * tiles_h * tiles_w, c)
    mixed = lax.dot_general(
        stacked, u.astype(compute), (((2,), (1,)), ((0,), (0,))), preferred_element_type=compute
    )
    mixed = mixed.reshape(tile, tile, n, tiles_h, tiles_w, -1)
    rows = [_combine(at, [mixed[a, b] for a in range(tile)]) for b in range(tile)]
    y = [_combine(at, [rows[b][i] for b in range(tile)]) for i in range(m)]
    joined = jnp.stack([jnp.stack(line, axis=3) for line in y], axis=2)
    joined = joined.reshape(n, tiles_h * m, tiles_w * m, -1)
    return joined[:, :out_h, :out_w].astype(x.dtype)
