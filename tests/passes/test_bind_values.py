import numpy as np
import pytest

from tests.support import assert_close, check_pass, model, ops, run_reference
from xrt import passes
from xrt.engines.xla import lowering
from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
from xrt.errors import InputError
from xrt.passes.bind_values import SHAPE_POSITIONS, BindValuesPass, shape_inputs

REDUCE = "g (float[2,3] x, int64[1] axes) => (float[a,b] y) { y = ReduceSum (x, axes) }"


def found(text, **constants):
    return shape_inputs(model(text, **constants).graph)


def test_contents_become_constant():
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    axes = np.array([1])
    changed = check_pass(
        BindValuesPass({"axes": axes}),
        REDUCE,
        "g (float[2,3] x, int64[1] axes) => (float[2,1] y) { y = ReduceSum (x, axes_bound) }",
        {"x": x, "axes": axes},
    )
    assert [value.name for value in changed.graph.inputs] == ["x", "axes"]


def test_an_input_that_is_an_output_stays_one():
    made = model("g (int64[1] n) => (float[k] y, int64[1] n) { y = ConstantOfShape (n) }")
    BindValuesPass({"n": np.array([3])})(made)
    y, n = run_reference(made, {"n": np.array([3])})
    assert_close(y, np.zeros(3, np.float32))
    assert_close(n, np.array([3]))


def test_an_input_without_uses_is_left():
    made = model("g (float[2] x, int64[1] n) => (float[2] y) { y = Relu (x) }")
    assert not BindValuesPass({"n": np.array([3])})(made).modified


def test_an_unknown_input_is_named():
    with pytest.raises(InputError, match=r"Input 'q' is unknown. Known inputs: axes, x"):
        BindValuesPass({"q": np.array([3])})(model(REDUCE))


def test_bound_contents_make_shapes_static():
    made = model("g (float[4] x, int64[2] a, int64[2] b) => (float[m,n] y) "
                 "{ s = Add (a, b) y = Reshape (x, s) }")  # fmt: skip
    bind = BindValuesPass({"a": np.array([1, 1]), "b": np.array([1, 1])})
    passes.run([bind, *passes.SPECIALIZE], made)
    assert list(made.graph.outputs[0].shape) == [2, 2]
    assert ops(made) == ["Reshape"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (REDUCE, {"axes"}),
        ("g (float[4] x, int64[2] s) => (float[m,n] y) { y = Reshape (x, s) }", {"s"}),
        # followed through shape arithmetic, of which shapes are no roots
        (
            "g (float[n] x, int64[1] a) => (float[m] y) "
            "{ s = Shape (x) t = Mul (s, a) y = Expand (x, t) }",
            {"a"},
        ),
        # in a nested graph
        (
            "g (bool c, float[4] x, int64[1] s) => (float[m] y) { y = If (c) <"
            "then_branch = t () => (float[p] a) { a = Tile (x, s) }, "
            "else_branch = e () => (float[q] b) { b = Relu (x) }> }",
            {"s"},
        ),
        # data, not shape
        ("g (float[4] x, int64[2] i) => (float[2] y) { y = Gather (x, i) }", set()),
        # with something beside it that cannot be bound, binding it would gain nothing
        (
            "g (float[4,4] x, int64 k) => (float[m] y, int64[m] i) "
            "{ z = NonZero (x) c = Shape (z) r = ReduceMax (x) q = Cast <to = 7> (r) "
            "n = Add (q, k) one = Constant <value_ints = [1]> () m = Reshape (n, one) "
            "f = Reshape (x, one) y, i = TopK (f, m) }",
            set(),
        ),
        # random
        (
            "g (float[4] x, int64[1] s) => (float[m] y) { r = RandomUniformLike (s) "
            "q = Cast <to = 7> (r) y = Expand (x, q) }",
            set(),
        ),
        # matrices are data
        ("g (float[4] x, int64[2,2] s) => (float[m] y) "
         "{ o = Constant <value_ints = [-1]> () t = Reshape (s, o) y = Expand (x, t) }", set()),
        # the iteration number of a body is no input of the model
        (
            "g (int64 n, bool c, float[4] x) => (float[m] y) { y = Loop (n, c, x) <body = b "
            "(int64 i, bool going, float[p] s) => (bool going, float[q] t) "
            "{ o = Constant <value_ints = [1]> () k = Reshape (i, o) t = Tile (s, k) }> }",
            {"n", "c"},
        ),
    ],
)  # fmt: skip
def test_which_inputs_shapes_depend_on(text, names):
    assert found(text) == names


def test_what_a_lowering_must_know_is_a_shape_position():
    for domain, op_type in lowering.lowered_ops():
        if domain == "":
            static = set(lowering._LOWERINGS[domain, op_type].static)
            assert static <= set(SHAPE_POSITIONS.get(op_type, ())), op_type
