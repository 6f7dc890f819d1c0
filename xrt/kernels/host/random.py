"""Random operators. With a seed a node draws the same numbers at every call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xrt.kernels.host.common import Array, numpy_dtype, widen
from xrt.kernels.host.registry import kernel
from xrt.kernels.portable.random import cumulative, normal, stretch, uniform


@kernel("RandomUniform")
def random_uniform(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Array:
    """Numbers of [low, high), all equally likely."""
    result: Array = stretch(uniform(shape, seed), low, high, numpy_dtype(dtype))
    return result


@kernel("RandomUniformLike")
def random_uniform_like(
    x: Array,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Array:
    """As RandomUniform, in the shape of `x` and by default in its dtype."""
    kind = numpy_dtype(dtype) if dtype else x.dtype
    result: Array = stretch(uniform(x.shape, seed), low, high, kind)
    return result


@kernel("RandomNormal")
def random_normal(
    *,
    shape: Sequence[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Array:
    """Numbers of a normal distribution."""
    return (mean + scale * normal(shape, seed)).astype(numpy_dtype(dtype))


@kernel("RandomNormalLike")
def random_normal_like(
    x: Array,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Array:
    """As RandomNormal, in the shape of `x` and by default in its dtype."""
    kind = numpy_dtype(dtype) if dtype else x.dtype
    return (mean + scale * normal(x.shape, seed)).astype(kind)


@kernel("Bernoulli")
def bernoulli(p: Array, *, dtype: int | None = None, seed: float | None = None) -> Array:
    """1 with probability `p`, else 0."""
    kind = numpy_dtype(dtype) if dtype else p.dtype
    return np.asarray(uniform(p.shape, seed) < p.astype(np.float64)).astype(kind)


@kernel("Multinomial")
def multinomial(
    logits: Array, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None
) -> Array:
    """Indices of classes, `sample_size` a row, from unnormalized log-probabilities.

    Takes [batch, classes], gives [batch, sample_size], by inverting the cumulative distribution.
    """
    unit = uniform((len(logits), sample_size), seed)
    sums, last = cumulative(logits.astype(np.float64))
    rows = zip(sums, unit * sums[:, -1:], strict=True)
    chosen = [np.searchsorted(row, wanted, side="right") for row, wanted in rows]
    indices = np.reshape(np.asarray(chosen, np.int64), unit.shape)
    result: Array = np.minimum(indices, last).astype(numpy_dtype(dtype))
    return result


@kernel("Dropout")
def dropout(
    x: Array,
    ratio: Array | None = None,
    training_mode: Array | None = None,
    *,
    seed: int | None = None,
) -> tuple[Array, Array]:
    """`x` as it is, or with elements dropped at random in training mode; and the mask."""
    share = 0.5 if ratio is None else float(ratio.reshape(()))
    if training_mode is None or not training_mode.any() or share == 0:
        return x, np.ones(x.shape, np.bool_)
    mask = np.asarray(uniform(x.shape, seed) >= share)
    kept = 1 / (1 - share) if share < 1 else 0.0
    result: Array = (widen(x) * mask * kept).astype(x.dtype)
    return result, mask
