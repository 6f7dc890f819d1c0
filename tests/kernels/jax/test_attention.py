"""Attention against torch's, in float64 there, at once and in slices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xrt.kernels.jax import attention as kernel

TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}


def draw(*shape: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(jnp.dtype(dtype))


def qkv(b: int, h: int, g: int, s: int, t: int, d: int, dtype: str = "float32") -> list[np.ndarray]:
    shapes = (b, h, s, d), (b, g, t, d), (b, g, t, d)
    return [draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, **options: object) -> np.ndarray:
    wide = [torch.from_numpy(x.astype(np.float64)) for x in (q, k, v)]
    function = torch.nn.functional.scaled_dot_product_attention
    return function(*wide, enable_gqa=True, **options).numpy()  # type: ignore[arg-type]


@pytest.fixture(params=["at once", "heads", "blocks"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "at once":
        monkeypatch.setattr(kernel, "_SCORES_AT_ONCE", 0)
    if request.param == "blocks":
        monkeypatch.setattr(kernel, "_SLICE", 32 * 4 * 64)
    return str(request.param)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", [(2, 3, 3, 64, 64, 8), (1, 4, 2, 96, 33, 16), (1, 1, 1, 1, 7, 4)])
@pytest.mark.usefixtures("path")
def test_plain(shape: tuple[int, ...], dtype: str) -> None:
    q, k, v = qkv(*shape, dtype=dtype)
    got = jax.jit(kernel.attention)(q, k, v)
    assert got.dtype == jnp.dtype(dtype)
    expected = reference(q, k, v)
    assert np.abs(np.asarray(got, np.float64) - expected).max() < TOLERANCE[dtype]


@pytest.mark.parametrize("mask_shape", [(64, 48), (1, 1, 48), (2, 1, 64, 48), (2, 3, 64, 48)])
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.usefixtures("path")
def test_mask(mask_shape: tuple[int, ...], boolean: bool) -> None:
    q, k, v = qkv(2, 3, 3, 64, 48, 8)
    mask = draw(*mask_shape, seed=9)
    mask = mask > -1 if boolean else mask
    got = jax.jit(kernel.attention)(q, k, v, mask)
    wide = torch.from_numpy(np.broadcast_to(mask, (2, 3, 64, 48)).copy())
    expected = reference(q, k, v, attn_mask=wide if boolean else wide.double())
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.usefixtures("path")
def test_causal_and_scale() -> None:
    q, k, v = qkv(1, 2, 2, 64, 64, 8)
    got = jax.jit(lambda q, k, v: kernel.attention(q, k, v, is_causal=True, scale=0.3))(q, k, v)
    expected = reference(q, k, v, is_causal=True, scale=0.3)
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.usefixtures("path")
def test_a_fully_masked_row_is_zero() -> None:
    q, k, v = qkv(1, 2, 2, 64, 5, 8)
    mask = np.ones((64, 5), bool)
    mask[1] = False
    got = np.asarray(jax.jit(kernel.attention)(q, k, v, mask))
    assert not got[:, :, 1].any()
    np.testing.assert_allclose(got[:, :, 2:], reference(q, k, v)[:, :, 2:], atol=2e-6)


@pytest.mark.usefixtures("path")
def test_softcap() -> None:
    q, k, v = qkv(1, 2, 2, 64, 9, 8)
    scores = 2 * np.tanh(np.einsum("bhsd,bhtd->bhst", q, k) / np.sqrt(8) / 2)
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    got = jax.jit(lambda q, k, v: kernel.attention(q, k, v, softcap=2.0))(q, k, v)
    np.testing.assert_allclose(got, weights @ v, atol=2e-6)


def test_nan_reaches_its_row_only() -> None:
    q, k, v = qkv(1, 1, 1, 4, 6, 8)
    q[0, 0, 2, 0] = np.nan
    got = np.asarray(kernel.attention(q, k, v))
    assert np.isnan(got[0, 0, 2]).all()
    assert not np.isnan(got[0, 0, [0, 1, 3]]).any()


def test_empty_batch() -> None:
    q, k, v = qkv(2, 3, 3, 5, 6, 8)
    assert kernel.attention(q[:0], k[:0], v[:0]).shape == (0, 3, 5, 8)
