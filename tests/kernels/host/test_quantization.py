"""Quantization and integer products against onnx.reference, and by definition where that errs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch

from tests.kernels.host.support import compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(7)
INTEGERS = [
    np.int8, np.uint8, np.int16, np.uint16,
    ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2,
]  # fmt: skip
FLOAT8 = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
]
TINY_FLOATS = [ml_dtypes.float4_e2m1fn, ml_dtypes.float6_e2m3fn, ml_dtypes.float6_e3m2fn]
NAN, INF = float("nan"), float("inf")


def code(dtype: Any) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def floats(*shape: int, spread: float = 1.0) -> Any:
    return (RNG.normal(size=shape) * spread).astype(np.float32)


def scales(*shape: int) -> Any:
    return RNG.uniform(0.01, 0.2, shape).astype(np.float32)


def integers(dtype: Any, *shape: int) -> Any:
    limits = ml_dtypes.iinfo(np.dtype(dtype))
    return RNG.integers(int(limits.min), int(limits.max) + 1, shape).astype(dtype)


def one(op: str, *inputs: Any, **attributes: Any) -> Any:
    return run(op, *inputs, **attributes)[0]


def equal(got: Any, want: Any) -> None:
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


# QuantizeLinear


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_quantize_to_integers(dtype: Any, shape: tuple[int, ...]) -> None:
    limits = ml_dtypes.iinfo(np.dtype(dtype))
    x = floats(2, 3, 5, spread=int(limits.max) / 20)
    compare("QuantizeLinear", x, scales(*shape), integers(dtype, *shape), axis=-2)
    compare("QuantizeLinear", x, scales(*shape), axis=-2, output_dtype=code(dtype))


def test_quantize_rounds_half_to_even_and_then_adds_the_zero_point() -> None:
    x = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32) * 2
    zero = np.array(3, np.int8)
    got = one("QuantizeLinear", x, np.array(2, np.float32), zero)
    equal(got, np.array([1, 1, 3, 3, 5, 5, 7], np.int8))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_quantize_saturates(dtype: Any) -> None:
    limits = ml_dtypes.iinfo(np.dtype(dtype))
    low, high = int(limits.min), int(limits.max)
    x = np.array([-INF, -1e38, -1e6, 1e6, 3e38, INF], np.float32)
    zero = np.array(1, dtype)
    got = one("QuantizeLinear", x, np.array(1e-3, np.float32), zero)
    equal(got, np.array([low] * 3 + [high] * 3).astype(dtype))


def test_quantize_sends_nan_to_the_lowest_integer() -> None:
    x = np.array([NAN], np.float32)
    got = one("QuantizeLinear", x, np.ones((), np.float32), np.array([5], np.int8))
    equal(got, np.array([-128], np.int8))


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("saturate", [0, 1])
def test_quantize_to_float8(dtype: Any, saturate: int) -> None:
    x = np.array([0, -0.0, 1.1, -3.3, 448, 470, 1e6, -1e6, 6e4, INF, -INF, NAN, 1e-9], np.float32)
    zero = np.zeros((), dtype)
    for scale in (1, 0.25, 3):
        compare("QuantizeLinear", x, np.array(scale, np.float32), zero, saturate=saturate)
        args = {"saturate": saturate, "output_dtype": code(dtype)}
        compare("QuantizeLinear", x, np.array(scale, np.float32), **args)


@pytest.mark.parametrize("dtype", TINY_FLOATS)
def test_quantize_to_smaller_floats(dtype: Any) -> None:
    x = floats(4, 6, spread=10)
    for saturate in (0, 1):
        compare("QuantizeLinear", x, scales(4) * 9, np.zeros(4, dtype), axis=0, saturate=saturate)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("block", [2, 3, 4])
def test_blocks(axis: int, block: int) -> None:
    x = floats(4, 6, 5)
    shape = list(x.shape)
    shape[axis] = -(-shape[axis] // block)  # the last block of the last axis is not full
    scale, zero = scales(*shape), integers(np.int8, *shape)
    compare("QuantizeLinear", x, scale, zero, axis=axis, block_size=block)
    compare(
        "DequantizeLinear", integers(np.int8, 4, 6, 5), scale, zero, axis=axis, block_size=block
    )


def test_a_vector_has_one_axis_whatever_the_attribute_says() -> None:
    x, scale = floats(4), scales(4)
    equal(one("QuantizeLinear", x, scale), one("QuantizeLinear", x, scale, axis=0))
    blocked = one("QuantizeLinear", x, scale[:2], block_size=2)
    equal(blocked, one("QuantizeLinear", x, np.repeat(scale[:2], 2), axis=0))


def test_the_scale_s_type_divides_unless_precision_says_otherwise() -> None:
    # 1001 / 400 = 2.5025 is 2.502 in fp16 but 2.5 in bf16, half-way between two integers.
    x = np.array([1001], np.float16)
    scale = np.array(400, np.float16)
    equal(one("QuantizeLinear", x, scale), np.array([3], np.uint8))
    equal(one("QuantizeLinear", x, scale.astype(ml_dtypes.bfloat16)), np.array([2], np.uint8))
    narrow = one("QuantizeLinear", x, scale, precision=code(ml_dtypes.bfloat16))
    equal(narrow, np.array([2], np.uint8))
    exact = one("QuantizeLinear", x, scale.astype(ml_dtypes.bfloat16), precision=code(np.float32))
    equal(exact, np.array([3], np.uint8))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_rounded_after_the_division(kind: Any) -> None:
    x, scale = floats(50).astype(kind), scales(1).astype(kind)
    quotient = (x.astype(np.float64) / scale.astype(np.float64)).astype(kind).astype(np.float64)
    want = np.clip(np.rint(quotient) + 100, 0, 255).astype(np.uint8)
    equal(one("QuantizeLinear", x, scale, np.full(1, 100, np.uint8)), want)


def test_integers_divide_by_integers() -> None:
    x = np.array([-7, -5, 5, 7, 2**31 - 1, 15], np.int32)
    want = np.array([-4, -2, 2, 4, 127, 8], np.int8)
    equal(one("QuantizeLinear", x, np.array(2, np.int32), np.zeros((), np.int8)), want)


def test_a_scale_of_exponents_only() -> None:
    scale = np.array([0.5, 2], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    x = np.array([[1.2, -3], [5, 400]], np.float32)
    got = one("QuantizeLinear", x, scale, np.zeros(2, np.int8), axis=0)
    equal(got, np.array([[2, -6], [2, 127]], np.int8))
    back = one("DequantizeLinear", got, scale, axis=0, output_dtype=code(np.float32))
    equal(back, np.array([[1, -3], [4, 254]], np.float32))


def test_empty_tensors() -> None:
    empty, scale = np.zeros((0, 3), np.float32), scales(3)
    equal(one("QuantizeLinear", empty, scale), np.zeros((0, 3), np.uint8))
    got = one("DequantizeLinear", np.zeros((0, 3), np.int8), scale, np.ones(3, np.int8))
    equal(got, empty)
    y, found, zero = run("DynamicQuantizeLinear", np.zeros((2, 0), np.float32), output_count=3)
    assert (y.shape, float(found), int(zero)) == ((2, 0), 0.0, 0)


@pytest.mark.parametrize(
    ("shape", "attributes"),
    [((4,), {}), ((2, 2), {}), ((1, 2), {"block_size": 2}), ((3,), {"axis": 5})],
)
def test_scales_that_fit_nothing_are_refused(
    shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    for op, x in (("QuantizeLinear", floats(2, 3)), ("DequantizeLinear", integers(np.int8, 2, 3))):
        with pytest.raises(KernelError, match="axis"):
            run(op, x, scales(*shape), **attributes)


def test_inputs_are_not_written_to() -> None:
    inputs: list[Any] = [floats(3, 4), scales(4), integers(np.int8, 4)]
    quantized = [integers(np.int8, 3, 4), *inputs[1:]]
    for op, given in (("QuantizeLinear", inputs), ("DequantizeLinear", quantized)):
        before = [array.copy() for array in given]
        run(op, *given)
        for array, copy in zip(given, before, strict=True):
            equal(array, copy)


# DequantizeLinear


@pytest.mark.parametrize("dtype", [*INTEGERS, np.int32])
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dequantize_integers(dtype: Any, kind: Any) -> None:
    x = integers(dtype, 3, 4, 2)
    if dtype is np.int32:
        compare("DequantizeLinear", x // 2**16, scales(4).astype(kind))
        return
    for shape in ((), (1,), (4,)):
        scale = scales(*shape).astype(kind)
        compare("DequantizeLinear", x, scale, integers(dtype, *shape))
        compare("DequantizeLinear", x, scale)


@pytest.mark.parametrize("dtype", [*FLOAT8, *TINY_FLOATS])
def test_dequantize_floats(dtype: Any) -> None:
    x = floats(3, 4, spread=3).astype(dtype)
    compare("DequantizeLinear", x, scales(4), np.zeros(4, dtype))
    compare("DequantizeLinear", x, scales(3), axis=-2)


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_dequantize_to_another_type(kind: Any) -> None:
    x, zero = integers(np.uint8, 5, 3), integers(np.uint8, 3)
    for scale in (scales(3), scales(3).astype(np.float16)):
        got = one("DequantizeLinear", x, scale, zero, output_dtype=code(kind))
        exact = (x.astype(np.float64) - zero) * scale.astype(np.float64)
        equal(got, exact.astype(np.float32).astype(kind))


def test_int32_less_a_zero_point_does_not_wrap() -> None:
    x = np.array([2**31 - 1, -(2**31)], np.int32)
    got = one("DequantizeLinear", x, np.array(2, np.float32), np.array(-1, np.int32))
    equal(got, np.array([2.0**32, -(2.0**32)], np.float32))


# DynamicQuantizeLinear


@pytest.mark.parametrize("offset", [-9.0, 0.0, 0.3, 9.0])
def test_dynamic_quantization(offset: float) -> None:
    compare("DynamicQuantizeLinear", floats(3, 40) + np.float32(offset), output_count=3)


def test_dynamic_quantization_of_zeros() -> None:
    y, scale, zero = run("DynamicQuantizeLinear", np.zeros((2, 3), np.float32), output_count=3)
    equal(y, np.zeros((2, 3), np.uint8))
    assert (scale.dtype, scale.shape, float(scale)) == (np.float32, (), 0.0)
    equal(zero, np.zeros((), np.uint8))


def test_dynamic_quantization_overlooks_nan() -> None:
    x = np.array([NAN, -1, 4.1], np.float32)
    y, scale, zero = run("DynamicQuantizeLinear", x, output_count=3)
    equal(y, np.array([0, 1, 255], np.uint8)[[0, 0, 2]])
    assert (float(scale), int(zero)) == (float(np.float32(5.1) / np.float32(255)), 50)


# Integer products

BYTES = [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8)]


def wide_product(a: Any, b: Any, a_zero: Any = 0, b_zero: Any = 0) -> Any:
    centred = a.astype(np.int64) - a_zero, b.astype(np.int64) - b_zero
    return np.matmul(*centred).astype(np.int32)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [((4, 6), (6, 5)), ((2, 3, 4, 6), (6, 5)), ((2, 1, 4, 6), (3, 6, 5)), ((6,), (6, 5)),
     ((4, 6), (6,)), ((6,), (6,)), ((0, 6), (6, 5)), ((4, 0), (0, 5)), ((1, 900), (900, 2))],
)  # fmt: skip
def test_matmul_integer(left: Any, right: Any, a_shape: Any, b_shape: Any) -> None:
    a, b = integers(left, *a_shape), integers(right, *b_shape)
    equal(np.asarray(one("MatMulInteger", a, b)), np.asarray(wide_product(a, b)))
    zeros = integers(left, 1), integers(right)
    got = one("MatMulInteger", a, b, *zeros)
    equal(np.asarray(got), np.asarray(wide_product(a, b, *(z.astype(np.int64) for z in zeros))))


def test_zero_points_of_rows_and_columns() -> None:
    a, b = integers(np.uint8, 2, 3, 6), integers(np.int8, 6, 5)
    rows, columns = integers(np.uint8, 3).astype(np.int64), integers(np.int8, 5).astype(np.int64)
    got = one("MatMulInteger", a, b, rows.astype(np.uint8), columns.astype(np.int8))
    equal(got, wide_product(a, b, rows[:, None], columns))
    each = integers(np.uint8, 2, 3, 1)
    equal(one("MatMulInteger", a, b, each), wide_product(a, b, each.astype(np.int64)))


def test_sums_beyond_32_bits_wrap() -> None:
    a, b = np.full((1, 40000), 255, np.uint8), np.full((40000, 1), 255, np.uint8)
    equal(one("MatMulInteger", a, b), np.array([[255 * 255 * 40000 - 2**32]], np.int32))


def wide_conv(x: Any, w: Any, x_zero: Any = 0, w_zero: Any = 0, **geometry: Any) -> Any:
    """By torch in float64, which holds every sum exactly."""
    shape = (-1, *(1,) * (w.ndim - 1))
    operands = [
        torch.from_numpy(x.astype(np.float64) - float(x_zero)),
        torch.from_numpy(w.astype(np.float64) - np.reshape(w_zero, shape).astype(np.float64)),
    ]
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[x.ndim - 3]
    return function(*operands, **geometry).numpy().astype(np.int32)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize(
    ("spatial", "group"), [((9,), 1), ((7, 8), 1), ((7, 8), 2), ((7, 8), 4), ((4, 5, 3), 1)]
)
def test_conv_integer(left: Any, right: Any, spatial: tuple[int, ...], group: int) -> None:
    rank = len(spatial)
    x = integers(left, 2, 4, *spatial)
    w = integers(right, 8, 4 // group, *(3,) * rank)
    x_zero, w_zero = integers(left), integers(right, 8)
    got = one("ConvInteger", x, w, x_zero, w_zero, group=group, pads=(1,) * 2 * rank)
    want = wide_conv(x, w, x_zero, w_zero, groups=group, padding=1)
    equal(got, want)
    strided = one("ConvInteger", x, w, group=group, strides=(2,) * rank)
    equal(strided, wide_conv(x, w, groups=group, stride=2))


def requantized(acc: Any, scale: Any, zero: Any) -> Any:
    limits = np.iinfo(zero.dtype)
    y = np.rint(acc.astype(np.float32) * np.asarray(scale, np.float32)) + zero
    return np.clip(y, limits.min, limits.max).astype(zero.dtype)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("group", [1, 2])
def test_qlinear_conv(left: Any, right: Any, per_channel: bool, group: int) -> None:
    x, w = integers(left, 2, 4, 6, 7), integers(right, 6, 4 // group, 3, 3)
    shape = (6,) if per_channel else ()
    x_scale, w_scale, y_scale = scales(), scales(*shape), np.array(3, np.float32)
    x_zero, w_zero, y_zero = integers(left), integers(right, *shape), integers(left)
    bias = RNG.integers(-5000, 5000, 6).astype(np.int32)
    head = (x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero)
    acc = wide_conv(x, w, x_zero, w_zero, groups=group, padding=1)
    scale = np.reshape(x_scale * w_scale / y_scale, (-1, 1, 1))
    attributes = {"group": group, "pads": (1, 1, 1, 1)}
    equal(one("QLinearConv", *head, **attributes), requantized(acc, scale, y_zero))
    biased = requantized(acc + bias.reshape(-1, 1, 1), scale, y_zero)
    equal(one("QLinearConv", *head, bias, **attributes), biased)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("per_axis", [False, True])
def test_qlinear_matmul(left: Any, right: Any, kind: Any, per_axis: bool) -> None:
    a, b = integers(left, 2, 3, 6), integers(right, 6, 5)
    rows, columns = ((3,), (5,)) if per_axis else ((), (1,))
    a_scale, b_scale = scales(*rows).astype(kind), scales(*columns).astype(kind)
    a_zero, b_zero, y_zero = integers(left, *rows), integers(right, *columns), integers(np.int8)
    y_scale = np.array(4, kind)
    got = one("QLinearMatMul", a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero)

    def row(values: Any) -> Any:
        return values.reshape(-1, 1) if per_axis else values

    acc = wide_product(a, b, row(a_zero.astype(np.int64)), b_zero.astype(np.int64))
    scale = row(a_scale.astype(np.float32)) * b_scale.astype(np.float32) / np.float32(4)
    equal(got, requantized(acc, scale, y_zero))


@pytest.mark.parametrize("dtype", FLOAT8)
def test_qlinear_matmul_of_float8(dtype: Any) -> None:
    a, b = floats(3, 6).astype(dtype), floats(6, 5).astype(dtype)
    one_, zero = np.ones((), np.float32), np.zeros((), dtype)
    got = one("QLinearMatMul", a, one_, zero, b, one_, zero, one_ * 2, zero)
    exact = a.astype(np.float64) @ b.astype(np.float64) / 2
    step = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=step, atol=1e-2)
    assert got.dtype == dtype
