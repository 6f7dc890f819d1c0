"""Quantized graphs run on bytes, and give what the operators' definitions give.

Two things are looked at: the numbers, against onnx.reference, and the program that XLA is handed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from tests.engines.xla.graph_support import check as check_graph
from tests.engines.xla.ops_support import run_model, run_node
from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla import trace as T
from xrt.kernels.jax import integer

Array = np.ndarray[Any, Any]

RNG = np.random.default_rng(11)
FORMS = {"signed": integer.SIGNED, "VNNI": integer.VNNI, "GPU": integer.GPU}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> integer.Form:
    """Each form of integer products in turn, whatever suits this device."""
    chosen = FORMS[request.param]
    monkeypatch.setattr(D, "integer_form", lambda: chosen)
    return chosen


@dataclass(frozen=True)
class Code:
    """A quantization per tensor: type of the bytes, scale and zero point."""

    dtype: Any
    scale: float
    zero: int = 0


SYMMETRIC = Code(np.int8, 0.03)
UNSIGNED = Code(np.uint8, 0.02, 77)
SHIFTED = Code(np.int8, 0.05, -9)


class Net:
    """A model in the making; values are named by their number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}
        self.inputs: dict[str, Array] = {}

    def input(self, array: Array) -> str:
        """A further input, and the array that it gets."""
        name = f"x{len(self.inputs)}"
        self.inputs[name] = array
        return name

    def constant(self, array: Any) -> str:
        """An initializer."""
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node, and the name of its output."""
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def quantize(self, value: str, code: Code) -> str:
        """QuantizeLinear."""
        return self.add("QuantizeLinear", value, *self._parameters(code))

    def rounded(self, value: str, code: Code) -> str:
        """QuantizeLinear and DequantizeLinear."""
        return self.add("DequantizeLinear", self.quantize(value, code), *self._parameters(code))

    def _parameters(self, code: Code) -> tuple[str, str]:
        zero = np.array(code.zero, code.dtype)
        return self.constant(np.float32(code.scale)), self.constant(zero)

    def weight(self, array: Array, axis: int | None, dtype: Any = np.int8, zero: int = 0) -> str:
        """DequantizeLinear of integers."""
        if axis is None:
            return self.add(
                "DequantizeLinear",
                self.constant(array.astype(dtype)),
                self.constant(np.float32(0.01)),
                self.constant(np.array(zero, dtype)),
            )
        scale = RNG.uniform(0.005, 0.02, array.shape[axis]).astype(np.float32)
        zeros = np.full(len(scale), zero, dtype)
        parts = (array.astype(dtype), scale, zeros)
        return self.add("DequantizeLinear", *map(self.constant, parts), axis=axis)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The model, with types inferred."""
        code = onnx.helper.np_dtype_to_tensor_dtype
        graph = onnx.helper.make_graph(
            self.nodes,
            "test",
            [
                onnx.helper.make_tensor_value_info(n, code(a.dtype), a.shape)
                for n, a in self.inputs.items()
            ],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            [onnx.numpy_helper.from_array(a, n) for n, a in self.constants.items()],
        )
        opsets = [onnx.helper.make_opsetid("", G.OPSET)]
        made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=13)
        return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def levels(*shape: int, dtype: Any = np.int8) -> Array:
    """Random bytes, the extreme ones included."""
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def floats(*shape: int) -> Array:
    """Random numbers that saturate some bytes of the codes above."""
    return RNG.normal(0, 2, shape).astype(np.float32)


def program(model: onnx.ModelProto) -> str:
    """The cluster's program in StableHLO."""
    body = ir.from_proto(model).graph
    with D.isolated():
        chosen = T.plan(body)
        arrays = [parameter.array() for parameter in chosen.parameters]
        specs = [
            jax.ShapeDtypeStruct(G.static_shape(v) or (), v.dtype.numpy())
            for v in body.inputs
            if v.dtype
        ]
        return str(jax.jit(T.function(body, chosen)).lower(*specs, *arrays).as_text())


def products(text: str) -> list[str]:
    """The types of all products and convolutions in a program."""
    kinds = ("stablehlo.dot_general", "stablehlo.convolution")
    lines = [line for line in text.splitlines() if any(kind in line for kind in kinds)]
    return [line[line.rindex(" : ") :] for line in lines]


def check(
    net: Net, *outputs: str, quantum: float, on_bytes: bool = True, ties: float = 0.01
) -> None:
    """Fail unless XLA gives the reference's outputs within one quantum, and on bytes if so said.

    Hardly any element may be a whole quantum off: no more than the share `ties` of values that are
    half-way between two.
    """
    model = net.model(*outputs)
    kinds = products(program(model))
    assert kinds
    integers = [kind for kind in kinds if "xi32>" in kind and "f32" not in kind]
    assert (integers == kinds) if on_bytes else not integers, kinds
    inputs = list(net.inputs.values())
    want = onnx.reference.ReferenceEvaluator(model).run(None, net.inputs)
    for got, expected in zip(run_model(model, inputs), want, strict=True):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        off = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        assert off.max(initial=0) <= quantum * 1.001
        assert (off > quantum / 10).mean() <= ties
        assert np.unique(expected).size > min(5, expected.size - 1)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "3x3": ((2, 8, 9, 7), (12, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "1x1": ((2, 8, 5, 4), (6, 8, 1, 1), {}),
    "1x1 strided": ((1, 8, 5, 4), (6, 8, 1, 1), {"strides": [2, 2]}),
    "uneven": ((1, 5, 9, 8), (7, 5, 3, 2), {"strides": [2, 1], "pads": [0, 1, 2, 1]}),
    "dilated": ((1, 4, 11, 10), (4, 4, 3, 3), {"dilations": [2, 3], "auto_pad": "SAME_UPPER"}),
    "1-D": ((2, 6, 17), (8, 6, 4), {"strides": [3], "pads": [2, 1]}),
    "3-D": ((1, 4, 5, 4, 6), (5, 4, 2, 3, 1), {"pads": [0, 1, 0, 1, 1, 0]}),
}


@pytest.mark.parametrize("code", [SYMMETRIC, UNSIGNED, SHIFTED], ids=["s", "u", "z"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str, code: Code, form: integer.Form) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    net = Net()
    x = net.rounded(net.input(floats(*x_shape)), code)
    w = net.weight(levels(*w_shape), 0)
    b = net.weight(RNG.integers(-300, 300, w_shape[0]), 0, np.int32)
    y = net.add("Conv", x, w, b, **attributes)
    out = net.quantize(net.add("Relu", y), replace(code, scale=code.scale * 20))
    check(net, out, quantum=1)


@pytest.mark.parametrize("bias", ["none", "floats", "computed"])
@pytest.mark.parametrize(
    ("axis", "dtype", "zero"), [(None, np.int8, 0), (0, np.uint8, 128), (0, np.uint8, 90)]
)
def test_convolution_with_weights_of_each_kind(
    bias: str, axis: int | None, dtype: Any, zero: int, form: integer.Form
) -> None:
    net = Net()
    x = net.rounded(net.input(floats(2, 6, 7, 7)), UNSIGNED)
    w = net.weight(levels(9, 6, 3, 3, dtype=dtype), axis, dtype, zero)
    biases = {
        "none": list,
        "floats": lambda: [net.constant(floats(9))],
        "computed": lambda: [net.add("Neg", net.input(floats(9)))],
    }
    y = net.add("Conv", x, w, *biases[bias](), pads=[1] * 4)
    check(net, net.quantize(y, Code(np.uint8, 0.5, 120)), quantum=1)


@pytest.mark.parametrize(("channels", "groups", "outputs"), [(8, 8, 8), (8, 2, 6), (4, 4, 8)])
def test_grouped_convolutions_compute_in_floating_point(
    channels: int, groups: int, outputs: int
) -> None:
    net = Net()
    x = net.rounded(net.input(floats(1, channels, 9, 9)), SYMMETRIC)
    w = net.weight(levels(outputs, channels // groups, 3, 3), 0)
    y = net.add("Conv", x, w, group=groups, pads=[1] * 4)
    out = net.quantize(y, Code(np.int8, 0.2))
    model = net.model(out)
    assert not any("xi32>" in kind for kind in products(program(model)))
    want = onnx.reference.ReferenceEvaluator(model).run(None, net.inputs)
    (got,) = run_model(model, list(net.inputs.values()))
    off = np.abs(got.astype(int) - want[0].astype(int))
    assert off.max() <= 1
    assert off.mean() < 0.01


@pytest.mark.parametrize("strides", [[1, 1], [2, 2]])
def test_transposed_convolution(strides: list[int]) -> None:
    net = Net()
    x = net.rounded(net.input(floats(2, 6, 5, 4)), UNSIGNED)
    w = net.weight(levels(6, 8, 3, 3), 1)
    b = net.weight(RNG.integers(-300, 300, 8), 0, np.int32)
    y = net.add("ConvTranspose", x, w, b, strides=strides)
    check(net, net.quantize(y, Code(np.int8, 0.4)), quantum=1, on_bytes=False)


def test_a_weight_shared_by_a_convolution_and_something_else() -> None:
    net = Net()
    x = net.rounded(net.input(floats(1, 6, 7, 7)), SYMMETRIC)
    w = net.weight(levels(6, 6, 3, 3), 0)
    y = net.quantize(net.add("Conv", x, w), Code(np.int8, 0.5))
    check(net, y, net.add("Neg", w), quantum=1)


def test_float_activations_use_the_dequantized_weight() -> None:
    net = Net()
    w = net.weight(levels(6, 4, 3, 3), 0)
    matrix = net.weight(levels(5, 4), 1)
    x = net.input(floats(1, 4, 7, 7))
    y = net.add("Conv", x, w)
    z = net.add("MatMul", net.input(floats(3, 5)), matrix)
    check(net, y, z, quantum=1e-4, on_bytes=False)


PRODUCTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "matrices": ((9, 12), (12, 7)),
    "one row": ((1, 12), (12, 17)),
    "batch by matrix": ((2, 3, 5, 12), (12, 7)),
    "batches": ((2, 3, 5, 12), (3, 12, 4)),
}


@pytest.mark.parametrize("code", [SYMMETRIC, UNSIGNED], ids=["s", "u"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_matrix_product(name: str, constant: bool, code: Code, form: integer.Form) -> None:
    a_shape, b_shape = PRODUCTS[name]
    net = Net()
    a = net.rounded(net.input(floats(*a_shape)), code)
    if constant:
        b = net.weight(levels(*b_shape), len(b_shape) - 1)
    else:
        b = net.rounded(net.input(floats(*b_shape)), SHIFTED)
    y = net.add("MatMul", a, b)
    # 0.2999: no sum of products of the scales above is half-way between two bytes.
    check(net, net.quantize(y, Code(np.uint8, 0.2999, 128)), quantum=1)


@pytest.mark.parametrize("code", [SYMMETRIC, UNSIGNED], ids=["s", "u"])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("unsigned", [False, True])
def test_gemm(left: int, right: int, unsigned: bool, code: Code, form: integer.Form) -> None:
    net = Net()
    a = net.rounded(net.input(floats(*((12, 5) if left else (5, 12)))), code)
    shape, axis = ((7, 12), 0) if right else ((12, 7), 1)
    dtype, zero = (np.uint8, 128) if unsigned else (np.int8, 0)
    b = net.weight(levels(*shape, dtype=dtype), axis, dtype, zero)
    c = net.weight(RNG.integers(-500, 500, 7), 0, np.int32)
    y = net.add("Gemm", a, b, c, transA=left, transB=right, alpha=0.5, beta=2.0)
    check(net, net.quantize(y, Code(np.int8, 0.1)), quantum=1)


def test_a_product_of_other_scales_than_its_columns_computes_in_floating_point() -> None:
    net = Net()
    a = net.rounded(net.input(floats(5, 12)), SYMMETRIC)
    y = net.add("MatMul", a, net.weight(levels(12, 7), 0))
    check(net, net.quantize(y, Code(np.int8, 0.1)), quantum=1, on_bytes=False)


def test_a_residual_block_from_bytes_to_bytes(form: integer.Form) -> None:
    net, step = Net(), Code(np.int8, 0.6)
    x = net.rounded(net.input(floats(2, 8, 10, 10)), SYMMETRIC)
    y = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    y = skip = net.rounded(y, SYMMETRIC)
    for _ in range(2):
        y = net.add("Conv", y, net.weight(levels(8, 8, 3, 3) // 8, 0), pads=[1] * 4)
        y = net.rounded(net.add("Relu", y), step)
    y = net.rounded(net.add("Relu", net.add("Add", y, skip)), step)
    y = net.rounded(net.add("GlobalAveragePool", y), step)
    y = net.rounded(net.add("Flatten", y), step)
    y = net.add("Gemm", y, net.weight(levels(5, 8), 0), transB=1)
    check(net, y, quantum=0.6 * 8 * 2)


def test_carriers_move_bytes() -> None:
    net, code = Net(), SYMMETRIC
    x = net.rounded(net.input(floats(1, 8, 6, 6)), code)
    other = net.rounded(net.input(floats(1, 8, 3, 3)), code)
    y = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    y = net.rounded(net.add("Concat", y, other, axis=1), code)
    ends = (net.constant(np.array(array)) for array in ([2], [14], [1]))
    y = net.rounded(net.add("Slice", y, *ends), code)
    y = net.rounded(net.add("Transpose", y, perm=[0, 2, 3, 1]), code)
    y = net.rounded(net.add("Reshape", y, net.constant(np.array([9, 12]))), code)
    y = net.add("MatMul", y, net.weight(levels(12, 5), 1))
    check(net, y, quantum=1e-4)
    body = program(net.model(y)).split("dot_general")[0]
    # Rounding is for the two inputs alone: one clipped from below and above each.
    assert body.count("bitcast_convert") <= 2 * 2 * 2


def test_concat_of_other_scales_is_computed() -> None:
    net = Net()
    parts = [net.rounded(net.input(floats(1, 4, 5, 5)), code) for code in (SYMMETRIC, SHIFTED)]
    y = net.rounded(net.add("Concat", *parts, axis=1), SYMMETRIC)
    y = net.add("Conv", y, net.weight(levels(6, 8, 3, 3), 0))
    check(net, net.quantize(y, Code(np.int8, 0.5)), quantum=1)


def test_average_pooling_between_convolutions() -> None:
    net, step = Net(), Code(np.uint8, 0.4, 100)
    y = net.rounded(net.input(floats(1, 4, 9, 9)), UNSIGNED)
    y = net.rounded(net.add("Conv", y, net.weight(levels(6, 4, 3, 3) // 4, 0)), step)
    y = net.rounded(net.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2]), step)
    y = net.rounded(net.add("Conv", y, net.weight(levels(6, 6, 1, 1), 0)), step)
    # Of means of four integers one in four is half-way between two.
    check(net, y, quantum=step.scale * 3, ties=1)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("sign", [-1, 1])
def test_sums_of_extreme_bytes_are_exact(dtype: Any, sign: int, form: integer.Form) -> None:
    # 2304 products of the largest magnitude: beyond 24 bits, where fp32 skips integers.
    limits = np.iinfo(dtype)
    x = np.full((1, 256, 5, 5), limits.max if sign > 0 else limits.min, dtype)
    x[0, ::7] = limits.max - 1 if sign > 0 else limits.min + 1
    w = np.full((6, 256, 3, 3), -128, np.int8)
    w[:, ::5] = 127
    w[1] = 127
    zero = np.array(limits.max if sign < 0 else limits.min, dtype)
    net = Net()
    one = net.constant(np.float32(1))
    data = net.add("DequantizeLinear", net.input(x), one, net.constant(zero))
    y = net.add("Conv", data, net.add("DequantizeLinear", net.constant(w), one))
    centred = x.astype(np.int64) - int(zero)
    want = np.stack([
        sum((centred[0, :, i : i + 3, j : j + 3] * k).sum() for k in [kernel.astype(np.int64)])
        for kernel in w for i in range(3) for j in range(3)
    ]).reshape(1, 6, 3, 3)  # fmt: skip
    model = net.model(y)
    assert all("xi32>" in kind for kind in products(program(model)))
    (got,) = run_model(model, [x])
    assert np.abs(want).max() > 1 << 25
    # The int32 sum is exact; it is rounded to fp32 as its zero point is taken out of it.
    np.testing.assert_allclose(got, want, rtol=2e-7, atol=16)


def test_barriers_that_hold_leave_other_operators_right() -> None:
    # The engine keeps XLA's barriers in a cluster that rounds; other lowerings have some as well.
    net = Net()
    x = net.input(floats(1, 64, 10, 10))
    y = net.add("Conv", x, net.constant(floats(64, 64, 3, 3) / 50), pads=[1] * 4)  # Winograd
    y = net.add("Conv", y, net.constant(floats(64, 1, 3, 3) / 3), group=64, pads=[1] * 4)
    grid = net.input(RNG.uniform(-1, 1, (1, 5, 6, 2)).astype(np.float32))
    y = net.add("GridSample", y, grid)
    check(net, net.quantize(y, Code(np.int8, 0.05)), quantum=1, on_bytes=False)


def test_rounding_inside_a_loop() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 25]>
        agraph (float[3, 8] x) => (float[3, 8] y) {
            n = Constant <value = int64 {4}> ()
            cond = Constant <value = bool {1}> ()
            scale = Constant <value = float {0.05}> ()
            zero = Constant <value = int8 {3}> ()
            y = Loop (n, cond, x) <body = step (int64 i, bool c, float[3, 8] a) =>
                    (bool d, float[3, 8] b) {
                d = Identity (c)
                q = QuantizeLinear (a, scale, zero)
                f = DequantizeLinear (q, scale, zero)
                g = DequantizeLinear (q, scale, zero)
                h = Neg (f)
                k = Transpose <perm = [1, 0]> (g)
                m = MatMul (f, k)
                o = MatMul (m, h)
                b = Sin (o)
            }>
        }
    """
    x = floats(3, 8) / 4
    check_graph(text, (x,))


def test_products_of_a_layers_size_are_exact() -> None:
    # What XLA's library computes; it has been wrong before (see test_engine.py).
    a, b = levels(197, 1025, dtype=np.uint8), levels(1025, 130)
    (got,) = run_node("MatMulInteger", [a, b], constants=(1,))
    np.testing.assert_array_equal(got, a.astype(np.int64) @ b.astype(np.int64))
    x, w = levels(2, 33, 29, 28, dtype=np.uint8), levels(40, 33, 3, 3)
    (got,) = run_node("ConvInteger", [x, w], constants=(1,), pads=[1] * 4)
    framed = np.pad(x.astype(np.int64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    wide = w.astype(np.int64)
    want = sum(
        np.einsum("ncij,oc->noij", framed[:, :, i : i + 29, j : j + 28], wide[:, :, i, j])
        for i, j in np.ndindex(3, 3)
    )
    np.testing.assert_array_equal(got, want)


@pytest.mark.gpu
def test_a_gpu_multiplies_bytes() -> None:
    net = Net()
    x = net.rounded(net.input(floats(2, 16, 9, 7)), UNSIGNED)
    y = net.add("Conv", x, net.weight(levels(12, 16, 3, 3), 0), pads=[1] * 4)
    check(net, net.quantize(y, Code(np.uint8, 0.5, 120)), quantum=1)
