"""TensorScatter; the other scatters are tested with the gathers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.host.support import compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("axis", [-2, 1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8, bool])
def test_tensor_scatter(axis: int, dtype: Any) -> None:
    cache = RNG.integers(0, 2, (3, 5, 6, 7)).astype(dtype)
    shape = list(cache.shape)
    shape[axis] = 3
    update = RNG.integers(0, 2, shape).astype(dtype)
    compare("TensorScatter", cache, update, axis=axis)
    compare("TensorScatter", cache, update, np.array([0, 2, 1]), axis=axis)
    compare("TensorScatter", cache, update, np.array([4, 3, 11]), axis=axis, mode="circular")


def test_steps_that_do_not_fit_are_an_error() -> None:
    cache, update = np.zeros((1, 4, 2), np.float32), np.ones((1, 3, 2), np.float32)
    with pytest.raises(KernelError, match="do not fit into 4"):
        run("TensorScatter", cache, update, np.array([2]))
    assert not cache.any()
