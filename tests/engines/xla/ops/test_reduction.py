"""Reductions against onnx.reference: axes, kept dimensions, dtypes, layouts, empty sets."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node, support

REDUCTIONS = [
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
]  # fmt: skip


def sample(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1.5, size=shape).astype(dtype)


def axes_input(axes: list[int] | None) -> list[np.ndarray]:
    return [] if axes is None else [np.array(axes, np.int64)]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_over_the_spatial_axes(op: str) -> None:
    x = sample(2, 3, 4, 5)
    check(op, [x, np.array([2, -1], np.int64)], constants=(1,), keepdims=0)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(
    "axes", [None, [0], [1], [-3, 3], [0, 2, 3], [3], [0, 1, 2, 3], [2, 3, 0, 1], []]
)
def test_axes_in_every_layout(axes: list[int] | None, keepdims: int) -> None:
    x = sample(2, 3, 4, 5)
    check("ReduceSum", [x, *axes_input(axes)], constants=(1,), keepdims=keepdims)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_no_axes_can_mean_no_reduction(op: str) -> None:
    x = sample(2, 3)
    check(op, [x], noop_with_empty_axes=1)


def test_an_empty_list_of_axes_is_no_axes() -> None:
    x, axes = sample(2, 3), np.array([], np.int64)
    for noop in (0, 1):
        check("ReduceSumSquare", [x, axes], constants=(1,), noop_with_empty_axes=noop)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_empty_sets(op: str) -> None:
    # onnx.reference gives NaN for a mean of nothing, as we do.
    check(op, [np.zeros((2, 0, 3), np.float32), np.array([1], np.int64)], constants=(1,))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, bool])
def test_extremes_of_integers_and_booleans(op: str, dtype: type) -> None:
    x = np.array([[0, 1, 1], [1, 0, 0]]).astype(dtype)
    check(op, [x, np.array([1], np.int64)], constants=(1,))
    check(op, [x[:, :0], np.array([1], np.int64)], constants=(1,))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes_propagate_nan(op: str) -> None:
    check(op, [np.array([[1, np.nan], [2, 3]], np.float32), np.array([1])], constants=(1,))


@pytest.mark.parametrize("op", ["ReduceL1", "ReduceSum", "ReduceProd", "ReduceSumSquare"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_integers(op: str, dtype: type) -> None:
    x = np.array([[1, -2, 3], [100000, 70000, 3]], dtype)
    check(op, [x, np.array([1], np.int64)], constants=(1,))


def test_integer_sums_wrap() -> None:
    x = np.full((3,), 2**31 - 1, np.int32)
    check("ReduceSum", [x], keepdims=0)


def test_half_precision_accumulates_in_float32() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.ones((1, 10000), dtype)
        (mean,) = run_node("ReduceMean", [x])
        assert mean.dtype == x.dtype
        assert float(mean[0, 0]) == 1.0
        (norm,) = run_node("ReduceL2", [x * dtype(100)])  # the squares exceed float16
        assert float(norm[0, 0]) == pytest.approx(10000, rel=1e-2)


def test_float64_and_scalars() -> None:
    check("ReduceMean", [sample(2, 3, dtype=np.float64)])
    check("ReduceSum", [np.array(3.0, np.float32)])


def test_log_sum_exp_of_large_and_infinite_values() -> None:
    x = np.array([[1000, 1000], [-np.inf, 0], [-1000, -1001]], np.float32)
    check("ReduceLogSumExp", [x, np.array([1], np.int64)], constants=(1,))


def test_axes_must_be_known() -> None:
    answer = support("ReduceSum", [sample(2, 3), np.array([1], np.int64)])
    assert "compile time" in answer.reason or "static shape" in answer.reason


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_arg_reductions(op: str, last: int, keepdims: int) -> None:
    x = np.random.default_rng(0).integers(0, 3, size=(2, 3, 4)).astype(np.float32)
    for axis in (0, 1, -1):
        keywords = {"axis": axis, "select_last_index": last, "keepdims": keepdims}
        check(op, [x], **keywords)
    check(op, [x.astype(np.int8)], axis=1)


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
def test_cumulative(op: str, exclusive: int, reverse: int) -> None:
    x = sample(2, 3, 4)
    keywords = {"constants": (1,), "exclusive": exclusive, "reverse": reverse}
    for axis in (0, 1, -1):
        check(op, [x, np.array(axis, np.int64)], **keywords)
    check(op, [x[:, :0], np.array(1, np.int32)], **keywords)
    check(op, [np.array([2, -3, 5], np.int32), np.array(0)], **keywords)
