"""NonMaxSuppression against the standard's words in plain loops, and against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.kernels.host.peers import ort
from tests.kernels.host.support import compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(11)
OP = "NonMaxSuppression"


def _f(*values: float) -> Any:
    return np.array(values, np.float32)


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


def _corners(box: Any, center: int) -> tuple[Any, Any, Any, Any]:
    if center:
        x, y, w, h = box
        two = np.float32(2)
        return x - w / two, y - h / two, x + w / two, y + h / two
    a, b, c, d = box
    return min(a, c), min(b, d), max(a, c), max(b, d)


def _overlap(first: Any, second: Any, center: int) -> Any:
    a, b, c, d = _corners(first, center)
    e, f, g, h = _corners(second, center)
    width, height = min(c, g) - max(a, e), min(d, h) - max(b, f)
    if width <= 0 or height <= 0:
        return np.float32(0)
    shared = width * height
    return shared / ((c - a) * (d - b) + (g - e) * (h - f) - shared)


def _brute_force(
    boxes: Any, scores: Any, most: int, limit: float, floor: float | None, center: int
) -> list[list[int]]:
    chosen = []
    for batch in range(len(boxes)):
        for label in range(scores.shape[1]):
            values = scores[batch, label]
            left = [i for i in range(len(values)) if floor is None or values[i] > np.float32(floor)]
            kept: list[int] = []
            while left and len(kept) < most:
                best = max(left, key=lambda i: (values[i], -i))
                left.remove(best)
                if all(
                    _overlap(boxes[batch, best], boxes[batch, k], center) <= np.float32(limit)
                    for k in kept
                ):
                    kept.append(best)
            chosen += [[batch, label, box] for box in kept]
    return chosen


def _scene(batches: int, classes: int, count: int, center: int) -> tuple[Any, Any]:
    middle, size = RNG.uniform(0, 6, (batches, count, 2)), RNG.uniform(0, 3, (batches, count, 2))
    if center:
        boxes = np.concatenate([middle, size], axis=2)
    else:
        flip = RNG.choice([-1, 1], size.shape)  # any two opposite corners describe a box
        boxes = np.concatenate([middle - size * flip, middle + size * flip], axis=2)
    # Few distinct scores, so that many are equal.
    scores = RNG.integers(0, 12, (batches, classes, count)) / 12
    return boxes.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("floor", [None, 0.5])
@pytest.mark.parametrize(("most", "limit"), [(100, 0.3), (3, 0.5), (100, 0.0), (100, 1.0)])
def test_random_scenes(most: int, limit: float, floor: float | None, center: int) -> None:
    for batches, classes, count in ((1, 1, 1), (2, 3, 40), (1, 2, 9)):
        boxes, scores = _scene(batches, classes, count, center)
        inputs = [boxes, scores, _i(most), _f(limit)]
        if floor is not None:
            inputs.append(_f(floor))
        (got,) = run(OP, *inputs, center_point_box=center)
        assert got.dtype == np.int64
        assert got.tolist() == _brute_force(boxes, scores, most, limit, floor, center)
        (peer,) = ort(OP, *inputs, outputs=[onnx.TensorProto.INT64], center_point_box=center)
        assert got.tolist() == peer.tolist()
        if floor is not None:
            compare(OP, *inputs, center_point_box=center)


@pytest.mark.parametrize("floor", [0.0, 0.9])
@pytest.mark.parametrize(("most", "size"), [(50, 60), (5000, 60), (300, 900)])
def test_more_boxes_than_are_compared_each_with_each(most: int, size: int, floor: float) -> None:
    middle = RNG.uniform(0, 1000, (1, 5000, 2))
    boxes = np.concatenate([middle, RNG.uniform(1, size, (1, 5000, 2))], axis=2).astype(np.float32)
    scores = RNG.random((1, 2, 5000)).astype(np.float32).round(3)  # many are equal
    inputs = [boxes, scores, _i(most), _f(0.4), _f(floor)]
    (got,) = run(OP, *inputs, center_point_box=1)
    (peer,) = ort(OP, *inputs, outputs=[onnx.TensorProto.INT64], center_point_box=1)
    np.testing.assert_array_equal(got, peer)
    assert len(got) > 40


def test_scores_of_either_sign_sort_and_zeros_are_equal() -> None:
    boxes, _ = _scene(1, 1, 7, 0)
    scores = _f(-0.0, -2, 0.0, np.inf, -0.5, -np.inf, 1e-40).reshape(1, 1, 7)
    (kept,) = run(OP, boxes, scores, _i(9), _f(1))
    assert kept[:, 2].tolist() == [3, 6, 0, 2, 4, 1, 5]


def test_overlap_at_the_threshold_is_kept_and_score_at_the_threshold_is_not() -> None:
    boxes = _f(0, 0, 1, 2, 0, 1, 1, 3).reshape(1, 2, 4)  # they share a third of their union
    scores = _f(0.5, 0.25).reshape(1, 1, 2)
    third = np.float32(1) / np.float32(3)
    (kept,) = run(OP, boxes, scores, _i(9), _f(third))
    assert kept[:, 2].tolist() == [0, 1]
    (kept,) = run(OP, boxes, scores, _i(9), np.nextafter(_f(third), _f(0)))
    assert kept[:, 2].tolist() == [0]
    (kept,) = run(OP, boxes, scores, _i(9), _f(1), _f(0.25))
    assert kept[:, 2].tolist() == [0]


def test_absent_inputs_have_the_defaults_of_the_standard() -> None:
    boxes, scores = _scene(1, 2, 12, 0)
    # No box may be selected unless the model says how many.
    for inputs in ((), (None, _f(0.5)), (_i(0),), (_i(-3),), (None, None, _f(0.1))):
        (none,) = run(OP, boxes, scores, *inputs)
        assert none.shape == (0, 3)
        assert none.dtype == np.int64
    (strict,) = run(OP, boxes, scores, _i(99))
    assert strict.tolist() == _brute_force(boxes, scores, 99, 0, None, 0)
    (kept,) = run(OP, boxes, scores, _i(99), None, _f(0.5))
    assert kept.tolist() == _brute_force(boxes, scores, 99, 0, 0.5, 0)
    (scalar,) = run(OP, boxes, scores, np.array(99), np.float32(0.5).reshape(()))
    assert scalar.tolist() == _brute_force(boxes, scores, 99, 0.5, None, 0)


def test_boxes_without_area_suppress_nothing_and_are_kept() -> None:
    boxes = _f(1, 1, 1, 1, 0, 0, 2, 2, 1, 1, 1, 1).reshape(1, 3, 4)
    (kept,) = run(OP, boxes, _f(0.9, 0.8, 0.7).reshape(1, 1, 3), _i(9), _f(0))
    assert kept[:, 2].tolist() == [0, 1, 2]


def test_a_score_that_is_no_number_passes_no_threshold() -> None:
    boxes, _ = _scene(1, 1, 4, 0)
    scores = _f(0.1, np.nan, 0.3, np.nan).reshape(1, 1, 4)
    (kept,) = run(OP, boxes, scores, _i(9), _f(1), _f(0))
    assert kept[:, 2].tolist() == [2, 0]


def test_no_boxes_classes_or_batches() -> None:
    for batches, classes, count in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        boxes, scores = _scene(batches, classes, count, 0)
        (none,) = run(OP, boxes, scores, _i(9), _f(0.5))
        assert none.shape == (0, 3)


def test_boxes_and_scores_must_fit() -> None:
    with pytest.raises(KernelError, match="differ in batches or number"):
        run(OP, np.zeros((1, 4, 4), np.float32), np.zeros((1, 2, 5), np.float32), _i(3))
