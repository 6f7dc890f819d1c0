"""Activations and normalization against torch, in float64 there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xrt.kernels.jax import elementwise

TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def draw(*shape: int, dtype: str = "float32") -> np.ndarray:
    return (3 * np.random.default_rng(0).standard_normal(shape)).astype(jnp.dtype(dtype))


def wide(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float64))


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(axis: int, dtype: str) -> None:
    x = draw(3, 17, 33, dtype=dtype)
    got = jax.jit(lambda x: elementwise.softmax(x, axis))(x)
    assert got.dtype == jnp.dtype(dtype)
    expected = torch.softmax(wide(x), axis)
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, atol=TOLERANCE[dtype])


def test_softmax_extremes() -> None:
    x = np.array([[1e30, 0, -1e30], [-np.inf, 0, 0], [np.nan, 1, 2], [1, 2, np.nan]], np.float32)
    got = np.asarray(elementwise.softmax(x))
    np.testing.assert_array_equal(got[:2], [[1, 0, 0], [0, 0.5, 0.5]])
    assert np.isnan(got[2:]).all()
    assert elementwise.softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)


def test_softmax_gradient() -> None:
    x = draw(2, 5)
    got = jax.jacobian(elementwise.softmax)(x)
    np.testing.assert_allclose(got, jax.jacobian(jax.nn.softmax)(x), atol=1e-6)


@pytest.mark.parametrize("axis", [-1, 0])
def test_softmax_of_large_products_is_not_nan(axis: int) -> None:
    """The compiler contracts x - max(x) into a multiply-add whose rounding differs from max's."""
    factor = np.float32(1 / 169)
    run = jax.jit(lambda x: elementwise.softmax(x * factor, axis))
    for scale in np.linspace(1e9, 1e11, 20):
        np.testing.assert_allclose(run(np.full((40, 40), scale, np.float32)), 1 / 40, rtol=1e-6)


def test_softmax_of_infinities_is_nan() -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 1]], np.float32)
    assert np.isnan(np.asarray(elementwise.softmax(x))).all()


ROWS = np.random.default_rng(1).uniform(0.01, 1, 50).astype(np.float32)


@pytest.mark.parametrize("divisor", [np.float32(0.3), ROWS])
def test_division_is_rounded_once(divisor: np.ndarray) -> None:
    x = draw(300, 50) * divisor
    want = x / divisor
    np.testing.assert_array_equal(jax.jit(lambda x: elementwise.divide(x, divisor))(x), want)
    np.testing.assert_array_equal(jax.jit(elementwise.divide)(x, divisor), want)


def test_division_keeps_infinity_zero_and_nan() -> None:
    x = np.array([np.inf, -0.0, np.nan, 1], np.float32)
    got = np.asarray(jax.jit(elementwise.divide)(x, np.float32(0)))
    np.testing.assert_array_equal(got, np.array([np.inf, np.nan, np.nan, np.inf], np.float32))


def test_division_gradient() -> None:
    x, y = draw(4, 5), np.float32(3)
    got = jax.grad(lambda x, y: (elementwise.divide(x, y) ** 2).sum(), (0, 1))(x, y)
    want = jax.grad(lambda x, y: ((x / y) ** 2).sum(), (0, 1))(x, y)
    for array, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-6)
