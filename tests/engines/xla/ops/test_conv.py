"""Conv and ConvTranspose against onnx.reference, with constant and with traced weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.engines.xla.ops_support import (
    node_model,
    run_channels_last,
    run_node,
    run_reference,
    support,
)
from tests.support import assert_close
from xrt.engines.xla import lowering as L

RNG = np.random.default_rng(0)


def _f(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(dtype)


def _both(op: str, x: Any, w: Any, b: Any = None, want: Any = None, **keywords: Any) -> None:
    """Check with the weight as a parameter, prepared, and as an input, x being channels-last."""
    inputs = [x, w] if b is None else [x, w, b]
    scale = keywords.pop("scale", 1.0)
    want = run_reference(op, inputs, **keywords) if want is None else want
    assert_close(run_node(op, inputs, constants=[1], **keywords), want, scale=scale)
    assert_close(run_channels_last(op, inputs, **keywords), want, scale=scale)


CONVS = [
    # x, w, attributes
    ((2, 3, 9, 8), (4, 3, 3, 3), {}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"pads": [1, 0, 2, 3]}),
    ((1, 3, 9, 8), (4, 3, 3, 2), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    ((1, 3, 11, 10), (4, 3, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    ((2, 5, 4, 6), (7, 5, 1, 1), {}),
    ((2, 5, 5, 6), (7, 5, 1, 1), {"strides": [2, 2]}),
    ((2, 5, 5, 6), (7, 5, 1, 1), {"pads": [1, 1, 0, 0]}),
    ((2, 6, 7, 7), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    ((2, 6, 7, 7), (12, 1, 3, 3), {"group": 6, "strides": [2, 2], "dilations": [2, 1]}),
    ((2, 6, 7, 7), (9, 2, 3, 3), {"group": 3}),
    ((1, 64, 5, 5), (64, 2, 3, 3), {"group": 32, "pads": [1, 1, 1, 1]}),
    ((1, 3, 8, 12), (5, 3, 4, 4), {"strides": [4, 4]}),
    ((1, 3, 15, 15), (8, 3, 7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}),
    ((2, 3, 10), (4, 3, 3), {"pads": [2, 0]}),
    ((2, 4, 10), (4, 1, 5), {"group": 4, "strides": [2], "pads": [1, 3]}),
    ((2, 4, 10), (3, 4, 1), {}),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 3), {"pads": [0, 1, 1, 1, 0, 1], "strides": [1, 2, 1]}),
    ((1, 2, 5, 6, 7), (3, 2, 1, 1, 1), {}),
    ((1, 4, 5, 6, 7), (4, 2, 2, 2, 2), {"group": 2, "dilations": [2, 1, 1]}),
    ((2, 3, 7, 8), (4, 3, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 3, 7, 8), (4, 3, 3, 4), {"auto_pad": "SAME_LOWER", "strides": [2, 1]}),
    ((2, 3, 7, 8), (4, 3, 3, 3), {"auto_pad": "VALID"}),
    ((2, 3, 9, 8), (4, 3, 3, 3), {"auto_pad": "SAME_UPPER", "dilations": [2, 2]}),
    ((0, 3, 9, 8), (4, 3, 3, 3), {}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), CONVS)
def test_conv(x: Any, w: Any, attributes: Any) -> None:
    want = [np.zeros((0, 4, 7, 6), np.float32)] if 0 in x else None
    _both("Conv", _f(*x), _f(*w), _f(w[0]), want=want, **attributes)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("group", [1, 4])
def test_conv_dtypes(dtype: Any, group: int) -> None:
    x, w = _f(1, 4, 6, 6, dtype=dtype), _f(4, 4 // group, 3, 3, dtype=dtype)
    _both("Conv", x, w, _f(4, dtype=dtype), group=group, scale=2)


def test_conv_half_accumulates_in_single() -> None:
    # 4096 halves of 1 sum to 4096; in fp16, adding 1 to 2048 changes nothing.
    x = np.ones((1, 4096, 1, 1), np.float16)
    w = np.ones((1, 4096, 1, 1), np.float16)
    (y,) = run_node("Conv", [x, w], constants=[1])
    assert y.reshape(-1)[0] == 4096


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_float16_weights_are_widened_once_and_not_in_every_call(op: str) -> None:
    import onnx_ir as ir

    from xrt.engines.xla import trace as T

    x, w = _f(1, 4, 6, 6, dtype=np.float16), _f(4, 4, 3, 3, dtype=np.float16)
    (parameter,) = T.plan(ir.from_proto(node_model(op, [x, w], constants=[1])).graph).parameters
    assert parameter.array().dtype == np.float32
    (y,) = run_node(op, [x, w], constants=[1])
    assert y.dtype == np.float16
    (want,) = run_reference(op, [x.astype(np.float32), w.astype(np.float32)])
    assert_close(y, want.astype(np.float16), scale=0.1)


def test_conv_of_rank_4_space_is_refused() -> None:
    answer = support("Conv", [_f(1, 1, 2, 2, 2, 2), _f(1, 1, 1, 1, 1, 1)])
    assert not answer
    assert "4 spatial dimensions" in answer.reason


def test_weight_is_prepared_for_the_chosen_algorithm() -> None:
    import onnx_ir as ir

    model = ir.from_proto(node_model("Conv", [_f(1, 4, 6, 6), _f(8, 4, 1, 1)], constants=[1]))
    rule = L.find(model.graph[0])
    assert rule is not None
    assert rule.prepare is not None
    prepared = rule.prepare[1](model.graph[0])
    assert prepared is not None
    assert "pointwise" in prepared.key
    assert prepared.function(_f(8, 4, 1, 1)).shape == (4, 8)


TRANSPOSED = [
    ((1, 3, 4, 5), (3, 2, 3, 3), {}),
    ((2, 3, 4, 5), (3, 2, 2, 2), {"strides": [2, 2]}),
    ((1, 3, 4, 5), (3, 2, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 3], "output_padding": [1, 2]}),
    ((1, 3, 4, 5), (3, 2, 3, 2), {"strides": [3, 2], "pads": [1, 0, 2, 1]}),
    ((1, 3, 4, 5), (3, 2, 2, 2), {"strides": [3, 3]}),
    ((2, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    ((1, 3, 6, 5), (3, 2, 5, 5), {"strides": [2, 2], "pads": [4, 3, 4, 4]}),
    ((1, 3, 4, 5), (3, 2, 5, 4), {"strides": [3, 1], "pads": [0, 2, 1, 0]}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"dilations": [2, 2]}),
    ((1, 3, 4, 5), (3, 2, 3, 2), {"dilations": [2, 3], "strides": [2, 2]}),
    ((1, 4, 4, 5), (4, 3, 3, 3), {"group": 2, "strides": [2, 2]}),
    ((1, 4, 4, 5), (4, 1, 4, 4), {"group": 4, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [3, 2], "output_shape": [10, 8]}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((1, 3, 4, 5), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "VALID"}),
    ((2, 3, 6), (3, 2, 3), {"strides": [2], "pads": [1, 0]}),
    ((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), {"strides": [2, 1, 2], "pads": [0, 1, 0, 0, 1, 0]}),
]


@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED)
def test_conv_transpose(x: Any, w: Any, attributes: Any) -> None:
    # ONNX Runtime is the judge: the reference mixes up the outputs of groups.
    inputs = [_f(*x), _f(*w), _f(w[1] * attributes.get("group", 1))]
    model = node_model("ConvTranspose", inputs, **attributes)
    model.opset_import[0].version = 22
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    want = session.run(None, {f"x{i}": array for i, array in enumerate(inputs)})
    x_, w_, b_ = inputs
    _both("ConvTranspose", x_, w_, b_, want=want, **attributes)


def test_uneven_phases_are_convolved_separately() -> None:
    import onnx_ir as ir

    from xrt.engines.xla.ops.conv_transpose import separate

    def phases(x: Any, w: Any, **attributes: Any) -> list[tuple[int, ...]]:
        model = ir.from_proto(node_model("ConvTranspose", [_f(*x), _f(*w)], **attributes))
        return [phase.geometry.kernel for phase in separate(model.graph[0])]

    x = (1, 3, 4, 5)
    assert phases(x, (3, 2, 3, 3), strides=[2, 2]) == [(2, 2), (2, 1), (1, 2), (1, 1)]
    assert phases(x, (3, 2, 4, 4), strides=[2, 2]) == []  # equally many taps in each
    assert phases(x, (3, 2, 3, 1), strides=[2, 2]) == []  # a phase without taps
    assert phases((1, 4, 4, 5), (4, 2, 3, 3), strides=[2, 2], group=2) == []


def test_conv_transpose_half() -> None:
    x, w = _f(1, 3, 4, 4, dtype=np.float16), _f(3, 2, 2, 2, dtype=np.float16)
    _both("ConvTranspose", x, w, strides=[2, 2], scale=2)


def test_conv_transpose_equals_its_definition() -> None:
    x, w = _f(1, 1, 3), _f(1, 1, 4)
    want = np.zeros(3 * 3 - 3 + 4 - 0, np.float32)
    for i in range(3):
        want[3 * i : 3 * i + 4] += x[0, 0, i] * w[0, 0]
    (y,) = run_node("ConvTranspose", [x, w], strides=[3])
    assert_close([y[0, 0]], [want])


def test_the_rule_is_for_cpus(monkeypatch):
    """On a GPU XLA calls cuDNN, which has algorithms of its own."""
    from types import SimpleNamespace

    from xrt.engines.xla import device
    from xrt.engines.xla.ops.conv import Geometry

    layer = Geometry(1, (14, 14), 256, 256, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, "float32")
    assert layer.algorithm.name == "pointwise"
    monkeypatch.setattr(device, "device", lambda: SimpleNamespace(platform="gpu"))
    assert layer.algorithm.name == "direct"
