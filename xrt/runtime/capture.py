"""CUDA graphs for the launches of a schedule: captured once for a signature, then replayed.

Launches that follow each other with nothing but the GPU between them are one graph, and one call of
the driver, instead of thousands. The graph works in memory of its own: what a call brings is copied
there, and what it computed copied out, both on the device. A large input that lies at one address
call after call is read where it is; when the address changes the graph is updated in place, and
after a few such changes the input is copied like the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.engines.engine import Executable
from xrt.errors import EngineRunError
from xrt.kernels import host
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, staging, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.graph import Graph
from xrt.kernels.cuda.streams import Lane
from xrt.runtime.schedule import Record, Schedule, Step, build_schedule

WARM_UP = 2
"""Calls that run launch by launch first: libraries compile and allocate in the first."""

COPIED_BYTES = 1 << 20
"""An input up to this size is always copied: that costs a microsecond."""

MOST_SHAPES = 8
"""Where one schedule serves several shapes: graphs that are kept, each for one."""

MOST_UPDATES = 4
"""After so many changes of its address a large input is copied too."""


def schedule(
    model: ir.Model, executables: Mapping[str, Executable], *, keep_memory: bool = True
) -> Schedule:
    """The schedule of an outlined model, with graphs for the launches that can be captured.

    Args:
        model: The graph, where `xrt::Cluster` nodes stand for clusters.
        executables: Executable by cluster name.
        keep_memory: Whether launches use memory of earlier calls again.
    """

    def is_capturable(step: Step) -> bool:
        executable = executables.get(step.label)
        if executable is None:  # a kernel of the user's on a GPU, or one on the host
            kernel = getattr(step.run, "__self__", None)
            return isinstance(kernel, host.HostKernel) and kernel.capturable
        return step.memory is None and executable.capturable

    return over(build_schedule(model, executables, keep_memory=keep_memory), is_capturable)


def over(schedule: Schedule, is_capturable: Callable[[Step], bool]) -> Schedule:
    """`schedule`, with graphs for its launches if any can be captured; else itself.

    Args:
        schedule: What runs.
        is_capturable: Whether a step may be captured now.
    """
    segments = _segments(schedule.steps, is_capturable)
    return CapturingSchedule(schedule, segments, is_capturable) if segments else schedule


def _segments(steps: Sequence[Step], is_capturable: Callable[[Step], bool]) -> list[range]:
    """The longest runs of steps that can be captured."""
    found: list[range] = []
    for number, step in enumerate(steps):
        if not is_capturable(step):
            continue
        if found and found[-1].stop == number:
            found[-1] = range(found[-1].start, number + 1)
        else:
            found.append(range(number, number + 1))
    return found


class CapturingSchedule(Schedule):
    """A schedule that replays graphs in place of some of its steps.

    Attributes:
        segments: Numbers of the steps that are captured together.
    """

    def __init__(
        self, schedule: Schedule, segments: list[range], is_capturable: Callable[[Step], bool]
    ) -> None:
        vars(self).update(vars(schedule))
        self.segments = segments
        self._is_capturable = is_capturable
        self._reads = [_boundary(self._within(segment))[0] for segment in segments]

    def _within(self, segment: range) -> Sequence[Step]:
        return self.steps[segment.start : segment.stop]

    def advance(self, values: list[Any], numbers: range, record: Record | None = None) -> None:
        """Run the steps of these numbers, captured ones as one; each by itself if measured."""
        if record is not None or not device.support():
            super().advance(values, numbers, record)
            return
        position = numbers.start
        for index, segment in enumerate(self.segments):
            if segment.start < position or segment.stop > numbers.stop:
                continue
            super().advance(values, range(position, segment.start))
            replay = self.replay(index, values)
            replay.run(values, partial(super().advance, numbers=segment))
            position = segment.stop
        super().advance(values, range(position, numbers.stop))

    def replay(self, index: int, values: Sequence[Any]) -> Replay:
        """The state of a segment on the lane of this thread, for the shapes of `values`."""
        lane = streams.lane()
        known: dict[Any, Replay] = lane.kept.setdefault(self, {})
        arrays = [values[slot] for slot in self._reads[index]]
        key = index, *((tuple(array.shape), str(array.dtype)) for array in arrays)
        found = known.pop(key, None)
        if found is None:
            if len(known) >= MOST_SHAPES * len(self.segments):
                known.pop(next(iter(known))).forget()  # the one that was used least recently
            found = Replay(self._within(self.segments[index]), self._is_capturable, lane)
        known[key] = found
        return found


class Replay:
    """A segment on one lane: how often it ran, its graph, and the memory that that works in.

    It does not refer to the schedule, whose end is its own.

    Attributes:
        graph: The graph; None before it was captured.
        failed: Why the segment cannot be captured; empty if it can.
    """

    def __init__(
        self, steps: Sequence[Step], is_capturable: Callable[[Step], bool], lane: Lane
    ) -> None:
        self.graph: Graph | None = None
        self.failed = ""
        self._steps, self._is_capturable, self._lane = steps, is_capturable, lane
        self._reads, self._writes, self._frees = _boundary(steps)
        self._calls = 0
        self._staging = staging.Staging(lane)
        self._fixed: dict[int, DeviceArray] = {}
        self._direct: dict[int, int] = {}
        self._changes: Counter[int] = Counter()
        self._is_stale = True
        self._results: dict[int, DeviceArray] = {}

    def run(self, values: list[Any], eagerly: Callable[[list[Any]], None]) -> None:
        """Run the segment on the slots of a call; `eagerly` does so launch by launch."""
        if self._calls < WARM_UP or self.failed:
            self._calls += 1
            eagerly(values)
            return
        if self.graph is None and not all(map(self._is_capturable, self._steps)):
            eagerly(values)  # a library may still compile what it will replay
            return
        try:
            arrays = self._take(values)
            self._prepare(values, arrays, eagerly)
        except EngineRunError as error:
            self.failed = str(error)
            self.forget()
            eagerly(values)
            return
        assert self.graph is not None
        self.graph.launch(self._lane)
        self._give(values, arrays)

    def _take(self, values: list[Any]) -> dict[int, DeviceArray]:
        """The inputs on the device, ordered on the lane."""
        lane = self._lane
        arrays: dict[int, DeviceArray] = {}
        frame = None
        for slot in self._reads:
            value = values[slot]
            if A.is_on_device(value):
                arrays[slot] = A.of(value, lane)
                arrays[slot].wait_on(lane.compute)
                continue
            if frame is None:
                frame = self._staging.frame()
            host = np.asarray(value)
            arrays[slot] = frame.put(str(slot), host, host.dtype)
            self._fix(slot, arrays[slot])
        if frame is not None:
            frame.end()
        for slot, array in arrays.items():
            self._place(slot, array)
        if frame is not None:
            lane.compute.record(frame.consumed)
        return arrays

    def _place(self, slot: int, array: DeviceArray) -> None:
        """Copy an input to where the graph reads it, unless that is where it lies."""
        if slot not in self._fixed and (
            array.nbytes <= COPIED_BYTES or self._changes[slot] >= MOST_UPDATES
        ):
            self._fix(slot, array)
        if slot in self._fixed:
            staging.copy(self._fixed[slot].pointer, array.pointer, array.nbytes, self._lane.compute)

    def _fix(self, slot: int, array: DeviceArray) -> None:
        """Give an input a place of its own, which the graph reads from then on."""
        if slot not in self._fixed:
            self._fixed[slot] = A.empty(array.shape, array.dtype, self._lane, "a graph's input")
            self._is_stale = True

    def _prepare(
        self,
        values: list[Any],
        arrays: dict[int, DeviceArray],
        eagerly: Callable[[list[Any]], None],
    ) -> None:
        """Capture the segment, or again if an input that is read in place lies elsewhere."""
        lane = self._lane
        moved = [
            slot
            for slot, array in arrays.items()
            if slot not in self._fixed and self._direct.get(slot) != array.pointer
        ]
        if not (moved or self._is_stale):
            return
        if self.graph is None:
            self.graph = Graph()
        else:
            self._changes.update(moved)
        # Only the address is kept: to keep the array would make its owner take another next time.
        self._direct.update((slot, arrays[slot].pointer) for slot in moved)
        work = list(values)
        for slot, array in arrays.items():
            work[slot] = self._fixed[slot] if slot in self._fixed else array.on(lane)

        def enqueue() -> None:
            eagerly(work)
            for slot in self._writes:
                if not isinstance(work[slot], DeviceArray):
                    raise EngineRunError("a launch gave a result on the host")

        self.graph.capture(lane, enqueue)
        self._results = {slot: work[slot] for slot in self._writes}
        self._is_stale = False

    def _give(self, values: list[Any], arrays: dict[int, DeviceArray]) -> None:
        """Copies of the graph's results, which the next call overwrites."""
        lane = self._lane
        for slot, result in self._results.items():
            made = A.empty(result.shape, result.dtype, lane, "an output")
            staging.copy(made.pointer, result.pointer, result.nbytes, lane.compute)
            values[slot] = made
        event = lane.compute.record()
        for slot in self._results:
            values[slot].done_at(event)
        # The graph and its memory, too, may be dropped while the device is at work.
        lane.keep(event, self, [a for a in arrays.values() if not a.is_at_home(lane)])
        for slot in self._frees:
            values[slot] = None

    def forget(self) -> None:
        """Drop the graph and its memory."""
        self.graph, self._is_stale = None, True
        self._fixed, self._direct, self._results = {}, {}, {}
        self._staging.release()


def _boundary(steps: Sequence[Step]) -> tuple[list[int], list[int], list[int]]:
    """The slots that steps read and did not write, those that they leave written, and free."""
    written: dict[int, None] = {}
    reads: dict[int, None] = {}
    freed: dict[int, None] = {}
    for step in steps:
        reads.update((slot, None) for slot in step.inputs if slot >= 0 and slot not in written)
        written.update((slot, None) for slot in step.outputs if slot >= 0)
        freed.update((slot, None) for slot in step.frees if slot >= 0)
    return list(reads), [slot for slot in written if slot not in freed], list(freed)
