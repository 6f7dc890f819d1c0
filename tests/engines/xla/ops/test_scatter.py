"""TensorScatter against a loop; the other scatters are tested with the gathers."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import check

RNG = np.random.default_rng(0)


def _written(cache: Any, update: Any, starts: Any, axis: int) -> Any:
    result = np.moveaxis(cache.copy(), axis, 1)
    for sample, start in enumerate(starts):
        for step, row in enumerate(np.moveaxis(update, axis, 1)[sample]):
            result[sample, (start + step) % result.shape[1]] = row
    return np.moveaxis(result, 1, axis)


@pytest.mark.parametrize("axis", [-2, 1, 3, -1])
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_tensor_scatter(axis: int, mode: str) -> None:
    cache = RNG.normal(size=(3, 5, 6, 7)).astype(np.float32)
    shape = list(cache.shape)
    shape[axis] = 3
    update = RNG.normal(size=shape).astype(np.float32)
    starts = np.array([0, 2, 1] if mode == "linear" else [4, 3, 11], np.int64)
    want = [_written(cache, update, starts, axis)]
    inputs = [cache, update, starts]
    check("TensorScatter", inputs, want=want, which=(0, 1), axis=axis, mode=mode)
    inputs = [cache, update]
    check("TensorScatter", inputs, want=[_written(cache, update, [0] * 3, axis)], axis=axis)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.int8, np.uint64, bool, np.int64]
)
def test_tensor_scatter_moves_any_element(dtype: Any) -> None:
    cache = RNG.integers(0, 2, (2, 4, 3)).astype(dtype)
    update = RNG.integers(0, 2, (2, 4, 3)).astype(dtype)
    starts = np.array([1, 6])
    want = [_written(cache, update, starts, 1)]
    check("TensorScatter", [cache, update, starts], want=want, mode="circular", layouts=False)
