"""Determinants against NumPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 3), (9, 9), (2, 5, 4, 4), (0, 3, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_det(shape: tuple[int, ...], dtype: Any) -> None:
    x = RNG.normal(size=shape).astype(dtype)
    want = np.asarray(np.linalg.det(x.astype(np.float64))).astype(dtype)
    check("Det", [x], want=[want])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_det_of_narrow_floats_is_found_in_float32(dtype: Any) -> None:
    x = RNG.normal(size=(3, 6, 6)).astype(dtype)
    want = np.linalg.det(x.astype(np.float64)).astype(dtype)
    check("Det", [x], want=[want])


@pytest.mark.parametrize("size", [2, 3, 5])
def test_det_of_singular_and_undefined_matrices(size: int) -> None:
    x = np.stack([np.ones((size, size)), np.eye(size), np.full((size, size), np.nan)])
    (y,) = run_node("Det", [x.astype(np.float32)])
    np.testing.assert_array_equal(y, np.array([0, 1, np.nan], np.float32))


def test_det_of_empty_matrices_is_one() -> None:
    (y,) = run_node("Det", [np.zeros((2, 0, 0), np.float32)])
    np.testing.assert_array_equal(y, np.ones(2, np.float32))
