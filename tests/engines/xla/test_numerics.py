"""What numbers come out, by XLA and by the host: wrap-around, accumulation, NaN, zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import xrt
from tests.engines.xla.ops_support import node_model
from tests.support import assert_close
from xrt.engines.xla.denormals import kept
from xrt.engines.xla.device import device

Array = np.ndarray[Any, Any]
INF, NAN = np.inf, np.nan
HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@pytest.fixture(params=["xla", "host"])
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def run(engine: str, op: str, *inputs: Any, **keywords: Any) -> Array:
    """The first output of one node through `xrt.compile`, all of it on `engine`."""
    arrays = [None if x is None else np.asarray(x) for x in inputs]
    model = node_model(op, arrays, **keywords)
    options = xrt.CompileOptions(min_cluster_weight=0, strict=True, cache=False)
    program = xrt.compile(model, engine=engine, options=options)
    constants = keywords.get("constants", ())
    given = [x for i, x in enumerate(arrays) if x is not None and i not in constants]
    result = program(*given)
    assert [cluster.engine for cluster in program.clusters] == ["xla"] * (engine == "xla")
    return np.asarray(next(iter(result.values())) if isinstance(result, dict) else result)


def exactly(got: Array, want: Any, dtype: Any) -> None:
    """Fail unless the arrays have the same bits, any NaN being as good as another."""
    expected = np.asarray(want, dtype)
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)
    if expected.dtype.kind == "f":
        known = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got)[known], np.signbit(expected)[known])


def ints(values: Sequence[int], dtype: str) -> Array:
    return np.array(values, dtype)


INTEGERS: dict[str, tuple[str, list[Any], dict[str, Any], Any]] = {
    "Add wraps": ("Add", [ints([127, -128], "int8"), ints([1, -1], "int8")], {}, [-128, 127]),
    "Mul wraps": ("Mul", [ints([2**31, 3], "uint32"), ints([2, 5], "uint32")], {}, [0, 15]),
    "Sub wraps": ("Sub", [ints([0], "uint8"), ints([1], "uint8")], {}, [255]),
    "Neg of the least": ("Neg", [ints([-128, 5], "int8")], {}, [-128, -5]),
    "Abs of the least": ("Abs", [ints([-(2**31), -5], "int32")], {}, [-(2**31), 5]),
    "Div truncates": (
        "Div",
        [ints([7, -7, 7, -7], "int32"), ints([2, 2, -2, -2], "int32")],
        {},
        [3, -3, -3, 3],
    ),
    "Div of the least by -1 wraps": (
        "Div",
        [ints([-(2**31), 6], "int32"), ints([-1, -1], "int32")],
        {},
        [-(2**31), -6],
    ),
    "Div of the least int64 by -1 wraps": (
        "Div",
        [ints([-(2**63)], "int64"), ints([-1], "int64")],
        {},
        [-(2**63)],
    ),
    "Div of large int64": (
        "Div",
        [ints([2**62 + 3], "int64"), ints([2], "int64")],
        {},
        [2**61 + 1],
    ),
    "Div of large uint64": (
        "Div",
        [ints([2**64 - 1], "uint64"), ints([3], "uint64")],
        {},
        [(2**64 - 1) // 3],
    ),
    "Mod takes the sign of the divisor": (
        "Mod",
        [ints([7, -7, 7, -7], "int32"), ints([3, 3, -3, -3], "int32")],
        {"fmod": 0},
        [1, 2, -2, -1],
    ),
    "fmod takes the sign of the dividend": (
        "Mod",
        [ints([7, -7, 7, -7], "int32"), ints([3, 3, -3, -3], "int32")],
        {"fmod": 1},
        [1, -1, 1, -1],
    ),
    "Mod of the least by -1": (
        "Mod",
        [ints([-(2**63)], "int64"), ints([-1], "int64")],
        {"fmod": 0},
        [0],
    ),
    "fmod of the least by -1": (
        "Mod",
        [ints([-(2**31)], "int32"), ints([-1], "int32")],
        {"fmod": 1},
        [0],
    ),
    "BitShift left drops bits": (
        "BitShift",
        [ints([200, 1, 255], "uint8"), ints([1, 7, 4], "uint8")],
        {"direction": "LEFT"},
        [144, 128, 240],
    ),
    "BitShift right brings in zeros": (
        "BitShift",
        [ints([2**63, 2**64 - 1], "uint64"), ints([63, 1], "uint64")],
        {"direction": "RIGHT"},
        [1, 2**63 - 1],
    ),
    "BitShift by the width": (
        "BitShift",
        [ints([7, 7], "uint16"), ints([16, 15], "uint16")],
        {"direction": "LEFT"},
        [0, 2**15],
    ),
    "Pow wraps": ("Pow", [ints([3, 2], "int32"), ints([21, 10], "int32")], {}, [1870418611, 1024]),
    "Sign": ("Sign", [ints([-(2**63), 0, 2**63 - 1], "int64")], {}, [-1, 0, 1]),
    "Max keeps large int64": (
        "Max",
        [ints([2**53 + 1, -(2**62)], "int64"), ints([2**53, -(2**62) - 1], "int64")],
        {},
        [2**53 + 1, -(2**62)],
    ),
    "Clip keeps large int64": (
        "Clip",
        [ints([2**62 + 1, 5], "int64"), np.array(2**40 + 1), np.array(2**62)],
        {},
        [2**62, 2**40 + 1],
    ),
    "Mul of large int64": (
        "Mul",
        [ints([2**32 + 1], "int64"), ints([2**20 + 1], "int64")],
        {},
        [(2**32 + 1) * (2**20 + 1)],
    ),
    "ReduceSum of int64 beyond 2^53": (
        "ReduceSum",
        [ints([2**53, 1, 1, 1], "int64")],
        {"keepdims": 0},
        2**53 + 3,
    ),
    "ReduceSum wraps": (
        "ReduceSum",
        [ints([2**31 - 1, 1], "int32")],
        {"keepdims": 0},
        -(2**31),
    ),
    "CumSum of large int64": (
        "CumSum",
        [ints([2**40, 2**40, 1], "int64"), np.array(0)],
        {"constants": (1,)},
        [2**40, 2**41, 2**41 + 1],
    ),
    "MatMul of int64 beyond 2^53": (
        "MatMul",
        [ints([2**40, 1], "int64"), ints([2**20, 1], "int64")],
        {},
        2**60 + 1,
    ),
    "Gather by int64 keeps values": (
        "Gather",
        [ints([2**33, 2**34 + 1], "int64"), ints([1, -2], "int64")],
        {},
        [2**34 + 1, 2**33],
    ),
    "Where keeps large int64": (
        "Where",
        [
            np.array([True, False]),
            ints([2**53 + 1] * 2, "int64"),
            ints([-(2**53) - 1] * 2, "int64"),
        ],
        {},
        [2**53 + 1, -(2**53) - 1],
    ),
}
"""What it shows: operator, inputs, keywords, result."""


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_exact(engine: str, name: str) -> None:
    op, inputs, keywords, want = INTEGERS[name]
    result = run(engine, op, *inputs, **keywords)
    exactly(result, want, inputs[-1 if op == "Where" else 0].dtype)


def test_int64_survives_a_cast_there_and_back(engine: str) -> None:
    values = ints([2**53 + 1, -(2**62) - 1, 2**32], "int64")
    as_uint = run(engine, "Cast", values, to=13)
    exactly(run(engine, "Cast", as_uint, to=7), values, np.int64)


def test_casts_of_integers_wrap(engine: str) -> None:
    exactly(run(engine, "Cast", ints([300, -1, 2**40 + 7], "int64"), to=2), [44, 255, 7], np.uint8)


# Accumulation: in half precision these sums would stall at 2048 (float16) or 256 (bfloat16).

COUNT = 8192


def half(value: float, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    return np.full(shape, value, dtype)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_reduce_sum_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    result = run(engine, "ReduceSum", half(1, (COUNT,), dtype), keepdims=0)
    exactly(result.astype(np.float32), COUNT, np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_reduce_mean_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    # 65536 ones sum beyond what float16 holds at all.
    result = run(engine, "ReduceMean", half(1, (65536,), dtype), keepdims=0)
    exactly(result.astype(np.float32), 1, np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_cum_sum_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    result = run(engine, "CumSum", half(1, (COUNT,), dtype), np.array(0), constants=(1,))
    exactly(result[-1].astype(np.float32), COUNT, np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_matrix_products_accumulate_in_float32(engine: str, op: str, dtype: np.dtype[Any]) -> None:
    a, b = half(1, (2, COUNT), dtype), half(1, (COUNT, 3), dtype)
    exactly(run(engine, op, a, b).astype(np.float32), np.full((2, 3), COUNT), np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_einsum_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    a = half(1, (COUNT,), dtype)
    exactly(run(engine, "Einsum", a, a, equation="i,i->").astype(np.float32), COUNT, np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("constants", [(), (1,)], ids=["weight moves", "weight is constant"])
def test_conv_accumulates_in_float32(
    engine: str, dtype: np.dtype[Any], constants: tuple[int, ...]
) -> None:
    x, w = half(1, (1, 1024, 4, 4), dtype), half(1, (1, 1024, 3, 3), dtype)
    result = run(engine, "Conv", x, w, constants=constants)
    want = np.full((1, 1, 2, 2), 9216, np.float32)
    exactly(result.astype(np.float32), want.astype(dtype).astype(np.float32), np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_average_pool_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    result = run(engine, "AveragePool", half(1, (1, 1, 64, 64), dtype), kernel_shape=[64, 64])
    exactly(result.astype(np.float32), [[[[1]]]], np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_softmax_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    result = run(engine, "Softmax", half(0, (1, COUNT), dtype))
    exactly(result.astype(np.float32), np.full((1, COUNT), 1 / COUNT), np.float32)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("op", ["LayerNormalization", "RMSNormalization"])
def test_normalizations_accumulate_in_float32(engine: str, op: str, dtype: np.dtype[Any]) -> None:
    x = np.tile(np.array([1, 3], dtype), COUNT // 2)[None]
    result = run(engine, op, x, half(1, (COUNT,), dtype))
    wide = x.astype(np.float64)
    if op == "LayerNormalization":
        wide = wide - wide.mean()
    want = wide / np.sqrt(np.mean(wide**2) + 1e-5)
    assert_close(result, want.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_attention_accumulates_in_float32(engine: str, dtype: np.dtype[Any]) -> None:
    q, k = half(1, (1, 1, 1, 4), dtype), half(1, (1, 1, COUNT, 4), dtype)
    result = run(engine, "Attention", q, k, half(1, (1, 1, COUNT, 2), dtype))
    assert_close(result, half(1, (1, 1, 1, 2), dtype))


# NaN and infinity.

SPECIAL = np.array([NAN, INF, -INF, -1.0, 0.0], np.float32)

PROPAGATION: dict[str, tuple[str, list[Any], dict[str, Any], Any]] = {
    "Max": ("Max", [SPECIAL, np.zeros(5, np.float32)], {}, [NAN, INF, 0, 0, 0]),
    "Max, NaN second": ("Max", [np.zeros(5, np.float32), SPECIAL], {}, [NAN, INF, 0, 0, 0]),
    "Min": ("Min", [SPECIAL, np.zeros(5, np.float32)], {}, [NAN, 0, -INF, -1, 0]),
    "Relu": ("Relu", [SPECIAL], {}, [NAN, INF, 0, 0, 0]),
    "Clip": (
        "Clip",
        [SPECIAL, np.float32(-0.5), np.float32(6)],
        {},
        [NAN, 6, -0.5, -0.5, 0],
    ),
    "ReduceMax": ("ReduceMax", [SPECIAL], {"keepdims": 0}, NAN),
    "ReduceMin": ("ReduceMin", [SPECIAL], {"keepdims": 0}, NAN),
    "ReduceMax of infinities": ("ReduceMax", [SPECIAL[1:]], {"keepdims": 0}, INF),
    "ReduceMin of infinities": ("ReduceMin", [SPECIAL[1:]], {"keepdims": 0}, -INF),
    "ReduceSum of opposite infinities": ("ReduceSum", [SPECIAL[1:]], {"keepdims": 0}, NAN),
    "MaxPool": (
        "MaxPool",
        [np.array([[[1, NAN, 2, 3, -INF, -INF]]], np.float32)],
        {"kernel_shape": [2]},
        [[[NAN, NAN, 3, 3, -INF]]],
    ),
    "Softmax of NaN": ("Softmax", [np.array([[0, NAN]], np.float32)], {}, [[NAN, NAN]]),
    "Softmax of minus infinity": ("Softmax", [np.array([[0, -INF]], np.float32)], {}, [[1, 0]]),
    "Softmax of infinity": ("Softmax", [np.array([[0, INF]], np.float32)], {}, [[NAN, NAN]]),
    "Softmax of all minus infinity": (
        "Softmax",
        [np.array([[-INF, -INF]], np.float32)],
        {},
        [[NAN, NAN]],
    ),
    "ReduceLogSumExp of minus infinity": (
        "ReduceLogSumExp",
        [np.array([-INF, -INF], np.float32)],
        {"keepdims": 0},
        -INF,
    ),
    "Sigmoid": ("Sigmoid", [SPECIAL[:3]], {}, [NAN, 1, 0]),
    "Tanh": ("Tanh", [SPECIAL[:3]], {}, [NAN, 1, -1]),
    "Sign": ("Sign", [SPECIAL], {}, [NAN, 1, -1, -1, 0]),
    "LeakyRelu": ("LeakyRelu", [SPECIAL[:3]], {"alpha": 0.5}, [NAN, INF, -INF]),
    "Div by zero": (
        "Div",
        [np.array([1, -1, 0, 1], np.float32), np.array([0, 0, 0, -0.0], np.float32)],
        {},
        [INF, -INF, NAN, -INF],
    ),
    "Sqrt of a negative": ("Sqrt", [np.array([-1, 4], np.float32)], {}, [NAN, 2]),
    "Log": ("Log", [np.array([0, -1, INF], np.float32)], {}, [-INF, NAN, INF]),
    "MatMul": (
        "MatMul",
        [np.array([[INF, 1]], np.float32), np.array([[0], [1]], np.float32)],
        {},
        [[NAN]],
    ),
    "Where does not let the other side through": (
        "Where",
        [np.array([True, False]), np.array([1, NAN], np.float32), np.array([NAN, 2], np.float32)],
        {},
        [1, 2],
    ),
}
"""What it shows: operator, inputs, keywords, result."""


@pytest.mark.parametrize("name", PROPAGATION)
def test_nan_and_infinity_propagate(engine: str, name: str) -> None:
    op, inputs, keywords, want = PROPAGATION[name]
    exactly(run(engine, op, *inputs, **keywords), want, np.float32)


# Zeros of either sign, and subnormal numbers.

ZEROS: dict[str, tuple[str, list[Any], list[float]]] = {
    "Neg": ("Neg", [[0.0, -0.0]], [-0.0, 0.0]),
    "Abs": ("Abs", [[-0.0]], [0.0]),
    "Mul": ("Mul", [[-0.0, -1.0], [1.0, 0.0]], [-0.0, -0.0]),
    "Add": ("Add", [[-0.0, -0.0], [-0.0, 0.0]], [-0.0, 0.0]),
    "Sub": ("Sub", [[-0.0, 0.0], [0.0, 0.0]], [-0.0, 0.0]),
    "Div": ("Div", [[-0.0, 1.0], [1.0, -INF]], [-0.0, -0.0]),
    "Reciprocal": ("Reciprocal", [[-INF, INF, -0.0, 0.0]], [-0.0, 0.0, -INF, INF]),
    "Sqrt": ("Sqrt", [[-0.0]], [-0.0]),
    "Round": ("Round", [[-0.4, 0.4, -0.0]], [-0.0, 0.0, -0.0]),
    "Ceil": ("Ceil", [[-0.5]], [-0.0]),
    "Floor": ("Floor", [[-0.0]], [-0.0]),
    "Identity": ("Identity", [[-0.0]], [-0.0]),
    "Tanh": ("Tanh", [[-0.0]], [-0.0]),
    "Sin": ("Sin", [[-0.0]], [-0.0]),
}
"""Operator, inputs, result."""


@pytest.mark.parametrize("name", ZEROS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_zeros_keep_their_sign(engine: str, name: str, dtype: str) -> None:
    op, inputs, want = ZEROS[name]
    exactly(run(engine, op, *(np.array(x, dtype) for x in inputs)), want, dtype)


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_either_zero_may_be_the_greater(engine: str, op: str) -> None:
    # IEEE 754 and NumPy leave the sign open; the value is what counts.
    result = run(engine, op, np.array([-0.0, 0.0], "f4"), np.array([0.0, -0.0], "f4"))
    np.testing.assert_array_equal(result, [0, 0])


TINY = {"float32": 1e-40, "float64": 1e-310, "float16": 6e-8}
MOVED: dict[str, tuple[list[float], list[float]]] = {
    "Neg": ([1], [-1]),
    "Abs": ([-1], [1]),
    "Identity": ([1], [1]),
}
"""Operator, inputs and result in units of the subnormal number."""
COMPUTED: dict[str, tuple[list[float], list[float]]] = {
    "Add": ([1, 1], [2]),
    "Sub": ([1, -1], [2]),
    "Max": ([1, 0], [1]),
    "Relu": ([1], [1]),
}


def _subnormal(engine: str, op: str, dtype: str, units: Sequence[float]) -> Array:
    return run(engine, op, *(np.array([TINY[dtype]], dtype) * unit for unit in units))


@pytest.mark.parametrize("op", MOVED)
@pytest.mark.parametrize("dtype", TINY)
def test_what_moves_values_keeps_subnormal_ones(engine: str, op: str, dtype: str) -> None:
    units, (want,) = MOVED[op]
    exactly(_subnormal(engine, op, dtype, units), np.array([TINY[dtype]], dtype) * want, dtype)


@pytest.mark.parametrize("op", COMPUTED)
@pytest.mark.parametrize("dtype", TINY)
def test_arithmetic_keeps_subnormal_values(engine: str, op: str, dtype: str) -> None:
    units, (factor,) = COMPUTED[op]
    result = _subnormal(engine, op, dtype, units)
    want = np.array([TINY[dtype]], dtype) * np.array(factor, dtype)
    # Elsewhere XLA's runtime turns subnormal float32 and float64 into zeros; test_denormals.py
    # demands that x86-64 Linux is not elsewhere.
    if engine == "xla" and dtype != "float16" and not kept(device()):
        want = want * 0
    exactly(result, want, dtype)


def test_the_caller_keeps_its_own_subnormal_arithmetic() -> None:
    run("xla", "Add", np.ones(3, np.float32), np.ones(3, np.float32))
    assert (np.array([1e-40], np.float32) * np.float32(2))[0] != 0


@pytest.mark.parametrize("wide", [False, True])
def test_the_users_jax_configuration_is_left_alone(wide: bool) -> None:
    with jax.enable_x64(wide):
        before = jax.config.read("jax_enable_x64")
        exactly(
            run("xla", "Add", ints([2**40], "int64"), ints([1], "int64")), [2**40 + 1], np.int64
        )
        assert jax.config.read("jax_enable_x64") is before is wide
        assert jax.numpy.arange(3).dtype == (np.int64 if wide else np.int32)


def test_the_global_flag_of_jax_is_left_alone() -> None:
    before = jax.config.read("jax_enable_x64")
    run("xla", "Mul", ints([2**40], "int64"), ints([3], "int64"))
    assert jax.config.read("jax_enable_x64") == before
