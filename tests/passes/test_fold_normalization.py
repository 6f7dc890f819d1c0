import numpy as np
import pytest

from tests.support import check_pass
from xrt.passes import FoldNormalizationPass

rng = np.random.default_rng(0)
X = rng.uniform(0, 255, (2, 3, 7, 6)).astype(np.float32)
W = rng.normal(size=(4, 3, 3, 3))
B = rng.normal(size=4)
M = rng.uniform(90, 130, (3, 1, 1))
S = rng.uniform(0.01, 0.03, (1, 3, 1, 1))
DECLARED = "float[4,3,3,3] w, float[4] b, float[3,1,1] m, float[1,3,1,1] s, float n"
CONSTANTS = {"w": W, "b": B, "m": M, "s": S, "n": 1 / 255}
SIGNATURE = "f (float[2,3,7,6] x) => (float[2,4,p,q] y)"


def check(before, after, outputs="", inputs=None, **constants):
    known = {**CONSTANTS, **constants}
    shown = {name: known[name] for name in known if f"{name}" in set(_words(before))}
    declared = ", ".join(each for each in DECLARED.split(", ") if each.split()[1] in shown)
    signature = SIGNATURE.replace("y)", f"y{outputs})")
    return check_pass(
        FoldNormalizationPass(),
        f"{signature} <{declared}> {{ {before} }}",
        None if after is None else f"{signature} {{ {after} }}",
        [X] if inputs is None else inputs,
        constants=shown,
        scale=10,  # products of pixels cancel
    )


def _words(text):
    return "".join(c if c.isalnum() else " " for c in text).split()


@pytest.mark.parametrize(
    "chain",
    [
        "c = Sub (x, m) d = Mul (c, s)",
        "c = Mul (x, n) d = Sub (m, c)",
        "c = Mul (n, x) e = Sub (c, m) d = Div (e, s)",
        "d = Add (m, x)",
        "d = Div (x, n)",
    ],
)
@pytest.mark.parametrize("bias", [", b", ""])
def test_into_weights_and_bias(chain, bias):
    check(f"{chain} y = Conv (d, w{bias})", "y = Conv (x, w, t)")


def test_padding_keeps_the_subtraction():
    check(
        "c = Sub (x, m) d = Mul (c, s) y = Conv <pads = [1,1,1,1]> (d, w, b)",
        "c = Sub (x, k) y = Conv <pads = [1,1,1,1]> (c, w, t)",
    )


def test_padding_with_the_division_first():
    """(x / 255 - mean) / std, as it is usually written."""
    check(
        "c = Mul (x, n) e = Sub (c, m) d = Div (e, s) y = Conv <auto_pad = \"SAME_UPPER\"> (d, w)",
        "c = Sub (x, k) y = Conv <auto_pad = \"SAME_UPPER\"> (c, w, t)",
    )  # fmt: skip


def test_a_factor_alone_goes_wherever_it_pads():
    check(
        "d = Mul (x, s) y = Conv <pads = [0,2,1,0], strides = [2,2]> (d, w, b)",
        "y = Conv <pads = [0,2,1,0], strides = [2,2]> (x, w, t)",
    )


def test_groups():
    check_pass(
        FoldNormalizationPass(),
        "f (float[2,3,7,6] x) => (float[2,6,p,q] y) <float[6,1,3,3] w, float[3,1,1] m> "
        "{ c = Sub (x, m) d = Mul (c, m) y = Conv <group = 3> (d, w) }",
        "f (float[2,3,7,6] x) => (float[2,6,p,q] y) { y = Conv <group = 3> (x, w, t) }",
        [X],
        constants={"w": rng.normal(size=(6, 1, 3, 3)), "m": M},
        scale=10,
    )


def test_one_dimension():
    check_pass(
        FoldNormalizationPass(),
        "f (float[2,3,9] x) => (float[2,4,p] y) <float[4,3,3] w, float[3,1] m, float n> "
        "{ c = Sub (x, m) d = Mul (c, n) y = Conv <pads = [1,1]> (d, w) }",
        "f (float[2,3,9] x) => (float[2,4,p] y) "
        "{ c = Sub (x, k) y = Conv <pads = [1,1]> (c, w, t) }",
        [X.reshape(2, 3, -1)[..., :9].copy()],
        constants={"w": W[..., 0], "m": M[..., 0], "n": 0.5},
        scale=10,
    )


def test_pixels():
    """Cast stays before, and its result is what the convolution reads."""
    check_pass(
        FoldNormalizationPass(),
        "f (uint8[2,3,7,6] u) => (float[2,4,p,q] y) "
        "<float[4,3,3,3] w, float[3,1,1] m, float[1,3,1,1] s> "
        "{ x = Cast <to = 1> (u) c = Sub (x, m) d = Mul (c, s) y = Conv (d, w) }",
        "f (uint8[2,3,7,6] u) => (float[2,4,p,q] y) { x = Cast <to = 1> (u) y = Conv (x, w, t) }",
        [X.astype(np.uint8)],
        constants={"w": W, "m": M, "s": S},
        scale=10,
    )


def test_shared_weights_stay():
    signature = "f (float[2,3,7,6] x) => (float[2,4,p,q] y, float[2,4,p,q] z)"
    check_pass(
        FoldNormalizationPass(),
        f"{signature} <float[4,3,3,3] w, float[1,3,1,1] s> "
        "{ d = Mul (x, s) y = Conv (d, w) z = Conv (x, w) }",
        f"{signature} {{ y = Conv (x, v, t) z = Conv (x, w) }}",
        [X],
        constants={"w": W, "s": S},
        scale=10,
    )


# --- where it must not fire -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "nodes",
    [
        "y = Conv (x, w, b)",
        "d = Sub (x, m) y = Conv <pads = [1,1,1,1]> (d, w)",  # nothing would be gained
        "d = Div (m, x) y = Conv (d, w)",
        "d = Pow (x, n) y = Conv (d, w)",
        "c = Mul (x, s) d = Relu (c) y = Conv (d, w)",
    ],
)
def test_other_arithmetic_stays(nodes):
    check(nodes, None)


def test_a_factor_of_zero_before_padding_stays():
    check(
        "c = Mul (x, s) d = Add (c, m) y = Conv <pads = [1,1,1,1]> (d, w)",
        None,
        s=np.array([0.5, 0, 1]).reshape(1, 3, 1, 1),
    )


def test_division_by_zero_stays():
    signature = "f (float[2,3,7,6] x) => (float[2,4,p,q] y) <float[4,3,3,3] w, float[3,1,1] m>"
    check_pass(
        FoldNormalizationPass(),
        f"{signature} {{ d = Div (x, m) y = Conv (d, w) }}",
        None,
        constants={"w": W, "m": M * 0},
    )


def test_what_others_read_stays():
    signature = "f (float[2,3,7,6] x) => (float[2,4,p,q] y, float[2,3,7,6] d)"
    check_pass(
        FoldNormalizationPass(),
        f"{signature} <float[4,3,3,3] w, float[1,3,1,1] s> {{ d = Mul (x, s) y = Conv (d, w) }}",
        None,
        [X],
        constants={"w": W, "s": S},
    )


@pytest.mark.parametrize("shape", ["1,3,7,6", "7,6", "2,1,1,1"])
def test_constants_that_are_not_by_channel_stay(shape):
    sizes = [int(size) for size in shape.split(",")]
    check_pass(
        FoldNormalizationPass(),
        f"{SIGNATURE} <float[4,3,3,3] w, float[{shape}] s> {{ d = Mul (x, s) y = Conv (d, w) }}",
        None,
        [X],
        constants={"w": W, "s": rng.normal(size=sizes)},
    )


def test_arithmetic_that_makes_the_channels_stays():
    check_pass(
        FoldNormalizationPass(),
        "f (float[2,1,7,6] x) => (float[2,4,p,q] y) <float[4,3,3,3] w, float[1,3,1,1] s> "
        "{ d = Mul (x, s) y = Conv (d, w) }",
        None,
        [X[:, :1].copy()],
        constants={"w": W, "s": S},
    )


def test_weights_that_are_computed_stay():
    check_pass(
        FoldNormalizationPass(),
        "f (float[2,3,7,6] x, float[4,3,3,3] w) => (float[2,4,p,q] y) <float[1,3,1,1] s> "
        "{ d = Mul (x, s) y = Conv (d, w) }",
        None,
        [X, W.astype(np.float32)],
        constants={"s": S},
    )


def test_weights_that_would_overflow_stay():
    check_pass(
        FoldNormalizationPass(),
        "f (float16[1,3,4,4] x) => (float16[1,4,p,q] y) <float16[4,3,3,3] w, float16 n> "
        "{ d = Mul (x, n) y = Conv (d, w) }",
        None,
        [np.zeros((1, 3, 4, 4), np.float16)],
        constants={"w": W * 100, "n": 1000.0},
    )
