"""When a GPU worked, on the host's clock: CUDA events on the streams of launches."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xrt.kernels.cuda import device, streams


@dataclass(frozen=True)
class Mark:
    """What a launch left behind on its stream.

    Attributes:
        clock: The clock of the stream.
        event: Reached once the launch is done.
        enqueue_ns: When the host began to enqueue it.
    """

    clock: StreamClock
    event: Any
    enqueue_ns: int


class StreamClock:
    """The time of events on the stream of this thread's launches."""

    def __init__(self) -> None:
        self._stream = streams.lane().compute
        self._options = device.core().EventOptions(timing_enabled=True)
        self._origin = self._stream.record(options=self._options)
        self._origin.sync()
        self._origin_ns = time.perf_counter_ns()

    def mark(self, enqueue_ns: int) -> Mark:
        """Mark the end of the launch that was enqueued last."""
        return Mark(self, self._stream.record(options=self._options), enqueue_ns)

    def time_ns(self, event: Any) -> int:
        """When the device has reached `event`, which is waited for."""
        event.sync()
        milliseconds: float = event - self._origin
        return self._origin_ns + round(milliseconds * 1e6)


class DeviceClock:
    """Marks of launches from any threads."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def mark(self, enqueue_ns: int) -> Mark:
        """Mark the end of the launch that this thread enqueued last."""
        clock: StreamClock | None = getattr(self._threads, "clock", None)
        if clock is None:
            # Made after the first launch, so that one seems to end when it is waited for here.
            clock = self._threads.clock = StreamClock()
        return clock.mark(enqueue_ns)


def spans(marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """Start and end of each launch, for marks in the order in which they were made.

    A stream works in order, so a launch begins when it was enqueued, or when the one before it on
    its stream has ended.
    """
    ends: dict[Any, int] = {}
    found = []
    for mark in marks:
        end = mark.clock.time_ns(mark.event)
        start = min(max(mark.enqueue_ns, ends.get(mark.clock, 0)), end)
        ends[mark.clock] = end
        found.append((start, end))
    return found
