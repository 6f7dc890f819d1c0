import numpy as np
import pytest

from tests.support import assert_close, check_pass, model, ops, run_reference, skeleton
from xrt.passes import InferShapesPass
from xrt.passes.quantization_plan import plan_quantization
from xrt.passes.quantize import QuantizePass, watched_values

RNG = np.random.default_rng(0)

CONV = """
g (float[1,3,8,8] x) => (float[1,4,6,6] y) <float[4,3,3,3] w, float[4] b> {
  c = Conv (x, w, b)
  y = Relu (c)
}"""
WEIGHTS = {"w": RNG.normal(size=(4, 3, 3, 3)), "b": RNG.normal(size=4)}
X = RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)

RESIDUAL = """
g (float[1,4,8,8] x) => (float[1,5] y) <float[4,4,3,3] w, float[4,4,1,1] v, float[5,4] f> {
  a = Conv <pads = [1,1,1,1]> (x, w)
  r = Relu (a)
  m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (r)
  k = Conv (m, v)
  s = Add (k, m)
  t = Relu (s)
  p = GlobalAveragePool (t)
  q = Flatten (p)
  y = Gemm <transB = 1> (q, f)
}"""
RESIDUAL_WEIGHTS = {
    "w": RNG.normal(size=(4, 4, 3, 3)) / 6,
    "v": RNG.normal(size=(4, 4, 1, 1)) / 2,
    "f": RNG.normal(size=(5, 4)),
}


def typed(text, **constants):
    made = model(text, **constants)
    InferShapesPass()(made)
    return made


def thresholds_of(made, inputs):
    """The largest magnitudes of the watched values, by onnx.reference."""
    copy = made.clone()
    names = watched_values(copy.graph)
    values = {str(v.name): v for n in copy.graph for v in n.outputs}
    values.update({str(v.name): v for v in copy.graph.inputs})
    kept = len(copy.graph.outputs)
    copy.graph.outputs.extend(values[name] for name in names)
    arrays = run_reference(copy, inputs)[kept:]
    return {name: float(np.abs(a).max()) for name, a in zip(names, arrays, strict=True)}


def quantized(text, inputs, exclude=(), **constants):
    made = typed(text, **constants)
    pass_ = QuantizePass(thresholds_of(made, inputs), exclude=exclude)
    result = pass_(made)
    return made, pass_, result


def error(made, want, inputs):
    (got,) = run_reference(made, inputs)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def test_a_convolution():
    """Whole numbers up to 127, of scale 1, lose nothing."""
    x = RNG.integers(-127, 128, size=(1, 3, 8, 8)).astype(np.float32)
    exact = {"w": RNG.integers(-127, 127, size=(4, 3, 3, 3)), "b": RNG.integers(-99, 99, size=4)}
    exact["w"][:, 0, 0, 0] = 127
    changed = check_pass(
        QuantizePass({"x": 127.0}),
        model(CONV, **exact),
        """
        g (float[1,3,8,8] x) => (float[1,4,6,6] y) {
          q = QuantizeLinear (x, x_scale, zero)
          d = DequantizeLinear (q, x_scale, zero)
          w = DequantizeLinear <axis = 0> (w_quantized, w_scale)
          b = DequantizeLinear <axis = 0> (b_quantized, b_scale)
          c = Conv (d, w, b)
          y = Relu (c)
        }""",
        {"x": x},
    )
    constants = {n: v.const_value.numpy() for n, v in changed.graph.initializers.items()}
    assert set(constants) == {
        *("x_scale", "zero_point", "w_quantized", "w_scale", "b_quantized", "b_scale"),
    }
    assert constants["w_quantized"].dtype == np.int8
    assert (np.abs(constants["w_quantized"]).max(axis=(1, 2, 3)) == 127).all()
    assert constants["b_quantized"].dtype == np.int32
    np.testing.assert_allclose(
        constants["b_scale"], constants["x_scale"] * constants["w_scale"], rtol=1e-6
    )


def test_what_lies_between_products_stays_in_bytes():
    inputs = {"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}
    want = run_reference(typed(RESIDUAL, **RESIDUAL_WEIGHTS), inputs)[0]
    made, pass_, _ = quantized(RESIDUAL, inputs, **RESIDUAL_WEIGHTS)
    assert [group.op for group in pass_.groups] == [
        *("Conv", "MaxPool", "Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"),
    ]
    assert error(made, want, inputs) < 0.05
    # x, r, m, k, t, p, q: one rounding each, however many take it
    assert ops(made).count("QuantizeLinear") == 7
    # and one for each weight
    assert ops(made).count("DequantizeLinear") == 7 + 3
    add = next(node for node in made.graph if node.op_type == "Add")
    assert [value.producer().op_type for value in add.inputs] == ["DequantizeLinear"] * 2


def test_a_carrier_has_one_scale():
    inputs = {"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}
    made, _, _ = quantized(RESIDUAL, inputs, **RESIDUAL_WEIGHTS)
    scale = {
        node.inputs[0].name: float(node.inputs[1].const_value.numpy())
        for node in made.graph
        if node.op_type == "QuantizeLinear"
    }
    assert scale["r"] == scale["m"]
    assert scale["p"] == scale["q"]
    assert scale["m"] != scale["t"]


def test_a_group_can_be_left_in_floating_point():
    inputs = {"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}
    made, pass_, _ = quantized(RESIDUAL, inputs, exclude={"k"}, **RESIDUAL_WEIGHTS)
    assert [group.name for group in pass_.groups] == ["a", "y"]
    assert "bound on accuracy" in pass_.refused["k"]
    kept = next(node for node in made.graph if node.outputs[0].name == "k")
    assert kept.inputs[1].const_value is not None


def test_seven_bits():
    made = typed(CONV, **WEIGHTS)
    QuantizePass({"x": 3.0}, weight_bits=7)(made)
    assert np.abs(made.graph.initializers["w_quantized"].const_value.numpy()).max() == 63


def test_matrix_products_take_columns_or_two_activations():
    text = """
    g (float[2,3,4] x, float[2,4,3] z) => (float[2,3,5] y, float[2,3,3] u) <float[4,5] w> {
      y = MatMul (x, w)
      u = MatMul (x, z)
    }"""
    inputs = {
        "x": RNG.normal(size=(2, 3, 4)).astype(np.float32),
        "z": RNG.normal(size=(2, 4, 3)).astype(np.float32),
    }
    made, pass_, _ = quantized(text, inputs, w=RNG.normal(size=(4, 5)))
    assert [group.inputs for group in pass_.groups] == [("x",), ("x", "z")]
    assert made.graph.initializers["w_scale"].shape == (5,)
    for got, want in zip(
        run_reference(made, inputs),
        (inputs["x"] @ made_weight(made), inputs["x"] @ inputs["z"]),
        strict=True,
    ):
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < 0.02


def made_weight(made):
    initializers = made.graph.initializers
    return (
        initializers["w_quantized"].const_value.numpy()
        * initializers["w_scale"].const_value.numpy()
    )


def test_a_large_bias_widens_the_scale_of_its_channel():
    weights = {"w": np.full((4, 3, 3, 3), 1e-6), "b": [0.0, 1.0, 100.0, 1e4]}
    made = typed(CONV, **weights)
    want = run_reference(made, {"x": X})[0]
    QuantizePass({"x": float(np.abs(X).max())})(made)
    (got,) = run_reference(made, {"x": X})
    np.testing.assert_allclose(got[:, 1:], want[:, 1:], rtol=1e-4)


def test_zeros_quantize_to_zeros():
    made = typed(CONV, w=np.zeros((4, 3, 3, 3)), b=np.zeros(4))
    QuantizePass({"x": 0.0})(made)
    assert_close(run_reference(made, {"x": X * 0})[0], np.zeros((1, 4, 6, 6), np.float32))


def test_shared_weights_are_rounded_once():
    text = """
    g (float[2,4] x) => (float[2,4] y) <float[4,4] w> { a = MatMul (x, w) y = MatMul (a, w) }"""
    made, _, _ = quantized(text, {"x": RNG.normal(size=(2, 4)).astype(np.float32)}, w=np.eye(4))
    assert sum("w_quantized" in name for name in made.graph.initializers) == 1


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        # nothing to multiply
        ("g (float[2,3] x) => (float[2,3] y) { y = Relu (x) }", {}),
        # not float32
        ("g (double[2,3] x) => (double[2,2] y) <double[3,2] w> { y = MatMul (x, w) }",
         {"w": np.ones((3, 2))}),
        # weights that move
        ("g (float[1,1,4,4] x, float[1,1,2,2] w) => (float[1,1,3,3] y) { y = Conv (x, w) }", {}),
        # quantized already
        ("g (float[2,2] x) => (float[2,2] y) <float[2,2] w> { "
         "s = Constant <value_float = 0.1> () q = QuantizeLinear (x, s) "
         "d = DequantizeLinear (q, s) y = MatMul (d, w) }", {"w": np.eye(2)}),
    ],
)  # fmt: skip
def test_it_does_not_fire(text, constants):
    made = typed(text, **constants)
    before = skeleton(made.graph)
    assert not QuantizePass({"x": 1.0, "d": 1.0})(made).modified
    assert skeleton(made.graph) == before


def test_what_calibration_never_saw_is_named():
    made = typed(CONV, **WEIGHTS)
    pass_ = QuantizePass({})
    assert not pass_(made).modified
    assert pass_.refused == {"c": "calibration never saw its input 'x'"}
    assert pass_.unseen == ("x",)


def test_an_add_that_nothing_quantized_follows_stays():
    """The residual of a transformer, which a normalization takes in floating point."""
    made = typed(
        "g (float[2,4] x) => (float[2,4] y) <float[4,4] w, float[4] s> "
        "{ a = MatMul (x, w) r = Add (a, x) y = LayerNormalization (r, s) }",
        w=np.eye(4), s=np.ones(4),
    )  # fmt: skip
    plan, _ = plan_quantization(made.graph)
    assert [each.node.op_type for each in plan] == ["MatMul"]


def test_products_in_nested_graphs_stay():
    made = typed(
        "g (bool c, float[2,4] x) => (float[2,4] y) <float[4,4] w> { y = If (c) <"
        "then_branch = t () => (float[2,4] a) { a = MatMul (x, w) }, "
        "else_branch = e () => (float[2,4] b) { b = Relu (x) }> }",
        w=np.eye(4),
    )
    assert plan_quantization(made.graph) == ([], {})


def test_groups_can_be_switched():
    inputs = {"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}
    made = typed(RESIDUAL, **RESIDUAL_WEIGHTS)
    (floating,) = run_reference(made, inputs)
    thresholds = thresholds_of(made, inputs)
    plain, switched = made.clone(), made.clone()
    QuantizePass(thresholds)(plain)
    pass_ = QuantizePass(thresholds, switches=True)
    pass_(switched)
    assert switched.graph.inputs[-1].name == "quantized"
    count = len(pass_.groups)

    def run(*flags):
        return run_reference(switched, {**inputs, "quantized": np.array(flags)})[0]

    assert_close(run(*[False] * count), floating)
    assert_close(run(*[True] * count), run_reference(plain, inputs)[0])
    alone = [run(*(i == j for j in range(count))) for i in range(count)]
    assert all(not np.array_equal(each, floating) for each in alone)


def test_without_its_group_a_switched_model_is_the_one_that_excludes_it():
    inputs = {"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}
    made = typed(RESIDUAL, **RESIDUAL_WEIGHTS)
    thresholds = thresholds_of(made, inputs)
    switched, excluded = made.clone(), made.clone()
    pass_ = QuantizePass(thresholds, switches=True)
    pass_(switched)
    other = QuantizePass(thresholds, exclude={"y"})
    other(excluded)
    left = {group.name for group in other.groups}
    flags = np.array([group.name in left for group in pass_.groups])
    assert 0 < flags.sum() < len(flags)
    (got,) = run_reference(switched, {**inputs, "quantized": flags})
    # The scales of carriers may differ where fewer share them, so by noise, not to the bit.
    assert error(excluded, got, inputs) < 0.01
