import numpy as np
import pytest

from tests.support import assert_close, model, run_reference, skeleton
from xrt.errors import InputError
from xrt.options import InputNormalization
from xrt.passes import InferShapesPass, NormalizeInputPass, verify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (2, 3, 5, 4), np.uint8)


def changed(text, **options):
    before = model(text)
    InferShapesPass()(before)
    after = before.clone()
    NormalizeInputPass(InputNormalization(mean=MEAN, std=STD, **options))(after)
    InferShapesPass()(after)
    verify(after)
    return before, after


def normalized(pixels, dtype=np.float32):
    mean, std = (np.array(each).reshape(3, 1, 1) for each in (MEAN, STD))
    return ((pixels / 255.0 - mean) / std).astype(dtype)


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
def test_planes(kind):
    text = f"g ({kind}[N,3,5,4] x) => ({kind}[N,3,5,4] y) {{ y = Abs (x) }}"
    before, after = changed(text)
    (image,) = after.graph.inputs
    assert (image.name, str(image.dtype), list(image.shape)[1:]) == ("x", "UINT8", [3, 5, 4])
    dtype = before.graph.inputs[0].dtype.numpy()
    want = run_reference(before, [normalized(PIXELS, dtype)])
    scale = 100 if kind == "double" else 1  # the arithmetic is in float32
    for got, expected in zip(run_reference(after, [PIXELS]), want, strict=True):
        assert got.dtype == expected.dtype
        assert_close(got.astype(np.float32), expected.astype(np.float32), scale=scale)


def test_rows():
    before, after = changed(
        "g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Abs (x) }", layout="NHWC"
    )
    (image,) = after.graph.inputs
    assert [str(size) for size in image.shape] == ["N", "H", "W", "3"]
    rows = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1))
    assert_close(run_reference(after, [rows]), run_reference(before, [normalized(PIXELS)]))


def test_structure():
    _, after = changed(
        "g (float[1,1,1,1] a, float[1,3,4,4] b) => (float[1,3,4,4] y) <float c = {2.0}> "
        "{ d = Mul (b, c) e = Add (b, d) y = Add (e, a) }",
        layout="NHWC",
        input="b",
    )
    want = model(
        "g (float[1,1,1,1] a, uint8[1,4,4,3] b) => (float[1,3,4,4] y) "
        "<float c = {2.0}, float m = {2.0}, float k = {2.0}> "
        "{ t = Transpose <perm = [0,3,1,2]> (b) f = Cast <to = 1> (t) s = Sub (f, m) "
        "n = Mul (s, k) d = Mul (n, c) e = Add (n, d) y = Add (e, a) }"
    )
    assert skeleton(after.graph) == skeleton(want.graph)


def test_an_input_that_is_given_out():
    _, after = changed("g (float[2,3,5,4] x) => (float[2,3,5,4] x) { }")
    (got,) = run_reference(after, [PIXELS])
    assert_close(got, normalized(PIXELS))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("float[1,3,4,4] x", {"input": "y"}, "input 'y' is unknown. This model takes x"),
        ("int64[1,3,4,4] x", {}, r"is INT64 of .*floating-point \[N, C, H, W\]"),
        ("float[3,4,4] x", {}, "of shape"),
        ("float[1,4,4,3] x", {}, "has 4 channels; mean and std have 3"),
    ],
)
def test_inputs_that_do_not_fit(text, options, message):
    kind = text.split()[0]
    with pytest.raises(InputError, match=message):
        changed(f"g ({text}) => ({kind} y) {{ y = Abs (x) }}", **options)


def test_a_model_without_inputs():
    with pytest.raises(InputError, match="takes no inputs"):
        changed("g () => (float y) <float c = {1.0}> { y = Abs (c) }")
