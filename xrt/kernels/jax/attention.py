"""Scaled dot-product attention in the form that XLA's CPU backend runs fastest.

Measured on one AVX-512 core (jaxlib 0.10.2), milliseconds against ONNX Runtime's graph of the same
(``benchmarks/ops/attention.py``):

- two batched `dot_general` beat a loop over the heads while the scores fit the cache; above
  `_SCORES_AT_ONCE` bytes a `lax.map` over the heads wins (DETR, 8 heads of 950 x 950: 48 -> 10
  ms), because the scores stay in the cache and no large temporary has its pages faulted in anew;
- dividing after the second product instead of before it, and a maximum that ignores NaN order
  (see `elementwise.row_max`), take a quarter off (ViT: 1.71 -> 1.13 ms);
- [B, S, H, D] inputs: transposing first beats an einsum that batches over the third axis
  (ViT: 1.25 against 2.02 ms).

All in all 0.6 to 0.9 of torch's time, and 1.2 to 1.6 times ONNX Runtime's, whose softmax and small
products are faster.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xrt.kernels.jax.elementwise import exp, row_max

# Scores of more bytes than this leave the second-level cache and are computed in slices.
_SCORES_AT_ONCE = 4 << 20
_SLICE = 1 << 20


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    softcap: float = 0.0,
) -> jax.Array:
    """Return softmax(q k^T * scale + mask) v, as ONNX's Attention-23 on 4-D inputs.

    Shapes: q [B, H, S, D], k [B, G, T, D], v [B, G, T, E], result [B, H, S, E] in q's dtype; H is a
    multiple of G (grouped-query attention: query head h reads key head h * G // H). `mask`
    broadcasts to [B, H, S, T]; a boolean one keeps where True, another is added. `scale` defaults
    to 1 / sqrt(D). `is_causal` lets query i see keys 0..i. `softcap` > 0 squashes the scores to
    softcap * tanh(scores / softcap) before the mask. The scores and the softmax are fp32 or better.

    A row whose keys are all masked is zero, as in ONNX's function body since opset 24.
    """
    b, heads, s, d = q.shape
    groups, t = k.shape[1:3]
    if 0 in (b, heads, s, t):
        return jnp.zeros((b, heads, s, v.shape[3]), q.dtype)
    kind = jnp.promote_types(q.dtype, jnp.float32)
    q = q * jnp.asarray(1 / math.sqrt(d) if scale is None else scale, q.dtype)
    bias = _bias(mask, is_causal, (s, t), kind)
    if bias is not None:
        bias = bias.reshape((1,) * (4 - bias.ndim) + bias.shape)
    if b * heads * s * t * kind.itemsize <= _SCORES_AT_ONCE:
        if groups == heads:
            return _attend(q, k, v, bias, softcap)
        k, v = (jnp.repeat(x, heads // groups, axis=1) for x in (k, v))
        return _attend(q, k, v, bias, softcap)
    return _in_slices(q, k, v, bias, softcap, kind.itemsize)


def _bias(
    mask: jax.Array | None, is_causal: bool, shape: tuple[int, int], kind: np.dtype
) -> jax.Array | None:
    """Return what to add to the scores, or None; a forbidden pair gets minus infinity."""
    bias = None
    if mask is not None:
        forbidden = jnp.asarray(-jnp.inf, kind)
        is_bool = mask.dtype == jnp.bool_
        bias = jnp.where(mask, jnp.zeros((), kind), forbidden) if is_bool else mask.astype(kind)
    if is_causal:
        seen = jnp.tri(*shape, dtype=jnp.bool_)
        causal = jnp.where(seen, jnp.zeros((), kind), jnp.asarray(-jnp.inf, kind))
        bias = causal if bias is None else bias + causal
    return bias


def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, softcap: float
) -> jax.Array:
    """Attend with everything at once: q [..., S, D], k [..., T, D], v [..., T, E], same batch."""
    kind = jnp.promote_types(q.dtype, jnp.float32)
    last, batch = q.ndim - 1, tuple(range(q.ndim - 2))
    dims = (((last,), (last,)), (batch, batch))
    scores = lax.dot_general(q, k, dims, preferred_element_type=kind)
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    top = None
    if bias is not None:
        scores = scores + bias
        # A fully masked row has the maximum -inf, and -inf - -inf is NaN: measure it from 0.
        top = row_max(scores)
        top = jnp.where(jnp.isneginf(top), jnp.zeros((), kind), top)
    else:
        top = row_max(scores)
    weights = exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if bias is not None:
        total = jnp.where(total == 0, jnp.ones((), kind), total)
    dims = (((last,), (last - 1,)), (batch, batch))
    # Weights stay wide: to round them costs accuracy, and saves nothing on a CPU.
    mixed = lax.dot_general(weights, v.astype(kind), dims)
    return (mixed / total).astype(q.dtype)


def _in_slices(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None, softcap: float, itemsize: int
) -> jax.Array:
    """Attend head by head, and in blocks of queries where one head's scores are still too many."""
    b, heads, s, d = q.shape
    groups, t = k.shape[1:3]
    rows = _block_rows(s, max(1, _SLICE // (t * itemsize)))
    blocks = s // rows
    if bias is not None:
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], s, t))

    def one(index: jax.Array) -> jax.Array:
        zero = jnp.zeros_like(index)  # a literal 0 would be int64 under x64
        i, h, r = index // (heads * blocks), index // blocks % heads, index % blocks * rows
        g = h // (heads // groups)
        part = lax.dynamic_slice(q, (i, h, r, zero), (1, 1, rows, d))[0, 0]
        keys = lax.dynamic_slice(k, (i, g, zero, zero), (1, 1, t, d))[0, 0]
        values = lax.dynamic_slice(v, (i, g, zero, zero), (1, 1, *v.shape[2:]))[0, 0]
        added = None
        if bias is not None:
            at = (i if bias.shape[0] > 1 else zero, h if bias.shape[1] > 1 else zero, r, zero)
            added = lax.dynamic_slice(bias, at, (1, 1, rows, t))[0, 0]
        return _attend(part, keys, values, added, softcap)

    mixed: jax.Array = lax.map(one, jnp.arange(b * heads * blocks, dtype=jnp.int32))
    return jnp.reshape(mixed, (b, heads, s, v.shape[3]))


def _block_rows(s: int, at_most: int) -> int:
    """Return the largest divisor of `s` up to `at_most`, or `s` where every one is a sliver."""
    if s <= at_most:
        return s
    best = max(r for r in range(1, at_most + 1) if s % r == 0)
    return best if best >= 32 else s
