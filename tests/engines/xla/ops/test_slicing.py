"""Concat, Split, Slice and Pad against onnx.reference, in both layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.engines.xla.ops_support import check, run_channels_last, run_node, support
from tests.support import assert_close

RNG = np.random.default_rng(0)


def _f(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def _i(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 5]]
    shapes[1][axis], shapes[2][axis] = 2, 0
    inputs = [_f(*shape) for shape in shapes]
    want = [np.concatenate(inputs, axis)]
    assert_close(run_node("Concat", inputs, axis=axis), want)
    for which in ((0, 1, 2), (1,)):
        assert_close(run_channels_last("Concat", inputs, which=which, axis=axis), want)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_split(axis: int) -> None:
    x = _f(4, 4, 4, 4)
    check("Split", [x, _i(1, 0, 3)], constants=[1], outputs=3, axis=axis)
    check("Split", [x], outputs=3, axis=axis, num_outputs=3, want=np.split(x, [2, 4], axis))


SLICES: list[tuple[Any, ...]] = [
    ((0, 0), (2, 2), None, None),
    ((1,), (100,), (2,), (2,)),
    ((-1,), (-100,), (-1,), (-2,)),
    ((3, 0), (0, -1), (1, 2), (-1, 1)),
    ((2,), (-(2**63),), (-3,), (-1,)),
    ((5,), (9,), (1,), None),
    ((0, 1), (2**63 - 1, 3), (1, 3), (3, 1)),
]


def test_slice_backwards_from_before_the_first_element_starts_there() -> None:
    least = -(2**63)
    inputs = [_f(3, 4), _i(-9, -7), _i(least, least), _i(0, 1), _i(-1, -2)]
    check("Slice", inputs, constants=[1, 2, 3, 4], want=[inputs[0][:1, :1]])


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice(starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    inputs: list[Any] = [_f(3, 5, 4, 6), _i(*starts), _i(*ends)]
    inputs += [None if values is None else _i(*values) for values in (axes, steps)]
    x, places = inputs[0], [slice(None)] * 4
    for index, start in enumerate(starts):
        step = steps[index] if steps else 1
        end = ends[index] if ends[index] > -100 or step > 0 else None
        places[axes[index] if axes else index] = slice(start, end, step)
    check("Slice", inputs, constants=[1, 2, 3, 4], want=[x[tuple(places)]])


def test_slice_by_a_computed_start_is_refused() -> None:
    answer = support("Slice", [_f(4), _i(0), _i(2)], constants=[2])
    assert not answer


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    ("pads", "axes"), [((0, 1, 2, 0, 0, 2, 1, 3), None), ((1, 2, 0, 1), (-1, 1))]
)
def test_pad(mode: str, pads: Any, axes: Any) -> None:
    inputs = [_f(2, 4, 3, 5), _i(*pads), np.float32(1.5) if mode == "constant" else None]
    if axes is not None:
        inputs.append(_i(*axes))
    check("Pad", inputs, constants=[1, 3], mode=mode)


def test_negative_pads_crop() -> None:
    x = _f(1, 2, 5, 6)
    want = np.pad(x[:, :, 1:, :-2], ((0, 0), (0, 0), (0, 1), (2, 0)))
    check("Pad", [x, _i(0, 0, -1, 2, 0, 0, 1, -2)], constants=[1], want=[want])
    want = np.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 0), (1, 0)), mode="edge")
    check("Pad", [x, _i(0, 0, -1, 1, 0, 0, 0, 0)], constants=[1], mode="edge", want=[want])


def test_pad_of_other_types() -> None:
    x = RNG.integers(0, 9, (2, 3)).astype(np.int32)
    check("Pad", [x, _i(1, 0, 0, 1), np.int32(4)], constants=[1])
    check("Pad", [x > 4, _i(1, 0, 0, 1)], constants=[1])


def test_reflecting_nothing_is_refused() -> None:
    answer = support("Pad", [_f(0, 3), _i(0, 1, 0, 1)], constants=[1], mode="reflect")
    assert not answer
    assert "without elements" in answer.reason
