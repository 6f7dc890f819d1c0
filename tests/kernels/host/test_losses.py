"""Losses against torch and onnx.reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(13)
NLL, SCE = "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"
CLASSES = 6


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignored", [None, 2, -100, 77])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("inner", [(), (5,), (3, 2), (2, 1, 2, 2)])
def test_losses_of_torch(
    inner: tuple[int, ...], weighted: bool, ignored: int | None, reduction: str
) -> None:
    torch = pytest.importorskip("torch")
    scores = 3 * _x(4, CLASSES, *inner)
    labels = RNG.integers(0, CLASSES, (4, *inner))
    if ignored is not None:
        labels[RNG.random(labels.shape) < 0.3] = ignored
        labels.flat[0] = ignored
    weight = np.abs(_x(CLASSES)) if weighted else None
    extra = {} if ignored is None else {"ignore_index": ignored}
    torch_labels, torch_scores = torch.from_numpy(labels), torch.from_numpy(scores)
    options = {"weight": None if weight is None else torch.from_numpy(weight), **extra}
    wanted = torch.nn.functional.cross_entropy(
        torch_scores, torch_labels, reduction=reduction, **options
    )
    log_prob = torch.log_softmax(torch_scores, dim=1).numpy()
    for kind in (np.int32, np.int64):
        given = labels.astype(kind)
        loss, shown = run(SCE, scores, given, weight, output_count=2, reduction=reduction, **extra)
        assert_close(loss, wanted.numpy())
        assert_close(shown, log_prob)
        (loss,) = run(NLL, log_prob, given, weight, reduction=reduction, **extra)
        assert_close(loss, wanted.numpy())


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses_of_the_reference(reduction: str) -> None:
    for op_type in (NLL, SCE):
        x, labels = _x(2, CLASSES, 3), RNG.integers(0, CLASSES, (2, 3))
        compare(op_type, x, labels, reduction=reduction)
        compare(op_type, x, labels, np.abs(_x(CLASSES)), reduction=reduction, ignore_index=1)


def test_what_is_ignored_does_not_count_whatever_it_is() -> None:
    x = _x(2, CLASSES)
    x[1] = np.nan
    (loss,) = run(NLL, x, np.array([3, -1]), ignore_index=-1, reduction="mean")
    assert loss == -x[0, 3]
    (loss,) = run(NLL, x, np.array([3, -1]), ignore_index=-1, reduction="none")
    assert loss.tolist() == [-x[0, 3], 0]
    (loss,) = run(NLL, x, np.array([-1, -1]), ignore_index=-1)
    assert np.isnan(loss)  # the mean of nothing, as in torch


def test_great_scores_stay_finite() -> None:
    scores = np.array([[1e4, 0, -1e4]], np.float32)
    loss, log_prob = run(SCE, scores, np.array([2]), output_count=2)
    assert loss == 2e4
    assert log_prob.tolist() == [[0, -1e4, -2e4]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_round_once(dtype: Any) -> None:
    scores, weight = _x(64, CLASSES).astype(dtype), np.abs(_x(CLASSES)).astype(dtype)
    labels = RNG.integers(0, CLASSES, 64)
    got = run(SCE, scores, labels, weight, output_count=2)
    wide = run(SCE, scores.astype(np.float64), labels, weight.astype(np.float64), output_count=2)
    for g, w in zip(got, wide, strict=True):
        assert g.dtype == dtype
        assert_close(g, w.astype(dtype))


def test_targets_outside_the_classes_are_refused() -> None:
    for bad in (-1, CLASSES):
        with pytest.raises(KernelError, match=r"there are 6 classes"):
            run(NLL, _x(2, CLASSES), np.array([0, bad]))
    with pytest.raises(KernelError, match=r"'max' is unknown; known: mean"):
        run(NLL, _x(2, CLASSES), np.array([0, 1]), reduction="max")
