"""Linear models and support vector machines of ai.onnx.ml. Scores come as float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from xrt.kernels.portable.scores import binary, real, rows, transform

Array = np.ndarray[Any, Any]
Numbers = Sequence[float]
Ints = Sequence[int]


def _affine(xp: Any, x: Any, weights: Array, bias: Any) -> Any:
    return xp.matmul(x, weights.astype(x.dtype)) + np.asarray(bias, x.dtype)


def linear_regressor(
    xp: Any,
    x: Any,
    *,
    coefficients: Numbers | None = None,
    intercepts: Numbers | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Any:
    """X [N, F] -> [N, targets]."""
    x = rows(xp, real(xp, x))
    weights = np.asarray(coefficients, np.float32).reshape(targets, -1).T
    scores = _affine(xp, x, weights, intercepts or (0.0,))
    return transform(xp, scores, post_transform).astype(np.float32)


def linear_classifier(
    xp: Any,
    x: Any,
    labels: Array | None,
    *,
    coefficients: Numbers,
    intercepts: Numbers | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Any, Any]:
    """X [N, F] -> the label of the highest score [N], and the scores [N, E].

    One score for two labels stands for the second; the first gets its negative. One score for any
    other number of labels chooses between the first label and 0.
    """
    x = rows(xp, real(xp, x))
    weights = np.asarray(coefficients, np.float32).reshape(-1, x.shape[1]).T
    scores = _affine(xp, x, weights, intercepts or (0.0,))
    if weights.shape[1] == 1 and (labels is None or len(labels) != 2):
        scores = transform(xp, scores, post_transform)
        positive = scores[:, 0] >= (0 if post_transform == "NONE" else 0.5)
        chosen = xp.where(positive, 1 if labels is None else labels[0], 0)
        return chosen.astype(np.int64), scores.astype(np.float32)
    if weights.shape[1] == 1:
        best = (scores[:, 0] > 0).astype(np.int64)
        scores = binary(xp, scores, post_transform)
    else:
        best = xp.argmax(scores, axis=1).astype(np.int64)
        scores = transform(xp, scores, post_transform)
    chosen = best if labels is None else xp.take(labels, best)
    return chosen, scores.astype(np.float32)


def kernel_matrix(xp: Any, x: Any, vectors: Any, kind: str, params: Numbers) -> Any:
    """The kernel of every row of `x` [N, F] with every support vector [V, F]: [N, V]."""
    gamma, coef0, degree = (*params, 0.0, 0.0, 0.0)[:3]
    vectors = np.asarray(vectors, np.float32).reshape(-1, x.shape[1]).astype(x.dtype)
    if kind == "RBF":
        return xp.exp(-gamma * xp.sum(xp.square(x[:, None, :] - vectors), axis=2))
    dots = xp.matmul(x, vectors.T)
    if kind == "LINEAR":
        return dots
    inner = gamma * dots + coef0
    if kind == "POLY":
        return inner ** int(degree)
    if kind == "SIGMOID":
        return xp.tanh(inner)
    raise ValueError(f"An SVM has kernel {kind!r}. Known kernels: LINEAR, POLY, RBF, SIGMOID.")


def svm_regressor(
    xp: Any,
    x: Any,
    *,
    coefficients: Numbers | None = None,
    rho: Numbers | None = None,
    support_vectors: Numbers | None = None,
    kernel_params: Numbers | None = None,
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
) -> Any:
    """X [N, F] -> [N, 1]; for one class 1 inside and -1 outside. Without supports it is linear."""
    x = rows(xp, real(xp, x))
    if n_supports:
        x = kernel_matrix(xp, x, support_vectors, kernel_type, kernel_params or ())
    scores = _affine(xp, x, np.asarray(coefficients, np.float32).reshape(-1, 1), (rho or (0.0,))[0])
    if one_class:
        scores = xp.where(scores > 0, 1.0, -1.0)
    return transform(xp, scores, post_transform).astype(np.float32)


def pairwise(coefficients: Array, per_class: Ints) -> tuple[Array, Array, Array]:
    """What turns kernels into one score for each pair of classes i < j.

    Returns weights [V, P], from ONNX's [classes - 1, V], and the pairs' i and j.
    """
    ends = np.cumsum(per_class)
    parts = [slice(end - count, end) for end, count in zip(ends, per_class, strict=True)]
    first, second = np.triu_indices(len(per_class), 1)
    weights = np.zeros((int(ends[-1]), len(first)), np.float32)
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        weights[parts[i], pair] = coefficients[j - 1, parts[i]]
        weights[parts[j], pair] = coefficients[i, parts[j]]
    return weights, first, second


Repeat = Callable[[int, Callable[[Any], Any], Any], Any]
"""(count, step, state) -> the state after `count` steps."""


def svm_classifier(
    xp: Any,
    repeat: Repeat,
    x: Any,
    labels: Array | None,
    *,
    coefficients: Numbers | None = None,
    rho: Numbers | None = None,
    support_vectors: Numbers | None = None,
    vectors_per_class: Ints | None = None,
    kernel_params: Numbers | None = None,
    kernel_type: str = "LINEAR",
    prob_a: Numbers | None = None,
    prob_b: Numbers | None = None,
    post_transform: str = "NONE",
) -> tuple[Any, Any]:
    """X [N, F] -> labels [N] and scores: by class, or by pair of classes as libsvm has them.

    A pair's score votes for one of its classes, and the most votes decide. Without support vectors
    there is one linear score for each class. `prob_a` and `prob_b` make probabilities by class.
    """
    x = rows(xp, real(xp, x))
    flat, rho = np.asarray(coefficients, np.float32), rho or (0.0,)
    count = 1 if labels is None else len(labels)
    has_proba = False
    if vectors_per_class and sum(vectors_per_class):
        weights, first, second = pairwise(
            flat.reshape(-1, sum(vectors_per_class)), vectors_per_class
        )
        kernels = kernel_matrix(xp, x, support_vectors, kernel_type, kernel_params or ())
        scores = _affine(xp, kernels, weights, rho)
        ahead = (scores > 0)[:, :, None]
        kinds = np.eye(len(vectors_per_class), dtype=np.int64)
        deciding = xp.sum(xp.where(ahead, kinds[first], kinds[second]), axis=1)
        if prob_a:
            has_proba = True
            scores = _probabilities(xp, repeat, scores, first, second, (prob_a, prob_b or ()))
    else:
        scores = deciding = _affine(xp, x, flat.reshape(count, -1).T, rho[0])
    best = xp.argmax(deciding, axis=1)
    highest = xp.max(deciding, axis=1)
    if len(rho) == 1 and count != 2:
        chosen = (highest > 0).astype(np.int64)
    elif len(rho) == 1 and not has_proba and flat.min() >= 0:
        chosen = xp.take(labels, xp.where(highest >= 0.5, 1, best))
    else:
        chosen = best.astype(np.int64) if labels is None else xp.take(labels, best)
    if scores.shape[1] == 1 and len(rho) == 1 and count == 2 and post_transform != "PROBIT":
        scores = binary(xp, scores, post_transform)
    elif scores.shape[1] > 1 or post_transform == "PROBIT":
        scores = transform(xp, scores, post_transform)
    return chosen, scores.astype(np.float32)


def _probabilities(
    xp: Any, repeat: Repeat, scores: Any, first: Array, second: Array, platt: Any
) -> Any:
    """Class probabilities from those of pairs: Wu, Lin and Weng (2004), method 2, as in libsvm."""
    a, b = (np.asarray(each, np.float32).astype(scores.dtype) for each in platt)
    pair = 1 - transform(xp, scores * a + b, "LOGISTIC")
    pair = xp.clip(pair, 1e-7, 1 - 1e-7)
    k = int(max(second)) + 1
    index = np.zeros((k, k), np.int64)
    index[first, second] = index[second, first] = np.arange(len(first))
    upper = np.triu(np.ones((k, k), bool), 1)
    r = xp.where(upper, pair[:, index], 1 - pair[:, index])  # r[n, i, j]: i rather than j
    off = ~np.eye(k, dtype=bool)
    turned = xp.swapaxes(r, 1, 2)
    q = xp.where(off, -turned * r, 0)
    diagonal = xp.sum(xp.where(off, xp.square(turned), 0), axis=2)
    q = q + xp.asarray(np.eye(k, dtype=scores.dtype)) * diagonal[:, :, None]

    def step(p: Any) -> Any:
        qp = xp.matmul(q, p[:, :, None])[:, :, 0]
        pqp = xp.sum(p * qp, axis=1)
        done = xp.max(xp.abs(qp - pqp[:, None]), axis=1) < 0.005 / k
        moved = p
        for t in range(k):
            diff = (pqp - qp[:, t]) / q[:, t, t]
            pqp = (pqp + diff * (diff * q[:, t, t] + 2 * qp[:, t])) / (1 + diff) ** 2
            qp = (qp + diff[:, None] * q[:, t, :]) / (1 + diff)[:, None]
            moved = (moved + diff[:, None] * np.eye(k, dtype=p.dtype)[t]) / (1 + diff)[:, None]
        return xp.where(done[:, None], p, moved)

    start = xp.full((scores.shape[0], k), 1 / k, scores.dtype)
    return repeat(max(100, k), step, start)
