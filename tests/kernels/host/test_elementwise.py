"""Elementwise kernels against onnx.reference."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import assert_close, compare, run
from xrt.kernels.host.elementwise import BINARY, UNARY

RNG = np.random.default_rng(0)
SHAPES = [(), (0, 3), (7,), (2, 3, 4)]
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
ACTIVATIONS: dict[str, dict[str, Any]] = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.2},
    "ThresholdedRelu": {"alpha": 0.3},
    "Shrink": {"bias": 0.1, "lambd": 0.4},
    "Elu": {"alpha": 0.7},
    "Celu": {"alpha": 0.7},
    "Selu": {},
    "Sigmoid": {},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "HardSwish": {},
    "Swish": {"alpha": 0.8},
    "Mish": {},
    "Softplus": {},
    "Softsign": {},
    "Erf": {},
    "Gelu": {"approximate": "none"},
    "IsInf": {"detect_negative": 0},
}
INTEGER_UNARY = {"BitwiseNot"}
BOOLEAN_UNARY = {"Not"}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op_type", sorted(UNARY.keys() - INTEGER_UNARY - BOOLEAN_UNARY))
def test_unary(op_type: str, dtype: Any) -> None:
    for shape in SHAPES:
        x = RNG.uniform(0.1, 0.9, shape)
        x = x + 1 if op_type == "Acosh" else x
        compare(op_type, np.asarray(x, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("op_type", sorted(ACTIVATIONS))
def test_activation(op_type: str, dtype: Any) -> None:
    # onnx.reference fails on a scalar here.
    for shape in SHAPES[op_type == "Softsign" :]:
        compare(op_type, np.asarray(RNG.normal(size=shape) * 2, dtype), **ACTIVATIONS[op_type])


@pytest.mark.parametrize("op_type", sorted(ACTIVATIONS))
def test_bfloat16_keeps_its_type(op_type: str) -> None:
    x = np.asarray(RNG.normal(size=(5,)), ml_dtypes.bfloat16)
    (y,) = run(op_type, x, **ACTIVATIONS[op_type])
    (wide,) = run(op_type, x.astype(np.float32), **ACTIVATIONS[op_type])
    assert_close(y, wide.astype(y.dtype))
    assert y.dtype == (np.bool_ if op_type == "IsInf" else x.dtype)


@pytest.mark.parametrize("op_type", sorted(BINARY))
def test_binary_broadcasts(op_type: str) -> None:
    for left, right in (((3, 1), (4,)), ((), (2, 3)), ((0, 2), (2,)), ((2, 3), (2, 3))):
        if op_type in ("And", "Or", "Xor"):
            a, b = RNG.random(left) > 0.5, RNG.random(right) > 0.5
        elif op_type.startswith("Bitwise"):
            a, b = RNG.integers(-9, 9, left), RNG.integers(-9, 9, right)
        else:
            a, b = RNG.normal(size=left), RNG.normal(size=right)
            a, b = a.astype(np.float32), b.astype(np.float32)
        compare(op_type, np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_integer_division_truncates(dtype: Any) -> None:
    a = np.array([7, -7, 7, -7, 0, -1, np.iinfo(dtype).max], dtype)
    b = np.array([2, 2, -2, -2, 5, 3, 10], dtype)
    (y,) = run("Div", a, b)
    assert y.dtype == dtype
    assert y.tolist() == [
        math.trunc(p / q) if abs(p) < 99 else p // q
        for p, q in zip(a.tolist(), b.tolist(), strict=True)
    ]


def test_integers_wrap() -> None:
    (y,) = run("Add", np.array([127], np.int8), np.array([1], np.int8))
    assert (y.dtype, y.tolist()) == (np.int8, [-128])
    (y,) = run("Mul", np.array([200], np.uint8), np.array([2], np.uint8))
    assert (y.dtype, y.tolist()) == (np.uint8, [144])


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_mod(dtype: Any) -> None:
    a, b = np.array([5.5, -5.5, 5.5, -5.5]), np.array([2, 2, -2, -2])
    (floored,) = run("Mod", a.astype(dtype), b.astype(dtype))
    (truncated,) = run("Mod", a.astype(dtype), b.astype(dtype), fmod=1)
    assert floored.dtype == truncated.dtype == dtype
    assert floored.astype(float).tolist() == [1.5, 0.5, -0.5, -1.5]
    assert truncated.astype(float).tolist() == [1.5, -1.5, 1.5, -1.5]


def test_pow_keeps_the_type_of_the_base() -> None:
    x = np.array([1, 2, 3], np.float32)
    for y in (np.array(2, np.int64), np.array(2.0, np.float64), np.array([3.0], np.float32)):
        compare("Pow", x, y)
    compare("Pow", np.array([2, 3], np.int32), np.array([2.0, 0.5], np.float32))
    assert run("Pow", np.array(2, np.int64), np.array(-1, np.int64))[0].tolist() == 0
    (root,) = run("Pow", np.array([4], np.int32), np.array([0.5], np.float32))
    assert (root.dtype, root.tolist()) == (np.int32, [2])


@pytest.mark.parametrize("base", [np.float64, np.int64, np.int32])
def test_pow_by_bfloat16_keeps_the_digits_of_the_base(base: Any) -> None:
    x = np.array([100003, 3], base)
    (got,) = run("Pow", x, np.array([3, -4], ml_dtypes.bfloat16))
    np.testing.assert_allclose(got, (x.astype(np.float64) ** [3, -4]).astype(base), rtol=1e-15)


def test_pow_broadcasts_a_larger_exponent() -> None:
    compare("Pow", np.array([2, 3], np.float32), np.full((1, 1, 1), 2, np.float32))


def test_clip_and_extremes() -> None:
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    x[0, 0] = np.nan
    low, high = np.array(-0.5, np.float32), np.array(0.5, np.float32)
    for bounds in ((low, high), (None, high), (low, None), (None, None), (high, low)):
        compare("Clip", x, *bounds)
    for op_type in ("Max", "Min", "Sum", "Mean"):
        compare(op_type, x, x[:1], x[:, :1])
        compare(op_type, x)


def test_erf_is_precise_to_float32() -> None:
    x = np.concatenate([np.linspace(-6, 6, 20_001), np.geomspace(1e-20, 1, 1001)])
    x = x.astype(np.float32)
    wanted = np.array([math.erf(v) for v in x.astype(float)])
    (y,) = run("Erf", x)
    assert y.dtype == np.float32
    assert np.abs(y - wanted).max() < 1.5e-7
    assert (np.abs(y - wanted) / np.maximum(np.abs(wanted), 1e-30)).max() < 2e-7
    extremes = run("Erf", np.array([np.inf, -np.inf, np.nan], np.float32))[0]
    np.testing.assert_allclose(extremes, [1, -1, np.nan], rtol=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    for shape in ((), (0,), (3, 70_000)):
        compare("Gelu", np.asarray(RNG.normal(size=shape), np.float32), approximate=approximate)
    strided = RNG.normal(size=(8, 6)).astype(np.float32).T
    compare("Gelu", strided, approximate=approximate)


@pytest.mark.parametrize("to", [1, 2, 3, 6, 7, 9, 10, 11, 12, 13, 16])
def test_cast(to: int) -> None:
    for x in (np.array([0, 1.7, 2.2, 100], np.float32), np.array([[0, 1, 3]]), np.array(True)):
        compare("Cast", x, to=to)


def test_cast_between_packed_integers_keeps_the_low_bits() -> None:
    for shape in ((), (3,)):
        x = np.full(shape, -3, ml_dtypes.int4)
        (got,) = run("Cast", x, to=21)
        assert_close(got, np.full(shape, 13, ml_dtypes.uint4))
        (back,) = run("Cast", got, to=22)
        assert_close(back, x)


@pytest.mark.parametrize("op_type", ["LeakyRelu", "HardSigmoid"])
def test_default_attributes_are_float32_numbers(op_type: str) -> None:
    x = np.array([-0.7, 0.3])
    (got,) = run(op_type, x)
    low, high = float(np.float32(0.01)), float(np.float32(0.2))
    want = [x[0] * low, x[1]] if op_type == "LeakyRelu" else x * high + 0.5
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_where_keeps_the_type() -> None:
    condition = np.array([[True], [False]])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8):
        compare("Where", condition, np.ones(3, dtype), np.zeros((), dtype))


def test_dropout_without_training_is_the_identity() -> None:
    x = RNG.normal(size=(3, 4)).astype(np.float32)
    y, mask = run("Dropout", x, np.array(0.9, np.float32), None, output_count=2)
    assert y is x
    assert mask.all()
    y, mask = run("Dropout", x, np.array(0.5, np.float32), np.array(True), output_count=2, seed=3)
    np.testing.assert_allclose(y, np.where(mask, x * 2, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_shifts_keep_every_bit(dtype: Any) -> None:
    """A shift of uint64 once went through float64, whose 53 bits rounded it."""
    x = np.array([np.iinfo(dtype).max, np.iinfo(dtype).max - 6, 1], dtype)
    counts = np.array([1, 1, 0], dtype)
    for direction, want in (("RIGHT", x >> counts), ("LEFT", x << counts)):
        (got,) = run("BitShift", x, counts, direction=direction)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, want)
