"""Activations and normalization against torch, in float64 there."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xrt.kernels.jax import elementwise

F = torch.nn.functional
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


@pytest.mark.parametrize("approximate", [False, True])
def test_gelu(approximate: bool) -> None:
    x = draw(4, 301)
    got = jax.jit(lambda x: elementwise.gelu(x, approximate=approximate))(x)
    expected = F.gelu(wide(x), approximate="tanh" if approximate else "none")
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_layer_norm(dtype: str) -> None:
    x, gain, bias = draw(5, 768, dtype=dtype), draw(768, dtype=dtype), draw(768, dtype=dtype)
    got = jax.jit(elementwise.layer_norm)(x, gain, bias)
    expected = F.layer_norm(wide(x), (768,), wide(gain), wide(bias))
    scale = float(expected.abs().max())
    difference = np.abs(np.asarray(got, np.float64) - expected.numpy()).max()
    assert difference < TOLERANCE[dtype] * scale


def test_layer_norm_far_from_zero() -> None:
    """The one-pass variance loses this case: the mean is 10,000 deviations away."""
    x = draw(2, 64) / 3 + np.float32(1e4)
    got = elementwise.layer_norm(x)
    np.testing.assert_allclose(got, F.layer_norm(wide(x), (64,)), atol=2e-3)
