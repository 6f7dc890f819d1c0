"""Reshapes, transposes and generated tensors against onnx.reference; lazy layouts move no data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_node
from xrt.engines.xla import lowering as L
from xrt.engines.xla.ops import shape as S

RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def _i(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("shape", "target"),
    [
        ((2, 3, 4, 5), (2, 3, 20)),
        ((2, 3, 20), (2, 3, 4, 5)),
        ((2, 3, 4, 5), (2, 60)),
        ((2, 3, 4, 5), (0, -1, 5)),
        ((2, 3, 4, 5), (6, 20)),
        ((2, 3, 1, 1), (2, 3)),
        ((2, 3, 4, 4), (2, 3, 2, 2, 2, 2)),
        ((0, 3, 4), (0, 3, 2, 2)),
    ],
)
def test_reshape(shape: Any, target: Any) -> None:
    check("Reshape", [_f(*shape), _i(*target)], constants=[1])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, 4])
def test_flatten(axis: int) -> None:
    check("Flatten", [_f(2, 3, 4, 5)], axis=axis)


def test_squeeze_and_unsqueeze() -> None:
    check("Squeeze", [_f(2, 3, 1, 5), _i(2)], constants=[1])
    check("Squeeze", [_f(1, 3, 4, 5), _i(-4)], constants=[1])
    check("Squeeze", [_f(1, 3, 1, 5)])
    check("Unsqueeze", [_f(2, 3, 4), _i(0, -1)], constants=[1])
    check("Unsqueeze", [_f(2, 3, 4), _i(3)], constants=[1])


@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((2, 3, 4, 5), (0, 2, 3, 1)),
        ((2, 3, 4, 5), (0, 3, 1, 2)),
        ((2, 3, 4, 5), (3, 1, 0, 2)),
        ((2, 3, 4, 5), None),
        ((2, 3, 4), (0, 2, 1)),
        ((2, 3, 4, 5, 6), (0, 4, 1, 2, 3)),
        ((2, 3), None),
    ],
)
def test_transpose(shape: Any, perm: Any) -> None:
    check("Transpose", [_f(*shape)], perm=perm)


def test_layout_changes_move_nothing() -> None:
    array = _f(2, 4, 5, 3)
    plain, last = L.Operand(array), L.Operand(array, True)
    ctx: Any = None
    for operand, perm, channels_last in (
        (last, (0, 2, 3, 1), False),
        (plain, (0, 3, 1, 2), True),
        (last, (0, 1, 2, 3), True),
    ):
        result = S.transpose(ctx, operand, perm=perm)
        assert result.array is array
        assert result.channels_last == channels_last
    assert S.transpose(ctx, L.Operand(array[0]), perm=(0, 2, 1)).channels_last
    flat = S.reshaped(last, (2, 3, 20))
    assert flat.channels_last
    assert flat.array.shape == (2, 20, 3)
    tokens = S.transpose(ctx, flat, perm=(0, 2, 1))
    assert not tokens.channels_last
    assert tokens.array is flat.array


def test_expand_and_tile() -> None:
    check("Expand", [_f(3, 1), _i(2, 1, 4)], constants=[1])
    check("Expand", [_f(3, 4), _i(1)], constants=[1])
    check("Tile", [_f(2, 3, 2), _i(1, 2, 3)], constants=[1])
    check("Tile", [_f(2, 3), _i(0, 2)], constants=[1])


@pytest.mark.parametrize(
    ("start", "end"), [(0, None), (1, None), (-2, -1), (0, 9), (3, 1), (-9, 2)]
)
def test_shape(start: int, end: int | None) -> None:
    check("Shape", [_f(2, 3, 4)], start=start, end=end)


def test_size_and_constants() -> None:
    import onnx

    check("Size", [_f(2, 0, 3)])
    check("ConstantOfShape", [_i(2, 3)], constants=[0])
    value = onnx.numpy_helper.from_array(np.array([7], np.int8))
    check("ConstantOfShape", [_i(2, 3)], constants=[0], value=value)
    check("Constant", [], layouts=False, value_ints=[1, 2, 3])
    check("Constant", [], layouts=False, value_float=2.5)
    check("Constant", [], layouts=False, value=onnx.numpy_helper.from_array(_f(2, 2)))


@pytest.mark.parametrize(
    ("start", "limit", "delta", "dtype"),
    [
        (1, 9, 3, np.int64),
        (10, -3, -4, np.int32),
        (0, 1, 0.1, np.float32),
        (0, 5, 1, np.float64),
        (5, 1, 1, np.int64),
    ],
)
def test_range(start: float, limit: float, delta: float, dtype: Any) -> None:
    inputs = [np.array(value, dtype) for value in (start, limit, delta)]
    check("Range", inputs, constants=[0, 1, 2])


@pytest.mark.parametrize("k", [0, 1, -2])
def test_diagonals(k: int) -> None:
    check("EyeLike", [_f(3, 4)], k=k, dtype=7)
    for upper in (0, 1):
        check("Trilu", [_f(2, 3, 4), np.array(k, np.int64)], upper=upper)
    check("Trilu", [RNG.random((3, 3)) > 0.5], upper=0)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_blocks(mode: str) -> None:
    check("DepthToSpace", [_f(2, 12, 2, 3)], blocksize=2, mode=mode)
    check("SpaceToDepth", [_f(2, 3, 4, 6)], blocksize=2, mode=mode)


def test_integers_and_booleans_pass_through() -> None:
    x = RNG.integers(-5, 5, (2, 3, 4))
    (y,) = run_node("Transpose", [x], perm=[2, 0, 1])
    assert y.dtype == np.int64
    (z,) = run_node("Reshape", [x > 0, _i(4, 6)], constants=[1])
    assert z.dtype == np.bool_
