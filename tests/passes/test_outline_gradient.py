"""Gradient, from names to a function of its own, and its values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.support import assert_close, model, ops
from xrt.errors import ModelImportError
from xrt.passes import OutlineGradientPass, verify

HEADER = '<ir_version: 13, opset_import: ["": 28, "ai.onnx.preview.training": 1]> '
SQUARE = """g (float[2,3] x, float[3,2] z) => (float[2,2] y, float[2,3] dx) {
    h = MatMul (x, z)
    y = Mul (h, h)
    dx = ai.onnx.preview.training.Gradient <xs=["x"], zs=["z"], y="y"> (x, z)
}"""


@pytest.fixture
def xz() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(3, 2)).astype(np.float32)


def outlined(text: str, **constants) -> ir.Model:
    made = model(HEADER + text, **constants)
    OutlineGradientPass()(made)
    verify(made)
    return made


def test_the_function_is_copied_into_the_node():
    made = outlined(SQUARE)
    assert ops(made) == ["MatMul", "Mul", "Gradient"]
    node = made.graph.node(2)
    assert (node.domain, list(node.attributes)) == ("xrt", ["body"])
    body = node.attributes["body"].as_graph()
    assert len(body.inputs) == 2
    assert [inner.op_type for inner in body] == ["MatMul", "Mul"]


def test_other_models_stay():
    made = model("g (float x) => (float y) { y = Neg (x) }")
    assert not OutlineGradientPass()(made).modified


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_values(engine, xz):
    x, z = xz
    program = xrt.compile(model(HEADER + SQUARE), engine=engine)
    y, dx = program(x, z)
    assert_close(y, (x @ z) ** 2)
    assert_close(dx, 2 * (x @ z) @ z.T)
    if engine == "xla":
        assert [placed.engine for placed in program.specialization.partition.placements] == [
            "xla"
        ] * 3


def test_weights_and_intermediate_values_can_be_differentiated_for(xz):
    x, z = xz
    text = """g (float[2,3] x) => (float[3,2] dz, float[2,2] dh) <float[3,2] z> {
        h = MatMul (x, z)
        y = Mul (h, h)
        dz = ai.onnx.preview.training.Gradient <xs=["z"], zs=["x"], y="y"> (z, x)
        dh = ai.onnx.preview.training.Gradient <xs=["h"], y="y"> (h)
    }"""
    dz, dh = xrt.compile(model(HEADER + text, z=z))(x)
    assert_close(dz, x.T @ (2 * (x @ z)))
    assert_close(dh, 2 * (x @ z))


def test_gradients_nest():
    text = """g (float x) => (float ddx) {
        a = Mul (x, x)
        y = Mul (a, x)
        dx = ai.onnx.preview.training.Gradient <xs=["x"], y="y"> (x)
        ddx = ai.onnx.preview.training.Gradient <xs=["x"], y="dx"> (x)
    }"""
    assert xrt.compile(model(HEADER + text))(np.float32(5)) == 30


@pytest.mark.parametrize(
    ("attributes", "inputs", "message"),
    [
        ('xs=["w"], y="y"', "x", "names 'w', which is no value"),
        ('xs=["x"], y="y"', "x", "depends on 'z' too"),
        ('xs=["x"], zs=["z"], y="y"', "x", "1 inputs for 2 names"),
    ],
)
def test_what_is_wrong_is_named(attributes, inputs, message):
    text = SQUARE.replace('xs=["x"], zs=["z"], y="y"', attributes).replace(
        "> (x, z)", f"> ({inputs})"
    )
    with pytest.raises(ModelImportError, match=message):
        xrt.compile(model(HEADER + text))
