"""AffineGrid against torch and onnx.reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(23)


def _theta(batch: int, rank: int) -> Any:
    return RNG.normal(size=(batch, rank, rank + 1)).astype(np.float32)


def _torch(theta: Any, size: list[int], align_corners: int) -> Any:
    torch = pytest.importorskip("torch")
    grid = torch.nn.functional.affine_grid
    return grid(torch.from_numpy(theta), size, align_corners=bool(align_corners)).numpy()


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed")
@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize(
    "size", [[2, 3, 5, 6], [1, 1, 1, 4], [2, 1, 3, 4, 5], [1, 2, 1, 1, 1], [3, 1, 2, 1]]
)
def test_grids_of_torch(size: list[int], align_corners: int) -> None:
    theta = _theta(size[0], len(size) - 2)
    for dtype in (np.float32, np.float64):
        given = theta.astype(dtype)
        (grid,) = run("AffineGrid", given, np.array(size), align_corners=align_corners)
        assert grid.shape == (size[0], *size[2:], len(size) - 2)
        assert_close(grid, _torch(given, size, align_corners))


@pytest.mark.parametrize("align_corners", [0, 1])
def test_grids_of_the_reference(align_corners: int) -> None:
    compare("AffineGrid", _theta(2, 2), np.array([2, 3, 5, 6]), align_corners=align_corners)
    compare("AffineGrid", _theta(2, 3), np.array([2, 3, 4, 5, 6]), align_corners=align_corners)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types_round_once(dtype: Any) -> None:
    theta, size = _theta(2, 2).astype(dtype), [2, 3, 7, 9]
    (grid,) = run("AffineGrid", theta, np.array(size))
    want = _torch(theta.astype(np.float32), size, 0)
    assert_close(grid, want.astype(dtype))


def test_a_map_of_other_dimensions_is_refused() -> None:
    with pytest.raises(
        KernelError, match=r"theta \(2, 2, 3\) does not fit the size \(2, 1, 3, 4, 5\)"
    ):
        run("AffineGrid", _theta(2, 2), np.array([2, 1, 3, 4, 5]))
