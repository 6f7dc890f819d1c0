import numpy as np
import onnx_ir as ir
import pytest

from tests.support import model
from xrt.errors import VerificationError
from xrt.passes import VerifyPass, verify

TEXT = """
g (bool c, float[2] x) => (float[2] y) <float[2] w = {1,2}> {
  a = Add (x, w)
  b = If (c) <then_branch = t () => (float[2] p) { p = Relu (a) },
              else_branch = e () => (float[2] q) { q = Abs (x) }>
  y = Exp (b)
}"""


def test_a_good_model_passes():
    made = model(TEXT)
    assert not VerifyPass()(made).modified


def fails(made, message):
    with pytest.raises(VerificationError, match=message):
        verify(made)


def test_use_before_production():
    made = model(TEXT)
    node = made.graph.node(0)
    made.graph.remove(node)
    made.graph.append(node)
    fails(made, "Node If .*an input is not produced before its use|Node Relu .*not produced before")


def test_dangling_input():
    made = model(TEXT)
    made.graph.node(0).replace_input_with(1, ir.val("stray"))
    fails(made, "Node Add .*an input is not produced before its use .stray.")


def test_value_of_a_removed_node():
    made = model(TEXT)
    made.graph.remove(made.graph.node(2))
    fails(made, "main graph: an output is not produced .y.")


def test_value_of_a_branch_used_outside():
    made = model(TEXT)
    inner = made.graph.node(1).attributes["then_branch"].as_graph().outputs[0]
    made.graph.node(2).replace_input_with(0, inner)
    fails(made, "Node Exp .*not produced before its use .p.")


def test_two_values_of_one_name():
    made = model(TEXT)
    made.graph.node(1).outputs[0].name = "a"
    fails(made, "share a name .a.")


def test_an_inner_name_that_hides_an_outer_one():
    made = model(TEXT)
    made.graph.node(1).attributes["then_branch"].as_graph().outputs[0].name = "a"
    fails(made, "share a name .a.")


def test_branches_may_share_names():
    made = model(TEXT.replace(" q ", " p ").replace("q =", "p =").replace("] q)", "] p)"))
    verify(made)


def test_an_output_listed_twice():
    made = model(TEXT)
    made.graph.outputs.append(made.graph.outputs[0])
    fails(made, "an output is listed twice")


def test_an_initializer_of_another_type():
    made = model(TEXT)
    made.graph.initializers["w"].const_value = ir.tensor(np.zeros(2, np.float64), name="w")
    fails(made, "dtype is not its tensor's .w")
    made.graph.initializers["w"].const_value = ir.tensor(np.zeros(3, np.float32), name="w")
    fails(made, "shape is not its tensor's .w")


def test_a_body_output_from_outside():
    made = model(TEXT)
    body = made.graph.node(1).attributes["then_branch"].as_graph()
    body.outputs[0] = made.graph.node(0).outputs[0]
    fails(made, "an output belongs to another graph .a.")
