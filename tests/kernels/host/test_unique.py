"""Unique elements and slices."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(17)


def _check(x: Any, axis: int | None, ordered: int) -> None:
    """The outputs by definition: slices in a list, compared as tuples."""
    extra = {} if axis is None else {"axis": axis}
    y, first, inverse, counts = run("Unique", x, output_count=4, sorted=ordered, **extra)
    flat = x.reshape(-1) if axis is None else np.moveaxis(x, axis, 0)
    slices = [tuple(np.asarray(part).reshape(-1).tolist()) for part in flat]
    distinct = list(dict.fromkeys(slices))
    if ordered:
        distinct.sort()
    wanted = [slices.index(value) for value in distinct]
    assert first.tolist() == wanted
    np.testing.assert_array_equal(y, np.take(flat if axis is None else x, wanted, axis or 0))
    assert inverse.tolist() == [distinct.index(value) for value in slices]
    assert counts.tolist() == [slices.count(value) for value in distinct]
    assert y.dtype == x.dtype
    assert {a.dtype for a in (first, inverse, counts)} == {np.dtype(np.int64)}


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize(
    "dtype",
    [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_, np.float64],
)
def test_numbers(dtype: Any, axis: int | None, ordered: int) -> None:
    numbers = RNG.integers(-1 if np.dtype(dtype).kind != "u" else 0, 2, (3, 9, 2))
    _check(numbers.astype(dtype), axis, ordered)


@pytest.mark.parametrize("ordered", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_strings(axis: int | None, ordered: int) -> None:
    x = RNG.choice(np.array(["a", "", "ab", "é", "Z"], np.object_), (7, 2))
    _check(x, axis, ordered)


def test_complex_numbers_sort_by_their_real_part_first() -> None:
    x = np.array([2 + 1j, 1 + 3j, 2 + 1j, 1 - 1j], np.complex64)
    y, first, inverse, counts = run("Unique", x, output_count=4)
    assert y.tolist() == [1 - 1j, 1 + 3j, 2 + 1j]
    assert (first.tolist(), inverse.tolist()) == ([3, 1, 0], [2, 1, 2, 0])
    assert counts.tolist() == [1, 1, 2]


def test_as_the_reference() -> None:
    x = RNG.integers(0, 3, (6, 2)).astype(np.float32)
    compare("Unique", x, output_count=4)
    compare("Unique", x, axis=0, output_count=4)
    compare("Unique", x.reshape(-1), sorted=0, output_count=4)


def test_zeros_of_either_sign_and_all_nan_are_one() -> None:
    x = np.array([0.0, np.nan, -0.0, np.nan], np.float32)
    for extra in ({}, {"axis": 0}):
        y, first, inverse, counts = run("Unique", x, output_count=4, **extra)
        np.testing.assert_array_equal(y, np.array([0, np.nan], np.float32))
        assert (first.tolist(), inverse.tolist()) == ([0, 1], [0, 1, 0, 1])
        assert counts.tolist() == [2, 2]


def test_nothing_and_slices_of_nothing() -> None:
    y, first, inverse, counts = run("Unique", np.zeros(0, np.int32), output_count=4)
    assert y.shape == first.shape == inverse.shape == counts.shape == (0,)
    y, _, _, counts = run("Unique", np.zeros((0, 3), np.int32), output_count=4, axis=0)
    assert y.shape == (0, 3)
    y, _, inverse, counts = run("Unique", np.zeros((3, 0), np.int32), output_count=4, axis=0)
    assert (y.shape, inverse.tolist(), counts.tolist()) == ((1, 0), [0, 0, 0], [3])
    (y,) = run("Unique", np.array(5))
    assert y.tolist() == [5]


def test_an_axis_out_of_range_is_refused() -> None:
    with pytest.raises(KernelError, match="axis 2 is out of range"):
        run("Unique", np.zeros((2, 2)), axis=2)
