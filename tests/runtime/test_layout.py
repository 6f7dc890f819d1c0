"""Layouts: nothing overlaps, and memory is shared where it can be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xrt.runtime.layout import ALIGNMENT, Buffer, Layout, lay_out


@st.composite
def buffers(draw: st.DrawFn) -> list[Buffer]:
    found = []
    for number in range(draw(st.integers(0, 40))):
        first = draw(st.integers(0, 30))
        last = first + draw(st.integers(0, 12))
        found.append(Buffer(f"b{number}", draw(st.integers(0, 5000)), first, last))
    return found


def check(layout: Layout) -> None:
    """Write every buffer while it lives, and see that nobody else wrote there."""
    memory = np.full(layout.peak, -1, np.int64)
    placed = list(zip(layout.buffers, layout.offsets, strict=True))
    for step in range(max((each.last for each in layout.buffers), default=-1) + 1):
        for number, (each, offset) in enumerate(placed):
            if each.first == step:
                memory[offset : offset + each.bytes] = number
        for number, (each, offset) in enumerate(placed):
            if each.first <= step <= each.last:
                part = memory[offset : offset + each.bytes]
                assert len(part) == each.bytes
                assert (part == number).all(), f"{each} is overwritten at step {step}"


@settings(max_examples=200, deadline=None)
@given(buffers())
def test_no_two_live_buffers_overlap(given):
    layout = lay_out(given)
    check(layout)
    assert all(offset % ALIGNMENT == 0 for offset in layout.offsets)
    assert layout.live <= layout.peak <= layout.unshared


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_a_chain_takes_two_buffers_in_turn(count):
    layout = lay_out([Buffer(str(n), 1000, n, n + 1) for n in range(count)])
    assert layout.peak == 1024 * min(count, 2)
    assert layout.unshared == 1024 * count


def test_a_small_buffer_goes_into_the_smallest_gap_that_it_fits():
    layout = lay_out(
        [
            Buffer("a", 640, 0, 9),
            Buffer("wide", 512, 0, 1),
            Buffer("b", 448, 0, 9),
            Buffer("narrow", 256, 0, 1),
            Buffer("c", 128, 0, 9),
            Buffer("late", 100, 2, 9),
        ]
    )
    places = dict(zip(["a", "wide", "b", "narrow", "c", "late"], layout.offsets, strict=True))
    assert places["late"] == places["narrow"]
    assert layout.peak == layout.live == 640 + 512 + 448 + 256 + 128
    check(layout)


def test_nothing_takes_nothing():
    assert (lay_out([]).peak, lay_out([]).live) == (0, 0)
