"""What ONNX's own rules infer wrongly, or leave out."""

import numpy as np
import pytest

from tests.support import model, run_reference
from xrt.passes import InferShapesPass


def inferred(text, **constants):
    made = model(text, **constants)
    InferShapesPass()(made)
    return made, [None if v.shape is None else list(v.shape) for v in made.graph.node(0).outputs]


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 2), (2, 3), (3, 2), (3, 3)])
def test_same_padding_of_conv_transpose_multiplies_by_the_stride(mode, kernel, stride):
    made, (shape,) = inferred(
        f"g (float[1,1,5] x) => (float[a,b,c] y) <float[1,2,{kernel}] w> "
        f'{{ y = ConvTranspose <auto_pad = "{mode}", strides = [{stride}]> (x, w) }}',
        w=np.ones((1, 2, kernel)),
    )
    assert shape == [1, 2, 5 * stride]
    if kernel >= stride:
        (got,) = run_reference(made, {"x": np.ones((1, 1, 5), np.float32)})
        assert list(got.shape) == shape


def test_an_output_shape_wins():
    _, (shape,) = inferred(
        "g (float[1,1,5] x) => (float[a,b,c] y) <float[1,1,3] w> "
        '{ y = ConvTranspose <auto_pad = "SAME_UPPER", output_shape = [11]> (x, w) }',
        w=np.ones((1, 1, 3)),
    )
    assert shape == [1, 1, 11]


@pytest.mark.parametrize(("given", "bins"), [("", 5), ("<onesided = 1>", 5), ("<onesided = 0>", 8)])
def test_stft_is_onesided_unless_it_says_otherwise(given, bins):
    _, (shape,) = inferred(
        "g (float[1,32,1] x, float[8] w) => (float[a,b,c,d] y) <int64 step, int64 length> "
        f"{{ y = STFT {given} (x, step, w, length) }}",
        step=4,
        length=8,
    )
    assert shape == [1, 7, bins, 2]


def test_max_unpool_takes_a_constant_shape():
    _, (shape,) = inferred(
        "g (float[1,1,2,2] x, int64[1,1,2,2] i) => (float[a,b,c,d] y) <int64[4] s> "
        "{ y = MaxUnpool <kernel_shape = [2,2], strides = [2,2]> (x, i, s) }",
        s=[1, 1, 5, 5],
    )
    assert shape == [1, 1, 5, 5]


def test_all_outputs_of_attention():
    _, shapes = inferred("""
        g (float[2,3,4,8] q, float[2,3,6,8] k, float[2,3,6,5] v) => (float[2,3,4,5] y) {
          y, pk, pv, s = Attention (q, k, v)
        }""")
    assert shapes == [[2, 3, 4, 5], [2, 3, 6, 8], [2, 3, 6, 5], [2, 3, 4, 6]]
