"""Attention by its formula, where the reference of ONNX has none: scales that are not positive."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.host.support import assert_close, run

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("scale", [-0.7, 0.0, 0.7])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_scale_of_any_sign_multiplies_the_scores(scale, heads):
    q = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
    k, v = (RNG.normal(size=(2, heads, 6, 5)).astype(np.float32) for _ in range(2))
    keys, values = (np.repeat(x.astype(np.float64), 4 // heads, axis=1) for x in (k, v))
    scores = np.einsum("bhqd,bhkd->bhqk", q.astype(np.float64), keys) * scale
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    y, _, _, shown = run("Attention", q, k, v, output_count=4, scale=scale)
    assert_close(y, np.einsum("bhqk,bhkd->bhqd", weights, values).astype(np.float32))
    assert_close(shown, scores.astype(np.float32))
