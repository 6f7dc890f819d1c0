"""Resize, GridSample and AffineGrid against onnx.reference."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.engines.xla.ops_support import check, run_channels_last, run_node, run_reference, support
from tests.support import assert_close

RNG = np.random.default_rng(0)

COORDINATES = [
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
]


def _f(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def _resize(x: Any, roi: Any = None, scales: Any = None, sizes: Any = None, **how: Any) -> None:
    """Check with the operand channels-last, where every axis lies elsewhere."""
    inputs = [
        x,
        None if roi is None else np.array(roi, np.float32),
        None if scales is None else np.array(scales, np.float32),
        None if sizes is None else np.array(sizes, np.int64),
    ]
    while inputs[-1] is None:
        inputs.pop()
    constants = [1, 2, 3]
    want = run_reference("Resize", inputs, constants=constants, **how)
    assert_close(run_channels_last("Resize", inputs, constants=constants, **how), want)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_resize(mode: str, coordinates: str) -> None:
    how: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    roi = [0.2, -0.1, 0.9, 1.3] if coordinates.startswith("tf") else None
    if roi is not None:
        how["extrapolation_value"] = 7.0
    _resize(_f(1, 2, 5, 7), roi, scales=[1.7, 0.6], axes=[2, 3], **how)
    _resize(_f(1, 2, 5, 7), roi, sizes=[10, 1], axes=[2, 3], **how)


@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest(nearest: str) -> None:
    for coordinates in ("half_pixel", "asymmetric", "align_corners"):
        how = {"nearest_mode": nearest, "coordinate_transformation_mode": coordinates}
        _resize(_f(1, 2, 4, 6), scales=[1.0, 1.0, 2.0, 0.5], **how)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_outside_and_antialias(mode: str) -> None:
    x = _f(1, 1, 9, 8)
    _resize(x, sizes=[4, 12], axes=[2, 3], mode=mode, antialias=1)
    _resize(x, sizes=[4, 12], axes=[2, 3], mode=mode, antialias=1, exclude_outside=1)
    _resize(x, scales=[0.7, 1.6], axes=[2, 3], mode=mode, exclude_outside=1)
    _resize(x, scales=[0.7, 1.6], axes=[2, 3], mode=mode, cubic_coeff_a=-0.5)


@pytest.mark.parametrize("shape", [(1, 2, 40, 300), (1, 1, 180, 3)])
def test_shrinking_by_many_taps(shape: tuple[int, ...]) -> None:
    """By gathers along the rows or, above 64 taps, by a matrix; by a matrix along the columns."""
    for mode, sizes in (("linear", [4, 60]), ("cubic", [7, 2])):
        _resize(_f(*shape), sizes=sizes, axes=[2, 3], mode=mode, antialias=1)
        inputs = [_f(*shape), None, None, np.array(sizes)]
        check("Resize", inputs, constants=[3], axes=[2, 3], mode=mode, antialias=1, layouts=False)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio(policy: str) -> None:
    # Not sizes [7, 8] of [5, 8]: there the reference loses a tap to rounding in 10.5 / 1.4 - 0.5.
    how = {"mode": "linear", "keep_aspect_ratio_policy": policy}
    _resize(_f(1, 2, 4, 8), sizes=[6, 8], axes=[2, 3], **how)


def test_places_that_rounding_moves_off_a_pixel() -> None:
    x = _f(1, 1, 5, 8)
    inputs = [x, None, None, np.array([7, 8])]
    how: Any = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_smaller"}
    (y,) = run_node("Resize", inputs, constants=[3], **how)
    assert y.shape == (1, 1, 7, 11)
    assert_close([y[0, 0, 3, 10]], [x[0, 0, 2, 7]])  # 10.5 / 1.4 - 0.5 is 7


def test_axes_count_from_the_end() -> None:
    inputs = [_f(1, 2, 4, 6), None, np.array([2.0, 0.5], np.float32)]
    got = [run_node("Resize", inputs, constants=[2], axes=axes) for axes in ([-2, -1], [2, 3])]
    assert_close(*got)


def test_resize_other_ranks_and_types() -> None:
    _resize(_f(2, 3, 5), scales=[1, 1, 2], mode="linear")
    _resize(_f(1, 2, 3, 4, 5), sizes=[1, 2, 6, 4, 3], mode="linear")
    _resize(_f(2, 3, 5), sizes=[4, 3, 5], mode="linear")
    _resize(RNG.integers(0, 255, (1, 2, 4, 4)).astype(np.uint8), scales=[1, 1, 2, 2])
    bytes_ = RNG.integers(0, 255, (1, 2, 4, 4)).astype(np.uint8)
    _resize(bytes_, scales=[1, 1, 1.5, 2], mode="cubic")
    _resize(_f(1, 2, 4, 4).astype(np.float16), scales=[1, 1, 2, 2], mode="linear")


def test_resize_by_computed_sizes_is_refused() -> None:
    inputs = [_f(1, 1, 2, 2), None, None, np.array([1, 1, 4, 4])]
    assert not support("Resize", inputs)


GRID = list(
    itertools.product(["linear", "nearest", "cubic"], ["zeros", "border", "reflection"], [0, 1])
)


@pytest.mark.parametrize(("mode", "padding", "corners"), GRID)
def test_grid_sample(mode: str, padding: str, corners: int) -> None:
    x, grid = _f(2, 3, 4, 5), (_f(2, 3, 6, 2) * 0.9)
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    want = torch.nn.functional.grid_sample(
        torch.from_numpy(x),
        torch.from_numpy(grid),
        mode=torch_mode,
        padding_mode=padding,
        align_corners=bool(corners),
    )
    keywords: Any = {"mode": mode, "padding_mode": padding, "align_corners": corners}
    got = run_channels_last("GridSample", [x, grid], **keywords)
    assert_close(got, [want.numpy()])
    assert_close(run_node("GridSample", [x, grid], **keywords), [want.numpy()])


def test_grid_sample_nearest_of_many_channels() -> None:
    x, grid = _f(2, 6, 4, 5), _f(2, 3, 6, 2) * 0.9
    check("GridSample", [x, grid], mode="nearest")


@pytest.mark.parametrize(("mode", "padding", "corners"), [GRID[0], GRID[5], GRID[9], GRID[8]])
def test_grid_sample_in_space(mode: str, padding: str, corners: int) -> None:
    x, grid = _f(1, 2, 3, 4, 5), _f(1, 2, 3, 2, 3)
    check(
        "GridSample",
        [x, grid],
        mode=mode,
        padding_mode=padding,
        align_corners=corners,
        layouts=False,
    )


def test_grid_sample_equals_the_reference() -> None:
    check("GridSample", [_f(1, 2, 3, 4), _f(1, 2, 3, 2)], mode="linear")
    half = [_f(1, 2, 3, 4).astype(np.float16), _f(1, 2, 3, 2).astype(np.float16)]
    check("GridSample", half, mode="linear", layouts=False)


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_affine_grid(size: Any, corners: int) -> None:
    rank = len(size) - 2
    theta = _f(2, rank, rank + 1)
    want = torch.nn.functional.affine_grid(
        torch.from_numpy(theta), list(size), align_corners=bool(corners)
    )
    check(
        "AffineGrid",
        [theta, np.array(size, np.int64)],
        constants=[1],
        align_corners=corners,
        want=[want.numpy()],
        layouts=False,
    )


@pytest.mark.parametrize("dtype", ["uint64", "uint32", "int64", "uint8", "int8"])
def test_integers_are_interpolated_and_rounded(dtype: str) -> None:
    x = np.array([0, 100], dtype)
    want = np.array([0, 25, 75, 100], dtype)
    sizes = np.array([4], np.int64)
    inputs = [x, None, None, sizes]
    check("Resize", inputs, constants=[3], mode="linear", want=[want])


@pytest.mark.parametrize("channels", [1, 8])
@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8"])
def test_nearest_sampling_keeps_the_type(dtype: str, channels: int) -> None:
    x = np.ones((1, channels, 2, 2), dtype)
    grid = np.array([[[[-0.5, -0.5], [3, 3]]]], np.float32)
    want = np.array([1, 0], dtype).reshape(1, 1, 1, 2).repeat(channels, axis=1)
    check("GridSample", [x, grid], mode="nearest", want=[want])
