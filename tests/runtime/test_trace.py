"""Traces: their arithmetic on intervals made by hand, what they are saved and drawn as."""

from __future__ import annotations

import itertools
import json
import sys
import threading

import numpy as np
import onnx
import pytest
from PIL import Image

import xrt
from tests.support import model
from xrt import custom
from xrt.errors import InputError, MissingDependencyError, OptionError, ProgramWriteError
from xrt.runtime import timeline
from xrt.runtime.device_clock import Mark, spans
from xrt.runtime.layout import ALIGNMENT
from xrt.runtime.memory import allocate
from xrt.runtime.staging import Staging
from xrt.runtime.trace import Interval, Trace, busy_spans, rows, union

MS = 1_000_000

# Two batches in flight: read, copied, launched for 10 ms, given out; the device waits for 1 ms.
WORK = (
    Interval(0, "read", "read", 0, 2 * MS, "input"),
    Interval(0, "copy", "copy inputs", 2 * MS, 3 * MS, "input"),
    Interval(0, "launch", "c0", 3 * MS, 9 * MS, "launch", 3 * MS),
    Interval(0, "host", "NonZero", 9 * MS, 11 * MS, "launch"),
    Interval(0, "launch", "c1", 11 * MS, 13 * MS, "launch"),
    Interval(1, "read", "read", 4 * MS, 6 * MS, "input"),
    Interval(1, "copy", "copy inputs", 6 * MS, 7 * MS, "input"),
    Interval(0, "copy", "give outputs", 13 * MS, 15 * MS, "output"),
    Interval(1, "launch", "c0", 14 * MS, 20 * MS, "launch"),
    Interval(1, "host", "NonZero", 20 * MS, 22 * MS, "launch"),
    Interval(1, "launch", "c1", 22 * MS, 24 * MS, "launch"),
    Interval(1, "host", "Add", 24 * MS, 25 * MS, "output"),
    Interval(1, "copy", "give outputs", 25 * MS, 26 * MS, "output"),
)
TRACE = Trace.of(WORK, 26 * MS, peak_memory_bytes=7, depth=2)


def test_union_joins_what_overlaps_or_touches():
    assert union([(5, 7), (0, 2), (1, 3), (3, 4), (6, 6)]) == [(0, 4), (5, 7)]
    assert union([]) == []


def test_busy_are_launches_and_the_host_steps_between_them():
    assert busy_spans(WORK) == [(3 * MS, 13 * MS), (14 * MS, 24 * MS)]


def test_without_launches_host_steps_are_busy():
    steps = [
        Interval(0, "host", "a", 0, 3, "launch"),
        Interval(0, "copy", "copy", 3, 4, "output"),
        Interval(1, "host", "a", 2, 5, "input"),
    ]
    assert busy_spans(steps) == [(0, 5)]


def test_numbers_of_a_trace():
    assert TRACE.batches == 2
    assert (TRACE.wall_ms, TRACE.busy_ms, TRACE.gap_ms) == (13, 10, 3)
    assert TRACE.gap_fraction == pytest.approx(3 / 13)
    assert TRACE.launches_per_batch == 2
    assert TRACE.gaps() == ((13 * MS, 14 * MS),)
    assert TRACE.peak_memory_bytes == 7
    assert TRACE.lanes() == {
        "reading": 2, "copies in": 1, "launches": 8, "host steps between": 2,
        "host steps after": 0.5, "copies out": 1.5,
    }  # fmt: skip
    assert "2 in flight" in str(TRACE)
    assert "2 launches a batch" in str(TRACE)


def test_latency_is_from_having_read_a_batch_to_its_outputs():
    assert TRACE.latencies_ms == (13, 20)
    assert TRACE.p50_ms == TRACE.latency_ms(50) == 16.5
    assert TRACE.p90_ms == pytest.approx(19.3)
    assert TRACE.p99_ms == pytest.approx(19.93)
    assert Trace(0, 0.0, 0.0, ()).p50_ms == 0


def test_saved_as_trace_events(tmp_path):
    TRACE.save(tmp_path / "trace.json")
    saved = json.loads((tmp_path / "trace.json").read_text())
    events = saved["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(names.values()) == list(TRACE.lanes())
    work = [event for event in events if event["ph"] == "X"]
    assert len(work) == len(WORK)
    for event, interval in zip(work, TRACE.intervals, strict=True):
        assert names[event["tid"]] == interval.lane
        assert event["name"] == interval.label
        assert (event["ts"], event["dur"]) == (
            interval.start_ns / 1000,
            (interval.end_ns - interval.start_ns) / 1000,
        )
        assert event["args"] == {"batch": interval.batch, "enqueue_us": event["ts"]}
    assert all(event["pid"] == 1 for event in events)
    for batch in (0, 1):
        flow = [e for e in events if e["ph"] in "stf" and e.get("id") == batch]
        assert [e["ph"] for e in flow][:: len(flow) - 1] == ["s", "f"]
        assert {e["ph"] for e in flow[1:-1]} == {"t"}
        assert len(flow) == sum(each.batch == batch for each in WORK)
        assert [e["ts"] for e in flow] == sorted(e["ts"] for e in flow)


def test_work_of_one_lane_never_overlaps_in_a_stream():
    text = "g (float[4] x) => (int64[1,k] w) { e = Exp (x) w = NonZero (e) }"
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0)
    program = xrt.compile(model(text), options=options)
    trace = program.profile([np.ones(4, np.float32)] * 50, depth=2)
    assert set(trace.lanes()) >= {"reading", "copies in", "launches", "host steps after"}
    for lane in trace.lanes():
        spans = sorted((e.start_ns, e.end_ns) for e in trace.intervals if e.lane == lane)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@pytest.fixture(scope="module")
def program():
    text = "g (float[n] x) => (int64[1,k] w) { h = NonZero (x) c = Cast <to = 1> (h) "
    text += "e = Exp (c) s = Sigmoid (e) w = NonZero (s) }"
    return xrt.compile(model(text), options=xrt.CompileOptions(cache=False))


X = np.ones(4, np.float32)


@pytest.mark.parametrize("depth", [None, 1, 3])
def test_a_profile_holds_every_step_of_every_batch(program, depth):
    trace = program.profile([X] * 5, depth=depth)
    assert (trace.batches, trace.depth, len(trace.latencies_ms)) == (5, depth, 5)
    schedule = program.specialization.schedule
    for number in range(5):
        steps = [e for e in trace.intervals if e.batch == number and e.kind in ("host", "launch")]
        assert [e.label for e in steps] == [step.label for step in schedule.steps]
        assert all(e.enqueue_ns == e.start_ns for e in steps)
        order = [e for e in trace.intervals if e.batch == number]
        assert [e.phase for e in order] == sorted(
            (e.phase for e in order), key=["input", "launch", "output"].index
        )
    assert trace.gap_ms == trace.wall_ms - trace.busy_ms
    assert 0 <= trace.gap_fraction <= 1
    assert min(trace.latencies_ms) > 0
    assert trace.peak_memory_bytes > 0 or sys.platform != "linux"
    copied = any(e.lane == "copies in" for e in trace.intervals)
    assert copied == (depth is not None)  # a call one at a time shares the caller's memory


def test_an_iterator_is_read_while_the_clock_runs(program):
    seen = []

    def batches():
        for number in range(4):
            seen.append((number, threading.current_thread().name))
            yield X

    trace = program.profile(batches(), depth=2)
    assert [number for number, _ in seen] == [0, 1, 2, 3]
    assert {name for _, name in seen[1:]} == {"xrt-input"}
    assert trace.batches == 4
    assert {e.batch for e in trace.intervals if e.kind == "read"} == {0, 1, 2, 3}


@pytest.mark.parametrize("depth", [None, 2])
def test_what_goes_wrong_in_a_profile_is_raised(program, depth):
    def batches():
        yield X
        raise LookupError("no more files")

    with pytest.raises(LookupError, match="no more files"):
        program.profile(batches(), depth=depth)
    with pytest.raises(InputError, match="no batches"):
        program.profile(iter([]), depth=depth)
    with pytest.raises(InputError):
        program.profile([X, None], depth=depth)


def test_depth_of_a_profile_is_checked(program):
    with pytest.raises(OptionError, match="depth"):
        program.profile([X], depth=0)


class Squares:
    """A data set that only has `__getitem__`; it ends by its length, or by an IndexError."""

    def __init__(self, count, error=IndexError):
        self.count, self.error = count, error

    def __getitem__(self, index):
        if index >= self.count:
            raise self.error(index)
        return X * index


class Sized(Squares):
    def __len__(self):
        return self.count


@pytest.mark.parametrize("batches", [Squares(3), Sized(3, ArithmeticError)])
def test_data_sets_without_an_iterator_are_batches(program, batches):
    want = [program(X * number) for number in range(3)]
    for got, expected in zip(program.stream(batches), want, strict=True):
        np.testing.assert_equal(got, expected)
    assert [program.profile(batches, depth=depth).batches for depth in (None, 2)] == [3, 3]


@pytest.mark.parametrize("batches", [5, None, "ab", b"ab", {"x": X}, np.array(1.0), list])
@pytest.mark.parametrize("depth", [None, 2])
def test_what_holds_no_batches_is_named(program, batches, depth):
    kind = type(batches).__name__
    with pytest.raises(InputError, match=rf"^profile\(\) takes an iterable .*got a {kind}\. Each"):
        program.profile(batches, depth=depth)
    with pytest.raises(InputError, match=rf"^stream\(\) takes an iterable .*got a {kind}\. Each"):
        program.stream(batches)


class Clock:
    """A stream of which the events are the times at which they are reached."""

    def time_ns(self, event):
        return event


def test_launches_of_a_stream_begin_when_they_are_enqueued_or_the_one_before_has_ended():
    one, other = Clock(), Clock()
    marks = [
        Mark(one, 30, 10),  # the stream was idle
        Mark(one, 50, 12),  # it waits for the first
        Mark(other, 45, 40),
        Mark(one, 90, 80),
        Mark(one, 95, 97),  # clocks agree to some microseconds only
    ]
    assert spans(marks) == [(10, 30), (30, 50), (40, 45), (80, 90), (95, 95)]


@pytest.mark.gpu
@pytest.mark.parametrize("depth", [None, 2])
def test_launches_on_a_gpu_are_timed_by_its_events(depth):
    kernel = xrt.CudaKernel(
        """
        extern "C" __global__ void slow(const IN0* x, OUT0* y, long long size) {
            long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
            if (i < size) { float v = x[i]; for (int k = 0; k < 20000; ++k) v = sinf(v); y[i] = v; }
        }
        """,
        "slow",
    )
    xrt.register_kernel("com.example", "Slow", kernel)
    try:
        program = xrt.compile(
            onnx.parser.parse_model(
                '<ir_version: 10, opset_import: ["": 21, "com.example": 1]> '
                "g (float[65536] x) => (float[65536] y) { y = com.example.Slow(x) }"
            ),
            engine="host",
        )
        trace = program.profile([np.ones(65536, np.float32)] * 6, depth=depth)
    finally:
        custom.unregister_kernel("com.example", "Slow")
    launches = [each for each in trace.intervals if each.kind == "launch"]
    assert len(launches) == 6
    assert all(each.enqueue_ns <= each.start_ns < each.end_ns for each in launches)
    assert all(a.end_ns <= b.start_ns for a, b in itertools.pairwise(launches))


# --- timelines -----------------------------------------------------------------------------------


def test_drawn_as_an_image(tmp_path):
    TRACE.plot(tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as image:
        image.verify()
    with Image.open(tmp_path / "timeline.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    red = (pixels == (214, 39, 40)).all(axis=2)
    rows, columns = np.nonzero(red)
    assert rows.min() > pixels.shape[0] * 0.7  # the gap is in the lowest lane,
    width = (columns.max() - columns.min()) / pixels.shape[1]
    assert 0.02 < width < 0.06  # and takes 1 ms of 26


def test_a_trace_of_one_batch_and_one_without_gaps_can_be_drawn(tmp_path):
    for work in (WORK[:1], WORK[2:3]):
        Trace.of(work, 9 * MS).plot(tmp_path / "timeline.jpg")
        with Image.open(tmp_path / "timeline.jpg") as image:
            assert image.format == "JPEG"


def test_an_empty_trace_cannot_be_drawn(tmp_path):
    with pytest.raises(InputError, match="no work"):
        Trace(0, 0.0, 0.0, ()).plot(tmp_path / "timeline.png")


def test_a_suffix_that_names_no_format_of_images(tmp_path):
    with pytest.raises(OptionError, match=r"format '\.xyz' is unknown\. Known .*\.jpg.*\.png"):
        TRACE.plot(tmp_path / "timeline.xyz")
    with pytest.raises(OptionError, match="format '' is unknown"):
        TRACE.plot(tmp_path / "timeline")
    assert list(tmp_path.iterdir()) == []
    TRACE.plot(tmp_path / "timeline.PNG")


@pytest.mark.parametrize(("name", "write"), [("a.json", TRACE.save), ("a.png", TRACE.plot)])
def test_places_where_no_trace_can_be_written(tmp_path, name, write):
    with pytest.raises(ProgramWriteError, match=r"absent/a.*: there is no folder") as caught:
        write(tmp_path / "absent" / name)
    assert isinstance(caught.value, OSError)
    (tmp_path / name).mkdir()
    with pytest.raises(ProgramWriteError, match=r"could not be written to .*: Is a directory"):
        write(tmp_path / name)
    for path in (None, 5, "a\0b"):
        with pytest.raises(OptionError, match="the path of a file is a str"):
            write(path)


def test_a_long_trace_is_saved_in_linear_time(tmp_path):
    looks = 0

    class Counted(Interval):
        """Counts how often its batch is looked at."""

        def __getattribute__(self, name):
            nonlocal looks
            looks += name == "batch"
            return super().__getattribute__(name)

    work = tuple(Counted(n, "launch", "c0", n, n + 1) for n in range(300))
    trace = Trace.of(work, 300)
    looks = 0
    trace.save(tmp_path / "trace.json")
    assert looks < 10 * len(work)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"xrt\[image\]"):
        TRACE.plot(tmp_path / "timeline.png")
    assert not (tmp_path / "timeline.png").exists()


def test_only_batches_from_the_middle_are_shown():
    work = [Interval(n, "launch", "c", 10 * n, 10 * n + 9) for n in range(9)]
    part = timeline.view(Trace.of(work, 90), 3)
    assert [each.batch for each in part.lanes["launches"]] == [3, 4, 5]
    assert (part.start_ns, part.end_ns) == (30, 59)
    assert part.gaps == [(39, 40), (49, 50)]


def test_drawn_as_text():
    lines = {line.name: str(line) for line in timeline.lines(TRACE, 26, 2)}
    assert lines == {
        "reading": "00..11....................",
        "copies in": "..0...1...................",
        "launches": "...000000..00.111111..11..",
        "host steps between": ".........00.........11....",
        "host steps after": "........................1.",
        "copies out": ".............00..........1",
        "gaps": "             !            ",
    }


# --- staging memory ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 64, 1000])
def test_memory_is_aligned(count):
    memory = allocate(count)
    assert memory.nbytes == count
    assert memory.ctypes.data % ALIGNMENT == 0


def test_staging_memory_is_used_again_and_grows():
    staging = Staging()
    given = np.arange(12, dtype=np.float32).reshape(3, 4).T  # not dense
    (first,) = staging.copy([given])
    np.testing.assert_array_equal(first, given)
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, given)
    (second,) = staging.copy([np.ones((2, 3), np.int64)])
    assert second.ctypes.data == first.ctypes.data
    assert staging.nbytes == 48
    (third,) = staging.copy([np.zeros((5, 5))])
    assert third.ctypes.data % ALIGNMENT == 0
    assert staging.nbytes == 200


def test_staging_takes_whatever_an_input_may_be():
    strings = np.array(["a", "b"], object)
    parts = [np.ones(2), np.zeros(3)]
    scalar, empty = np.array(3.5), np.zeros((0, 4), np.float32)
    got = Staging().copy([strings, parts, None, scalar, empty])
    assert got[0].tolist() == ["a", "b"]
    assert got[0] is not strings
    assert not any(np.shares_memory(a, b) for a, b in zip(got[1], parts, strict=True))
    assert got[2] is None
    assert (got[3].shape, got[3].item()) == ((), 3.5)
    assert (got[4].shape, got[4].dtype) == ((0, 4), np.float32)


def test_what_overlaps_in_a_lane_has_a_row_of_its_own(tmp_path):
    work = [
        Interval(0, "launch", "c", 0, 5 * MS, "launch"),
        Interval(1, "launch", "c", 3 * MS, 8 * MS, "launch"),
        Interval(2, "launch", "c", 5 * MS, 9 * MS, "launch"),
    ]
    trace = Trace.of(work, 10 * MS)
    assert trace.busy_ms == pytest.approx(3)  # the union, for each of three batches
    found = {name: [each.batch for each in row] for name, row in rows(work).items()}
    assert found == {"launches": [0, 2], "launches 2": [1]}
    trace.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    threads = {e["args"]["batch"]: e["tid"] for e in events if e["ph"] == "X"}
    assert threads[0] == threads[2] != threads[1]
