"""Matrix products against onnx.reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.engines.xla.ops_support import check, node_model, run_node
from xrt.engines.xla import trace as T


def normal(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 6, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)),
        ((2, 3, 4), (4,)), ((4,), (2, 4, 5)), ((0, 4), (4, 5)), ((2, 3, 0), (0, 5)),
        ((2, 3, 0, 4), (4, 5)),
    ],
)  # fmt: skip
def test_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = normal(*left), normal(*right, seed=1)
    check("MatMul", [a, b])
    check("MatMul", [a, b], constants=(1,), layouts=False)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint64])
def test_matmul_dtypes(dtype: type) -> None:
    a, b = np.abs(normal(2, 3, 4) * 5).astype(dtype), np.abs(normal(4, 5) * 5).astype(dtype)
    check("MatMul", [a, b])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_accumulates_in_float32(dtype: type) -> None:
    a, b = normal(3, 64, dtype=dtype), normal(64, 5, dtype=dtype, seed=1)
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)
    (got,) = run_node("MatMul", [a, b])
    assert got.dtype == a.dtype
    step = float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(got.astype(float), exact.astype(float), rtol=step, atol=step)
    ones = np.ones((1, 4096), dtype)
    assert float(run_node("MatMul", [ones, ones.T])[0][0, 0]) == 4096


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("constants", [(), (1, 2)])
def test_gemm(trans_a: int, trans_b: int, constants: tuple[int, ...]) -> None:
    a, b = normal(3, 4), normal(4, 5, seed=1)
    a, b = a.T.copy() if trans_a else a, b.T.copy() if trans_b else b
    for c in (None, normal(5), normal(3, 1), normal(), normal(3, 5)):
        inputs = [a, b] if c is None else [a, b, c]
        kept = constants[: len(inputs) - 1]
        keywords = {"transA": trans_a, "transB": trans_b, "alpha": 0.5, "beta": 2.0}
        check("Gemm", inputs, constants=kept, **keywords)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_gemm_dtypes(dtype: type) -> None:
    a, b, c = (np.asarray(normal(*s) * 4).astype(dtype) for s in [(3, 4), (4, 5), (5,)])
    check("Gemm", [a, b, c], scale=2)
    check("Gemm", [np.zeros((0, 4), np.float32), np.zeros((4, 5), np.float32)])


def test_gemm_transposes_a_constant_weight_once() -> None:
    a, b = normal(3, 4), normal(5, 4, seed=1)
    body = ir.from_proto(node_model("Gemm", [a, b], constants=(1,), transB=1)).graph
    (parameter,) = T.plan(body).parameters
    np.testing.assert_array_equal(parameter.array(), b.T)
    assert parameter.key[1] == "transpose"


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij->ji", [(2, 3)]), ("ij->i", [(2, 3)]), ("ii->i", [(3, 3)]), ("ii", [(3, 3)]),
        ("i,i", [(3,), (3,)]), ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("...ij, ...jk -> ...ik", [(2, 5, 3, 4), (2, 5, 4, 2)]), ("ij,jk", [(2, 3), (3, 4)]),
        ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]), ("a,b,c->abc", [(2,), (3,), (4,)]),
        ("Ij,jK->IK", [(2, 3), (3, 4)]),
    ],
)  # fmt: skip
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    check("Einsum", arrays, equation=equation)


def test_einsum_dtypes() -> None:
    for dtype in (np.float16, np.float64, np.int32):
        a = (normal(2, 3) * 4).astype(dtype)
        check("Einsum", [a, a], equation="ij,kj->ik")


def test_float16_weights_are_widened_once_and_not_in_every_call() -> None:
    """XLA's CPU backend has no product of float16; bfloat16 and traced factors stay as they are."""
    a, b = normal(3, 64, dtype=np.float16), normal(64, 5, dtype=np.float16, seed=1)
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.float16)
    for op, weight, keywords in (
        ("MatMul", b, {}), ("Gemm", b, {}), ("Gemm", b.T.copy(), {"transB": 1})
    ):  # fmt: skip
        (parameter,) = T.plan(
            ir.from_proto(node_model(op, [a, weight], constants=(1,), **keywords)).graph
        ).parameters
        assert parameter.array().dtype == np.float32
        np.testing.assert_array_equal(parameter.array(), b.astype(np.float32))
        (got,) = run_node(op, [a, weight], constants=(1,), **keywords)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got.astype(float), exact.astype(float), rtol=1e-3, atol=1e-3)
    wide = normal(64, 5, dtype=ml_dtypes.bfloat16)
    model = node_model("MatMul", [a.astype(wide.dtype), wide], constants=(1,))
    assert all(p.array().dtype == wide.dtype for p in T.plan(ir.from_proto(model).graph).parameters)


@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64)])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_one_row_of_half_precision(dtype: type, shape: tuple[int, ...]) -> None:
    """Which the CPU computes as two rows: XLA would widen the whole matrix for one."""
    a, b = normal(*shape, dtype=dtype), normal(64, 5, dtype=dtype, seed=1)
    exact = (a.astype(np.float64) @ b.astype(np.float64)).astype(dtype)
    step = float(ml_dtypes.finfo(dtype).eps)
    for constants in ((), (1,)):
        (got,) = run_node("MatMul", [a, b], constants=constants)
        assert got.dtype == a.dtype
        assert got.shape == exact.shape
        np.testing.assert_allclose(got.astype(float), exact.astype(float), rtol=step, atol=step)
