"""What the classifiers and regressors of ai.onnx.ml share: real inputs, scores, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""In the order of TreeEnsemble's numbers."""


def real(xp: Any, x: Any) -> Any:
    """`x` in a dtype to compute in: float32 and float64 stay, integers become float64."""
    dtype = np.dtype(x.dtype)
    if dtype in (np.float32, np.float64):
        return xp.asarray(x)
    return xp.asarray(x).astype(np.float64 if dtype.kind in "iu" else np.float32)


def rows(xp: Any, x: Any) -> Any:
    """`x` as [N, F]; a vector is one row."""
    return xp.reshape(x, (1, -1)) if len(x.shape) == 1 else x


def transform(xp: Any, scores: Any, name: str) -> Any:
    """`scores` [N, E] after the post transform `name`, row by row."""
    return _TRANSFORMS[name](xp, scores)


def binary(xp: Any, score: Any, post_transform: str) -> Any:
    """Both columns of scores [N, 1] of two classes, after the post transform."""
    return transform(xp, xp.concatenate([-score, score], axis=1), post_transform)


def _softmax(xp: Any, scores: Any) -> Any:
    powers = xp.exp(scores - xp.max(scores, axis=1, keepdims=True))
    return powers / xp.sum(powers, axis=1, keepdims=True)


def _softmax_zero(xp: Any, scores: Any) -> Any:
    """Softmax in which a score of (nearly) zero stays so."""
    highest = xp.max(scores, axis=1, keepdims=True)
    tiny = xp.abs(scores) <= 1e-7
    powers = xp.where(tiny, scores * xp.exp(-highest), xp.exp(scores - highest))
    total = xp.sum(powers, axis=1, keepdims=True)
    return xp.where(total == 0, 0.5, powers / xp.where(total == 0, 1, total)).astype(scores.dtype)


def _logistic(xp: Any, scores: Any) -> Any:
    small = xp.exp(-xp.abs(scores))
    return xp.where(scores < 0, small, 1) / (1 + small)


def _probit(xp: Any, scores: Any) -> Any:
    """The quantile of the normal distribution by Winitzki's formula, as all runtimes take it."""
    x = scores * 2 - 1
    product = (1 - x) * (1 + x)
    log = xp.log(xp.where(product == 0, 1, product))
    half = 2 / (np.pi * 0.147) + 0.5 * log
    size = xp.sqrt(xp.sqrt(half * half - log / 0.147) - half)
    root = xp.where(product == 0, 0, xp.where(x < 0, -size, size))
    return (1.41421356 * root).astype(scores.dtype)


_TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "NONE": lambda xp, scores: scores,
    "SOFTMAX": _softmax,
    "SOFTMAX_ZERO": _softmax_zero,
    "LOGISTIC": _logistic,
    "PROBIT": _probit,
}
