"""Convolution and pooling against onnx.reference and onnxruntime."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.kernels.host.support import assert_close, compare, run

RNG = np.random.default_rng(1)


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _ort(op_type: str, *inputs: Any, output_count: int = 1, **attributes: Any) -> list[Any]:
    ort = pytest.importorskip("onnxruntime")
    names = [f"i{i}" for i in range(len(inputs))]
    outs = [f"o{i}" for i in range(output_count)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, names, outs, **attributes)],
        "g",
        [
            onnx.helper.make_tensor_value_info(
                n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
            )
            for n, x in zip(names, inputs, strict=True)
        ],
        [
            onnx.helper.make_tensor_value_info(
                n, onnx.TensorProto.INT64 if i else onnx.TensorProto.FLOAT, None
            )
            for i, n in enumerate(outs)
        ],
    )
    opset = [onnx.helper.make_opsetid("", 22)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_conv(rank: int, group: int, stride: int, dilation: int) -> None:
    x = _x(2, 4, *(9, 8, 7)[:rank])
    for multiplier, kernel in itertools.product((1, 2), (1, 3)):
        w = _x(4 * multiplier, 4 // group, *(kernel,) * rank)
        attributes = {
            "group": group,
            "strides": [stride] * rank,
            "dilations": [dilation] * rank,
            "pads": [1] * rank + [2] * rank,
        }
        got = run("Conv", x, w, _x(4 * multiplier) * 0, **attributes)
        assert_close(got[0], _ort("Conv", x, w, **attributes)[0])


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_auto_pad(auto_pad: str) -> None:
    x, w = _x(1, 3, 8, 7), _x(2, 3, 4, 3)
    attributes = {"auto_pad": auto_pad, "strides": [2, 1]}
    assert_close(run("Conv", x, w, **attributes)[0], _ort("Conv", x, w, **attributes)[0])
    pool = {"auto_pad": auto_pad, "strides": [2, 2], "kernel_shape": [3, 2]}
    for op_type in ("MaxPool", "AveragePool"):
        assert_close(run(op_type, x, **pool)[0], _ort(op_type, x, **pool)[0])


def test_large_convolution_is_cut_into_pieces() -> None:
    x, w = _x(1, 64, 96, 96), _x(8, 64, 3, 3)
    assert_close(run("Conv", x, w, pads=[1] * 4)[0], _ort("Conv", x, w, pads=[1] * 4)[0])
    w = _x(64, 1, 7, 7)
    attributes: dict[str, Any] = {"pads": [3] * 4, "group": 64}
    assert_close(run("Conv", x, w, **attributes)[0], _ort("Conv", x, w, **attributes)[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_conv_of_other_types(dtype: Any) -> None:
    x, w, b = _x(1, 8, 6, 6), _x(4, 8, 3, 3), _x(4)
    (y,) = run("Conv", x.astype(dtype), w.astype(dtype), b.astype(dtype))
    (wide,) = run("Conv", *(v.astype(dtype).astype(np.float32) for v in (x, w, b)))
    assert y.dtype == dtype
    # One rounding at the end: everything before it is in float32.
    assert_close(y.astype(np.float32), wide.astype(dtype).astype(np.float32))


def test_empty_batch() -> None:
    assert run("Conv", _x(0, 3, 5, 5), _x(2, 3, 3, 3))[0].shape == (0, 2, 3, 3)
    assert run("MaxPool", _x(0, 3, 5, 5), kernel_shape=[2, 2])[0].shape == (0, 3, 4, 4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(rank: int, group: int) -> None:
    x, w = _x(2, 4, *(5, 4, 3)[:rank]), _x(4, 3, *(3,) * rank)
    for stride, dilation, pad, extra in ((1, 1, 0, 0), (2, 1, 1, 1), (3, 2, 1, 2)):
        attributes = {
            "group": group,
            "strides": [stride] * rank,
            "dilations": [dilation] * rank,
            "pads": [pad] * rank + [0] * rank,
            "output_padding": [extra] * rank,
        }
        b = _x(3 * group)
        assert_close(
            run("ConvTranspose", x, w, b, **attributes)[0],
            _ort("ConvTranspose", x, w, b, **attributes)[0],
        )


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_conv_transpose_to_a_shape(auto_pad: str) -> None:
    x, w = _x(1, 2, 4, 5), _x(2, 3, 3, 3)
    attributes = {"auto_pad": auto_pad, "strides": [2, 2], "output_shape": [8, 10]}
    assert_close(
        run("ConvTranspose", x, w, **attributes)[0], _ort("ConvTranspose", x, w, **attributes)[0]
    )


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_pool(ceil_mode: int, stride: int, dilation: int) -> None:
    for size in ((9,), (7, 8), (5, 6, 7)):
        rank, x = len(size), _x(2, 3, *size)
        attributes = {
            "kernel_shape": [3] * rank,
            "strides": [stride] * rank,
            "dilations": [dilation] * rank,
            "pads": [1] * rank + [0] * rank,
            "ceil_mode": ceil_mode,
        }
        assert_close(run("MaxPool", x, **attributes)[0], _ort("MaxPool", x, **attributes)[0])
        for include in (0, 1):
            attributes["count_include_pad"] = include
            want = _ort("AveragePool", x, **attributes)[0]
            assert_close(run("AveragePool", x, **attributes)[0], want)


@pytest.mark.parametrize("storage_order", [0, 1])
def test_max_pool_indices(storage_order: int) -> None:
    x = _x(2, 3, 7, 6)
    attributes: dict[str, Any] = {
        "kernel_shape": [3, 2],
        "strides": [2, 2],
        "pads": [1, 1, 1, 0],
        "storage_order": storage_order,
    }
    got = run("MaxPool", x, output_count=2, **attributes)
    for g, w in zip(got, _ort("MaxPool", x, output_count=2, **attributes), strict=True):
        assert_close(g, w)


def test_max_pool_indices_of_nan_and_of_minus_infinity() -> None:
    x = np.array([[[1, np.nan, 2, 3, -np.inf, -np.inf]]], np.float32)
    values, index = run("MaxPool", x, kernel_shape=[2], pads=[1, 0], output_count=2)
    assert_close(values, np.array([[[1, np.nan, np.nan, 3, 3, -np.inf]]], np.float32))
    assert index.tolist() == [[[0, 1, 1, 3, 3, 4]]]


def test_max_pool_indices_in_column_major_order() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 1, 2, 3, 4)
    _, index = run("MaxPool", x, kernel_shape=[1, 1, 1], storage_order=1, output_count=2)
    want = np.arange(24).reshape(4, 3, 2).transpose(2, 1, 0)[None, None]
    assert_close(index, want)


def test_max_pool_of_integers() -> None:
    x = RNG.integers(-128, 127, (1, 2, 5, 5)).astype(np.int8)
    (y,) = run("MaxPool", x, kernel_shape=[2, 2], pads=[1, 1, 1, 1])
    assert y.dtype == np.int8
    assert (y[:, :, 0, 0] == x[:, :, 0, 0]).all()


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pool(op_type: str) -> None:
    for shape in ((2, 3, 4), (2, 3, 4, 5), (1, 2, 3, 4, 5)):
        x = _x(*shape)
        assert_close(run(op_type, x)[0], _ort(op_type, x)[0])
        assert run(op_type, x.astype(np.float16))[0].dtype == np.float16


def test_lp_pool() -> None:
    for p in (1, 2, 3):
        compare("LpPool", _x(1, 2, 6, 6), kernel_shape=[2, 2], strides=[2, 2], p=p)
