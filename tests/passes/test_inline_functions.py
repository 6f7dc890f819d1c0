import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support import assert_close, check_pass, model, ops, run_reference, skeleton
from xrt import passes
from xrt.passes.inline_functions import InlineFunctionsPass, expand, is_function

RNG = np.random.default_rng(0)
SWIGLU = "g (float[2,6] x, float[2,6] z) => (float[2,6] y) { y = SwiGLU <alpha = 1.5> (x, z) }"


def all_but(*refused):
    return lambda node: node.op_type not in refused


def test_the_definition_takes_the_place_of_the_operator():
    inputs = {"x": RNG.normal(size=(2, 6)).astype(np.float32)}
    inputs["z"] = RNG.normal(size=(2, 6)).astype(np.float32)
    check_pass(
        InlineFunctionsPass(all_but("SwiGLU")),
        SWIGLU,
        "g (float[2,6] x, float[2,6] z) => (float[2,6] y) "
        "{ s = Swish <alpha = 1.5> (x) y = Mul (s, z) }",
        inputs,
    )


def test_default_attributes_reach_the_definition():
    text = SWIGLU.replace("<alpha = 1.5>", "")
    inputs = {"x": RNG.normal(size=(2, 6)).astype(np.float32)}
    inputs["z"] = RNG.normal(size=(2, 6)).astype(np.float32)
    after = "g (float[2,6] x, float[2,6] z) => (float[2,6] y) { s = Swish <alpha = 1.0> (x) "
    check_pass(InlineFunctionsPass(all_but("SwiGLU")), text, after + "y = Mul (s, z) }", inputs)


def test_functions_of_functions_are_inlined_too():
    text = "g (float[2,3] x, int64[2] t) => (float y) { y = SoftmaxCrossEntropyLoss (x, t) }"
    inputs = {"x": RNG.normal(size=(2, 3)).astype(np.float32), "t": np.array([2, 0])}
    names = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
    made = model(text)
    want = run_reference(made, inputs)
    passes.InferShapesPass()(made)
    assert InlineFunctionsPass(all_but(*names))(made).modified
    assert not set(ops(made)) & set(names)
    assert "GatherElements" in ops(made)
    assert_close(run_reference(made, inputs), want)


def test_the_body_is_brought_to_the_opset_of_the_model():
    """DynamicQuantizeLinear is written at opset 11; ReduceMin had no axes input then."""
    made = model("g (float[2,3] x) => (uint8[2,3] y, float s, uint8 z) "
                 "{ y, s, z = DynamicQuantizeLinear (x) }")  # fmt: skip
    inputs = {"x": RNG.normal(size=(2, 3)).astype(np.float32)}
    want = run_reference(made, inputs)
    passes.InferShapesPass()(made)
    InlineFunctionsPass(all_but("DynamicQuantizeLinear"))(made)
    assert "DynamicQuantizeLinear" not in ops(made)
    onnx.checker.check_model(ir.to_proto(made), full_check=True)
    assert_close(run_reference(made, inputs), want)


def test_bodies_of_graph_attributes_are_placed():
    text = """
    <ir_version: 13, opset_import: ["": 28, "ai.onnx.preview": 1]>
    g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y) {
      y = ai.onnx.preview.FlexAttention <score_mod = mod
        (float[b,h,i,j] s) => (float[b,h,i,j] t) { two = Constant <value_float = 2.0> ()
        t = Mul (s, two) }> (q, k, v)
    }"""
    inputs = [RNG.normal(size=(1, 2, 4, 8)).astype(np.float32) for _ in range(3)]
    made = model(text)
    want = run_reference(made, inputs)
    passes.InferShapesPass()(made)
    assert InlineFunctionsPass(all_but("FlexAttention"))(made).modified
    assert "FlexAttention" not in ops(made)
    assert_close(run_reference(made, inputs), want)


@pytest.mark.parametrize(
    "supports",
    [
        None,  # no engine
        lambda node: True,  # an engine that runs it itself
        all_but("SwiGLU", "Swish", "Sigmoid"),  # one that runs only a part of it
    ],
)
def test_it_does_not_fire(supports):
    inputs = [RNG.normal(size=(2, 6)).astype(np.float32) for _ in range(2)]
    check_pass(InlineFunctionsPass(supports), SWIGLU, None, inputs)


def test_in_a_nested_graph():
    made = model("""
        g (bool c, float[6] x) => (float[6] y) {
          y = If (c) <then_branch = t () => (float[6] a) { a = SwiGLU (x, x) },
                      else_branch = e () => (float[6] b) { b = Relu (x) }>
        }""")
    inputs = {"c": np.array(True), "x": RNG.normal(size=6).astype(np.float32)}
    want = run_reference(made, inputs)
    passes.InferShapesPass()(made)
    assert InlineFunctionsPass(all_but("SwiGLU"))(made).modified
    branch = made.graph.node(0).attributes["then_branch"].as_graph()
    assert [node.op_type for node in branch] == ["Swish", "Mul"]
    assert_close(run_reference(made, inputs), want)


def test_the_same_operator_twice():
    made = model("g (float[4] x) => (float[4] y) { a = SwiGLU (x, x) y = SwiGLU (a, x) }")
    inputs = {"x": RNG.normal(size=4).astype(np.float32)}
    want = run_reference(made, inputs)
    passes.InferShapesPass()(made)
    InlineFunctionsPass(all_but("SwiGLU"))(made)
    assert ops(made) == ["Swish", "Mul"] * 2
    assert_close(run_reference(made, inputs), want)


def test_what_is_no_function():
    made = model("g (float[4] x) => (float[4] y) { y = Sin (x) }")
    node = made.graph.node(0)
    assert not is_function(node)
    assert expand(node) is None
    assert "Sin" in skeleton(made.graph)


def test_a_definition_that_leaves_out_an_output_is_no_definition():
    """ONNX's body of Attention makes the scores, but no keys and values that nobody asks for."""
    made = model("""
        g (float[1,2,3,4] q, float[1,2,3,4] k, float[1,2,3,4] v) => (float[1,2,3,3] s) {
          y, present_key, present_value, s = Attention (q, k, v)
        }""")
    for unused in made.graph.node(0).outputs[1:3]:
        unused.name = ""
    passes.InferShapesPass()(made)
    assert expand(made.graph.node(0)) is None
    assert not InlineFunctionsPass(all_but("Attention"))(made).modified
