"""One step of an optimizer: the operators of ai.onnx.preview.training, after ONNX's pseudo code.

The tensors come group by group: all X, then all G, then all of each kind of state. The rate R and
the count T are of one element; factors made of them are computed in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_TEN_MILLIONTHS = float(np.float32(1e-6))  # ONNX's attributes are float32
_NINE_TENTHS, _NEARLY_ONE = float(np.float32(0.9)), float(np.float32(0.999))


def adagrad(
    xp: Any,
    rate: Any,
    count: Any,
    *tensors: Any,
    norm_coefficient: float = 0.0,
    decay_factor: float = 0.0,
    epsilon: float = _TEN_MILLIONTHS,
) -> tuple[Any, ...]:
    """Adagrad: (X, G, H) -> (X, H)."""
    step = _number(xp, rate) / (1 + _number(xp, count) * decay_factor)
    results = []
    for x, g, h in _grouped(tensors, 3):
        slope = norm_coefficient * x + g
        h_new = h + slope * slope
        x_new = x - step.astype(x.dtype) * slope / (xp.sqrt(h_new) + epsilon)
        results.append((x_new, h_new))
    return _by_kind(results)


def momentum(
    xp: Any,
    rate: Any,
    count: Any,
    *tensors: Any,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Any, ...]:
    """Gradient descent with momentum, "standard" or "nesterov": (X, G, V) -> (X, V)."""
    if mode not in ("standard", "nesterov"):
        raise ValueError(f"Momentum has mode {mode!r}. Known modes: standard, nesterov.")
    step = _number(xp, rate)
    scale = xp.where(_number(xp, count) > 0, beta, 1.0)
    results = []
    for x, g, v in _grouped(tensors, 3):
        slope = norm_coefficient * x + g
        v_new = alpha * v + scale.astype(x.dtype) * slope
        direction = slope + alpha * v_new if mode == "nesterov" else v_new
        results.append((x - step.astype(x.dtype) * direction, v_new))
    return _by_kind(results)


def adam(
    xp: Any,
    rate: Any,
    count: Any,
    *tensors: Any,
    alpha: float = _NINE_TENTHS,
    beta: float = _NEARLY_ONE,
    epsilon: float = _TEN_MILLIONTHS,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Any, ...]:
    """Adam: (X, G, V, H) -> (X, V, H); before the first step (T = 0) the rate is not corrected."""
    step, steps = _number(xp, rate), _number(xp, count)
    taken = xp.maximum(steps, 1)
    corrected = step * xp.sqrt(1 - beta**taken) / (1 - alpha**taken)
    step = xp.where(steps > 0, corrected, step)
    results = []
    for x, g, v, h in _grouped(tensors, 4):
        slope = norm_coefficient * x + g
        v_new = alpha * v + (1 - alpha) * slope
        h_new = beta * h + (1 - beta) * slope * slope
        x_new = x - step.astype(x.dtype) * v_new / (xp.sqrt(h_new) + epsilon)
        results.append(((1 - norm_coefficient_post) * x_new, v_new, h_new))
    return _by_kind(results)


def _number(xp: Any, value: Any) -> Any:
    """The element of `value`, in float64."""
    return xp.reshape(xp.asarray(value), ()).astype(np.float64)


def _grouped(tensors: Sequence[Any], kinds: int) -> Iterator[tuple[Any, ...]]:
    """For each optimized tensor: itself, its gradient and its state."""
    count, rest = divmod(len(tensors), kinds)
    if rest:
        raise ValueError(f"{len(tensors)} tensors do not make groups of {kinds}")
    return zip(*(tensors[kind * count : (kind + 1) * count] for kind in range(kinds)), strict=True)


def _by_kind(results: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(each for kind in zip(*results, strict=True) for each in kind)
