"""Pooling against onnx.reference and torch."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from xrt.kernels.jax import pooling

F = torch.nn.functional
GRID = [
    # kernel, strides, padding, ceil_mode
    ((3, 3), (2, 2), (1, 1), False),
    ((3, 2), (2, 3), (1, 0), True),
    ((2, 2), (2, 2), (0, 0), True),
    ((3, 3), (1, 1), (1, 1), False),
    ((1, 1), (2, 2), (0, 0), True),
]


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


@pytest.mark.parametrize(("kernel", "strides", "padding", "ceil_mode"), GRID)
@pytest.mark.parametrize("dilation", [1, 2])
def test_max_pool(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    dilation: int,
) -> None:
    x = draw(2, 9, 10, 5)
    got = jax.jit(
        lambda x: pooling.max_pool(
            x,
            kernel=kernel,
            strides=strides,
            pads=padding * 2,
            dilations=(dilation, dilation),
            ceil_mode=ceil_mode,
        )
    )(x)
    expected = F.max_pool2d(first(x), kernel, strides, padding, dilation, ceil_mode)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(got), -1, 1), expected)


@pytest.mark.parametrize(("kernel", "strides", "padding", "ceil_mode"), GRID)
@pytest.mark.parametrize("include", [True, False])
def test_average_pool(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    include: bool,
) -> None:
    x = draw(2, 9, 10, 5)
    got = jax.jit(
        lambda x: pooling.average_pool(
            x,
            kernel=kernel,
            strides=strides,
            pads=padding * 2,
            ceil_mode=ceil_mode,
            count_include_pad=include,
        )
    )(x)
    expected = F.avg_pool2d(first(x), kernel, strides, padding, ceil_mode, include)
    np.testing.assert_allclose(np.moveaxis(np.asarray(got), -1, 1), expected, atol=1e-6)


def test_asymmetric_average_pool() -> None:
    x = draw(1, 5, 6, 2)
    got = pooling.average_pool(
        x, kernel=(3, 3), strides=(1, 2), pads=(0, 1, 2, 0), count_include_pad=True
    )
    expected = F.avg_pool2d(F.pad(first(x), (1, 0, 0, 2)), 3, (1, 2))
    np.testing.assert_allclose(np.moveaxis(np.asarray(got), -1, 1), expected, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(p: int) -> None:
    x = draw(2, 8, 9, 3)
    got = pooling.lp_pool(x, p=p, kernel=(2, 3), strides=(2, 2), pads=(0, 0, 0, 0))
    windows = F.unfold(first(x), (2, 3), stride=2).reshape(2, 3, 6, -1)
    expected = windows.abs().pow(p).sum(2).pow(1 / p)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(got), -1, 1).reshape(2, 3, -1), expected, rtol=1e-5
    )


@pytest.mark.parametrize("spatial", [(11,), (5, 6, 7)])
def test_other_ranks_integers_and_globals(spatial: tuple[int, ...]) -> None:
    x = (10 * draw(2, *spatial, 3)).astype(np.int32)
    rank = len(spatial)
    got = pooling.max_pool(x, kernel=(3,) * rank, strides=(2,) * rank, pads=(1,) * (2 * rank))
    function = {1: F.max_pool1d, 3: F.max_pool3d}[rank]
    expected = function(first(x).float(), 3, 2, 1)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(got), -1, 1), expected)
    y = draw(2, *spatial, 3)
    axes = tuple(range(1, rank + 1))
    np.testing.assert_allclose(
        pooling.global_average_pool(y), y.mean(axes, keepdims=True), atol=1e-6
    )
    np.testing.assert_array_equal(pooling.global_max_pool(y), y.max(axes, keepdims=True))


def test_max_pool_propagates_nan_and_keeps_minus_infinity() -> None:
    x = np.full((1, 4, 4, 1), -np.inf, np.float32)
    x[0, 0, 0, 0] = np.nan
    got = np.asarray(pooling.max_pool(x, kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0)))
    assert np.isnan(got[0, 0, 0, 0])
    assert (got.reshape(-1)[1:] == -np.inf).all()
