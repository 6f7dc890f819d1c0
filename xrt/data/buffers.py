"""Memory of batches: aligned, and used again as soon as nobody holds the array any more."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ALIGNMENT = 64
"""Bytes: XLA's CPU client takes memory of this alignment without a copy."""


class Pool:
    """Arrays of one shape and dtype. Safe to use from several threads.

    `take` hands out bare memory to fill, `lend` an array over it. Every view of that array keeps
    the loan alive; when the last one is gone, the memory goes back to the pool.

    Args:
        shape: The arrays' shape.
        dtype: Their dtype.
        keep: Most unused arrays that are kept.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any, keep: int) -> None:
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._keep = keep
        self._free: deque[Array] = deque()  # without a lock: the collector, too, may end a loan
        self.allocated = 0

    def take(self) -> Array:
        """Memory to fill, of whatever content."""
        try:
            return self._free.pop()
        except IndexError:
            self.allocated += 1
            return aligned(self._shape, self._dtype)

    def give(self, memory: Array) -> None:
        """Take back what `take` gave."""
        if len(self._free) < self._keep:
            self._free.append(memory)

    def lend(self, memory: Array) -> Array:
        """An array over what `take` gave; its memory comes back by itself."""
        return np.asarray(_Loan(memory, self))


class _Loan:
    """The owner of a lent array, in NumPy's eyes: the base of it and of all its views."""

    __slots__ = ("__array_interface__", "_memory", "_pool")

    def __init__(self, memory: Array, pool: Pool) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory
        self._pool = pool

    def __del__(self) -> None:
        self._pool.give(self._memory)


def aligned(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialized array whose memory starts at a multiple of `ALIGNMENT` bytes."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    view: Array = memory[start : start + size].view(dtype)
    return view.reshape(shape)
