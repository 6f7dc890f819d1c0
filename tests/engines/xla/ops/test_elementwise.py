"""Arithmetic, comparison, logic: against onnx.reference, by dtype, shape and layout."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node, support
from tests.support import assert_close

F32, F64, F16, BF16 = np.float32, np.float64, np.float16, ml_dtypes.bfloat16
NAN, INF = float("nan"), float("inf")


def normal(*shape: int, dtype: type = F32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def integers(*shape: int, dtype: type = np.int32, low: int = -5, seed: int = 0) -> np.ndarray:
    low = max(low, int(np.iinfo(dtype).min))
    return np.random.default_rng(seed).integers(low, 6, size=shape).astype(dtype)


UNARY = [
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp",
    "Floor", "IsNaN", "Log", "Neg", "Reciprocal", "Round", "Sign", "Sin", "Sinh", "Sqrt", "Tan",
]  # fmt: skip
DOMAIN = {"Acos": 0.9, "Asin": 0.9, "Atanh": 0.9}


@pytest.mark.parametrize("op", UNARY)
@pytest.mark.parametrize("dtype", [F64, F16])
def test_unary(op: str, dtype: type) -> None:
    x = normal(2, 3, 4, dtype=dtype)
    x = np.clip(x, -DOMAIN[op], DOMAIN[op]) if op in DOMAIN else x
    x = np.abs(x) + (op == "Acosh") if op in ("Log", "Sqrt", "Acosh") else x
    # onnx.reference computes Erf in float32.
    scale = 1e4 if op == "Erf" and dtype is F64 else 1.0
    check(op, [x.astype(dtype)], layouts=False, scale=scale)


@pytest.mark.parametrize("op", ["Exp", "Sqrt", "Abs", "Sign", "Round"])
def test_unary_bfloat16_zero_size_and_scalar(op: str) -> None:
    check(op, [np.abs(normal(2, 3, dtype=BF16))])
    check(op, [normal(0, 3)])
    check(op, [np.array(2.5, F32)])


@pytest.mark.parametrize("op", ["Exp", "Sin", "Tan", "Erf"])
def test_unary_in_channels_last(op: str) -> None:
    check(op, [normal(2, 3, 4)])


def test_special_values() -> None:
    x = np.array([NAN, INF, -INF, 0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -2.5], F32)
    for op in ("Abs", "Neg", "Sign", "Round", "Ceil", "Floor", "Exp", "Reciprocal", "IsNaN"):
        check(op, [x])


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_unary_integers(dtype: type) -> None:
    x = integers(2, 3, 4, dtype=dtype)
    for op in ("Abs", "Sign", "BitwiseNot", *(() if dtype is np.uint8 else ("Neg",))):
        check(op, [x])


def test_abs_of_least_integer_wraps() -> None:
    check("Abs", [np.array([-128, 127], np.int8)])


SHAPES = [
    ((2, 3, 4, 5), (2, 3, 4, 5)),
    ((2, 3, 4, 5), (3, 1, 1)),
    ((2, 3, 4, 5), (5,)),
    ((2, 3, 4, 5), (4, 1)),
    ((2, 3, 4, 5), ()),
    ((2, 3, 1, 1), (2, 3, 4, 5)),
    ((1, 3, 4), (2, 1, 3, 4)),
    ((2, 0, 4), (2, 1, 4)),
    ((), ()),
]


@pytest.mark.parametrize("op", ["Sub", "Div"])
@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_broadcast(op: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = normal(*left), normal(*right, seed=1)
    check(op, [a, b], which=(0,))
    if np.ndim(b) > 2:
        check(op, [a, b], which=(1,))
        check(op, [a, b], which=(0, 1))


@pytest.mark.parametrize("dtype", [F64, F16, np.int32, np.int64, np.uint8])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic_dtypes(op: str, dtype: type) -> None:
    if np.dtype(dtype).kind == "f":
        a, b = normal(3, 4, dtype=dtype), normal(4, dtype=dtype, seed=1)
    else:
        a = integers(3, 40, dtype=dtype)
        b = integers(40, dtype=dtype, seed=1)
        b = np.where(b == 0, 3, b).astype(dtype)
    check(op, [a, b])


def test_integers_wrap() -> None:
    a = np.array([127, -128, 100], np.int8)
    check("Add", [a, np.array([1, -1, 100], np.int8)])
    check("Mul", [a, np.array([2, 2, 100], np.int8)])


@pytest.mark.parametrize("dtype", [F32, F64, F16])
def test_division_is_exact_where_it_can_be(dtype: type) -> None:
    # XLA alone would multiply by 1 / 41, and 41 / 41 would be less than one.
    a, b = np.arange(0, 41 * 40, 41, dtype=dtype), np.asarray(41, dtype)
    want = np.arange(40, dtype=dtype)
    for constants in ((), (1,)):
        (got,) = run_node("Div", [a, b], constants=constants)
        np.testing.assert_array_equal(got, want)


def test_integer_division_truncates() -> None:
    a, b = np.array([7, -7, 7, -7], np.int64), np.array([2, 2, -2, -2], np.int64)
    check("Div", [a, b], want=[np.array([3, -3, -3, 3], np.int64)])
    big = np.array([2**62 + 1], np.int64)
    check("Div", [big, np.array([1], np.int64)], want=[big])


@pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
@pytest.mark.parametrize("dtype", [F32, np.int64, np.uint8])
def test_comparisons(op: str, dtype: type) -> None:
    a = integers(2, 3, 4, dtype=np.int64).astype(dtype)
    b = integers(3, 1, dtype=np.int64, seed=1).astype(dtype)
    check(op, [a, b])


def test_comparisons_with_nan() -> None:
    a = np.array([NAN, 1, INF], F32)
    for op in ("Equal", "Less", "GreaterOrEqual"):
        check(op, [a, np.array([NAN, NAN, INF], F32)])


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(op: str) -> None:
    a, b = np.array([[[True], [False]]]), np.array([True, False])
    check(op, [a, b])
    check("Not", [a])


@pytest.mark.parametrize("op", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
@pytest.mark.parametrize("dtype", [np.int8, np.uint32])
def test_bitwise(op: str, dtype: type) -> None:
    check(op, [integers(2, 3, dtype=dtype), integers(3, dtype=dtype, seed=1)])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int32])
def test_bit_shift(direction: str, dtype: type) -> None:
    bits = np.dtype(dtype).itemsize * 8
    a = np.array([1, 7, 100, -100 if dtype is np.int32 else 200, 5], dtype)
    b = np.array([0, 3, bits - 1, bits, 255 if dtype is np.uint8 else bits + 9], dtype)
    check("BitShift", [a, b], direction=direction)


@pytest.mark.parametrize("dtype", [F32, F16, np.int32, np.uint8])
@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(dtype: type, fmod: int) -> None:
    a = np.array([7, 7, 6, 6, 0], np.int32)
    b = np.array([3, 5, 3, 4, 3], np.int32)
    if dtype is not np.uint8:
        a, b = np.concatenate([a, -a, a]), np.concatenate([b, b, -b])
    check("Mod", [a.astype(dtype), b.astype(dtype)], fmod=fmod)


def test_mod_special_values() -> None:
    a = np.array([0.0, -0.0, 0.0, 1, -1, 1, -1, INF, 1, NAN], F32)
    b = np.array([3, 3, -3, INF, INF, -INF, -INF, 2, 0, 2], F32)
    (got,) = run_node("Mod", [a, b])
    want = np.array([0.0, 0.0, -0.0, 1, INF, -INF, -1, NAN, NAN, NAN], F32)
    assert_close(got, want)
    np.testing.assert_array_equal(np.signbit(got[:7]), np.signbit(want[:7]))
    check("Mod", [a, b], fmod=1)


@pytest.mark.parametrize(
    ("base", "exponent"),
    [(F32, F32), (F32, np.int64), (F32, np.int32), (F16, F32), (np.int32, np.int64),
     (np.int64, F32), (np.int32, F64), (F64, F32), (F32, F64)],
)  # fmt: skip
def test_pow_keeps_the_dtype_of_its_base(base: type, exponent: type) -> None:
    x = np.array([[1, 2, 3], [4, 5, 6]], base)
    check("Pow", [x, np.array([0, 2, 3], exponent)])
    check("Pow", [x, np.array(2, exponent)], constants=(1,))


@pytest.mark.parametrize("exponent", [-2, -1, 0, 0.5, 1, 2, 3, 4, 5])
def test_pow_with_a_constant_exponent(exponent: float) -> None:
    x = np.array([0.5, -1.5, 3, 0, INF, NAN], F32)
    check("Pow", [x, np.array(exponent, F32)], constants=(1,))
    check("Pow", [x, np.array([exponent], F32)], constants=(1,))


def test_pow_with_an_exponent_of_higher_rank() -> None:
    check("Pow", [np.array(3, F32), np.array([2], F32)], constants=(1,))


@pytest.mark.parametrize("negative", [0, 1])
@pytest.mark.parametrize("positive", [0, 1])
def test_is_inf(negative: int, positive: int) -> None:
    for dtype in (F32, F16, BF16):
        x = np.array([INF, -INF, NAN, 1], dtype)
        check("IsInf", [x], detect_negative=negative, detect_positive=positive)


def test_where() -> None:
    condition = np.array([True, False, True])
    for dtype in (F32, np.int64, bool, BF16):
        x, y = normal(2, 3, dtype=F32).astype(dtype), np.zeros((2, 1), dtype)
        check("Where", [condition, x, y])
    check("Where", [normal(2, 3, 4, 5) > 0, normal(2, 3, 4, 5), normal(3, 1, 1)], which=(0, 1))


@pytest.mark.parametrize("op", ["Max", "Min", "Sum", "Mean"])
def test_variadic(op: str) -> None:
    check(op, [normal(2, 3, 4)])
    # onnx.reference sums in place, which a wider later operand breaks.
    check(op, [normal(2, 3, 4, 5), normal(3, 1, 1, seed=1), normal(5, seed=2)])
    for dtype in (F64, F16):
        check(op, [normal(2, 3, dtype=dtype), normal(2, 3, dtype=dtype, seed=1)])


def test_variadic_broadcasts_both_ways() -> None:
    a, b, c = normal(3, 1), normal(2, 1, 4, seed=1), np.array(0.5, F32)
    check("Sum", [a, b, c], want=[a + b + c])
    check("Mean", [a, b, c], want=[(a + b + c) / F32(3)])


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_max_and_min_propagate_nan(op: str) -> None:
    a, b = np.array([NAN, 1, NAN, 0], F32), np.array([1, NAN, NAN, -1], F32)
    for dtype in (F32, F16):
        check(op, [a.astype(dtype), b.astype(dtype)])
    for integer in (np.int8, np.uint64):
        check(op, [integers(4, dtype=integer), integers(4, dtype=integer, seed=1)])


@pytest.mark.parametrize("dtype", [F32, F16, np.int8, np.uint64])
def test_clip(dtype: type) -> None:
    x = integers(2, 3, 4, dtype=np.int64, low=0).astype(dtype)
    low, high = np.array(1, dtype), np.array(3, dtype)
    check("Clip", [x, low, high])
    check("Clip", [x, None, high], constants=(2,))
    check("Clip", [x, low])
    check("Clip", [x])
    check("Clip", [x, high, low])


def test_clip_keeps_nan_and_rank() -> None:
    check("Clip", [np.array([NAN, 5, -5], F32), np.array(-1, F32), np.array(1, F32)])


def test_identity_keeps_any_value() -> None:
    for x in (normal(2, 3, 4), np.array([True]), np.array(7, np.uint16)):
        check("Identity", [x])


def test_strings_are_refused() -> None:
    x = np.array(["a", "b"], object)
    assert "STRING" in support("Equal", [x, x]).reason
