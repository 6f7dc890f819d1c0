import numpy as np
import pytest

from tests.support import check_pass, model
from xrt.passes.equalize_weights import EqualizeWeightsPass

RNG = np.random.default_rng(0)
SPREAD = 10.0 ** np.linspace(-2, 2, 4)

CONV = """
g (float[1,3,8,8] x) => (float[1,5,8,8] y) <float[4,3,1,1] w, float[4] b, float[5,4,1,1] v> {
  c = Conv (x, w, b)
  r = Relu (c)
  y = Conv (r, v)
}"""
CONSTANTS = {
    "w": RNG.normal(size=(4, 3, 1, 1)) * SPREAD.reshape(-1, 1, 1, 1),
    "b": RNG.normal(size=4),
    "v": RNG.normal(size=(5, 4, 1, 1)),
}
X = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)


def ranges(made, name, axis):
    array = made.graph.initializers[name].const_value.numpy()
    return np.abs(array).max(axis=tuple(i for i in range(array.ndim) if i != axis))


def test_channels_get_one_range():
    changed = check_pass(
        EqualizeWeightsPass(),
        model(CONV, **CONSTANTS),
        "g (float[1,3,8,8] x) => (float[1,5,8,8] y) "
        "{ c = Conv (x, w, b) r = Relu (c) y = Conv (r, v) }",
        {"x": X},
    )
    first, second = ranges(changed, "w_equal", 0), ranges(changed, "v_equal", 1)
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm_either_way(transposed):
    one, two = transposed
    w, v = RNG.normal(size=(6, 4)) * SPREAD, RNG.normal(size=(4, 5))
    check_pass(
        EqualizeWeightsPass(),
        model(
            f"g (float[2,6] x) => (float[2,5] y) <float{'[4,6]' if one else '[6,4]'} w, float[4] b,"
            f" float{'[5,4]' if two else '[4,5]'} v> "
            f"{{ c = Gemm <transB = {one}> (x, w, b) y = Gemm <transB = {two}> (c, v) }}",
            w=w.T if one else w, v=v.T if two else v, b=RNG.normal(size=4),
        ),
        f"g (float[2,6] x) => (float[2,5] y) "
        f"{{ c = Gemm <transB = {one}> (x, w, b) y = Gemm <transB = {two}> (c, v) }}",
        {"x": RNG.normal(size=(2, 6)).astype(np.float32)},
    )  # fmt: skip


def test_dead_channels_stay():
    constants = {**CONSTANTS, "w": CONSTANTS["w"] * np.array([0, 1, 1, 1]).reshape(-1, 1, 1, 1)}
    made = model(CONV, **constants)
    EqualizeWeightsPass()(made)
    array = made.graph.initializers["w_equal"].const_value.numpy()
    assert np.isfinite(array).all()
    assert not array[0].any()


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv (x, w, b) r = Sigmoid (c) y = Conv (r, v)",  # not homogeneous
        # shared
        "c = Conv (x, w, b) r = Relu (c) s = Conv (r, v) t = ReduceMax (r) y = Add (s, t)",
        "c = Conv (x, w, b) r = Relu (c) m = MaxPool <kernel_shape = [1,1]> (r) y = Conv (m, v)",
    ],
)
def test_it_does_not_fire(body):
    text = CONV[: CONV.index("{")] + "{" + body + "}"
    check_pass(EqualizeWeightsPass(), model(text, **CONSTANTS), None, {"x": X})


def test_equal_ranges_stay():
    constants = {"w": np.ones((4, 3, 1, 1)), "b": np.zeros(4), "v": np.ones((5, 4, 1, 1))}
    check_pass(EqualizeWeightsPass(), model(CONV, **constants), None, {"x": X})
