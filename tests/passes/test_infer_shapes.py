import logging

import onnx_ir as ir
import pytest

from tests.support import model
from xrt.errors import ModelImportError
from xrt.passes import InferShapesPass


def infer(text, **constants):
    made = model(text, **constants)
    pass_ = InferShapesPass()
    pass_(made)
    return made, pass_


def shape(value):
    return (
        None if value.shape is None else [d if isinstance(d, int) else d.value for d in value.shape]
    )


def test_values_get_type_and_shape():
    made, pass_ = infer(
        "g (float[2,3] x) => (y) { a = MatMul (x, w) y = Softmax (a) }".replace(
            "(y)", "(float[m,n] y) <float[3,5] w>"
        ),
        w=[[0.0] * 5] * 3,
    )
    assert [shape(n.outputs[0]) for n in made.graph] == [[2, 5], [2, 5]]
    assert made.graph.node(0).outputs[0].dtype == ir.DataType.FLOAT
    assert not pass_.problems


def test_symbols_pass_through():
    made, _ = infer("g (float[n,3] x) => (float[a,b] y) { y = Relu (x) }")
    assert shape(made.graph.outputs[0]) == ["n", 3]


def test_constants_feed_shapes():
    made, _ = infer(
        "g (float[2,6] x) => (float[a,b] y) <int64[2] s = {-1, 4}> { y = Reshape (x, s) }"
    )
    assert shape(made.graph.outputs[0]) == [3, 4]


def test_equal_nodes_with_other_constants_differ():
    made, _ = infer("""
        g (float[2,6] x) => (float[a,b] y, float[c,d] z)
        <int64[2] s = {-1, 4}, int64[2] t = {6, 2}> { y = Reshape (x, s) z = Reshape (x, t) }""")
    assert [shape(v) for v in made.graph.outputs] == [[3, 4], [6, 2]]


def test_a_declared_shape_stays_where_nothing_is_inferred():
    made, _ = infer("""
        <ir_version: 13, opset_import: ["": 28, "my": 1]>
        g (float[2] x) => (float[7] y) { y = my.Op (x) }""")
    assert shape(made.graph.outputs[0]) == [7]


def test_failures_are_collected_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        _, pass_ = infer("""
            <ir_version: 13, opset_import: ["": 28, "my": 1]>
            g (float[2,3] x) => (float[2,2] y) { a = MatMul (x, x) b = my.Op (a) y = Relu (b) }""")
    assert [p.op for p in pass_.problems] == ["MatMul", "Op"]
    assert "Incompatible dimensions" in pass_.problems[0].reason
    assert "my::Op is not known" in pass_.problems[1].reason
    assert "Incompatible dimensions" in caplog.text


def test_strict_raises():
    made = model("g (float[2,3] x) => (float[2,2] y) { y = MatMul (x, x) }")
    with pytest.raises(ModelImportError, match=r"MatMul .*Incompatible dimensions"):
        InferShapesPass(strict=True)(made)


def test_a_contradicted_declaration_is_reported_and_replaced():
    made, pass_ = infer("g (float[8,3] x) => (float[1,3] y) { y = Relu (x) }")
    assert shape(made.graph.outputs[0]) == [8, 3]
    assert "is declared [1, 3], but its inputs make it [8, 3]" in pass_.problems[0].reason


def test_declared_numbers_are_not_believed_while_inputs_are_symbolic():
    # Shapes of one example, left in by an exporter, would be folded into the graph.
    made, _ = infer("g (float[n,3] x, int64[2] s) => (float[1,3] y) { y = Reshape (x, s) }")
    assert shape(made.graph.outputs[0]) == [None, None]
    made, _ = infer("g (float[4,3] x, int64[2] s) => (float[4,3] y) { y = Reshape (x, s) }")
    assert shape(made.graph.outputs[0]) == [4, 3]


def test_branches_are_joined():
    made, _ = infer("""
        g (bool c, float[2,3] x) => (float[a,b] y) {
          y = If (c) <then_branch = t () => (float[k,l] p) { p = Relu (x) },
                      else_branch = e () => (float[k,l] q) { q = Concat <axis = 0> (x, x) }>
        }""")
    assert shape(made.graph.outputs[0]) == ["a", 3]
    branch = made.graph.node(0).attributes["else_branch"].as_graph()
    assert shape(branch.outputs[0]) == [4, 3]


LOOP = """
    g (float[2,3] x) => (float[a,b] y, float[c,d,e] s) <int64 m = {4}, bool t = {1}> {
      y, s = Loop (m, t, x) <body = b (int64 i, bool c, float[k,l] v) => (bool c2, float[k,l] w,
            float[p,q] z) {
        c2 = Identity (c)
        w = %s
        z = Transpose (v)
      }>
    }"""


def test_loop_keeps_a_shape_that_lasts():
    made, _ = infer(LOOP % "Relu (v)")
    assert [shape(v) for v in made.graph.outputs] == [[2, 3], [4, 3, 2]]
    body = made.graph.node(0).attributes["body"].as_graph()
    assert shape(body.inputs[2]) == [2, 3]


def test_loop_forgets_a_dimension_that_grows():
    made, _ = infer(LOOP % "Concat <axis = 0> (v, v)")
    assert [shape(v) for v in made.graph.outputs] == [["a", 3], [4, 3, "e"]]
    body = made.graph.node(0).attributes["body"].as_graph()
    assert shape(body.inputs[2]) == [None, 3]


def test_trials_of_a_loop_leave_no_uses_behind():
    made, _ = infer(
        LOOP.replace("c2 = Identity (c)", "c2 = Identity (c) u = Relu (x)") % "Relu (v)"
    )
    x = made.graph.inputs[0]
    assert len(x.uses()) == 2  # of Loop, and of the one Relu in its body


def test_scan():
    made, _ = infer("""
        g (float[3] s, float[5,3] x) => (float[a] t, float[b,c] y) {
          t, y = Scan <num_scan_inputs = 1, body = b (float[k] p, float[k] q) => (float[k] r,
              float[k] z) {
            r = Add (p, q) z = Concat <axis = 0> (p, q)
          }> (s, x)
        }""")
    assert [shape(v) for v in made.graph.outputs] == [[3], [5, 6]]


def test_a_second_run_changes_nothing():
    made, _ = infer(LOOP % "Relu (v)")
    assert not InferShapesPass()(made).modified


def test_functions_without_a_rule_of_their_own():
    made, pass_ = infer("""
        g (float[2,4,5,5] x) => (float[a,b,c,d] y) <float[4] s = {1,1,1,1}, float[4] b = {0,0,0,0}>
        { y = GroupNormalization <num_groups = 2> (x, s, b) }""")
    assert shape(made.graph.outputs[0]) == [2, 4, 5, 5]
    assert not pass_.problems


def test_a_type_that_an_operator_does_not_take_is_a_problem_not_an_error():
    made = model("g (seq(bfloat16[N]) x) => (seq(bfloat16[N]) y) { y = Identity (x) }")
    pass_ = InferShapesPass()
    pass_(made)
    assert [problem.op for problem in pass_.problems] == ["Identity"]
