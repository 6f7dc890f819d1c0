import numpy as np
import pytest

from tests.support import check_pass
from xrt.passes import FuseConvBiasPass

rng = np.random.default_rng(0)
X = rng.normal(size=(1, 3, 5, 5)).astype(np.float32)
W = rng.normal(size=(4, 3, 1, 1))
AFTER = "f (float[1,3,5,5] x) => (float[1,4,5,5] y) { y = Conv (x, w, b) }"


def check(body, after, c, **more):
    shape = f"[{','.join(map(str, np.shape(c)))}]" if np.shape(c) else ""
    return check_pass(
        FuseConvBiasPass(),
        f"""f (float[1,3,5,5] x) => (float[1,4,5,5] y)
            <float[4,3,1,1] w, float[4] k, float{shape} c, float two = {{2}}> {{ {body} }}""",
        after,
        [X],
        constants={"w": W, "k": rng.normal(size=4), "c": c, **more},
    )


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (), (1, 1, 1, 1)])
@pytest.mark.parametrize("conv", ["Conv (x, w)", "Conv (x, w, k)"])
@pytest.mark.parametrize(
    "op", ["Add (a, c)", "Add (c, a)", "Sub (a, c)", "Mul (a, c)", "Mul (c, a)", "Div (a, c)"]
)
def test_a_constant_for_each_channel(conv, op, shape):
    check(f"a = {conv} y = {op}", AFTER, rng.uniform(0.5, 2, shape))


def test_a_chain():
    check(
        "a = Conv (x, w) b = Mul (a, c) d = Div (b, two) y = Add (d, c)",
        AFTER,
        rng.normal(size=(4, 1, 1)),
    )


def test_conv_transpose():
    check_pass(
        FuseConvBiasPass(),
        """f (float[1,4,5] x) => (float[1,2,7] y) <float[4,2,3] w, float[2,1] c>
           { a = ConvTranspose (x, w) b = Mul (a, c) y = Add (b, c) }""",
        "f (float[1,4,5] x) => (float[1,2,7] y) { y = ConvTranspose (x, w, b) }",
        [rng.normal(size=(1, 4, 5)).astype(np.float32)],
        constants={"w": rng.normal(size=(4, 2, 3)), "c": rng.normal(size=(2, 1))},
    )


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("a = Conv (x, w) y = Add (a, c)", (1, 1, 5)),  # one for each column
        ("a = Conv (x, w) y = Add (a, c)", (4, 5, 5)),
        ("a = Conv (x, w) y = Sub (c, a)", (4, 1, 1)),  # negates
        ("a = Conv (x, w) y = Div (c, a)", (4, 1, 1)),
        ("a = Conv (x, w) b = Relu (a) d = Add (b, c) e = Exp (a) y = Mul (d, e)", (4, 1, 1)),
        ("a = Conv (x, w) b = Add (a, c) y = Mul (a, b)", (4, 1, 1)),  # used twice
        ("v = Abs (w) s = ReduceMean (x) u = Mul (v, s) a = Conv (x, u) y = Add (a, c)", (4, 1, 1)),
        ("a = Conv (x, w) y = Div (a, c)", None),  # divides by zero
    ],
)
def test_must_not_fire(body, shape):
    check(body, None, np.zeros((4, 1, 1)) if shape is None else rng.normal(size=shape))


def test_a_constant_that_broadcasts_the_result_stays():
    check_pass(
        FuseConvBiasPass(),
        """f (float[1,3,5,5] x) => (float[2,4,5,5] y) <float[1,3,1,1] w, float[2,4,1,1] c>
           { a = Conv (x, w) y = Add (a, c) }""",
        None,
        [X],
        constants={"w": W[:1], "c": rng.normal(size=(2, 4, 1, 1))},
    )
    check_pass(
        FuseConvBiasPass(),
        """f (float[1,3,5,5] x) => (float[1,4,5,5] y) <float[1,3,1,1] w, float[4,1,1] c>
           { a = Conv (x, w) y = Add (a, c) }""",
        None,
        [X],
        constants={"w": W[:1], "c": rng.normal(size=(4, 1, 1))},
    )


def test_an_output_between_stays():
    check_pass(
        FuseConvBiasPass(),
        """f (float[1,3,5,5] x) => (float[1,4,5,5] y, float[1,4,5,5] a) <float[4,3,1,1] w,
            float[4,1,1] c>
           { a = Conv (x, w) y = Add (a, c) }""",
        None,
        [X],
        constants={"w": W, "c": rng.normal(size=(4, 1, 1))},
    )
