from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from tests.engines.tensorrt.trt_support import NETWORKS, RTX, cluster_of
from tests.support import model
from xrt.engines.tensorrt import support as S
from xrt.engines.tensorrt.engine import TensorRTEngine
from xrt.passes import InferShapesPass
from xrt.passes.assign_engines import assign_engines

ENGINE = TensorRTEngine("tensorrt_rtx", "sm_86")


def answer(text: str):
    """What is said of the only node of a model."""
    (node,) = cluster_of(text).nodes
    return S.supports(RTX, node)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_taken_whole(name):
    for node in cluster_of(NETWORKS[name]()).nodes:
        assert S.supports(RTX, node), (node.op_type, S.supports(RTX, node).reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("g (float[2,2] x) => (float y) { y = Det (x) }", "TensorRT's parser has no operator Det"),
        (
            "g (float[1,1,8,8] x) => (float[1,1,4,4] y) "
            "{ y = MaxPool <kernel_shape=[3,3], dilations=[2,2]> (x) }",
            "does not support dilations other than 1",
        ),
        (
            "g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s = {1.0,1.0,2.0,2.0}>"
            '{ y = Resize <mode="linear", antialias=1> (x, , s) }',
            "Antialiasing is not supported",
        ),
        (
            "g (float[4] x) => (int64[1,n] y) { y = NonZero (x) }",
            "depends on values, not on shapes",
        ),
        ("g (double[4] x) => (double[4] y) { y = Exp (x) }", "type DOUBLE, which TensorRT lacks"),
        ("g (float[n] x) => (float[n] y) { y = Exp (x) }", "no static shape"),
        ("g (float[0,2] x) => (float[0,2] y) { y = Exp (x) }", "has no elements"),
        ("g (float[4] x) => (float[4] y) { y = RandomNormalLike (x) }", "new random numbers"),
        (
            "g (float[1,1,1,1,1,1,1,1,2] x) => (float[1,1,1,1,1,1,1,1,2] y) { y = Exp (x) }",
            "has 9 dimensions; TensorRT has 8",
        ),
        (
            "g (float[4] x) => (uint8[4] y) <float s = {1.0}> { y = QuantizeLinear (x, s) }",
            "TensorRT gives int8 where ONNX gives uint8",
        ),
        (
            "g (float[4] x) => (int8[4] y) <float s = {1.0}, int8 z = {3}>"
            "{ y = QuantizeLinear (x, s, z) }",
            "Non-zero zero point is not supported",
        ),
        (
            "g (float[2,3,4] x) => (float[2,3,4] y) <double e = {2.1}> { y = Pow (x, e) }",
            "type DOUBLE, which TensorRT lacks",
        ),
        (
            "g (uint8[4] x) => (uint8[4] y) { y = Transpose (x) }",
            r"Transpose: first input has type UInt8 but must have type [\w, ]+\.$",
        ),
    ],
)
def test_a_refusal_says_why_in_words_of_the_parser(text, reason):
    import re

    found = answer(text)
    assert not found
    assert re.search(reason, found.reason), found.reason
    assert "/_src/" not in found.reason


def test_an_exponent_in_double_is_taken_where_it_narrows_exactly():
    assert answer("g (float[4] x) => (float[4] y) <double e = {2.0}> { y = Pow (x, e) }")


def test_a_node_that_holds_graphs_is_left_to_the_host():
    given = model("""
        g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = a () => (float[2] t) { t = Neg (x) },
                        else_branch = b () => (float[2] e) { e = Exp (x) }>
        }
    """)
    InferShapesPass()(given)
    assert "the host drives it" in S.supports(RTX, given.graph.node(0)).reason


def test_nodes_alike_are_asked_about_once(monkeypatch):
    asked = []
    ask = S._ask
    monkeypatch.setattr(S, "_ask", lambda library, node: asked.append(node) or ask(library, node))
    text = "g (float[3,7] x, float[3,7] z) => (float[3,7] y) { %s }"
    nodes = " ".join(f"t{i + 1} = HardSigmoid <alpha=0.37> (t{i})" for i in range(50))
    made = cluster_of(text % f"t0 = Mul (x, z) {nodes} y = Mul (t50, t50)")
    for node in made.nodes:
        assert S.supports(RTX, node)
    # Two products: that of a value by itself has one input.
    assert sorted(node.op_type for node in asked) in (
        ["HardSigmoid"],
        ["HardSigmoid", "Mul", "Mul"],
    )


def test_what_may_change_the_answer_is_asked_about_anew():
    def signature(text: str):
        return S.signature(cluster_of(text).nodes[0])

    pool = "g (float[1,1,%d,8] x) => (float[1,1,n,m] y) { y = MaxPool <kernel_shape=[%d,2]> (x) }"
    zero = "g (float[4] x) => (int8[4] y) <float s={1.0}, int8 z={%d}>"
    zero += "{ y = QuantizeLinear (x, s, z) }"
    assert signature(pool % (8, 2)) == signature(
        (pool % (8, 2)).replace(" x)", " z)").replace("(x)", "(z)")
    )
    assert signature(pool % (8, 2)) != signature(pool % (9, 2))
    assert signature(pool % (8, 2)) != signature(pool % (8, 3))
    assert signature(zero % 0) != signature(zero % 1)


def test_a_quantization_group_goes_whole_or_not_at_all():
    text = """
        g (float[1,4,8,8] x) => (float[1,4,8,8] y)
        <float s = {0.1}, int8 z = {%d}, int8[4,4,3,3] w, float sw = {0.02}, int8 zw = {0}> {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            dw = DequantizeLinear (w, sw, zw)
            y = Conv <pads=[1,1,1,1]> (d, dw)
        }
    """
    claims = {}
    for zero in (0, 5):
        given = model(text % zero, w=np.ones((4, 4, 3, 3)))
        InferShapesPass()(given)
        claims[zero] = {c.engine for c in assign_engines(given.graph, [ENGINE]).claims}
    assert claims == {0: {"tensorrt_rtx"}, 5: {None}}


def test_a_model_of_one_node_has_what_the_node_uses():
    node = cluster_of(
        "g (float[4,9] x) => (float[4,2] y) <int64[1] k = {2}> { y, i = TopK (x, k) }"
    ).nodes[0]
    alone = S.alone(node)
    assert [value.name for value in alone.outputs] == ["output_0"]
    assert [value.dtype for value in alone.inputs] == [ir.DataType.FLOAT]
    assert list(alone.initializers) == ["input_1"]
