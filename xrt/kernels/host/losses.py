"""Loss functions over classes."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, in_float32
from xrt.kernels.host.normalization import log_softmax
from xrt.kernels.host.registry import kernel


@kernel("NegativeLogLikelihoodLoss")
@in_float32
def negative_log_likelihood_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    """Minus the log-probability of each target class, weighted by class, then reduced.

    `x` is (batch, classes, ...), `target` (batch, ...). Targets equal to `ignore_index` count
    neither in the sum nor, for "mean", in the sum of weights that divides it.
    """
    counted = None if ignore_index is None else target != ignore_index
    labels = target if counted is None else np.where(counted, target, 0)
    if labels.size and not 0 <= labels.min() <= labels.max() < x.shape[1]:
        raise ValueError(
            f"targets go from {labels.min()} to {labels.max()}; there are {x.shape[1]} classes "
            f"and ignore_index is {ignore_index}"
        )
    loss = -np.take_along_axis(x, np.expand_dims(labels, 1), axis=1).squeeze(1)
    weights = None if weight is None else weight[labels]
    if weights is not None:
        loss *= weights
    if counted is not None:
        loss = np.where(counted, loss, x.dtype.type(0))
        weights = counted.astype(x.dtype) if weights is None else np.where(counted, weights, 0)
    if reduction == "none":
        return loss
    total = loss.sum(dtype=x.dtype)
    if reduction == "sum":
        return total
    if reduction == "mean":
        return total / x.dtype.type(loss.size if weights is None else weights.sum())
    raise ValueError(f"reduction {reduction!r} is unknown; known: mean, none, sum")


@kernel("SoftmaxCrossEntropyLoss")
@in_float32
def softmax_cross_entropy_loss(
    scores: Array,
    labels: Array,
    weights: Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """The negative log-likelihood loss of softmax over axis 1, and its log-probabilities."""
    log_prob = log_softmax(scores, axis=1)
    loss = negative_log_likelihood_loss(
        log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, log_prob
