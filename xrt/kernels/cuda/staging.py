"""Pinned host memory, and NumPy arrays on their way to the device and back.

The device copies from and to pinned memory by itself, while the host and the launches go on.
Allocating it is slow, so it is allocated once and used again.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.array import Block, DeviceArray
from xrt.kernels.cuda.streams import Lane

_LEAST = 4096


class Pinned:
    """Pinned host memory.

    Attributes:
        pointer: Its address.
        nbytes: Its size.
    """

    def __init__(self, nbytes: int) -> None:
        device.current()
        try:
            self._buffer = device.core().LegacyPinnedMemoryResource().allocate(nbytes)
        except Exception as error:
            raise device.failure(error, f"{nbytes} bytes of pinned host memory") from error
        self.pointer, self.nbytes = int(self._buffer.handle), nbytes
        self._last: tuple[object, np.ndarray[Any, Any]] | None = None

    def view(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """The beginning of the memory as an array, which is not to outlive this object."""
        kind = (tuple(shape), dtype)
        if self._last is None or self._last[0] != kind:
            raw = (ctypes.c_uint8 * self.nbytes).from_address(self.pointer)
            used = math.prod(shape) * dtype.itemsize
            flat: np.ndarray[Any, Any] = np.frombuffer(memoryview(raw), np.uint8)[:used]
            self._last = kind, flat.view(dtype).reshape(kind[0])
        return self._last[1]


class Pool:
    """Pinned memory that is not in use, by size; safe to use from threads."""

    def __init__(self) -> None:
        self._free: dict[int, list[Pinned]] = {}
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Pinned:
        """Memory of at least `nbytes`."""
        size = size_class(nbytes)
        with self._lock:
            free = self._free.get(size)
            if free:
                return free.pop()
        return Pinned(size)

    def give(self, pinned: Pinned) -> None:
        """Take back memory that neither host nor device uses any more."""
        with self._lock:
            self._free.setdefault(pinned.nbytes, []).append(pinned)


POOL = Pool()


def size_class(nbytes: int) -> int:
    """The size to allocate for `nbytes`: a power of two, so that sizes are met again."""
    return max(_LEAST, 1 << max(0, nbytes - 1).bit_length())


def copy(target: int, source: int, nbytes: int, stream: Any) -> None:
    """Enqueue a copy between two addresses, of the host (pinned) or the device."""
    if nbytes:
        result = device.driver().cuMemcpyAsync(target, source, nbytes, stream.handle)
        device.check(result, f"copying {nbytes} bytes")


class Frame:
    """Memory for the inputs of one call, on the host and on the device.

    Attributes:
        consumed: The event after which the launch no longer reads the inputs.
    """

    def __init__(self, lane: Lane) -> None:
        gpu = device.current()
        self._lane = lane
        self._memory: dict[str, tuple[Pinned, Block]] = {}
        self._copied = gpu.create_event()
        self.consumed: Any = gpu.create_event()

    def begin(self) -> None:
        """Wait until the call before has been copied; the device waits until it has been read."""
        self._copied.sync()
        self._lane.copies.wait(self.consumed)

    def put(self, name: str, value: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> DeviceArray:
        """Start copying `value`, converted to `dtype`, to the device."""
        lane = self._lane
        nbytes = value.size * dtype.itemsize
        pinned, block = self._room(name, nbytes)
        np.copyto(pinned.view(value.shape, dtype), value, casting="unsafe")
        copy(block.pointer, pinned.pointer, nbytes, lane.copies)
        return DeviceArray(block.pointer, value.shape, dtype, lane.compute, block)

    def _room(self, name: str, nbytes: int) -> tuple[Pinned, Block]:
        known = self._memory.get(name)
        if known is None or known[0].nbytes < nbytes:
            pinned = POOL.take(nbytes)
            block = A.allocate(pinned.nbytes, self._lane, f"the input {name!r}")
            self._lane.copies.wait(self._lane.compute)  # on which the memory was allocated
            self._memory[name] = pinned, block
            if known is not None:
                POOL.give(known[0])  # `begin` has waited for its copy
            return pinned, block
        return known

    def end(self) -> None:
        """Make launches from now on wait for the copies."""
        lane = self._lane
        lane.copies.record(self._copied)
        lane.compute.wait(self._copied)

    def release(self) -> None:
        """Give the pinned memory back."""
        self._copied.sync()
        for pinned, _ in self._memory.values():
            POOL.give(pinned)
        self._memory.clear()


class Staging:
    """Two frames in turn: the inputs of a call are copied while the call before still runs."""

    def __init__(self, lane: Lane, frames: int = 2) -> None:
        self._frames = [Frame(lane) for _ in range(frames)]
        self._next = 0

    def frame(self) -> Frame:
        """The frame for the next call, ready to be filled."""
        frame = self._frames[self._next]
        self._next = (self._next + 1) % len(self._frames)
        frame.begin()
        return frame

    def release(self) -> None:
        """Give the pinned memory back."""
        for frame in self._frames:
            frame.release()


def download(arrays: Sequence[DeviceArray]) -> list[np.ndarray[Any, Any]]:
    """Copies of `arrays` in host memory: all are started, then waited for together."""
    lane = streams.lane()
    pieces = [POOL.take(array.nbytes) for array in arrays]
    try:
        for array, pinned in zip(arrays, pieces, strict=True):
            array.wait_on(lane.copies)
            copy(pinned.pointer, array.pointer, array.nbytes, lane.copies)
        lane.copies.sync()
        lane.let_go()
        return [
            pinned.view(array.shape, array.dtype).copy()
            for array, pinned in zip(arrays, pieces, strict=True)
        ]
    finally:
        for pinned in pieces:
            POOL.give(pinned)


def upload(value: np.ndarray[Any, Any], lane: Lane) -> DeviceArray:
    """A copy of `value` on the device, in memory of its own."""
    made = A.empty(value.shape, value.dtype, lane, "an array of the host's")
    pinned = POOL.take(made.nbytes)
    pinned.view(value.shape, value.dtype)[...] = value
    copy(made.pointer, pinned.pointer, made.nbytes, lane.compute)
    event = lane.compute.record()
    made.done_at(event)
    lane.keep(event, _Lease(pinned))
    return made


class _Lease:
    """Pinned memory that goes back to the pool when nobody refers to this any more."""

    def __init__(self, pinned: Pinned) -> None:
        self._pinned = pinned

    def __del__(self) -> None:
        try:  # noqa: SIM105  (while the interpreter shuts down, contextlib too is gone)
            POOL.give(self._pinned)
        except Exception:
            pass
