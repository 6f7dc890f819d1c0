"""Lanes: what they keep alive, and how long. CUDA is stood in for by objects that note the calls;
the driver's part is tested in test_array.py and test_graph.py.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.streams import LEGACY, Lane


class Event:
    """An event that the device passes when the test says so, or when the host waits for it."""

    def __init__(self) -> None:
        self.is_done = False

    def sync(self) -> None:
        self.is_done = True


class Stream:
    """A stream of cuda-core, which holds on to the object that it was made of."""

    def __init__(self, owner: Any = None) -> None:
        self.owner, self.handle = owner, 7
        self.waited: list[Any] = []

    def wait(self, other: Any) -> None:
        self.waited.append(other)


class Foreign:
    """A stream of another library."""

    def __init__(self, handle: int) -> None:
        self.ptr = handle


class Thing:
    """What a weak reference can be made to."""


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """CUDA's answers; `capturing` is what it says of every stream."""
    cuda = SimpleNamespace(capturing=0, default=Stream())
    # No stream of these tests is one of cuda-core to begin with.
    core = SimpleNamespace(Stream=SimpleNamespace, LEGACY_DEFAULT_STREAM=cuda.default)
    driver = SimpleNamespace(cuStreamIsCapturing=lambda handle: (0, cuda.capturing))
    monkeypatch.setattr(device, "current", lambda: SimpleNamespace(create_stream=Stream))
    monkeypatch.setattr(device, "core", lambda: core)
    monkeypatch.setattr(device, "driver", lambda: driver)
    monkeypatch.setattr(streams, "_THREAD", threading.local())
    monkeypatch.setattr(A, "_LATE", deque())
    return cuda


def test_what_is_kept_lives_until_the_device_has_passed_its_event():
    lane, event, thing = Lane(), Event(), Thing()
    alive = weakref.ref(thing)
    lane.keep(event, thing)
    del thing
    lane.let_go()
    assert alive() is not None
    event.is_done = True
    lane.let_go()
    assert alive() is None


def test_a_lane_that_goes_waits_for_the_device_first():
    lane, event, session = Lane(), Event(), Thing()
    context = np.zeros(1)  # not of Python alone, like a context of a library
    vars(session).update(lane=lane, context=context)
    passed: list[bool] = []
    weakref.finalize(context, lambda: passed.append(event.is_done))
    lane.keep(event, session)
    del lane, session, context
    gc.collect()
    assert passed == [True]


def test_the_lane_of_a_callers_stream_keeps_that_alive():
    given = Foreign(100)
    alive = weakref.ref(given)
    lane = streams.lane_on(given)
    del given
    gc.collect()
    assert alive() is not None
    assert streams.lane_on(100) is lane
    compute = lane.compute  # which memory refers to that is still to be freed on it
    streams._THREAD.lanes.clear()
    del lane
    gc.collect()
    assert alive() is not None
    del compute
    assert alive() is None


def test_lanes_of_the_streams_that_were_used_last_are_kept():
    given = {handle: Foreign(handle) for handle in range(100, 100 + streams.MOST_LANES)}
    lanes = {handle: streams.lane_on(stream) for handle, stream in given.items()}
    assert streams.lane_on(given[100]) is lanes[100]
    gone = weakref.ref(given[101])
    streams.lane_on(Foreign(500))
    assert len(streams._THREAD.lanes) == streams.MOST_LANES
    assert streams.lane_on(given[100]) is lanes[100]
    del given, lanes
    gc.collect()
    assert gone() is None


class Buffer:
    """Memory of the driver's pool."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.freed_on: list[Any] = []

    def close(self, stream: Any) -> None:
        if self.fails:
            raise RuntimeError("CUDA_ERROR_INVALID_VALUE")
        self.freed_on.append(stream)


@pytest.mark.parametrize("users", [set(), {LEGACY}])
def test_memory_that_is_dropped_in_a_capture_is_freed_after_it(cuda, users):
    stream, buffer = Stream(), Buffer()
    cuda.capturing = 1
    A._give_back(buffer, stream, users)
    A._give_back_late()
    assert buffer.freed_on == []
    assert stream.waited == [], "CUDA would break the capture off"
    cuda.capturing = 0
    A._give_back_late()
    assert buffer.freed_on == [stream]
    assert stream.waited == [cuda.default] * len(users)
    assert not A._LATE


def test_memory_that_cannot_be_freed_is_not_forgotten():
    stream, buffer = Stream(), Buffer(fails=True)
    A._give_back(buffer, stream, set())
    assert len(A._LATE) == 1
    buffer.fails = False
    A._give_back_late()
    assert buffer.freed_on == [stream]
    assert not A._LATE
