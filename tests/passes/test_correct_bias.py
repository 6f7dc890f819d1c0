import numpy as np
import pytest

from tests.support import check_pass, model, run_reference
from xrt.passes import InferShapesPass
from xrt.passes.correct_bias import CorrectBiasPass, corrected_values
from xrt.passes.quantize import QuantizePass

RNG = np.random.default_rng(0)


def quantized_error(made, x, means):
    """The mean error of each output channel once weights are rounded to four bits or so."""
    (want,) = run_reference(made, {"x": x})
    copy = made.clone()
    CorrectBiasPass(means, weight_bits=4)(copy)
    QuantizePass({"x": float(np.abs(x).max())}, weight_bits=4)(copy)
    (got,) = run_reference(copy, {"x": x})
    return np.abs((got - want).mean(axis=(0, *range(2, want.ndim)))).max()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_of_a_convolution_is_kept(groups, bias):
    inputs = "x, w, b" if bias else "x, w"
    made = model(
        f"g (float[4,6,8,8] x) => (float[4,4,6,6] y) <float[4,{6 // groups},3,3] w, float[4] b> "
        f"{{ y = Conv <group = {groups}> ({inputs}) }}",
        w=RNG.normal(size=(4, 6 // groups, 3, 3)), b=RNG.normal(size=4),
    )  # fmt: skip
    InferShapesPass()(made)
    x = (RNG.uniform(size=(4, 6, 8, 8)) + np.arange(6).reshape(1, 6, 1, 1)).astype(np.float32)
    means = {"x": x.mean(axis=(0, 2, 3))}
    assert corrected_values(made.graph) == {"x": 1}
    assert quantized_error(made, x, means) < 0.2 * quantized_error(made, x, {})


@pytest.mark.parametrize("transposed", [0, 1])
def test_the_mean_of_a_gemm_is_kept(transposed):
    w = RNG.normal(size=(6, 5))
    made = model(
        f"g (float[64,6] x) => (float[64,5] y) <float{'[5,6]' if transposed else '[6,5]'} w> "
        f"{{ y = Gemm <transB = {transposed}> (x, w) }}",
        w=w.T if transposed else w,
    )
    InferShapesPass()(made)
    x = RNG.uniform(1, 2, size=(64, 6)).astype(np.float32)
    means = {"x": x.mean(axis=0)}
    assert quantized_error(made, x, means) < 0.2 * quantized_error(made, x, {})


CONV = "g (float[1,1,4,4] x) => (float[1,1,4,4] y) <float[1,1,1,1] w> { y = Conv (x, w) }"


@pytest.mark.parametrize(
    ("means", "exclude", "weight"),
    [
        ({}, (), 0.3),  # not watched
        ({"x": np.ones(1)}, ("y",), 0.3),  # stays in floating point
        ({"x": np.zeros(1)}, (), 0.3),  # nothing to correct
    ],
)
def test_it_does_not_fire(means, exclude, weight):
    made = model(CONV, w=np.full((1, 1, 1, 1), weight))
    x = RNG.normal(size=(1, 1, 4, 4)).astype(np.float32)
    check_pass(CorrectBiasPass(means, exclude=exclude), made, None, {"x": x})
