"""Buffers that share one piece of memory by lifetime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ALIGNMENT = 64
"""Bytes: all that is laid out begins at a multiple."""


@dataclass(frozen=True)
class Buffer:
    """Memory that is needed from one step to another.

    Attributes:
        name: Of the value.
        bytes: Its size.
        first: The number of the step that writes it.
        last: The number of the last step that reads it.
    """

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Layout:
    """Buffers in one piece of memory.

    Attributes:
        buffers: The buffers.
        offsets: Where each begins.
    """

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]

    @property
    def peak(self) -> int:
        """Bytes of the whole."""
        placed = zip(self.buffers, self.offsets, strict=True)
        return max((offset + _rounded(each.bytes) for each, offset in placed), default=0)

    @property
    def unshared(self) -> int:
        """Bytes if no two buffers shared memory."""
        return sum(_rounded(each.bytes) for each in self.buffers)

    @property
    def live(self) -> int:
        """The most bytes that are needed at one step: no layout is smaller."""
        changes: dict[int, int] = {}
        for each in self.buffers:
            changes[each.first] = changes.get(each.first, 0) + _rounded(each.bytes)
            changes[each.last + 1] = changes.get(each.last + 1, 0) - _rounded(each.bytes)
        most = now = 0
        for step in sorted(changes):
            now += changes[step]
            most = max(most, now)
        return most


def lay_out(buffers: Sequence[Buffer]) -> Layout:
    """Offsets at which no two buffers that are needed at one step overlap.

    Greedy by size: the largest first, each into the smallest gap between those placed already that
    it fits in (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020,
    "offset calculation").
    """
    order = sorted(range(len(buffers)), key=lambda i: (-buffers[i].bytes, buffers[i].first, i))
    first = np.array([buffers[i].first for i in order], np.int64)
    last = np.array([buffers[i].last for i in order], np.int64)
    size = np.array([_rounded(buffers[i].bytes) for i in order], np.int64)
    begin = np.zeros(len(order), np.int64)
    for number in range(len(order)):
        at_once = (first[:number] <= last[number]) & (last[:number] >= first[number])
        taken = begin[:number][at_once]
        begin[number] = _place(taken, taken + size[:number][at_once], int(size[number]))
    offsets = [0] * len(order)
    for number, index in enumerate(order):
        offsets[index] = int(begin[number])
    return Layout(tuple(buffers), tuple(offsets))


def _place(begins: np.ndarray[Any, Any], ends: np.ndarray[Any, Any], size: int) -> int:
    """The start of the smallest gap of at least `size`, else the end of all."""
    if not len(begins):
        return 0
    order = np.argsort(begins, kind="stable")
    reached = np.concatenate([[0], np.maximum.accumulate(ends[order])])
    gaps = begins[order] - reached[:-1]
    fitting = np.flatnonzero(gaps >= size)
    if not len(fitting):
        return int(reached[-1])
    return int(reached[fitting[np.argmin(gaps[fitting])]])


def _rounded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
