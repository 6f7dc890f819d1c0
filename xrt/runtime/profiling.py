"""Measure how batches run through a program: `Program.profile`."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrt.errors import InputError
from xrt.importers import split_example
from xrt.runtime.call import Call, Reader, as_iterable
from xrt.runtime.pipeline import Stream
from xrt.runtime.trace import Recorder, Trace

if TYPE_CHECKING:
    from xrt.runtime.program import Program


def profile(program: Program, batches: Iterable[Any], depth: int | None = None) -> Trace:
    """Run `batches` through `program` and measure. See `Program.profile`.

    Compiling happens before the clock starts, for what can be known of the batches: all of a
    sequence, the first of any other iterable, which is read as the clock runs.

    Raises:
        InputError: If there is no batch, or one does not fit the program.
    """
    batches = as_iterable(batches, "profile()")
    if not isinstance(batches, Sequence):
        iterator = iter(batches)
        first = list(itertools.islice(iterator, 1))
        batches = itertools.chain(first, iterator)
        known: Sequence[Any] = first
    else:
        known = batches
    if not known:
        raise InputError("profile() got no batches; pass at least one.")
    for batch in known:
        args, kwargs = split_example(batch)
        program.prepare(*args, **kwargs)
    recorder = Recorder(program.is_on_gpu)
    _forget_peak()
    begin = time.perf_counter_ns()
    if depth is None:
        _run(program, batches, recorder)
    else:
        for _ in Stream(program, batches, depth, recorder=recorder):
            pass
    wall = time.perf_counter_ns() - begin
    recorder.settle()
    return Trace.of(recorder.intervals, wall, peak_memory_bytes=_peak(), depth=depth)


def _run(program: Program, batches: Iterable[Any], recorder: Recorder) -> None:
    read = Reader(program, batches, recorder)
    while (call := read()) is not None:
        if call.error is not None:
            raise call.error
        for work in (Call.prepare, Call.launch, Call.finish):
            work(call)


_STATUS = Path("/proc/self/status")


def _forget_peak() -> None:
    """Let the system count the process's peak memory anew."""
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is older then
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """Bytes of the process's peak of resident memory, 0 if unknown."""
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        return int(found[1]) * 1024 if found else 0
    return 0
