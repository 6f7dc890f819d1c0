"""Where the time of a batch goes: every launch and host step, and the gaps between them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrt.errors import InputError
from xrt.importers import split_example
from xrt.runtime import arrays

if TYPE_CHECKING:
    from xrt.runtime.program import Program


@dataclass(frozen=True)
class Interval:
    """One step of one batch.

    Attributes:
        batch: Number of the batch.
        kind: "launch" or "host".
        label: Cluster, or operator and node.
        start_ns: Start on the host's monotonic clock, in nanoseconds.
        end_ns: End, likewise.
    """

    batch: int
    kind: str
    label: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class Trace:
    """What `Program.profile` measured. Times are in milliseconds per batch, means over batches.

    Attributes:
        batches: Number of batches.
        wall_ms: From one batch's start to the next one's.
        busy_ms: Spent in launches and host steps.
        intervals: Every step.
    """

    batches: int
    wall_ms: float
    busy_ms: float
    intervals: tuple[Interval, ...]

    @property
    def gap_ms(self) -> float:
        """Wall time minus busy time."""
        return self.wall_ms - self.busy_ms

    @property
    def gap_fraction(self) -> float:
        """The gap as a part of the wall time."""
        return self.gap_ms / self.wall_ms if self.wall_ms else 0.0

    @property
    def launches_per_batch(self) -> float:
        """Launches of executables in a batch."""
        launches = sum(interval.kind == "launch" for interval in self.intervals)
        return launches / self.batches

    def save(self, path: str | Path) -> None:
        """Write the trace in Chrome's trace-event format, which Perfetto opens."""
        events = [
            {
                "name": interval.label,
                "cat": interval.kind,
                "ph": "X",
                "ts": interval.start_ns / 1000,
                "dur": (interval.end_ns - interval.start_ns) / 1000,
                "pid": 0,
                "tid": interval.kind,
                "args": {"batch": interval.batch},
            }
            for interval in self.intervals
        ]
        Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))

    def __str__(self) -> str:
        return (
            f"{self.batches} batches, {self.wall_ms:.3f} ms each: busy {self.busy_ms:.3f} ms, "
            f"gap {self.gap_ms:.3f} ms ({self.gap_fraction:.2%}), "
            f"{self.launches_per_batch:g} launches a batch"
        )


def profile(program: Program, batches: Iterable[Any]) -> Trace:
    """Run `batches` through `program` and measure; compiling happens before the clock starts.

    Raises:
        InputError: If there is no batch, or one does not fit the program.
    """
    work: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = [split_example(b) for b in batches]
    if not work:
        raise InputError("profile() got no batches; pass at least one.")
    for args, kwargs in work:
        program.prepare(*args, **kwargs)
    intervals: list[Interval] = []
    begin = time.perf_counter_ns()
    for number, (args, kwargs) in enumerate(work):
        _run(program, args, kwargs, number, intervals)
    wall = time.perf_counter_ns() - begin
    busy = sum(interval.end_ns - interval.start_ns for interval in intervals)
    count = len(work)
    return Trace(count, wall / count / 1e6, busy / count / 1e6, tuple(intervals))


def _run(
    program: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    number: int,
    intervals: list[Interval],
) -> None:
    specialization, leaves = program.locate(args, kwargs)
    kind = arrays.kind_of(leaves)
    results = specialization.run(
        leaves,
        record=lambda step, start, end: intervals.append(
            Interval(number, step.kind, step.label, start, end)
        ),
    )
    specialization.imported.interface.unflatten([arrays.give(each, kind) for each in results])
