"""BatchNormalization by the statistics of the batch.

What rounding does to a statistic it does to all positions of a channel alike, and layers of
normalization carry it on: hence the careful sums, in the backward pass too.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from xrt.engines.xla import lowering as L
from xrt.engines.xla.ops.numerics import single, wide
from xrt.training.sums import total


def channel_sum(x: jax.Array) -> jax.Array:
    """The sum over all axes but the last: [..., C] -> [C]."""
    return total(x, range(x.ndim - 1)).reshape(-1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [..., C] normalized by mean and variance of each channel; and those, without gradients."""
    y, mean, variance = _forward(x, scale, bias, epsilon)[0]
    return y, mean, variance


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[Any, Any]:
    count = x.size // x.shape[-1]
    mean = channel_sum(x) / count
    variance = channel_sum(jnp.square(x - mean)) / count
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - mean) * (inverse * scale) + bias
    return (y, mean, variance), (x, mean, inverse, scale)


def _backward(epsilon: float, kept: Any, cotangents: Any) -> tuple[jax.Array, ...]:
    x, mean, inverse, scale = kept
    dy = cotangents[0]
    count = x.size // x.shape[-1]
    normal = (x - mean) * inverse
    shift, slope = channel_sum(dy), channel_sum(dy * normal)
    dx = (inverse * scale) * (dy - shift / count - normal * (slope / count))
    return dx, slope, shift


normalize.defvjp(_forward, _backward)


def batch_normalization(
    ctx: L.Context,
    x: L.Operand,
    scale: L.Operand,
    bias: L.Operand,
    mean: L.Operand,
    variance: L.Operand,
    *,
    epsilon: float = single(1e-5),
    momentum: float = single(0.9),
    training_mode: int = 0,
) -> Any:
    """Normalize each channel; in training mode also give the running statistics."""
    if not training_mode:
        rule = L.find(ctx.node)
        assert rule is not None
        return rule.function(ctx, x, scale, bias, mean, variance, epsilon=epsilon)
    rank = x.rank
    array = wide(x.last() if rank > 2 else x.array)
    y, now_mean, now_variance = normalize(
        jnp.asarray(array), wide(scale.array), wide(bias.array), epsilon
    )
    running = [
        L.Operand((wide(old.array) * momentum + new * (1 - momentum)).astype(old.array.dtype))
        for old, new in ((mean, now_mean), (variance, now_variance))
    ]
    return (L.Operand(y.astype(x.array.dtype), rank > 2), *running)
