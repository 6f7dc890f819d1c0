import math

import ml_dtypes
import numpy as np
import pytest

from tests.support import check_pass, model
from xrt.passes import FuseAttentionPass

rng = np.random.default_rng(0)
Q, K, V = (rng.normal(size=(2, 3, n, 8)).astype(np.float32) for n in (5, 7, 7))
MASK = rng.normal(size=(2, 1, 5, 7)).astype(np.float32)
ALLOWED = rng.uniform(size=(2, 1, 5, 7)) < 0.7
ALLOWED[..., 0] = True

SIGNATURE = """f (float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v, float[2,1,5,7] m,
            bool[2,1,5,7] a)
    => (float[2,3,5,8] y)"""
CONSTANTS = {
    "s": 1 / math.sqrt(8),
    "r": math.sqrt(8),
    "h": 8**-0.25,
    "zero": 0.0,
    "never": -np.inf,
    "low": -3e38,
    "ones": np.ones((5, 8)),
    "sum": [[0.0] * 7] * 5,
}
DECLARED = """<float s, float r, float[1] h, float zero, float never, float low, float[5,8] ones,
            float[5,7] sum,
    int64[3] fold = {-1,7,8}, int64[4] unfold = {2,3,8,7}>"""
INPUTS = [Q, K, V, MASK, ALLOWED]


def check(body, after, inputs=INPUTS, signature=SIGNATURE):
    pass_ = FuseAttentionPass()
    made = check_pass(
        pass_,
        f"{signature} {DECLARED} {{ {body} }}",
        None if after is None else f"{signature} {{ {after} }}",
        inputs,
        constants=CONSTANTS,
    )
    return made, pass_


def attention(scale, mask=""):
    return f"Attention <scale = {scale:.9g}> (q, k, v{mask})"


TAIL = "p = Softmax (b) y = MatMul (p, v)"
S = CONSTANTS["s"]


@pytest.mark.parametrize(
    ("body", "after"),
    [
        # torch: the scale is split; K^T is a transpose
        (
            """qs = Mul (q, h) t = Transpose <perm = [0,1,3,2]> (k) ks = Mul (t, h) b = MatMul
                (qs, ks)""",
            f"y = {attention(S)}",
        ),
        # torch 2.13: K^T through reshapes, an additive mask
        (
            """qs = Mul (q, h) f = Reshape (k, fold) g = Transpose <perm = [0,2,1]> (f)
               t = Reshape (g, unfold) ks = Mul (t, h) c = MatMul (qs, ks) b = Add (c, m)""",
            f"y = {attention(S, ', m')}",
        ),
        # older files: a division or a product after the product
        (
            "t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) b = Div (c, r)",
            f"y = {attention(S)}",
        ),
        (
            "t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) d = Mul (s, c) b = Add (m, d)",
            f"y = {attention(S, ', m')}",
        ),
        # the scale on K before the transpose
        (
            "ks = Mul (k, s) t = Transpose <perm = [0,1,3,2]> (ks) b = MatMul (q, t)",
            f"y = {attention(S)}",
        ),
        # no scale
        ("t = Transpose <perm = [0,1,3,2]> (k) b = MatMul (q, t)", f"y = {attention(1)}"),
        # several masks, one of zeros
        (
            """t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) d = Add (c, m) e = Add (d,
                sum)
               n = Exp (m) b = Add (e, n)""",
            f"n = Exp (m) mm = Add (n, m) y = {attention(1, ', mm')}",
        ),
        # boolean masks
        (
            """t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) w = Where (a, zero, never)
                b = Add (c, w)""",
            f"y = {attention(1, ', a')}",
        ),
        (
            "t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) b = Where (a, c, never)",
            f"y = {attention(1, ', a')}",
        ),
        (
            """t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) d = Add (c, m)
               b = Where (a, d, never)""",
            f"w = Where (a, zero, never) mm = Add (w, m) y = {attention(1, ', mm')}",
        ),
    ],
)
@pytest.mark.parametrize("guarded", [False, True])
def test_forms(body, after, guarded):
    tail = TAIL
    if guarded:
        tail = "p = Softmax <axis = -1> (b) i = IsNaN (p) j = Where (i, zero, p) y = MatMul (j, v)"
    _, pass_ = check(f"{body} {tail}", after)
    assert not pass_.refusals


def test_rows_without_a_key_give_zero():
    allowed = ALLOWED.copy()
    allowed[0, 0, 2] = False
    check(
        """t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) w = Where (a, zero, never) b =
            Add (c, w)
           p = Softmax (b) i = IsNaN (p) j = Where (i, zero, p) y = MatMul (j, v)""",
        f"y = {attention(1, ', a')}",
        [Q, K, V, MASK, allowed],
    )


def test_a_key_that_is_transposed_otherwise():
    check(
        f"""x = Transpose <perm = [0,2,1,3]> (k) t = Transpose <perm = [0,2,3,1]> (x) b = MatMul
            (q, t) {TAIL}""",
        f"""x = Transpose <perm = [0,2,1,3]> (k) z = Transpose <perm = [0,2,1,3]> (x) y =
            {attention(1)}""".replace("(q, k, v)", "(q, z, v)"),
    )


def test_a_transposed_key_from_elsewhere():
    signature = "f (float[2,3,5,8] q, float[2,3,8,7] t, float[2,3,7,8] v) => (float[2,3,5,8] y)"
    check(
        f"b = MatMul (q, t) {TAIL}",
        "k = Transpose <perm = [0,1,3,2]> (t) y = Attention <scale = 1.0> (q, k, v)",
        [Q, np.swapaxes(K, 2, 3).copy(), V],
        signature,
    )


def test_rank_3():
    signature = (
        "f (float[3,5,8] q, float[3,7,8] k, float[3,7,8] v, float[3,5,7] m) => (float[3,5,8] y)"
    )
    check(
        f"""t = Transpose <perm = [0,2,1]> (k) c = MatMul (q, t) d = Mul (c, s) b = Add (d, m)
            {TAIL}""",
        f"""ql = Unsqueeze (q, c0) kl = Unsqueeze (k, c0) vl = Unsqueeze (v, c0)
            z = Attention <scale = {S:.9g}> (ql, kl, vl, m) y = Squeeze (z, c0)""",
        [Q[0], K[0], V[0], rng.normal(size=(3, 5, 7)).astype(np.float32)],
        signature,
    )


def test_windows():
    # Swin: the scores of [batch * windows, heads, ...] are unfolded for a mask of each window.
    signature = """f (float[6,3,5,8] q, float[6,3,5,8] k, float[6,3,5,8] v, float[1,3,1,5,5] m)
        => (float[6,3,5,8] y)"""
    arrays = [rng.normal(size=(6, 3, 5, 8)).astype(np.float32) for _ in range(3)]
    check_pass(
        FuseAttentionPass(),
        f"""{signature} <int64[5] u = {{2,3,3,5,5}}, int64[4] f = {{-1,3,5,5}}, float[1,3,5,5] bias>
            {{ t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) d = Add (c, bias)
            e = Reshape (d, u) g = Add (e, m) b = Reshape (g, f) {TAIL} }}""",
        f"""{signature} {{ e = Expand (m, c0) g = Reshape (e, c1) mask = Add (g, bias)
            y = Attention <scale = 1.0> (q, k, v, mask) }}""",
        [*arrays, rng.normal(size=(1, 3, 1, 5, 5)).astype(np.float32)],
        constants={"bias": rng.normal(size=(1, 3, 5, 5))},
    )


def test_masked_fill_with_a_constant_mask():
    made = model(
        f"""f (float[2,3,5,8] q, float[2,3,5,8] k, float[2,3,5,8] v) => (float[2,3,5,8] y)
            <bool[5,5] tril, float low> {{
              t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) b = Where (tril, c, low)
                  {TAIL} }}""",
        tril=np.tril(np.ones((5, 5), bool)),
        low=-3.4e38,
    )
    check_pass(
        FuseAttentionPass(),
        made,
        """f (float[2,3,5,8] q, float[2,3,5,8] k, float[2,3,5,8] v) => (float[2,3,5,8] y)
           { y = Attention <scale = 1.0> (q, k, v, tril) }""",
        [Q, K[:, :, :5], V[:, :, :5]],
    )


@pytest.mark.parametrize(
    ("dtype", "numpy", "scale"), [("float16", np.float16, 1), ("bfloat16", ml_dtypes.bfloat16, 1)]
)
def test_half_precision(dtype, numpy, scale):
    check_pass(
        FuseAttentionPass(),
        f"""f ({dtype}[2,3,5,8] q, {dtype}[2,3,7,8] k, {dtype}[2,3,7,8] v) => ({dtype}[2,3,5,8] y)
            <{dtype} s> {{ t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t) b = Mul (c, s)
                {TAIL} }}""",
        f"""f ({dtype}[2,3,5,8] q, {dtype}[2,3,7,8] k, {dtype}[2,3,7,8] v) => ({dtype}[2,3,5,8] y)
            {{ y = Attention <scale = 0.25> (q, k, v) }}""",
        [array.astype(numpy) for array in (Q, K, V)],
        constants={"s": 0.25},
        scale=scale,
    )


T = "t = Transpose <perm = [0,1,3,2]> (k) c = MatMul (q, t)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            f"""{T} b = Add (c, m) p = Softmax (b) z = MatMul (p, v) mean = ReduceMean (p)
                y = Add (z, mean)""",
            "the probabilities are used elsewhere",
        ),
        (
            f"""{T} b = Add (c, m) p = Softmax (b) z = MatMul (p, v) mean = ReduceMean (c)
                y = Add (z, mean)""",
            "the scores are used elsewhere",
        ),
        (f"{T} p = Softmax <axis = 2> (c) y = MatMul (p, v)", "the softmax is not over the keys"),
        (
            f"{T} d = Add (c, m) b = Mul (d, s) {TAIL}",
            "the mask is scaled together with the scores",
        ),
        (f"{T} b = Where (a, c, low) {TAIL}", "the scores are -3e+38, not -inf, where masked"),
        (
            f"{T} n = Neg (s) u = Sub (zero, s) w = Mul (c, u) b = Identity (w) {TAIL}",
            "the scores are not a product of two matrices, scaled and masked",
        ),
        (
            f"{T} o = Slice (m, i0, i1, i3) b = Add (c, o) {TAIL}",
            "the mask is broadcast over the keys",
        ),
        (
            "b = Sigmoid (m) d = Expand (b, e) p = Softmax (d) y = MatMul (p, v)",
            "the scores are not a product of two matrices, scaled and masked",
        ),
    ],
)
def test_refusals_say_why(body, reason):
    pass_ = FuseAttentionPass()
    declared = DECLARED.replace(
        "int64[3] fold",
        """int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i3 = {3}, int64[4] e = {2,3,5,7},
            int64[3] fold""",
    )
    check_pass(pass_, f"{SIGNATURE} {declared} {{ {body} }}", None, INPUTS, constants=CONSTANTS)
    assert [refusal.reason for refusal in pass_.refusals] == [reason]


def test_factors_that_broadcast_stay():
    signature = "f (float[2,3,5,8] q, float[1,3,7,8] k, float[2,3,7,8] v) => (float[2,3,5,8] y)"
    _, pass_ = check(f"{T.replace('c =', 'b =')} {TAIL}", None, [Q, K[:1], V], signature)
    assert "broadcast over the batch or the heads" in pass_.refusals[0].reason


def test_a_negative_scale_stays():
    made = model(
        f"{SIGNATURE} <float n = {{-0.5}}> {{ {T} b = Mul (c, n) {TAIL} }}",
    )
    pass_ = FuseAttentionPass()
    check_pass(pass_, made, None, INPUTS)
    assert pass_.refusals[0].reason == "the scale is not positive"


def test_an_older_opset_stays():
    made = model(
        f"""<ir_version: 10, opset_import: ["": 21]> {SIGNATURE} {{ {T} p = Softmax (c) y =
            MatMul (p, v) }}"""
    )
    pass_ = FuseAttentionPass()
    assert not pass_(made).modified
    assert "opset 25" in pass_.refusals[0].reason


def test_inside_a_body_with_captured_factors():
    check_pass(
        FuseAttentionPass(),
        f"""f (bool g, float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v) => (float[2,3,5,8] y)
            <float s> {{ y = If (g) <
              then_branch = th () => (float[2,3,5,8] o) {{ {T} b = Mul (c, s) p = Softmax (b) o =
                  MatMul (p, v) }},
              else_branch = el () => (float[2,3,5,8] u) {{ u = Relu (q) }}> }}""",
        """f (bool g, float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,8] v) => (float[2,3,5,8] y)
           { y = If (g) <
              then_branch = th () => (float[2,3,5,8] o) { o = Attention <scale = 0.5> (q, k, v) },
              else_branch = el () => (float[2,3,5,8] u) { u = Relu (q) }> }""",
        [np.array(True), Q, K, V],
        constants={"s": 0.5},
    )
