"""Pooling against onnx.reference, ONNX Runtime where the reference is wrong, and NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.engines.xla.ops_support import check, node_model, run_channels_last, run_node, support
from tests.support import assert_close

RNG = np.random.default_rng(0)


def _f(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(dtype)


def _runtime(op: str, inputs: Any, **keywords: Any) -> list[Any]:
    model = node_model(op, inputs, **keywords)
    model.opset_import[0].version = 22
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {f"x{i}": a for i, a in enumerate(inputs)}))


GRID: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9, 8), {"kernel_shape": [3, 2]}),
    ((2, 3, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((2, 3, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 0, 0, 2]}),
    ((1, 2, 8, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 2, 7, 8), {"kernel_shape": [2, 3], "strides": [3, 4], "ceil_mode": 1, "pads": [1] * 4}),
    ((1, 2, 9, 9), {"kernel_shape": [2, 3], "dilations": [2, 3]}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 2, 9, 8), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"}),
    ((1, 2, 20, 20), {"kernel_shape": [9, 9], "pads": [2] * 4}),
    ((1, 2, 13, 17), {"kernel_shape": [4, 5], "strides": [2, 1], "pads": [1, 2, 3, 0]}),
    ((1, 2, 15, 19), {"kernel_shape": [5, 4], "dilations": [2, 3], "pads": [0, 1, 3, 2]}),
    ((1, 2, 13, 14), {"kernel_shape": [4, 4], "strides": [3, 4], "ceil_mode": 1}),
    ((1, 2, 6, 6), {"kernel_shape": [6, 6]}),
    ((2, 3, 11), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((1, 2, 5, 6, 7), {"kernel_shape": [2, 3, 2], "strides": [1, 2, 2], "pads": [0, 1, 0] * 2}),
]


@pytest.mark.parametrize(("shape", "attributes"), GRID)
@pytest.mark.parametrize(
    "op", ["MaxPool", "AveragePool", pytest.param("LpPool", marks=pytest.mark.slow)]
)
def test_windows(op: str, shape: Any, attributes: Any) -> None:
    x = _f(*shape)
    want = _runtime(op, [x], **attributes)
    assert_close(run_channels_last(op, [x], **attributes), want)


def test_nan_wins_in_large_windows() -> None:
    x = _f(1, 1, 9, 9)
    x[0, 0, 4, 5] = np.nan
    (y,) = run_node("MaxPool", [x], kernel_shape=[4, 5])
    want = np.lib.stride_tricks.sliding_window_view(x, (4, 5), (2, 3)).max((-1, -2))
    assert np.isnan(want).sum() == 16
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_windows_equal_the_reference(op: str) -> None:
    check(op, [_f(1, 2, 7, 6)], kernel_shape=[3, 2], strides=[2, 1])


@pytest.mark.parametrize("attributes", [GRID[2][1], GRID[4][1], {**GRID[7][1], "strides": [3, 2]}])
def test_average_counts_padding_if_asked(attributes: Any) -> None:
    x = _f(1, 2, 7, 8)
    want = _runtime("AveragePool", [x], count_include_pad=1, **attributes)
    assert_close(run_node("AveragePool", [x], count_include_pad=1, **attributes), want)


@pytest.mark.parametrize("storage_order", [0, 1])
@pytest.mark.parametrize("attributes", [GRID[2][1], GRID[3][1], GRID[5][1]])
def test_max_pool_indices(attributes: Any, storage_order: int) -> None:
    x = np.round(_f(2, 3, 9, 9))  # many ties: the first wins
    keywords = {**attributes, "storage_order": storage_order}
    want = _runtime("MaxPool", [x], outputs=2, **keywords)
    assert_close(run_node("MaxPool", [x], outputs=2, **keywords), want)


def test_max_pool_indices_of_a_large_window_are_refused() -> None:
    answer = support("MaxPool", [_f(1, 1, 20, 20)], outputs=2, kernel_shape=[9, 9])
    assert not answer
    assert "indices" in answer.reason


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_integer_max_pool(dtype: Any) -> None:
    x = RNG.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, (1, 3, 6, 6)).astype(dtype)
    attributes: Any = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [2, 2]}
    assert_close(run_node("MaxPool", [x], **attributes), _runtime("MaxPool", [x], **attributes))


def test_nan_reaches_every_window_that_holds_it() -> None:
    x = _f(1, 1, 4, 4)
    x[0, 0, 1, 1] = np.nan
    for op in ("MaxPool", "AveragePool", "LpPool"):
        (y,) = run_node(op, [x], kernel_shape=[2, 2], strides=[2, 2])
        np.testing.assert_array_equal(np.isnan(y[0, 0]), [[True, False], [False, False]])


def test_half_sums_in_single() -> None:
    x = np.ones((1, 1, 64, 64), np.float16)
    for op in ("GlobalAveragePool", "AveragePool"):
        attributes = {} if op.startswith("G") else {"kernel_shape": [64, 64]}
        (y,) = run_node(op, [x], **attributes)
        assert y.dtype == np.float16
        assert y.item() == 1


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 7), (1, 2, 3, 4, 2)])
def test_global_pools(shape: Any) -> None:
    x, axes = _f(*shape), tuple(range(2, len(shape)))
    wants = {
        "GlobalAveragePool": x.mean(axes, keepdims=True),
        "GlobalMaxPool": x.max(axes, keepdims=True),
        "GlobalLpPool": np.sqrt((x * x).sum(axes, keepdims=True)),
    }
    for op, want in wants.items():
        assert_close(run_channels_last(op, [x]), [want])
    check("GlobalLpPool", [x], want=[np.abs(x).sum(axes, keepdims=True)], p=1, layouts=False)


def test_empty_batch() -> None:
    x = np.zeros((0, 2, 4, 4), np.float32)
    (y,) = run_node("MaxPool", [x], kernel_shape=[2, 2])
    assert y.shape == (0, 2, 3, 3)
