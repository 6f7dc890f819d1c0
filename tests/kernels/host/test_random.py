"""Random operators on the host: seeds as in onnx.reference, distributions, dtypes."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import compare, run

F32 = np.float32
COUNT = 20_000


@pytest.mark.parametrize("dtype", [1, 11])
def test_seeded_numbers_are_those_of_the_reference(dtype: int) -> None:
    compare("RandomUniform", shape=[30], low=-1.0, high=3.0, seed=5.0, dtype=dtype)
    compare("RandomNormal", shape=[30], mean=2.0, scale=0.5, seed=5.0, dtype=dtype)
    compare("RandomUniformLike", np.zeros((2, 3), F32), seed=6.0)
    compare("RandomNormalLike", np.zeros((2, 3), np.int64), seed=6.0, dtype=dtype)


def test_seeded_dropout_is_that_of_the_reference() -> None:
    x = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float64)
    # The mask's ratio is float64 here, so that the reference does not round its scale.
    compare("Dropout", x, np.array(0.25), np.array(True), output_count=2, seed=3)


@pytest.mark.parametrize("seed", [None, 0.0, -4.0, 1e12, float("nan")])
def test_uniform_numbers_fill_their_range(seed: float | None) -> None:
    given: Any = {} if seed is None else {"seed": seed}
    (u,) = run("RandomUniform", shape=[COUNT], low=2.0, high=4.0, **given)
    assert u.dtype == F32
    assert 2 <= u.min() < 2.01
    assert 3.99 < u.max() < 4
    ranks = np.arange(COUNT) / COUNT
    assert np.abs(np.sort(u) / 2 - 1 - ranks).max() * math.sqrt(COUNT) < 2.5


def test_narrow_uniform_numbers_stay_below_their_bound() -> None:
    (u,) = run("RandomUniform", shape=[COUNT], dtype=16)
    assert u.dtype == ml_dtypes.bfloat16
    assert u.astype(F32).max() < 1


def test_normal_numbers_have_their_moments_and_differ_by_call() -> None:
    (one,), (two,) = (run("RandomNormal", shape=[COUNT], mean=1.0, scale=3.0) for _ in range(2))
    for sample in (one, two):
        unit = (sample.astype(np.float64) - 1) / 3
        assert abs(unit.mean()) < 5 / math.sqrt(COUNT)
        assert abs((unit**2).mean() - 1) < 5 * math.sqrt(2 / COUNT)
        assert abs((unit**4).mean() - 3) < 5 * math.sqrt(96 / COUNT)
    assert (one != two).any()


def test_bernoulli_draws_with_probability() -> None:
    p = np.tile(np.array([0, 0.25, 1]), (COUNT, 1))
    (y,) = run("Bernoulli", p, dtype=9)
    assert y.dtype == np.bool_
    assert not y[:, 0].any()
    assert y[:, 2].all()
    assert abs(y[:, 1].mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / COUNT)


@pytest.mark.parametrize("given", [{}, {"seed": 2.0}])
def test_multinomial_draws_what_is_possible(given: Any) -> None:
    p = np.array([[0.5, 0, 0.3, 0.2], [0, 0, 1, 0]])
    with np.errstate(divide="ignore"):
        logits = np.log(p).astype(F32) - 30
    (y,) = run("Multinomial", logits, sample_size=COUNT, dtype=7, **given)
    assert (y.dtype, y.shape) == (np.int64, (2, COUNT))
    shares = np.stack([np.bincount(row, minlength=4) for row in y]) / COUNT
    assert (np.abs(shares - p) <= 5 * np.sqrt(p * (1 - p) / COUNT)).all()


def test_dropout_of_half_precision_scales_in_single() -> None:
    x = np.full((200,), 3, np.float16)
    y, mask = run("Dropout", x, np.array(0.3, F32), np.array(True), output_count=2, seed=1)
    assert y.dtype == np.float16
    want = np.float16(F32(3) / (1 - F32(0.3)))
    np.testing.assert_array_equal(y, np.where(mask, want, np.float16(0)))
