import numpy as np
import onnx_ir as ir
import pytest

from tests.support import check_pass, model, ops, run_reference
from xrt.errors import OptionError
from xrt.passes import (
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
    EliminateIdentityPass,
    InferShapesPass,
    run,
    verify,
)
from xrt.passes.cast_precision import CastPrecisionPass, overflowing, watched_values
from xrt.passes.precision_rules import low_constant

FP16, BF16 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16
# Outputs stay float32, but carry the errors of the type that computes them.
SCALES = {FP16: 100, BF16: 500}
CLEAN = (
    EliminateIdentityPass,
    EliminateCommonSubexpressionsPass,
    EliminateDeadCodePass,
)

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def check(before, after, inputs, dtype=FP16, keep=None, **constants):
    """Check the pass, that its types are those of inference, and that nothing is left to clean."""
    made = CastPrecisionPass(dtype, keep=keep)
    changed = check_pass(made, before, after, inputs, constants=constants, scale=SCALES[dtype])
    types = {v.name: v.type for node in changed.graph.all_nodes() for v in node.outputs}
    InferShapesPass(strict=True)(changed)
    assert types == {v.name: v.type for node in changed.graph.all_nodes() for v in node.outputs}
    casts = ops(changed).count("Cast")
    run(CLEAN, changed)
    assert ops(changed).count("Cast") == casts
    return changed, {each.op: each.reason for each in made.kept}


def types(changed):
    return {str(v.name): v.dtype for v in changed.graph.initializers.values()}


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_casts_at_the_edges_and_a_weight_in_the_low_type(dtype):
    changed, kept = check(
        "g (float[2,8] x) => (float[2,4] y) <float[8,4] w> { a = MatMul (x, w) y = Relu (a) }",
        f"""g (float[2,8] x) => (float[2,4] y) {{
            h = Cast <to = {dtype.value}> (x) a = MatMul (h, w) r = Relu (a)
            y = Cast <to = 1> (r) }}""",
        [normal(2, 8)],
        dtype,
        w=normal(8, 4),
    )
    assert kept == {}
    assert list(types(changed).values()) == [dtype]
    assert [v.dtype for v in changed.graph.inputs] == [ir.DataType.FLOAT]
    assert [v.dtype for v in changed.graph.outputs] == [ir.DataType.FLOAT]


def test_convolution_bias_and_pooling():
    check(
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) <float[4,3,3,3] w, float[4] b> {
            a = Conv <pads = [1,1,1,1]> (x, w, b) r = Relu (a)
            y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r) }""",
        """g (float[1,3,8,8] x) => (float[1,4,4,4] y) { h = Cast <to = 10> (x)
            a = Conv <pads = [1,1,1,1]> (h, w, b) r = Relu (a)
            p = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r) y = Cast <to = 1> (p) }""",
        [normal(1, 3, 8, 8)],
        w=normal(4, 3, 3, 3),
        b=normal(4),
    )


def test_what_must_stay_gets_one_cast_on_each_side():
    _, kept = check(
        """g (float[2,8] x) => (float[2,8] y) <float[8,8] w> {
            a = MatMul (x, w) s = Softmax (a) t = Transpose (s) u = Transpose (t)
            y = MatMul (u, w) }""",
        """g (float[2,8] x) => (float[2,8] y) {
            h = Cast <to = 10> (x) a = MatMul (h, w) f = Cast <to = 1> (a) s = Softmax (f)
            t = Transpose (s) u = Transpose (t) l = Cast <to = 10> (u) m = MatMul (l, w)
            y = Cast <to = 1> (m) }""",
        [normal(2, 8)],
        w=normal(8, 8),
    )
    assert kept == {
        "Softmax": "sums exponentials",
        "Transpose": "follows what feeds it, which is float32",
    }


def test_a_value_is_cast_once_for_all_its_users():
    check(
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) <float[8,8] w> {
            a = MatMul (x, w) s = Softmax (a) e = Exp (a) t = Tanh (a)
            p = Sigmoid (s) q = Sin (s) r = Sum (t, p, q) y = Softmax (r) z = Add (s, e) }""",
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) {
            h = Cast <to = 10> (x) a = MatMul (h, w) f = Cast <to = 1> (a) s = Softmax (f)
            l = Cast <to = 10> (s) e = Exp (f) t = Tanh (a) p = Sigmoid (l) q = Sin (l)
            r = Sum (t, p, q) g = Cast <to = 1> (r) y = Softmax (g) z = Add (s, e) }""",
        [normal(2, 8)],
        w=normal(8, 8),
    )


def test_cheap_arithmetic_between_kept_nodes_stays_with_them():
    _, kept = check(
        """g (float[2,8] x) => (float[2,8] y) <float[8,8] w, float c = {0.5}> {
            a = MatMul (x, w) e = Exp (a) b = Mul (e, c) d = Sqrt (b) y = Log (d) }""",
        """g (float[2,8] x) => (float[2,8] y) <float c = {0.5}> {
            h = Cast <to = 10> (x) a = MatMul (h, w) f = Cast <to = 1> (a)
            e = Exp (f) b = Mul (e, c) d = Sqrt (b) y = Log (d) }""",
        [normal(2, 8)],
        w=normal(8, 8),
    )
    assert set(kept) == {"Exp", "Mul", "Sqrt", "Log"}


def test_an_output_that_is_used_inside_keeps_its_name_and_type():
    check(
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) <float[8,8] w> {
            y = MatMul (x, w) z = MatMul (y, w) }""",
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) {
            h = Cast <to = 10> (x) a = MatMul (h, w) y = Cast <to = 1> (a)
            b = MatMul (a, w) z = Cast <to = 1> (b) }""",
        [normal(2, 8)],
        w=normal(8, 8),
    )


def test_an_output_also_serves_what_is_kept():
    check(
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) <float[8,8] w> {
            y = MatMul (x, w) z = Softmax (y) }""",
        """g (float[2,8] x) => (float[2,8] y, float[2,8] z) {
            h = Cast <to = 10> (x) a = MatMul (h, w) y = Cast <to = 1> (a) z = Softmax (y) }""",
        [normal(2, 8)],
        w=normal(8, 8),
    )


def test_an_input_that_is_an_output_too():
    check(
        "g (float[2,2] x) => (float[2,2] x, float[2,2] y) { y = MatMul (x, x) }",
        """g (float[2,2] x) => (float[2,2] x, float[2,2] y) {
            h = Cast <to = 10> (x) m = MatMul (h, h) y = Cast <to = 1> (m) }""",
        [normal(2, 2)],
    )


def test_a_shared_weight_is_converted_once_and_stays_where_float32_needs_it():
    changed, _ = check(
        """g (float[4,4] x) => (float[4,4] y, float[4,4] z) <float[4,4] w> {
            a = MatMul (x, w) y = MatMul (a, w) s = Softmax (x) z = Pow (s, w) }""",
        """g (float[4,4] x) => (float[4,4] y, float[4,4] z) {
            h = Cast <to = 10> (x) a = MatMul (h, v) b = MatMul (a, v) y = Cast <to = 1> (b)
            s = Softmax (x) z = Pow (s, u) }""",
        [normal(4, 4)],
        w=np.abs(normal(4, 4)),
    )
    assert sorted(dtype.name for dtype in types(changed).values()) == ["FLOAT", "FLOAT16"]


def test_models_share_the_converted_weight():
    text = "g (float[2,8] x) => (float[2,4] y) <float[8,4] w> { y = MatMul (x, w) }"
    one = model(text, w=normal(8, 4))
    two = one.clone()
    for each in (one, two):
        InferShapesPass()(each)
        CastPrecisionPass(FP16)(each)
    first, second = (m.graph.initializers["w_float16"].const_value for m in (one, two))
    assert np.shares_memory(first.numpy(), second.numpy())


def test_an_embedding_is_stored_in_the_low_type():
    changed, kept = check(
        "g (int64[3] i) => (float[3,4] y) <float[9,4] w> { y = Gather (w, i) }",
        """g (int64[3] i) => (float[3,4] y) <float[9,4] w> {
            a = Gather (w, i) y = Cast <to = 1> (a) }""",
        [np.array([1, 0, 8])],
        w=normal(9, 4),
    )
    assert kept == {}
    assert list(types(changed).values()) == [FP16]


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ("g (int64[4] x) => (int64[4] y) { y = Add (x, x) }", [np.arange(4)]),
        ("g (double[2,2] x) => (double[2,2] y) { y = MatMul (x, x) }", [np.eye(2)]),
        (
            "g (float16[2,2] x) => (float16[2,2] y) { y = MatMul (x, x) }",
            [np.eye(2, dtype=np.float16)],
        ),
        ("g (float[4] x) => (float[4] y) { y = Relu (x) }", [normal(4)]),
        ("g (float[4] x) => (float[4] y) { a = Exp (x) y = Softmax (a) }", [normal(4)]),
        ("g (float[4] x) => (int64[1] y) { y = Shape (x) }", [normal(4)]),
        ("g (float[4] x) => (double[4] y) { y = Cast <to = 11> (x) }", [normal(4)]),
        ("g (double[4] x) => (float[4] y) { y = Cast <to = 1> (x) }", [np.ones(4)]),
        ("g (float[300] x) => (float[1] y) { y = ReduceSum (x) }", [normal(300)]),
        ("g (float[n] x) => (float[1] y) { y = ReduceSum (x) }", [normal(3)]),
        (
            "g (float[2] x) => (float[2] y) <int64 i = {0}>"
            " { s = SequenceConstruct (x) y = SequenceAt (s, i) }",
            [normal(2)],
        ),
    ],
)
def test_must_not_fire(text, inputs):
    check(text, None, inputs)


def test_short_sums_are_low_and_long_ones_are_not():
    _, kept = check(
        """g (float[2,300] x) => (float[2] y, float[300] z)
            <int64[1] one = {1}, int64[1] zero = {0}> {
            a = Tanh (x) y = ReduceMean <keepdims = 0> (a, one)
            z = ReduceMean <keepdims = 0> (a, zero) }""",
        """g (float[2,300] x) => (float[2] y, float[300] z)
            <int64[1] one = {1}, int64[1] zero = {0}> {
            h = Cast <to = 10> (x) a = Tanh (h) f = Cast <to = 1> (a)
            y = ReduceMean <keepdims = 0> (f, one) b = ReduceMean <keepdims = 0> (a, zero)
            z = Cast <to = 1> (b) }""",
        [normal(2, 300)],
    )
    assert kept == {"ReduceMean": "sums 300 numbers"}


def test_normalization_is_low_with_statistics_in_float32():
    constants = {"s": normal(8), "b": normal(8)}
    text = """g (float[2,8] x) => (float[2,8] y) <float[8] s, float[8] b> {
        y = LayerNormalization (x, s, b) }"""
    _, kept = check(
        text,
        """g (float[2,8] x) => (float[2,8] y) { h = Cast <to = 10> (x)
            n = LayerNormalization (h, s, b) y = Cast <to = 1> (n) }""",
        [normal(2, 8)],
        **constants,
    )
    assert kept == {}
    # Not by value: onnx.reference gives the mean in the type of x, whatever stash_type says.
    text = text.replace("(float[2,8] y)", "(float[2,8] y, float[2,1] m)").replace("y =", "y, m =")
    changed = model(text, **constants)
    InferShapesPass()(changed)
    CastPrecisionPass(FP16)(changed)
    verify(changed)
    mean = changed.graph.outputs[1]
    assert (mean.producer().op_type, mean.dtype) == ("LayerNormalization", ir.DataType.FLOAT)


def test_narrow_statistics_are_left_alone():
    text = """g (float[2,8] x) => (float[2,8] y) <float[8] s> {
        y = LayerNormalization <stash_type = 16> (x, s) }"""
    changed = model(text, s=normal(8))
    InferShapesPass()(changed)
    made = CastPrecisionPass(FP16)
    made(changed)
    assert ops(changed) == ["LayerNormalization"]
    assert "BFLOAT16" in made.kept[0].reason


def test_attention_computes_its_softmax_in_float32():
    q = [normal(1, 2, 4, 8) for _ in range(3)]
    check(
        """g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v, float[4,4] m)
            => (float[1,2,4,8] y) { y = Attention (q, k, v, m) }""",
        """g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v, float[4,4] m)
            => (float[1,2,4,8] y) { c = Cast <to = 10> (v) b = Cast <to = 10> (k)
            a = Cast <to = 10> (q) o = Attention <softmax_precision = 1> (a, b, c, m)
            y = Cast <to = 1> (o) }""",
        [*q, np.where(normal(4, 4) > 1, -3e38, 0).astype(np.float32)],
    )


def test_scales_and_coordinates_stay_float32():
    check(
        """g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s = {1,1,2,2}> {
            a = Tanh (x) y = Resize <mode = "linear"> (a, , s) }""",
        """g (float[1,1,4,4] x) => (float[1,1,8,8] y) <float[4] s = {1,1,2,2}> {
            h = Cast <to = 10> (x) a = Tanh (h) b = Resize <mode = "linear"> (a, , s)
            y = Cast <to = 1> (b) }""",
        [normal(1, 1, 4, 4)],
    )
    check(
        """g (float[1,1,4,4] x, float[1,2,2,2] p) => (float[1,1,2,2] y) { a = Tanh (x)
            y = GridSample (a, p) }""",
        """g (float[1,1,4,4] x, float[1,2,2,2] p) => (float[1,1,2,2] y) { h = Cast <to = 10> (x)
            a = Tanh (h) b = GridSample (a, p) y = Cast <to = 1> (b) }""",
        [normal(1, 1, 4, 4), rng.uniform(-1, 1, (1, 2, 2, 2)).astype(np.float32)],
    )


def test_batch_normalization_keeps_its_statistics_in_float32():
    check(
        """g (float[2,3,4] x) => (float[2,3,4] y) <float[3] s, float[3] b, float[3] m, float[3] v> {
            a = Tanh (x) y = BatchNormalization (a, s, b, m, v) }""",
        """g (float[2,3,4] x) => (float[2,3,4] y) <float[3] s, float[3] b, float[3] m, float[3] v> {
            h = Cast <to = 10> (x) a = Tanh (h) n = BatchNormalization (a, s, b, m, v)
            y = Cast <to = 1> (n) }""",
        [normal(2, 3, 4)],
        s=normal(3),
        b=normal(3),
        m=normal(3),
        v=np.abs(normal(3)) + 1,
    )


def test_an_operator_that_onnx_does_not_define_for_bfloat16():
    text = "g (float[4] x) => (float[4] y) { a = Sin (x) y = Shrink (a) }"
    _, kept = check(
        text,
        """g (float[4] x) => (float[4] y) { h = Cast <to = 16> (x) a = Sin (h)
            b = Cast <to = 1> (a) y = Shrink (b) }""",
        [normal(4)],
        BF16,
    )
    assert kept == {"Shrink": "ONNX does not define it for bfloat16"}
    check(
        text,
        """g (float[4] x) => (float[4] y) { h = Cast <to = 10> (x) a = Sin (h)
            b = Shrink (a) y = Cast <to = 1> (b) }""",
        [normal(4)],
    )


def test_casts_of_the_model_are_retargeted_where_that_is_exact():
    _, kept = check(
        """g (bool[4] b, int64[4] i, float[4] x) => (float[4] y, int64[4] z) {
            f = Cast <to = 1> (b) g = Cast <to = 1> (i) s = Sin (x) t = Mul (f, s)
            y = Mul (t, g) z = Cast <to = 7> (s) }""",
        """g (bool[4] b, int64[4] i, float[4] x) => (float[4] y, int64[4] z) {
            h = Cast <to = 10> (x) f = Cast <to = 10> (b) g = Cast <to = 1> (i)
            l = Cast <to = 10> (g) s = Sin (h) t = Mul (f, s)
            u = Mul (t, l) y = Cast <to = 1> (u) z = Cast <to = 7> (s) }""",
        [np.array([True, False, True, True]), np.arange(4), normal(4)],
    )
    assert kept == {"Cast": "gives numbers of a wider type"}


def test_nested_graphs_and_what_they_capture_stay_float32():
    _, kept = check(
        """g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w> {
            a = MatMul (x, w)
            b = If (c) <then_branch = t () => (float[2,2] p) { p = MatMul (a, w) },
                        else_branch = e () => (float[2,2] q) { q = Sin (a) }>
            y = MatMul (b, a) }""",
        """g (bool c, float[2,2] x) => (float[2,2] y) <float[2,2] w> {
            h = Cast <to = 10> (x) a = MatMul (h, v) f = Cast <to = 1> (a)
            b = If (c) <then_branch = t () => (float[2,2] p) { p = MatMul (f, w) },
                        else_branch = e () => (float[2,2] q) { q = Sin (f) }>
            l = Cast <to = 10> (b) m = MatMul (l, a) y = Cast <to = 1> (m) }""",
        [np.array(True), normal(2, 2)],
        w=normal(2, 2),
    )
    assert kept == {"If": "has nested graphs, which compute in float32"}


def test_operators_of_other_domains_stay_float32():
    text = """<ir_version: 13, opset_import: ["": 28, "vendor": 1]>
        g (float[4] x) => (float[4] y) { a = Sin (x) b = vendor.Op (a) y = Sin (b) }"""
    changed = model(text)
    vendor = next(node for node in changed.graph if node.op_type == "Op")
    for value in (*vendor.inputs, *vendor.outputs):
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([4])
    for node in changed.graph:
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    made = CastPrecisionPass(FP16)
    made(changed)
    verify(changed)
    assert ops(changed) == ["Cast", "Sin", "Cast", "Op", "Cast", "Sin", "Cast"]
    assert [(k.op, k.reason) for k in made.kept] == [
        ("vendor::Op", "is of the domain 'vendor', not of ONNX's own")
    ]


def test_a_constant_beyond_the_range_stays_and_is_never_cast_down():
    """A mask of -3e38 becomes -inf in float16: a row that is all masked would give NaN."""
    _, kept = check(
        """g (bool[4] c, float[4,4] x) => (float[4,4] y) <float z = {0}, float low = {-3e38}> {
            s = MatMul (x, x) w = Where (c, z, low) r = Add (s, w) p = Softmax (r)
            y = MatMul (p, x) }""",
        """g (bool[4] c, float[4,4] x) => (float[4,4] y) <float z = {0}, float low = {-3e38}> {
            h = Cast <to = 10> (x) s = MatMul (h, h) f = Cast <to = 1> (s)
            w = Where (c, z, low) r = Add (f, w) p = Softmax (r)
            l = Cast <to = 10> (p) m = MatMul (l, h) y = Cast <to = 1> (m) }""",
        [np.zeros(4, bool), normal(4, 4)],
    )
    assert kept["Where"] == "its constant 'low' holds 3e+38; float16 holds 6.55e+04 at most"
    assert kept["Add"] == "reads 'w': holds 3e+38; float16 holds 6.55e+04 at most"


def test_a_mask_computed_by_arithmetic_is_never_cast_down():
    before = model(
        """g (int64[4] i, float[4,4] x) => (float[4,4] y) <float one = {1}, float low = {-3e38}> {
            f = Cast <to = 1> (i) n = Sub (one, f) w = Mul (n, low)
            s = MatMul (x, x) y = Add (s, w) }"""
    )
    InferShapesPass()(before)
    inputs = [np.array([0, 1, 1, 0]), normal(4, 4)]
    want = run_reference(before, inputs)[0]
    made = CastPrecisionPass(FP16)
    made(before)
    got = run_reference(before, inputs)[0]
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got < -1e38, want < -1e38)
    assert {each.op for each in made.kept} == {"Cast", "Sub", "Mul", "Add"}


def test_a_bound_beyond_the_range_bounds_nothing():
    check(
        """g (float[4] x) => (float[4] y) <float low = {0}, float high = {3e38}> {
            a = Sin (x) y = Clip (a, low, high) }""",
        """g (float[4] x) => (float[4] y) <float low = {0}, float high = {3e38}> {
            h = Cast <to = 10> (x) a = Sin (h) b = Clip (a, l, u) y = Cast <to = 1> (b) }""",
        [normal(4)],
    )


@pytest.mark.parametrize(
    ("numbers", "dtype", "reason"),
    [
        ([1, 1e-12], FP16, None),
        ([1e-12], FP16, "loses 100% of its magnitude in float16"),
        ([1e-12], BF16, None),
        ([1e-5, 2e-5], FP16, None),
        ([65504, -65504], FP16, None),
        ([1, -7e4], FP16, "holds 7e+04; float16 holds 6.55e+04 at most"),
        ([np.inf, -np.inf, np.nan, 1], FP16, None),
        ([3.4e38], BF16, "holds 3.4e+38; bfloat16 holds 3.39e+38 at most"),
        ([0, 0], FP16, None),
        ([], FP16, None),
    ],
)
def test_which_constants_fit(numbers, dtype, reason):
    value = ir.val("w", const_value=ir.tensor(np.array(numbers, np.float32)))
    found = low_constant(value, dtype)
    assert found.reason == reason
    assert found.array.dtype == dtype.numpy()


def test_an_epsilon_that_underflows_keeps_its_node():
    _, kept = check(
        """g (float[4] x) => (float[4] y) <float e = {1e-12}> {
            a = Sigmoid (x) b = Add (a, e) y = Sin (b) }""",
        """g (float[4] x) => (float[4] y) <float e = {1e-12}> {
            h = Cast <to = 10> (x) a = Sigmoid (h) f = Cast <to = 1> (a) b = Add (f, e)
            l = Cast <to = 10> (b) s = Sin (l) y = Cast <to = 1> (s) }""",
        [normal(4)],
    )
    assert kept == {"Add": "its constant 'e' loses 100% of its magnitude in float16"}


CHAIN = """g (float[2,8] x) => (float[2,8] y) <float[8,8] w> {
    a = MatMul (x, w) b = Reshape (a, s) c = MatMul (b, w) y = MatMul (c, w) }"""


def test_keep_by_name_keeps_the_node_and_who_reads_it():
    _, kept = check(
        CHAIN.replace("> {", ", int64[2] s = {2,8}> {"),
        """g (float[2,8] x) => (float[2,8] y) <float[8,8] w, int64[2] s = {2,8}> {
            a = MatMul (x, w) b = Reshape (a, s) c = MatMul (b, w) l = Cast <to = 10> (c)
            m = MatMul (l, v) y = Cast <to = 1> (m) }""",
        [normal(2, 8)],
        keep={"a": "too large"},
        w=normal(8, 8),
    )
    assert kept == {"MatMul": "reads 'b': too large", "Reshape": "reads 'a': too large"}


def test_everything_kept_changes_nothing():
    check(
        "g (float[2,2] x) => (float[2,2] y) { a = MatMul (x, x) y = MatMul (a, x) }",
        None,
        [normal(2, 2)],
        keep={"a": "too large", "y": "too large"},
    )
    check(
        "g (float[2,2] x) => (float[2,2] y) { a = MatMul (x, x) b = Softmax (a) y = Relu (b) }",
        None,
        [normal(2, 2)],
        keep={"x": "too large"},
    )


def test_a_range_check_finds_what_overflows():
    text = """g (float[2,8] x) => (float[2,8] y) <float[8,8] w, float small = {0.001}> {
        a = MatMul (x, w) b = Mul (a, small) y = Tanh (b) }"""
    before = model(text, w=200 * np.abs(normal(8, 8)) + 200)
    InferShapesPass()(before)
    inputs = [200 * np.abs(normal(2, 8)) + 200]
    want = run_reference(before, inputs)[0]
    assert watched_values(before.graph) == ["x", "a", "b", "y"]

    broken = before.clone()
    CastPrecisionPass(FP16)(broken)
    seen = before.clone()
    for name in ("a", "b"):
        seen.graph.outputs.append(
            next(v for node in seen.graph for v in node.outputs if v.name == name)
        )
    y, a, b = run_reference(seen, inputs)
    magnitudes = {
        "x": inputs[0].max(), "y": y.max(), "a": a.max(), "b": b.max(), "gone": 1e9
    }  # fmt: skip
    keep = overflowing(magnitudes, before.graph, FP16)
    assert list(keep) == ["a"]
    assert "float16 holds 6.55e+04" in keep["a"]
    assert overflowing(magnitudes, before.graph, BF16) == {}

    made = CastPrecisionPass(FP16, keep=keep)
    made(before)
    assert {each.op for each in made.kept} == {"MatMul", "Mul"}
    assert np.isfinite(run_reference(before, inputs)[0]).all()
    np.testing.assert_allclose(run_reference(before, inputs)[0], want, rtol=1e-2)


def test_a_magnitude_without_a_margin_or_a_number_overflows():
    graph = model("g (float[2] x) => (float[2] y) { y = Sin (x) }").graph
    InferShapesPass()(ir.Model(graph, ir_version=13))
    assert overflowing({"x": 32752, "y": 1}, graph, FP16) == {}
    assert set(overflowing({"x": 32753, "y": np.nan}, graph, FP16)) == {"x", "y"}


def test_watched_values_are_those_that_become_low():
    before = model(
        """g (float[2,8] x, int64[2] i) => (float[2,8] y) <float[8,8] w> {
            a = MatMul (x, w) s = Softmax (a) e = Exp (s) t = Transpose (e) u = Transpose (t)
            y = MatMul (u, w) }""",
        w=normal(8, 8),
    )
    InferShapesPass()(before)
    assert watched_values(before.graph) == ["x", "a", "u", "y"]


def test_only_half_types_are_taken():
    with pytest.raises(OptionError, match="FLOAT16 or BFLOAT16; got DOUBLE"):
        CastPrecisionPass(ir.DataType.DOUBLE)
