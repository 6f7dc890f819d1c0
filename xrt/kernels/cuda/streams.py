"""The streams that a thread works on, and those of other libraries.

Each thread has a lane: a stream for its launches and one for its copies, both of its own and not
the default stream, so that nothing waits for what other threads or libraries enqueue. Clusters of
one program follow each other on one stream, and need no synchronization between them.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import deque
from typing import Any

from xrt.errors import InputError
from xrt.kernels.cuda import device

LEGACY = 1
"""The handle of CUDA's legacy default stream, in CUDA, DLPack and the CUDA array interface."""

MOST_LANES = 8
"""Lanes that a thread keeps for streams of its callers: one has contexts and pinned memory."""


class Lane:
    """The streams of a thread.

    Attributes:
        compute: The stream of launches (a `cuda.core.Stream`).
        copies: The stream of copies between host and device, beside the launches.
        arena: While a graph is captured, what keeps the memory that the graph works in; else None.
        kept: What executables keep for this lane, such as execution contexts; it goes with them.
    """

    def __init__(self, compute: Any = None) -> None:
        gpu = device.current()
        self.compute: Any = gpu.create_stream() if compute is None else compute
        self.copies: Any = gpu.create_stream()
        self.arena: list[Any] | None = None
        self.kept: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
        self._busy: deque[tuple[Any, tuple[Any, ...]]] = deque()

    @property
    def capturing(self) -> bool:
        """Whether what is enqueued on `compute` goes into a graph instead of to the device."""
        return self.arena is not None

    def keep(self, event: Any, *objects: Any) -> None:
        """Keep `objects` alive until the device has passed `event`."""
        self.let_go()
        self._busy.append((event, objects))

    def let_go(self) -> None:
        """Drop what was kept for events that the device has passed."""
        while self._busy and self._busy[0][0].is_done:
            self._busy.popleft()

    def wait(self) -> None:
        """Wait until the device has done all that was enqueued here."""
        self.copies.sync()
        self.compute.sync()
        self._busy.clear()

    def __del__(self) -> None:
        # What is kept goes with the lane; the device may be at work with it still.
        try:
            if self._busy and not sys.is_finalizing():
                self._busy[-1][0].sync()
        except Exception:  # while the interpreter shuts down anything here may be gone
            pass


_THREAD = threading.local()
_IDLE: list[Lane] = []
"""Lanes whose threads have ended, with all that executables keep for them."""


class _Hold:
    """A thread's hold on its lane, which the next thread gets when this one ends."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane

    def __del__(self) -> None:
        try:  # noqa: SIM105  (while the interpreter shuts down, contextlib too is gone)
            _IDLE.append(self.lane)
        except Exception:
            pass


def lane() -> Lane:
    """The lane of this thread.

    Raises:
        EngineUnavailableError: If there is no GPU.
    """
    hold: _Hold | None = getattr(_THREAD, "hold", None)
    if hold is None:
        device.current()
        try:
            hold = _Hold(_IDLE.pop())
        except IndexError:
            hold = _Hold(Lane())
        _THREAD.hold = hold
    return hold.lane


def lane_on(stream: Any) -> Lane:
    """The lane of this thread whose launches go to a stream of the caller's, of any library.

    It keeps the stream alive. The lanes of the streams that were used last are kept.
    """
    handle = handle_of(stream)
    lanes: dict[int, Lane] | None = getattr(_THREAD, "lanes", None)
    if lanes is None:
        lanes = _THREAD.lanes = {}
    found = lanes.pop(handle, None)
    if found is None:
        while len(lanes) >= MOST_LANES:
            del lanes[next(iter(lanes))]
        found = Lane(foreign(stream))
    lanes[handle] = found
    return found


def address(stream: Any) -> int:
    """The handle of a stream as a number, which is what other libraries take."""
    return int(stream.handle)


def foreign(stream: Any) -> Any:
    """A stream of any library as a `cuda.core.Stream`, which keeps the given object alive.

    Args:
        stream: A handle as a number, or a stream of cuda-core, torch, CuPy, Numba or pycuda.

    Raises:
        InputError: If it is none of these.
    """
    core = device.core()
    if isinstance(stream, core.Stream):
        return stream
    handle = handle_of(stream)
    if handle == LEGACY:
        return core.LEGACY_DEFAULT_STREAM
    if isinstance(stream, int):
        return core.Stream.from_handle(handle)
    return device.current().create_stream(_Named(stream, handle))


class _Named:
    """A stream of another library, by the protocol that cuda-core knows; it holds on to this."""

    def __init__(self, stream: Any, handle: int) -> None:
        self._stream, self._handle = stream, handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def handle_of(stream: Any) -> int:
    """The handle of a stream of another library as a number.

    Raises:
        InputError: If it is no stream.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream or LEGACY
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        return int(protocol()[1]) or LEGACY
    for name in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, pycuda
        handle = getattr(stream, name, None)
        if handle is not None:
            return int(getattr(handle, "value", handle) or 0) or LEGACY
    raise InputError(
        f"A {type(stream).__name__} was passed as a CUDA stream. Pass a stream of cuda-core, "
        "torch, CuPy, Numba or pycuda, or the handle of one as an int."
    )


def address_of_event(event: Any) -> int:
    """The handle of an event (a `cuda.core.Event`) as a number."""
    return int(event.handle)
