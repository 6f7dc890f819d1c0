"""Random numbers by a seed, and what is made of uniform ones.

The numbers of a seed are those of `onnx.reference`, on the host and in XLA clusters alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def is_seeded(seed: float | None) -> bool:
    """Whether a node with this attribute draws the same numbers at every call; NaN is no seed."""
    return seed is not None and not math.isnan(seed)


def uniform(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers in [0, 1), float64."""
    state = _state(seed)
    return np.asarray(state.random_sample(tuple(shape)))


def normal(shape: Sequence[int], seed: float | None) -> Array:
    """Numbers of mean 0 and variance 1, float64."""
    state = _state(seed)
    return np.asarray(state.standard_normal(tuple(shape)))


def _state(seed: float | None) -> np.random.RandomState:
    # RandomState, as in onnx.reference, so that equal seeds give equal numbers.
    if seed is None or math.isnan(seed):
        return np.random.RandomState()
    return np.random.RandomState(int(seed) % 2**32)


def stretch(unit: Any, low: float, high: float, dtype: np.dtype[Any], xp: Any = np) -> Any:
    """Numbers of [0, 1) as numbers of [low, high) in `dtype`, in NumPy or its like `xp`."""
    result = (low + unit * (high - low)).astype(dtype)
    first, last = np.asarray(low, dtype), np.asarray(high, dtype)
    if not first < last:
        return result
    return xp.minimum(result, np.nextafter(last, first))  # rounding may have reached `high`


def cumulative(logits: Any, xp: Any = np) -> tuple[Any, Any]:
    """Running sums of the (scaled) probabilities by row, and the last class that is possible."""
    weights = xp.exp(logits - xp.max(logits, axis=1, keepdims=True))
    behind = xp.argmax(weights[:, ::-1] > 0, axis=1, keepdims=True)
    return xp.cumsum(weights, axis=1), weights.shape[1] - 1 - behind
