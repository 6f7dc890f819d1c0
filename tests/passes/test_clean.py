import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import assert_close, check_pass, model, ops, run_reference
from xrt.passes import (
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
    EliminateIdentityPass,
    verify,
)

X = np.array([[1.0, -2.0, 3.0]], np.float32)


@pytest.mark.parametrize(
    "node",
    [
        "Identity (a)",
        "Dropout (a)",
        "Dropout (a, r, f)",
        "Cast <to = 1> (a)",
        "Transpose <perm = [0, 1]> (a)",
        "Reshape (a, s)",
        "Expand (a, e)",
        "Pad (a, p)",
        "Concat <axis = 0> (a)",
        "Sum (a)",
        "Where (t, a, x)",
        "Where (f, x, a)",
    ],
)
def test_copies_are_removed(node):
    header = """g (float[1,3] x) => (float[1,3] y) <float[1,3] b, int64[2] s = {1,-1},
        int64[2] e = {1,1}, int64[4] p = {0,0,0,0}, float r = {0.5}, bool f = {0}, bool t = {1}>"""
    check_pass(
        EliminateIdentityPass(),
        f"{header} {{ a = Relu (x) b = {node} y = Exp (b) }}",
        f"{header} {{ a = Relu (x) y = Exp (a) }}",
        [X],
    )


@pytest.mark.parametrize(
    "node",
    [
        "Dropout (a, r, t)",
        "Cast <to = 11> (a)",
        "Transpose (a)",
        "Reshape (a, s)",
        "Pad (a, p)",
        "Concat <axis = 0> (a, a)",
        "Slice (a, start, end, axes, step)",
        "Where (u, a, x)",
        "Where (t, one, a)",
    ],
)
def test_others_stay(node):
    made = model(
        f"""g (float[3,3] x) => (y) <int64[2] s = {{9,1}}, int64[4] p = {{0,1,0,-1}},
        float r = {{0.0}}, bool t = {{1}}, int64[1] start = {{-1}}, int64[1] end = {{-9}},
        int64[1] axes = {{0}}, int64[1] step = {{-1}}, bool[3] u = {{1,0,1}},
        float one = {{1}}> {{ a = Relu (x) b = {node} y = Exp (b)
            }}""".replace("(y)", "(float y)")
    )
    assert not EliminateIdentityPass()(made).modified


def test_changes_of_shape_that_end_where_they_began():
    header = "g (float[1,3] x) => (float[1,3] y) <int64[1] zero = {0}, int64[2] s = {1,3}>"
    check_pass(
        EliminateIdentityPass(),
        f"{header} {{ a = Unsqueeze (x, zero) b = Reshape (a, s) y = Exp (b) }}",
        f"{header} {{ a = Unsqueeze (x, zero) y = Exp (x) }}",
        [X],
    )


def test_changes_of_shape_with_another_order_in_between_stay():
    made = model(
        """g (float[3,3] x) => (float[3,3] y) <int64[1] zero = {0}> {
            a = Unsqueeze (x, zero)
            b = Transpose <perm = [0, 2, 1]> (a)
            c = Squeeze (b, zero)
            y = Exp (c)
        }"""
    )
    assert not EliminateIdentityPass()(made).modified


def test_a_copy_to_a_graph_output():
    check_pass(
        EliminateIdentityPass(),
        "g (float[1,3] x) => (float[1,3] y) { a = Relu (x) y = Identity (a) }",
        "g (float[1,3] x) => (float[1,3] y) { y = Relu (x) }",
        [X],
    )


def test_a_copy_of_an_output_stays():
    # onnx_ir's pass renames `a` and returns it twice.
    check_pass(
        EliminateIdentityPass(),
        "g (float[1,3] x) => (float[1,3] a, float[1,3] y) { a = Relu (x) y = Identity (a) }",
        None,
        [X],
    )


def test_a_copy_of_an_input_or_constant_to_an_output_stays():
    check_pass(
        EliminateIdentityPass(),
        """g (float[1,3] x) => (float[1,3] y, float[1] z) <float[1] w = {1}>
           { y = Identity (x) z = Identity (w) }""",
        None,
        [X],
    )


def test_a_copy_of_an_outer_value_to_a_body_output_stays():
    # onnx_ir's pass makes the branch return the outer value, under the branch's name for it.
    check_pass(
        EliminateIdentityPass(),
        """g (bool c, float[2] x) => (float[2] a, float[2] y) {
             a = Exp (x)
             y = If (c) <then_branch = t () => (float[2] p) { p = Identity (a) },
                         else_branch = e () => (float[2] q) { r = Identity (a) q = Abs (r) }>
           }""",
        """g (bool c, float[2] x) => (float[2] a, float[2] y) {
             a = Exp (x)
             y = If (c) <then_branch = t () => (float[2] p) { p = Identity (a) },
                         else_branch = e () => (float[2] q) { q = Abs (a) }>
           }""",
        [np.array(True), np.ones(2, np.float32)],
    )


def test_equal_nodes_and_constants_merge():
    check_pass(
        EliminateCommonSubexpressionsPass(),
        """g (float[1,3] x) => (float[1,3] y) <float[3] v = {1,2,3}, float[3] w = {1,2,3}>
           { a = Add (x, v) b = Add (x, w) c = Exp (a) d = Exp (b) y = Mul (c, d) }""",
        """g (float[1,3] x) => (float[1,3] y) <float[3] v = {1,2,3}>
           { a = Add (x, v) c = Exp (a) y = Mul (c, c) }""",
        [X],
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("LeakyRelu <alpha = 0.1> (x)", "LeakyRelu <alpha = 0.2> (x)"),
        ("Bernoulli (u)", "Bernoulli (u)"),
        ("Bernoulli <seed = 1.0> (u)", "Bernoulli <seed = 1.0> (u)"),
        ("RandomNormalLike (x)", "RandomNormalLike (x)"),
        ("RandomUniformLike (x)", "RandomUniformLike (x)"),
        ("Dropout (x, r, t)", "Dropout (x, r, t)"),
    ],
)
def test_unequal_and_random_nodes_stay(one, other):
    made = model(f"""g (float[1,3] x) => (float[1,3] y) <float r = {{0.5}}, bool t = {{1}}>
        {{ u = Sigmoid (x) a = {one} b = {other} y = Mul (a, b) }}""")
    assert not EliminateCommonSubexpressionsPass()(made).modified


def test_unknown_operators_stay():
    made = model("""<ir_version: 13, opset_import: ["": 28, "my": 1]>
        g (float[3] x) => (float[3] y) { a = my.Op (x) b = my.Op (x) y = Mul (a, b) }""")
    assert not EliminateCommonSubexpressionsPass()(made).modified


def test_zeros_of_two_signs_differ():
    made = model(
        """g (float[1] x) => (float[1] y) <float[1] p, float[1] n>
            { a = Mul (x, p) b = Mul (x, n) y = Div (a, b) }""",
        p=[0.0],
        n=[-0.0],
    )
    assert not EliminateCommonSubexpressionsPass()(made).modified


def test_equal_outputs_keep_their_names():
    check_pass(
        EliminateCommonSubexpressionsPass(),
        "g (float[1,3] x) => (float[1,3] y, float[1,3] z) { y = Relu (x) z = Relu (x) }",
        None,
        [X],
    )


def test_an_output_merges_into_an_inner_value():
    check_pass(
        EliminateCommonSubexpressionsPass(),
        """g (float[1,3] x) => (float[1,3] y, float[1,3] z)
            { a = Relu (x) y = Exp (a) z = Relu (x) }""",
        "g (float[1,3] x) => (float[1,3] y, float[1,3] z) { z = Relu (x) y = Exp (z) }",
        [X],
    )


def test_a_body_takes_what_was_computed_before_it():
    check_pass(
        EliminateCommonSubexpressionsPass(),
        """g (bool c, float[2] x) => (float[2] y, float[2] z) {
             a = Exp (x)
             y = If (c) <then_branch = t () => (float[2] p) { b = Exp (x) p = Neg (b) },
                         else_branch = e () => (float[2] q) { q = Exp (x) }>
             d = Neg (a) z = Neg (d)
           }""",
        """g (bool c, float[2] x) => (float[2] y, float[2] z) {
             a = Exp (x)
             y = If (c) <then_branch = t () => (float[2] p) { p = Neg (a) },
                         else_branch = e () => (float[2] q) { q = Exp (x) }>
             d = Neg (a) z = Neg (d)
           }""",
        [np.array(True), np.ones(2, np.float32)],
    )


def test_branches_do_not_share():
    check_pass(
        EliminateCommonSubexpressionsPass(),
        """g (bool c, float[2] x) => (float[2] y) {
             y = If (c) <then_branch = t () => (float[2] p) { b = Exp (x) p = Neg (b) },
                         else_branch = e () => (float[2] q) { d = Exp (x) q = Abs (d) }>
           }""",
        None,
        [np.array(True), np.ones(2, np.float32)],
    )


def test_dead_code_goes():
    check_pass(
        EliminateDeadCodePass(),
        """g (float[1,3] x, float[1] unused) => (float[1,3] y) <float[1] w = {1}>
           { a = Exp (x) b = Add (a, w) y = Relu (x) }""",
        "g (float[1,3] x, float[1] unused) => (float[1,3] y) { y = Relu (x) }",
        [X, np.ones(1, np.float32)],
    )


def test_what_a_dead_if_used_is_dead():
    made = model("""
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1,2}> {
          a = Exp (x)
          b = If (c) <then_branch = t () => (float[2] p) { p = Mul (a, w) },
                      else_branch = e () => (float[2] q) { q = Abs (x) }>
          y = Relu (x)
        }""")
    EliminateDeadCodePass()(made)
    verify(made)
    assert ops(made) == ["Relu"]
    assert not made.graph.initializers


def test_dead_code_in_a_body_goes():
    made = model("""
        g (bool c, float[2] x) => (float[2] y) {
          y = If (c) <then_branch = t () => (float[2] p) <float[1] w = {1}>
              { u = Add (x, w) p = Neg (x) },
                      else_branch = e () => (float[2] q) { q = Abs (x) }>
        }""")
    EliminateDeadCodePass()(made)
    verify(made)
    body = made.graph.node(0).attributes["then_branch"].as_graph()
    assert [n.op_type for n in body] == ["Neg"]
    assert not body.initializers


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_cleaning_preserves_random_graphs(data):
    lines, names = [], ["x", "w"]
    for index in range(data.draw(st.integers(1, 15))):
        op = data.draw(st.sampled_from(["Add", "Mul", "Relu", "Identity", "Exp", "Dropout"]))
        inputs = [
            data.draw(st.sampled_from(names)) for _ in range(2 if op in ("Add", "Mul") else 1)
        ]
        lines.append(f"v{index} = {op} ({', '.join(inputs)})")
        names.append(f"v{index}")
    outs = data.draw(st.lists(st.sampled_from(names[2:]), min_size=1, max_size=3, unique=True))
    declared = ", ".join(f"float[3] {name}" for name in outs)
    made = model(
        f"g (float[3] x) => ({declared}) <float[3] w = {{0.5, -1, 2}}> {{ {' '.join(lines)} }}"
    )
    x = np.array([0.5, -0.75, 1], np.float32)
    want = run_reference(made, [x])
    for pass_ in (EliminateIdentityPass, EliminateCommonSubexpressionsPass, EliminateDeadCodePass):
        pass_()(made)
        verify(made)
        assert [v.name for v in made.graph.outputs] == outs
        assert_close(run_reference(made, [x]), want)
