"""Where the time of batches goes: reading, copies, host steps, launches, and the gaps between."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xrt.runtime.device_clock import DeviceClock, Mark, spans
from xrt.runtime.paths import path_of, writing
from xrt.runtime.schedule import Step

_LANES = {
    ("read", "input"): "reading",
    ("prepare", "input"): "reading",
    ("copy", "input"): "copies in",
    ("host", "input"): "host steps before",
    ("launch", "input"): "host steps before",
    ("launch", "launch"): "launches",
    ("host", "launch"): "host steps between",
    ("host", "output"): "host steps after",
    ("copy", "output"): "copies out",
}
LANES = tuple(dict.fromkeys(_LANES.values()))
"""What a timeline shows, from top to bottom."""


@dataclass(frozen=True)
class Interval:
    """One piece of work for one batch.

    Attributes:
        batch: Number of the batch.
        kind: "read", "prepare", "copy", "host" or "launch".
        label: Cluster, or operator and node, or what was read or copied.
        start_ns: Start on the host's monotonic clock, in nanoseconds.
        end_ns: End, likewise.
        phase: "input" before the launches of its batch, "launch" from the first of them to the
            last, "output" after them. In a stream each phase has its threads.
        enqueue_ns: When the host asked for it. A GPU begins later; elsewhere that is the start.
    """

    batch: int
    kind: str
    label: str
    start_ns: int
    end_ns: int
    phase: str = "launch"
    enqueue_ns: int | None = None

    @property
    def lane(self) -> str:
        """Its kind of row in a timeline, one of `LANES`."""
        return _LANES[self.kind, self.phase]


class Recorder:
    """Collects intervals, from any thread.

    Args:
        is_on_gpu: Whether the host only enqueues a step, and CUDA events tell when it ran.
    """

    def __init__(self, is_on_gpu: Callable[[Step], bool] = lambda step: False) -> None:
        self.intervals: list[Interval] = []
        self._is_on_gpu = is_on_gpu
        self._clock = DeviceClock()
        self._enqueued: list[tuple[int, str, str, Mark]] = []

    def add(self, batch: int, kind: str, label: str, start: int, end: int, phase: str) -> None:
        """Take note of an interval; times are in nanoseconds."""
        self.intervals.append(Interval(batch, kind, label, start, end, phase, start))

    @contextlib.contextmanager
    def span(self, batch: int, kind: str, label: str, phase: str) -> Iterator[None]:
        """Take note of how long the body takes, unless it raises."""
        start = time.perf_counter_ns()
        yield
        self.add(batch, kind, label, start, time.perf_counter_ns(), phase)

    def steps(self, batch: int, phase: str) -> Callable[[Step, int, int], None]:
        """What a schedule is to call after each step."""

        def record(step: Step, start: int, end: int) -> None:
            if self._is_on_gpu(step):
                self._enqueued.append((batch, step.label, phase, self._clock.mark(start)))
            else:
                self.add(batch, step.kind, step.label, start, end, phase)

        return record

    def settle(self) -> None:
        """Wait for what was enqueued, and take note of when it ran."""
        times = spans([mark for *_, mark in self._enqueued])
        for (batch, label, phase, mark), (start, end) in zip(self._enqueued, times, strict=True):
            each = Interval(batch, "launch", label, start, end, phase, mark.enqueue_ns)
            self.intervals.append(each)
        self._enqueued.clear()


@dataclass(frozen=True)
class Trace:
    """What `Program.profile` measured. Times are in milliseconds per batch, means over batches.

    Attributes:
        batches: Number of batches.
        wall_ms: From asking for the first batch to the last output, for one batch.
        busy_ms: Spent in launches and in the host steps between them. For a program without
            launches, in host steps.
        intervals: All work.
        latencies_ms: For each batch the time from when it was read to its outputs.
        peak_memory_bytes: Most resident memory of the process while the batches ran. 0 where the
            system does not tell.
        depth: Most batches in flight; None if they ran one after the other.
    """

    batches: int
    wall_ms: float
    busy_ms: float
    intervals: tuple[Interval, ...]
    latencies_ms: tuple[float, ...] = ()
    peak_memory_bytes: int = 0
    depth: int | None = None

    @classmethod
    def of(
        cls,
        intervals: Iterable[Interval],
        wall_ns: int,
        *,
        peak_memory_bytes: int = 0,
        depth: int | None = None,
    ) -> Trace:
        """The trace of what happened within `wall_ns`, with whatever follows from it."""
        work = tuple(sorted(intervals, key=lambda each: (each.start_ns, each.end_ns)))
        count = len({each.batch for each in work if each.kind != "read"})
        busy = sum(end - start for start, end in busy_spans(work))
        each = max(count, 1) * 1e6
        return cls(
            count, wall_ns / each, busy / each, work, latencies(work), peak_memory_bytes, depth
        )

    @property
    def gap_ms(self) -> float:
        """Wall time minus busy time: how long the device waits."""
        return self.wall_ms - self.busy_ms

    @property
    def gap_fraction(self) -> float:
        """The gap as a part of the wall time."""
        return self.gap_ms / self.wall_ms if self.wall_ms else 0.0

    @property
    def launches_per_batch(self) -> float:
        """Launches of executables in a batch."""
        launches = sum(interval.kind == "launch" for interval in self.intervals)
        return launches / max(self.batches, 1)

    def latency_ms(self, percentile: float) -> float:
        """The latency that `percentile` percent of the batches do not exceed."""
        if not self.latencies_ms:
            return 0.0
        return float(np.percentile(self.latencies_ms, percentile))

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return self.latency_ms(50)

    @property
    def p90_ms(self) -> float:
        """Latency that nine of ten batches do not exceed."""
        return self.latency_ms(90)

    @property
    def p99_ms(self) -> float:
        """Latency that 99 of 100 batches do not exceed."""
        return self.latency_ms(99)

    def lanes(self) -> dict[str, float]:
        """Milliseconds per batch that each lane is occupied, from top to bottom."""
        spans: dict[str, list[tuple[int, int]]] = {lane: [] for lane in LANES}
        for each in self.intervals:
            spans[each.lane].append((each.start_ns, each.end_ns))
        totals = {lane: sum(b - a for a, b in union(each)) for lane, each in spans.items()}
        return {lane: n / 1e6 / max(self.batches, 1) for lane, n in totals.items() if n}

    def gaps(self) -> tuple[tuple[int, int], ...]:
        """Start and end, in nanoseconds, of each time in which the device waits."""
        spans = busy_spans(self.intervals)
        return tuple((a[1], b[0]) for a, b in itertools.pairwise(spans))

    def save(self, path: str | Path) -> None:
        """Write the trace in Chrome's trace-event format, which Perfetto opens.

        Each row of a lane is a thread there; arrows lead from a batch's reading to its outputs.

        Raises:
            OptionError: If `path` is no path.
            ProgramWriteError: If the file cannot be written.
        """
        target = path_of(path, "Trace.save")
        document = {"traceEvents": _events(self), "displayTimeUnit": "ms"}
        with writing(target, "trace"):
            target.write_text(json.dumps(document), encoding="utf-8")

    def plot(self, path: str | Path, *, batches: int = 8) -> None:
        """Draw lanes over time, with the gaps marked, as an image: "timeline.png".

        Args:
            path: Where to; the suffix names any format that Pillow writes.
            batches: At most so many, from the middle of the run, so that single steps show.

        Raises:
            MissingDependencyError: Without the package Pillow.
            OptionError: If the suffix names no such format.
            ProgramWriteError: If the file cannot be written.
        """
        from xrt.runtime.timeline import draw

        draw(self, path_of(path, "Trace.plot"), batches)

    def __str__(self) -> str:
        how = f", {self.depth} in flight" if self.depth else ""
        return (
            f"{self.batches} batches{how}, {self.wall_ms:.3f} ms each: busy {self.busy_ms:.3f} ms, "
            f"gap {self.gap_ms:.3f} ms ({self.gap_fraction:.2%}), "
            f"{self.launches_per_batch:g} launches a batch"
        )


def busy_spans(intervals: Sequence[Interval]) -> list[tuple[int, int]]:
    """When the device works: launches and host steps between them, overlapping ones joined.

    Without launches the host is the device, and its steps count.
    """
    launches = any(each.kind == "launch" for each in intervals)
    work = [
        (each.start_ns, each.end_ns)
        for each in intervals
        if each.kind in ("launch", "host") and (each.phase == "launch" or not launches)
    ]
    return union(work)


def union(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order of time, those that touch or overlap joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def rows(intervals: Iterable[Interval]) -> dict[str, list[Interval]]:
    """The intervals of each lane; those that overlap have rows of their own, "launches 2"."""
    found: dict[str, list[Interval]] = {}
    order = sorted(intervals, key=lambda each: (each.start_ns, each.end_ns))
    for lane in LANES:
        apart: list[list[Interval]] = []
        for each in (each for each in order if each.lane == lane):
            free = (row for row in apart if row[-1].end_ns <= each.start_ns)
            row = next(free, None)
            if row is None:
                apart.append(row := [])
            row.append(each)
        found |= {f"{lane} {i}" if i > 1 else lane: row for i, row in enumerate(apart, 1)}
    return found


def latencies(intervals: Iterable[Interval]) -> tuple[float, ...]:
    """Milliseconds from the end of reading a batch, or its first work, to its last, by batch."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for each in intervals:
        if each.kind != "read":
            first[each.batch] = min(first.get(each.batch, each.start_ns), each.start_ns)
            last[each.batch] = max(last.get(each.batch, 0), each.end_ns)
    reads = {each.batch: each.end_ns for each in intervals if each.kind == "read"}
    return tuple((last[batch] - reads.get(batch, first[batch])) / 1e6 for batch in sorted(first))


def _events(trace: Trace) -> list[dict[str, Any]]:
    """The trace events: names of lanes, work, and for each batch the arrows that lead through."""
    origin = min((each.start_ns for each in trace.intervals), default=0)
    threads: dict[Interval, int] = {}
    events: list[dict[str, Any]] = [_meta("process_name", 0, name="xrt")]
    for thread, (lane, row) in enumerate(rows(trace.intervals).items(), 1):
        events.append(_meta("thread_name", thread, name=lane))
        events.append(_meta("thread_sort_index", thread, sort_index=thread))
        threads |= dict.fromkeys(row, thread)
    for each in trace.intervals:
        start, length = (each.start_ns - origin) / 1e3, (each.end_ns - each.start_ns) / 1e3
        args = {"batch": each.batch, "enqueue_us": _since(origin, each)}
        what = {"name": each.label, "cat": each.kind, "ph": "X", "pid": 1}
        where = {"tid": threads[each], "ts": start, "dur": length, "args": args}
        events.append(what | where)
    ways: dict[int, list[Interval]] = {}
    for each in trace.intervals:
        ways.setdefault(each.batch, []).append(each)
    for batch, way in sorted(ways.items()):
        if len(way) > 1:
            phases = ["s", *["t"] * (len(way) - 2), "f"]
            for phase, each in zip(phases, way, strict=True):
                what = {"name": "batch", "cat": "batch", "ph": phase, "id": batch, "bp": "e"}
                start = (each.start_ns - origin) / 1e3
                events.append(what | {"pid": 1, "tid": threads[each], "ts": start})
    return events


def _since(origin: int, each: Interval) -> float:
    asked = each.start_ns if each.enqueue_ns is None else each.enqueue_ns
    return (asked - origin) / 1e3


def _meta(kind: str, thread: int, **args: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": thread, "args": args}
