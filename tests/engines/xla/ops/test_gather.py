"""Gathers and scatters against onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node, support
from tests.support import assert_close

RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def _i(values: Any, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return np.array(values, dtype)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("indices", [[2, -1, 0], [1, 2], 1, [[0, 1], [-2, 0]]])
def test_gather(axis: int, indices: Any) -> None:
    x = _f(3, 4, 3, 5)
    check("Gather", [x, _i(indices)], axis=axis, layouts=axis == 1)
    if axis == 2:
        check("Gather", [x, _i(indices, np.int32)], axis=axis, constants=[1])


def test_gather_of_nothing() -> None:
    check("Gather", [_f(3, 4), np.zeros((0,), np.int64)], axis=1)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    x = _f(4, 3, 5)
    indices = RNG.integers(-3, 3, (4, 3, 5))
    want = [np.take_along_axis(x, indices, axis)]
    check("GatherElements", [x, indices], axis=axis, want=want, layouts=False)


def test_gather_elements_with_fewer_rows_than_the_data() -> None:
    x, indices = _f(4, 6), RNG.integers(-6, 6, (2, 3))
    want = [np.take_along_axis(x[:2], indices, 1)]
    check("GatherElements", [x, indices], axis=1, want=want)


@pytest.mark.parametrize(
    ("indices", "batch_dims"),
    [([[0, 1], [1, -1]], 0), ([[[0]], [[-1]]], 1), ([[1], [0]], 1), ([[0, 1, 2, 0]], 0)],
)
def test_gather_nd(indices: Any, batch_dims: int) -> None:
    check("GatherND", [_f(2, 3, 4, 2), _i(indices)], batch_dims=batch_dims, layouts=False)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter(reduction: str) -> None:
    x = _f(4, 3, 5)
    places = np.argsort(RNG.random((4, 2, 5)), axis=0)[:3] - 2  # distinct, some negative
    check("ScatterElements", [x, places, _f(3, 2, 5)], axis=0, reduction=reduction, layouts=False)
    check("ScatterND", [x, _i([[0, 1], [-1, 2]]), _f(2, 5)], reduction=reduction, layouts=False)


@pytest.mark.parametrize("reduction", ["add", "mul", "max"])
def test_scatter_to_one_place_twice(reduction: str) -> None:
    check(
        "ScatterElements",
        [_f(5), _i([1, 1, -4]), _f(3)],
        axis=0,
        reduction=reduction,
        layouts=False,
    )
    check("ScatterND", [_f(3, 2), _i([[1], [1]]), _f(2, 2)], reduction=reduction, layouts=False)


def test_scatter_integers() -> None:
    x = np.arange(6, dtype=np.int64)
    check("ScatterND", [x, _i([[1], [4]]), _i([10, 20])], reduction="add")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    inputs = [_i([[0, 3], [-1, 9]]), _i(4), _i([2, 7], np.float32)]
    check("OneHot", inputs, constants=[1], axis=axis)


def test_one_hot_of_floats_truncates() -> None:
    inputs = [_i([1.7, 0.0], np.float32), _i([3]), _i([0, 1], np.int32)]
    assert_close(run_node("OneHot", inputs, constants=[1]), [_i([[0, 1, 0], [1, 0, 0]], np.int32)])


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_top_k_breaks_ties_by_place(largest: int, axis: int) -> None:
    x = np.round(_f(6, 7) * 2)
    for array in (x, x.astype(np.int64), x.astype(np.float16)):
        check("TopK", [array, _i([4])], constants=[1], outputs=2, largest=largest, axis=axis)


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("k", [3, 60])
@pytest.mark.parametrize("dtype", ["f4", "f2", "f8", "i1", "u2", "i4", "u4", "u8"])
def test_few_and_many_of_a_row(dtype: str, k: int, largest: int) -> None:
    x = (RNG.normal(size=(2, 60)) * 30).astype(np.int64).astype(dtype)
    x[:, 7], x[:, 11] = (-np.inf, np.inf) if dtype[0] == "f" else (0, np.iinfo(dtype).max)
    order = np.argsort(x.astype(object) * (1 if largest == 0 else -1), axis=1, kind="stable")
    places = order[:, :k].astype(np.int64)
    want = [np.take_along_axis(x, places, 1), places]
    check("TopK", [x, _i([k])], constants=[1], outputs=2, largest=largest, want=want)


@pytest.mark.parametrize("largest", [0, 1])
def test_top_k_of_extremes(largest: int) -> None:
    x = _i([0.0, -0.0, np.nan, np.inf, -np.inf, -0.0, 0.0, -np.nan], np.float32)
    check("TopK", [x, _i([8])], constants=[1], outputs=2, largest=largest)
    check("TopK", [x, _i([1])], constants=[1], outputs=2, largest=largest)
    ends = _i([-(2**63), 2**63 - 1, 0, -(2**63)])
    check("TopK", [ends, _i([4])], constants=[1], outputs=2, largest=largest)
    small = _i([0, 255, 7, 255], np.uint8)
    check("TopK", [small, _i([3])], constants=[1], outputs=2, largest=largest)


def test_top_k_by_a_computed_k_is_refused() -> None:
    assert not support("TopK", [_f(4), _i([2])], outputs=2)


@pytest.mark.parametrize(("batch_axis", "time_axis"), [(0, 1), (1, 0)])
def test_reverse_sequence(batch_axis: int, time_axis: int) -> None:
    inputs = [_f(4, 4, 3), _i([1, 4, 0, 3])]
    check("ReverseSequence", inputs, batch_axis=batch_axis, time_axis=time_axis)


def test_compress_is_refused_with_its_reason() -> None:
    from xrt.engines.xla.ops import gather

    assert "depends on the data" in gather._refuse_compress(None).reason  # type: ignore[arg-type]
    assert not support("Compress", [_f(3), np.array([True, False, True])], axis=0)
