import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import assert_close, check_pass, model, ops, run_reference
from xrt.passes import BindShapesPass, EliminateDeadCodePass, FoldConstantsPass, verify

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 12


def test_constants_are_evaluated():
    check_pass(
        FoldConstantsPass(),
        """g (float[2] x) => (float[2] y) <float[2] a = {1,2}, float[2] b = {3,4}>
           { s = Add (a, b) y = Mul (x, s) }""",
        "g (float[2] x) => (float[2] y) <float[2] s = {4,6}> { y = Mul (x, s) }",
        [np.ones(2, np.float32)],
    )


def test_shape_arithmetic_vanishes():
    text = """
        g (float[n,3,4] x) => (float[a,b] y) <int64 zero = {0}, int64[1] minus = {-1}, int64[1]
            ax = {0}> {
          s = Shape (x)
          d = Gather (s, zero)
          u = Unsqueeze (d, ax)
          t = Concat <axis = 0> (u, minus)
          y = Reshape (x, t)
        }"""
    before = model(text)
    BindShapesPass({"x": (2, 3, 4)})(before)
    check_pass(
        FoldConstantsPass(),
        before,
        "g (float[2,3,4] x) => (float[2,12] y) <int64[2] t = {2,-1}> { y = Reshape (x, t) }",
        [X],
    )


def test_a_known_dimension_of_a_partly_known_shape():
    check_pass(
        FoldConstantsPass(),
        "g (float[n,3,4] x) => (int64 y) <int64 i = {2}> { s = Shape (x) y = Gather (s, i) }",
        "g (float[n,3,4] x) => (int64 y) { s = Shape (x) y = Identity (d) }",
        [X],
    )


def test_an_unknown_dimension_is_not_folded():
    check_pass(
        FoldConstantsPass(),
        "g (float[n,3,4] x) => (int64 y) <int64 i = {0}> { s = Shape (x) y = Gather (s, i) }",
        """g (float[n,3,4] x) => (int64 y) <int64 i = {0}> { s = Shape (x) y = Gather (s, i) }""",
        [X],
    )


def test_shape_with_start_and_end():
    check_pass(
        FoldConstantsPass(),
        "g (float[n,3,4] x) => (int64[1] y) { y = Shape <start = 1, end = -1> (x) }",
        "g (float[n,3,4] x) => (int64[1] y) <int64[1] d = {3}> { y = Identity (d) }",
        [X],
    )


def test_a_constant_output_keeps_its_name():
    made = check_pass(
        FoldConstantsPass(),
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { y = Exp (a) }",
        "g (float[2] x) => (float[2] y) <float[2] e = {1,2}> { y = Identity (e) }",
        [np.ones(2, np.float32)],
    )
    assert not FoldConstantsPass()(made).modified


@pytest.mark.parametrize(
    "node",
    [
        "RandomNormal <shape = [2]> ()",
        "RandomUniformLike (a)",
        "RandomNormalLike (a)",
        "Bernoulli (a)",
        "Dropout (a, r, t)",
    ],
)
def test_random_operators_are_not_folded(node):
    made = model(f"""
        g (float[2] x) => (float[2] y) <float[2] a = {{0.5,0.5}}, float r = {{0.5}}, bool t = {{1}}>
        {{ n = {node} y = Add (x, n) }}""")
    assert not FoldConstantsPass()(made).modified or ops(made)[0] == node.split()[0]
    assert len(made.graph) == 2


def test_dropout_of_a_constant_in_inference_is_folded():
    made = model(
        "g (float[2] x) => (float[2] y) <float[2] a> { n = Dropout (a) y = Add (x, n) }", a=[1, 2]
    )
    FoldConstantsPass()(made)
    assert ops(made) == ["Add"]


def test_a_quantized_weight_stays_quantized():
    made = model(
        """g (float[2] x) => (float[2] y) <int8[2] w, float s>
           { d = DequantizeLinear (w, s) y = Add (x, d) }""",
        w=[1, 2],
        s=0.5,
    )
    FoldConstantsPass()(made)
    assert ops(made) == ["DequantizeLinear", "Add"]


def test_a_large_result_of_a_small_input_is_not_folded():
    evaluated = []

    def evaluate(node, inputs):
        evaluated.append(node.op_type)
        raise AssertionError

    made = model("""
        g (float[2] x) => (float[a,b] y) <int64[2] s = {4096, 1024}> { y = ConstantOfShape (s) }""")
    FoldConstantsPass(evaluate)(made)
    assert ops(made) == ["ConstantOfShape"]
    assert not evaluated
    assert list(made.graph.outputs[0].shape) == [4096, 1024]


def test_a_large_weight_is_transposed():
    made = model(
        """g (float[1,512] x) => (float[1,1024] y) <float[1024,512] w>
           { t = Transpose <perm = [1,0]> (w) y = MatMul (x, t) }""",
        w=np.ones((1024, 512)),
    )
    FoldConstantsPass()(made)
    assert ops(made) == ["MatMul"]


def test_the_evaluator_is_injected():
    calls = []

    def evaluate(node, inputs):
        calls.append(node.op_type)
        return [np.array([7, 7], np.float32)]

    made = model(
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { b = Exp (a) y = Add (x, b) }"
    )
    FoldConstantsPass(evaluate)(made)
    assert calls == ["Exp"]
    assert_close(run_reference(made, [np.zeros(2, np.float32)])[0], np.array([7, 7], np.float32))


def test_a_node_that_fails_stays_and_is_reported():
    def evaluate(node, inputs):
        raise ValueError("no such kernel")

    made = model(
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { b = Exp (a) y = Add (x, b) }"
    )
    pass_ = FoldConstantsPass(evaluate)
    pass_(made)
    assert ops(made) == ["Exp", "Add"]
    assert "no such kernel" in str(pass_.problems[0])


def test_a_wrong_dtype_from_the_evaluator_is_refused():
    made = model(
        "g (float[2] x) => (float[2] y) <float[2] a = {1,2}> { b = Exp (a) y = Add (x, b) }"
    )
    pass_ = FoldConstantsPass(lambda node, inputs: [np.zeros(2)])
    pass_(made)
    assert ops(made) == ["Exp", "Add"]
    assert "float64" in str(pass_.problems[0])


IF = """
    g (float[2] x) => (float[2] y, float[2] z) <bool c = {%d}, bool d = {1}> {
      y = If (c) <then_branch = t () => (float[2] r) <float[2] k = {1,2}>
            { q = Relu (x) r = Add (q, k) },
                  else_branch = e () => (float[2] r) <float[2] k = {3,4}>
                      { q = Abs (x) r = Mul (q, k) }>
      p = If (d) <then_branch = t () => (float[2] r) <float[2] k = {5,6}>
            { q = Neg (y) r = Sub (q, k) },
                  else_branch = e () => (float[2] r) { r = Abs (x) }>
      z = Exp (p)
    }"""


@pytest.mark.parametrize(
    ("taken", "first"), [(1, "Relu (x) y = Add (q, k)"), (0, "Abs (x) y = Mul (q, k)")]
)
def test_a_constant_if_becomes_its_branch(taken, first):
    # Both branches name their values alike, so inlining must rename.
    check_pass(
        FoldConstantsPass(),
        IF % taken,
        f"""g (float[2] x) => (float[2] y, float[2] z) <float[2] k = {{0,0}}, float[2] l = {{0,0}}>
            {{ q = {first} n = Neg (y) p = Sub (n, l) z = Exp (p) }}""",
        [np.array([-1, 2], np.float32)],
    )


def test_what_the_other_branch_used_becomes_dead():
    made = model("""
        g (float[2] x) => (float[2] y) <bool c = {1}> {
          u = Exp (x)
          y = If (c) <then_branch = t () => (float[2] r) { r = Relu (x) },
                      else_branch = e () => (float[2] s) { s = Neg (u) }>
        }""")
    FoldConstantsPass()(made)
    EliminateDeadCodePass()(made)
    verify(made)
    assert ops(made) == ["Relu"]


def test_a_branch_whose_result_is_constant():
    check_pass(
        FoldConstantsPass(),
        """g (float[2] x) => (float[2] y) <bool c = {1}, float[2] k = {1,2}> {
             y = If (c) <then_branch = t () => (float[2] r) { r = Exp (k) },
                         else_branch = e () => (float[2] s) { s = Neg (x) }>
           }""",
        "g (float[2] x) => (float[2] y) <float[2] k = {1,2}> { y = Identity (k) }",
        [np.ones(2, np.float32)],
    )


def test_folding_inside_a_loop_only_uses_shapes_that_last():
    text = """
        g (float[2] x) => (float[a] y, int64[b,c] s) <int64 m = {3}, bool t = {1}> {
          y, s = Loop (m, t, x) <body = b (int64 i, bool c, float[k] v) => (bool d, float[k] w,
              int64[1] z) {
            d = Identity (c)
            w = Concat <axis = 0> (v, v)
            z = Shape (v)
          }>
        }"""
    made = model(text)
    want = run_reference(made, [np.ones(2, np.float32)])
    FoldConstantsPass()(made)
    verify(made)
    assert_close(run_reference(made, [np.ones(2, np.float32)]), want)
    assert want[1].ravel().tolist() == [2, 4, 8]


def test_folding_inside_a_loop():
    text = """
        g (float[2] x) => (float[a] y, int64[b,c] s) <int64 m = {3}, bool t = {1}> {
          y, s = Loop (m, t, x) <body = b (int64 i, bool c, float[k] v) => (bool d, float[k] w,
              int64[1] z) {
            d = Identity (c)
            w = Relu (v)
            z = Shape (v)
          }>
        }"""
    made = model(text)
    want = run_reference(made, [np.ones(2, np.float32)])
    FoldConstantsPass()(made)
    verify(made)
    body = made.graph.node(0).attributes["body"].as_graph()
    assert [n.op_type for n in body] == ["Identity", "Relu", "Identity"]
    assert_close(run_reference(made, [np.ones(2, np.float32)]), want)


def test_several_outputs_and_sequences():
    made = model("""
        g (float[2] x) => (float[2] y) <float[4] a = {1,2,3,4}, int64 i = {0}> {
          p, q = Split <num_outputs = 2> (a)
          l = SequenceConstruct (p, q)
          r = SequenceAt (l, i)
          s = Add (r, q)
          y = Mul (x, s)
        }""")
    x = np.array([1, 2], np.float32)
    want = run_reference(made, [x])
    FoldConstantsPass()(made)
    verify(made)
    assert_close(run_reference(made, [x]), want)
    assert ops(made)[0] == "SequenceConstruct"


UNARY = ["Neg", "Abs", "Exp", "Relu", "Sigmoid", "Floor"]
BINARY = ["Add", "Mul", "Sub", "Max"]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_folding_preserves_random_graphs(data):
    lines, names = [], ["x", "a", "b"]
    for index in range(data.draw(st.integers(1, 12))):
        op = data.draw(st.sampled_from(UNARY + BINARY))
        inputs = [data.draw(st.sampled_from(names)) for _ in range(1 if op in UNARY else 2)]
        lines.append(f"v{index} = {op} ({', '.join(inputs)})")
        names.append(f"v{index}")
    made = model(
        f"""g (float[3] x) => (float[3] v{len(lines) - 1}) <float[3] a, float[3] b> {{
            {" ".join(lines)} }}""",
        a=[0.1, -0.2, 0.3],
        b=[-0.5, 0.25, 0.125],
    )
    x = np.array([0.5, -0.75, 1], np.float32)
    want = run_reference(made, [x])
    FoldConstantsPass()(made)
    EliminateDeadCodePass()(made)
    verify(made)
    assert_close(run_reference(made, [x]), want)
