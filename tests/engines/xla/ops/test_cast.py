"""Conversions between element types, against onnx.reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.engines.xla.ops_support import check, support

TYPES = [
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int32, np.int64,
    np.uint64, bool,
]  # fmt: skip
FLOAT8 = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
]
NAN, INF = float("nan"), float("inf")


def code(dtype: object) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", [np.float32, np.float16, np.int32, np.uint8, bool])
def test_between_common_types(source: type, target: type) -> None:
    x = np.array([0, 1, 2.7, 3.2, 100.9, 5], np.float32).astype(source)
    check("Cast", [x], to=code(target))


def test_floats_truncate_toward_zero() -> None:
    x = np.array([-1.9, -0.5, 0.5, 1.9], np.float32)
    check("Cast", [x], want=[np.array([-1, 0, 0, 1], np.int32)], to=code(np.int32))


def test_integers_keep_their_low_bits() -> None:
    x = np.array([200, -200, 2**40 + 5], np.int64)
    check("Cast", [x], to=code(np.int8))
    for packed in (ml_dtypes.int4, ml_dtypes.uint4):
        check("Cast", [x], to=code(packed))
        check("Cast", [np.array([9.7, -9.2, 3], np.float32)], to=code(packed))


def test_what_is_not_zero_is_true() -> None:
    x = np.array([0.0, -0.0, 0.3, -5, NAN, INF], np.float32)
    check("Cast", [x], to=code(bool))


@pytest.mark.parametrize("dtype", FLOAT8)
@pytest.mark.parametrize("saturate", [0, 1])
def test_float8(dtype: type, saturate: int) -> None:
    x = np.array([0, -0.0, 1.1, -3.3, 448, 470, 1e6, -1e6, 6e4, INF, -INF, NAN, 1e-9], np.float32)
    for source in (np.float32, np.float16):
        check("Cast", [x.astype(source)], to=code(dtype), saturate=saturate)
    check("Cast", [x.astype(dtype)], to=code(np.float32))


@pytest.mark.parametrize("round_mode", ["up", "down", "nearest"])
@pytest.mark.parametrize("saturate", [0, 1])
def test_float8_of_exponents_only(round_mode: str, saturate: int) -> None:
    x = np.array([1, 1.2, 1.5, 1.7, 3, 4, 1e-40, 9e-39, 3e38, 3.4e38, INF, NAN], np.float32)
    target = code(ml_dtypes.float8_e8m0fnu)
    check("Cast", [x], to=target, saturate=saturate, round_mode=round_mode)


def test_cast_like_and_layout() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    check("CastLike", [x, np.zeros((2,), np.float16)])
    check("CastLike", [x, np.zeros((1,), np.int64)])
    check("Cast", [x], to=code(np.float16))


@pytest.mark.parametrize(
    ("source", "target"),
    [(np.float32, np.int32), (np.int64, np.float64), (np.uint8, np.int8), (np.float16, np.uint16),
     (np.float32, np.float32), (bool, np.uint8), (ml_dtypes.bfloat16, np.int16)],
)  # fmt: skip
def test_bit_cast(source: type, target: type) -> None:
    x = np.array([0, 1, 1, 0]).astype(source)
    check("BitCast", [x], want=[x.view(target)], to=code(target))


def test_refusals() -> None:
    x = np.array([1.5], np.float32)
    assert "STRING" in support("Cast", [x], to=onnx.TensorProto.STRING).reason
    assert "STRING" in support("Cast", [np.array(["1"], object)], to=code(np.float32)).reason
