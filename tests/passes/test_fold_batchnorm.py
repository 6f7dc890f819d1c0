import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.support import assert_close, check_pass, model, ops
from xrt.passes import FoldBatchNormPass

rng = np.random.default_rng(0)


def statistics(channels, prefix="", beta=None, mean=None):
    values = {
        "g": rng.uniform(0.5, 2, channels),
        "b": rng.normal(size=channels) if beta is None else beta,
        "m": rng.normal(size=channels) if mean is None else mean,
        "v": rng.uniform(0.5, 2, channels),
    }
    return {prefix + key: value for key, value in values.items()}


def declare(channels, prefix="", dtype="float"):
    return ", ".join(f"{dtype}[{channels}] {prefix}{name}" for name in "gbmv")


def x(*shape):
    return rng.normal(size=shape).astype(np.float32)


def test_conv():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[2,3,8,8] x) => (float[2,4,8,8] y) <float[4,3,3,3] w, {declare(4)}>
            {{ c = Conv <pads = [1,1,1,1]> (x, w) y = BatchNormalization <epsilon = 0.001> (c, g,
                b, m, v) }}""",
        """f (float[2,3,8,8] x) => (float[2,4,8,8] y) <float[4,3,3,3] w, float[4] b>
           { y = Conv <pads = [1,1,1,1]> (x, w, b) }""",
        [x(2, 3, 8, 8)],
        constants={"w": rng.normal(size=(4, 3, 3, 3)), **statistics(4)},
    )


def test_conv_with_bias_groups_and_a_chain_of_two():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[1,4,8] x) => (float[1,6,6] y) <float[6,2,3] w, float[6] k, {declare(6)},
            {declare(6, "n")}>
            {{ c = Conv <group = 2> (x, w, k) d = BatchNormalization (c, g, b, m, v)
               y = BatchNormalization (d, ng, nb, nm, nv) }}""",
        """f (float[1,4,8] x) => (float[1,6,6] y) <float[6,2,3] w, float[6] k>
           { y = Conv <group = 2> (x, w, k) }""",
        [x(1, 4, 8)],
        constants={
            "w": rng.normal(size=(6, 2, 3)),
            "k": rng.normal(size=6),
            **statistics(6),
            **statistics(6, "n"),
        },
    )


def test_conv_transpose():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[1,4,5,5] x) => (float[1,6,a,b] y) <float[4,6,3,3] w, {declare(6)}>
            {{ c = ConvTranspose <strides = [2,2]> (x, w) y = BatchNormalization (c, g, b, m, v)
                }}""",
        """f (float[1,4,5,5] x) => (float[1,6,a,b] y)
            { y = ConvTranspose <strides = [2,2]> (x, w, b) }""",
        [x(1, 4, 5, 5)],
        constants={"w": rng.normal(size=(4, 6, 3, 3)), **statistics(6)},
    )


def test_grouped_conv_transpose():
    # onnx.reference (1.23.2) cannot run one whose groups have several inputs and outputs.
    onnxruntime = pytest.importorskip("onnxruntime")
    made = model(
        f"""<ir_version: 10, opset_import: ["": 21]>
            f (float[1,4,5,5] x) => (float[1,6,a,b] y) <float[4,3,3,3] w, float[6] k, {declare(6)}>
            {{ c = ConvTranspose <group = 2> (x, w, k) y = BatchNormalization (c, g, b, m, v) }}""",
        w=rng.normal(size=(4, 3, 3, 3)),
        k=rng.normal(size=6),
        **statistics(6),
    )

    def run(model):
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        return session.run(None, {"x": data})[0]

    data = x(1, 4, 5, 5)
    want = run(made)
    FoldBatchNormPass()(made)
    assert ops(made) == ["ConvTranspose"]
    assert_close(run(made), want)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5), (2, 1), (2, 5)])
def test_gemm(transposed, bias):
    shape = (5, 3) if transposed else (3, 5)
    declared = "" if bias is None else f"float[{','.join(map(str, bias))}] k, ".replace("[]", "")
    constants = {"w": rng.normal(size=shape), **statistics(5)}
    if bias is not None:
        constants["k"] = rng.normal(size=bias)
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[2,3] x) => (float[2,5] y) <float[{shape[0]},{shape[1]}] w, {declared}
            {declare(5)}>
            {{ c = Gemm <alpha = 0.5, beta = 2.0, transB = {transposed}> (x,
                w{"" if bias is None else ", k"})
               y = BatchNormalization (c, g, b, m, v) }}""",
        f"""f (float[2,3] x) => (float[2,5] y) <float[3,5] w, float[5] k>
            {{ y = Gemm <alpha = 0.5, beta = 1.0, transB = {transposed}> (x, w, k) }}""",
        [x(2, 3)],
        constants=constants,
    )


def test_matmul():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[2,3] x) => (float[2,5] y) <float[3,5] w, {declare(5)}, float[2,5] c>
            {{ c = MatMul (x, w) y = BatchNormalization (c, g, b, m, v) }}""",
        """f (float[2,3] x) => (float[2,5] y) <float[3,5] w, float[5] b>
           { c = MatMul (x, w) y = Add (c, b) }""",
        [x(2, 3)],
        constants={"w": rng.normal(size=(3, 5)), **statistics(5)},
    )


def test_matmul_and_add():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[2,3] x) => (float[2,5] y) <float[3,5] w, float[5] k, {declare(5)},
            float[2,5] c, float[2,5] d>
            {{ c = MatMul (x, w) d = Add (k, c) y = BatchNormalization (d, g, b, m, v) }}""",
        """f (float[2,3] x) => (float[2,5] y) <float[3,5] w, float[5] b>
           { c = MatMul (x, w) y = Add (c, b) }""",
        [x(2, 3)],
        constants={"w": rng.normal(size=(3, 5)), "k": rng.normal(size=5), **statistics(5)},
    )


def test_matmul_of_rank_3_is_normalized_by_rows():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[2,4,3] x) => (float[2,4,4] y) <float[3,4] w, {declare(4)}, float[2,4,4] c>
            {{ c = MatMul (x, w) y = BatchNormalization (c, g, b, m, v) }}""",
        None,
        [x(2, 4, 3)],
        constants={"w": rng.normal(size=(3, 4)), **statistics(4)},
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_before_conv(groups):
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[1,4,6,6] x) => (float[1,6,4,4] y) <float[6,{4 // groups},3,3] w, float[6] k,
            {declare(4)}>
            {{ n = BatchNormalization (x, g, b, m, v) y = Conv <group = {groups}> (n, w, k) }}""",
        f"""f (float[1,4,6,6] x) => (float[1,6,4,4] y) <float[6,{4 // groups},3,3] w, float[6] k>
            {{ y = Conv <group = {groups}> (x, w, k) }}""",
        [x(1, 4, 6, 6)],
        constants={
            "w": rng.normal(size=(6, 4 // groups, 3, 3)),
            "k": rng.normal(size=6),
            **statistics(4),
        },
    )


PADDED = f"""f (float[1,4,6,6] x) => (float[1,6,6,6] y) <float[6,4,3,3] w, {declare(4)}>
    {{ n = BatchNormalization (x, g, b, m, v) y = Conv <pads = [1,1,1,1]> (n, w) }}"""


def test_before_a_padded_conv_only_without_shift():
    weights = {"w": rng.normal(size=(6, 4, 3, 3))}
    check_pass(
        FoldBatchNormPass(), PADDED, None, [x(1, 4, 6, 6)], constants={**weights, **statistics(4)}
    )
    check_pass(
        FoldBatchNormPass(),
        PADDED,
        """f (float[1,4,6,6] x) => (float[1,6,6,6] y) <float[6,4,3,3] w, float[6] k>
           { y = Conv <pads = [1,1,1,1]> (x, w, k) }""",
        [x(1, 4, 6, 6)],
        constants={**weights, **statistics(4, beta=np.zeros(4), mean=np.zeros(4))},
    )


MUST_NOT = {
    "used twice": """(float[1,3,4,4] x, float[4,3,1,1] e) => (float[1,4,4,4] y, float[1,4,4,4] z)
        { c = Conv (x, w) y = BatchNormalization (c, g, b, m, v) z = Relu (c) }""",
    "graph output": """(float[1,3,4,4] x, float[4,3,1,1] e) => (float[1,4,4,4] y, float[1,4,4,4] c)
        { c = Conv (x, w) y = BatchNormalization (c, g, b, m, v) }""",
    "weights computed": """(float[1,3,4,4] x, float[4,3,1,1] e) => (float[1,4,4,4] y)
        { c = Conv (x, e) y = BatchNormalization (c, g, b, m, v) }""",
    "used in a body": """(float[1,3,4,4] x, float[4,3,1,1] e) => (float[1,4,4,4] y,
            float[1,4,4,4] z)
        { c = Conv (x, w) y = BatchNormalization (c, g, b, m, v)
          z = If (t) <then_branch = p () => (float[1,4,4,4] r) { r = Relu (c) },
                      else_branch = q () => (float[1,4,4,4] s) { s = Abs (y) }> }""",
}


@pytest.mark.parametrize("case", MUST_NOT)
def test_must_not_fire(case):
    signature, body = MUST_NOT[case].split("{", 1)
    check_pass(
        FoldBatchNormPass(),
        f"f {signature} <float[4,3,1,1] w, bool t = {{1}}, {declare(4)}> {{ {body}",
        None,
        [x(1, 3, 4, 4), x(4, 3, 1, 1)],
        constants={"w": rng.normal(size=(4, 3, 1, 1)), **statistics(4)},
    )


def test_training_stays():
    made = model(
        f"""f (float[1,3,4,4] x) => (float[1,4,4,4] y) <float[4,3,1,1] w, {declare(4)}>
            {{ c = Conv (x, w) y, rm, rv = BatchNormalization <training_mode = 1> (c, g, b, m, v)
                }}""",
        w=rng.normal(size=(4, 3, 1, 1)),
        **statistics(4),
    )
    assert not FoldBatchNormPass()(made).modified


def test_a_normalization_in_another_graph_stays():
    norm = "BatchNormalization (c, g, b, m, v)"
    check_pass(
        FoldBatchNormPass(),
        f"""f (bool t, float[1,2,4,4] x) => (float[1,4,4,4] y) <float[4,2,1,1] w, {declare(4)}>
            {{ c = Conv (x, w)
               y = If (t) <then_branch = p () => (float[1,4,4,4] r) {{ r = {norm} }},
                           else_branch = q () => (float[1,4,4,4] s)
                             {{ s = Concat <axis = 1> (x, x) }}> }}""",
        None,
        [np.array(True), x(1, 2, 4, 4)],
        constants={"w": rng.normal(size=(4, 2, 1, 1)), **statistics(4)},
    )


def test_inside_a_body():
    made = check_pass(
        FoldBatchNormPass(),
        f"""f (bool t, float[1,4,4,4] x) => (float[1,4,4,4] y) <float[4,4,1,1] w, {declare(4)}>
            {{ y = If (t) <
                 then_branch = p () => (float[1,4,4,4] r) {{ c = Conv (x, w) r =
                     BatchNormalization (c, g, b, m, v) }},
                 else_branch = q () => (float[1,4,4,4] s) {{ s = Relu (x) }}> }}""",
        """f (bool t, float[1,4,4,4] x) => (float[1,4,4,4] y)
           { y = If (t) <
               then_branch = p () => (float[1,4,4,4] r) <float[4,4,1,1] w, float[4] b>
                   { r = Conv (x, w, b) },
               else_branch = q () => (float[1,4,4,4] s) { s = Relu (x) }> }""".replace(
            "<float[4,4,1,1] w, float[4] b>", "<float[1] w = {0}, float[1] b = {0}>"
        ),
        [np.array(True), x(1, 4, 4, 4)],
        constants={"w": rng.normal(size=(4, 4, 1, 1)), **statistics(4)},
    )
    assert ops(made) == ["If"]


def test_a_shared_weight_is_not_edited():
    check_pass(
        FoldBatchNormPass(),
        f"""f (float[1,3,4,4] x) => (float[1,4,4,4] y) <float[4,3,1,1] w, {declare(4)}>
            {{ c = Conv (x, w) n = BatchNormalization (c, g, b, m, v) d = Conv (x, w) y = Add (n,
                d) }}""",
        """f (float[1,3,4,4] x) => (float[1,4,4,4] y) <float[4,3,1,1] w, float[4] b>
           { n = Conv (x, w, b) d = Conv (x, w) y = Add (n, d) }""",
        [x(1, 3, 4, 4)],
        constants={"w": rng.normal(size=(4, 3, 1, 1)), **statistics(4)},
    )


@pytest.mark.parametrize(
    ("dtype", "numpy", "scale"),
    [("float16", np.float16, 2), ("bfloat16", ml_dtypes.bfloat16, 2), ("double", np.float64, 1)],
)
def test_other_dtypes(dtype, numpy, scale):
    made = model(
        f"""f ({dtype}[2,3] x) => ({dtype}[2,5] y) <{dtype}[3,5] w, {dtype}[5] k,
            {declare(5, dtype=dtype)}>
            {{ c = Gemm (x, w, k) y = BatchNormalization (c, g, b, m, v) }}""",
        w=rng.normal(size=(3, 5)),
        k=rng.normal(size=5),
        **statistics(5),
    )
    changed = check_pass(
        FoldBatchNormPass(),
        made,
        f"""f ({dtype}[2,3] x) => ({dtype}[2,5] y) <float[3,5] w = {{0}}, float[5] k = {{0}}>
            {{ y = Gemm <beta = 1.0> (x, w, k) }}""",
        [x(2, 3).astype(numpy)],
        scale=scale,
    )
    assert changed.graph.node(0).inputs[1].const_value.numpy().dtype == numpy


def test_a_fold_that_overflows_stays():
    made = model(
        f"""f (float16[2,3] x) => (float16[2,5] y) <float16[3,5] w, {declare(5, dtype="float16")}>
            {{ c = Gemm (x, w) y = BatchNormalization (c, g, b, m, v) }}""",
        w=np.full((3, 5), 1000.0),
        **{**statistics(5), "g": np.full(5, 1000.0)},
    )
    assert not FoldBatchNormPass()(made).modified
