"""Activation functions against onnx.reference and, for gradients, against finite values."""

from __future__ import annotations

import jax
import numpy as np
import onnx_ir as ir
import pytest

from tests.engines.xla.ops_support import check, node_model
from xrt.engines.xla import device as D
from xrt.engines.xla import trace as T

ATTRIBUTES: dict[str, list[dict[str, object]]] = {
    "Celu": [{}, {"alpha": 0.5}],
    "Elu": [{}, {"alpha": 2.0}],
    "Gelu": [{}, {"approximate": "tanh"}],
    "HardSigmoid": [{}, {"alpha": 0.5, "beta": 0.25}],
    "HardSwish": [{}],
    "LeakyRelu": [{}, {"alpha": 0.3}],
    "Mish": [{}],
    "Relu": [{}],
    "Selu": [{}, {"alpha": 2.0, "gamma": 3.0}],
    "Sigmoid": [{}],
    "Softplus": [{}],
    "Softsign": [{}],
    "Swish": [{}, {"alpha": 1.7}],
    "Tanh": [{}],
    "ThresholdedRelu": [{}, {"alpha": 0.4}],
    "Shrink": [{}, {"bias": 0.5, "lambd": 0.3}],
}
CASES = [(op, attributes) for op, all_ in ATTRIBUTES.items() for attributes in all_]


def sample(dtype: type = np.float32) -> np.ndarray:
    edge = [0.0, -0.0, 20.0, -20.0]
    values = np.random.default_rng(0).normal(size=20).tolist()
    return np.array(edge + values, np.float64).reshape(2, 3, 4).astype(dtype)


@pytest.mark.parametrize(("op", "attributes"), CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_activation(op: str, attributes: dict[str, object], dtype: type) -> None:
    if op == "Celu" and dtype is np.float64:
        pytest.skip("ONNX's body of Celu takes float32 constants only")
    # ONNX's bodies of these compute with float32 constants in float64 too.
    scale = 1e4 if dtype is np.float64 and op in ("Gelu", "HardSwish") else 1.0
    check(op, [sample(dtype)], layouts=dtype is np.float32, scale=scale, **attributes)


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Gelu", "HardSigmoid", "LeakyRelu", "Tanh"])
def test_nan_and_zero_size(op: str) -> None:
    check(op, [np.array([np.nan, np.inf, 1.0], np.float32)])
    check(op, [np.zeros((0, 3), np.float32)])


def test_large_values_do_not_overflow() -> None:
    x = np.array([1000.0, -1000.0], np.float32)
    for op, want in [("Softplus", [1000, 0]), ("Mish", [1000, 0]), ("Elu", [1000, -1])]:
        check(op, [x], want=[np.array(want, np.float32)])


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_relu_of_integers(dtype: type) -> None:
    check("Relu", [np.array([-3, 0, 4], dtype)])


def test_shrink_of_integers() -> None:
    check("Shrink", [np.array([-3, -1, 0, 2], np.int32)], bias=1.0, lambd=1.5)


@pytest.mark.parametrize("slope", [(3, 1, 1), (1,), (2, 3, 4, 5)])
def test_prelu(slope: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    check("PRelu", [x, rng.normal(size=slope).astype(np.float32)])
    check("PRelu", [(x * 5).astype(np.int32), np.full(slope, 2, np.int32)])


@pytest.mark.parametrize(("op", "attributes"), CASES)
def test_gradients_are_finite_far_out(op: str, attributes: dict[str, object]) -> None:
    x = np.array([-500.0, -1.0, 0.3, 500.0], np.float32)
    body = ir.from_proto(node_model(op, [x], **attributes)).graph
    function = T.function(body, T.plan(body))
    with D.isolated():
        gradient = jax.grad(lambda x: function(x)[0].sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()
