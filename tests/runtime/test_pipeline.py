"""Streams and submitted batches: order, bounds, failures, and that no thread stays behind."""

from __future__ import annotations

import contextlib
import gc
import itertools
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import assert_close, model
from xrt.engines.xla.engine import XlaExecutable
from xrt.errors import InputError, OptionError

# Sigmoid and MatMul are a cluster; NonZero stays on the host, after it.
TEXT = """
g (float[n,4] x, float[4,4] w) => (float[n,4] y, int64[2,k] where) {
  y = MatMul (x, w)
  p = Sigmoid (y)
  where = NonZero (p)
}
"""
EYE = np.eye(4, dtype=np.float32)
OPTIONS = xrt.CompileOptions(cache=False)
PATIENCE = 60


def xrt_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("xrt-")]


def gone():
    """Whether all threads of streams end, which they do on their own."""
    end = time.monotonic() + PATIENCE
    while xrt_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not xrt_threads()


@pytest.fixture(autouse=True)
def _no_thread_stays():
    assert gone(), xrt_threads()
    yield
    if xrt_threads():
        gc.collect()
    assert gone(), xrt_threads()


@pytest.fixture(scope="module")
def program():
    made = xrt.compile(model(TEXT), (batch(0)), engine="xla", options=OPTIONS)
    assert len(made.clusters) == 1
    return made


@pytest.fixture(scope="module")
def picker():
    """On the host: fails for an index out of range."""
    text = "g (float[3] x, int64[1] i) => (float[1] y) { y = Gather (x, i) }"
    return xrt.compile(model(text), engine="host")


X = np.arange(3, dtype=np.float32)


def pick(*places):
    return [(X, np.array([place])) for place in places]


SUM = "g (float[2,4] x) => (float[2,4] y) { y = Add (x, x) }"
CALM = (np.zeros((2, 4), np.float32),)


def batch(number, rows=2):
    return np.full((rows, 4), number, np.float32), EYE


def check(outputs, number, rows=2):
    y, where = outputs
    np.testing.assert_array_equal(y, np.full((rows, 4), number))
    assert where.shape == (2, rows * 4)


@pytest.mark.parametrize("depth", [1, 2, 3, 50])
def test_outputs_come_in_order(program, depth):
    outputs = list(program.stream(map(batch, range(20)), depth))
    assert len(outputs) == 20
    for number, each in enumerate(outputs):
        check(each, number)


def test_without_batches_there_are_no_outputs(program):
    assert list(program.stream([])) == []


def test_batches_of_other_shapes_compile_on_the_way(program):
    rows = [2, 3, 2, 5, 3]
    for number, each in enumerate(program.stream([batch(n, r) for n, r in enumerate(rows)])):
        check(each, number, rows[number])


def test_a_program_that_was_never_called_compiles_in_the_stream():
    text = "g (float[n] x) => (float[n] y) { y = Neg (x) }"
    made = xrt.compile(model(text), engine="host")
    for number, y in enumerate(made.stream([X, X + 1])):
        assert_close(y, -(X + number))


@pytest.mark.parametrize(
    "form",
    [
        lambda x, w: (x, w),
        lambda x, w: [x, w],
        lambda x, w: {"w": w, "x": x},
    ],
    ids=["tuple", "list", "dict"],
)
def test_batches_by_position_and_by_name(program, form):
    for each in program.stream([form(*batch(3))]):
        check(each, 3)


@pytest.mark.parametrize("array", [np.asarray, torch.tensor, jnp.asarray])
def test_outputs_are_of_the_library_of_the_inputs(program, array):
    (outputs,) = program.stream([tuple(map(array, batch(2)))])
    assert [type(each) for each in outputs] == [type(array(X))] * 2
    check([np.asarray(each) for each in outputs], 2)


def test_a_torch_module_streams_its_own_structure():
    net = torch.nn.Linear(4, 2).eval()
    inputs = [torch.randn(3, 4) for _ in range(4)]
    made = xrt.compile(net, (inputs[0],), options=OPTIONS)
    for given, got in zip(inputs, made.stream(inputs), strict=True):
        assert_close(got.numpy(), net(given).detach().numpy())


def test_an_iterator_may_fill_the_same_array_again(program):
    def batches():
        x = np.empty((2, 4), np.float32)
        for number in range(30):
            x[...] = number
            yield x, EYE

    for number, each in enumerate(program.stream(batches(), depth=4)):
        check(each, number)


def test_outputs_stay_as_they_are_when_staging_memory_is_used_again():
    text = "g (float[n] x) => (float[n] y, float[m] z) <int64[1] s = {-1}> "
    made = xrt.compile(model(text + "{ y = Identity (x) z = Reshape (x, s) }"), engine="host")
    outputs = list(made.stream([X + n for n in range(6)]))
    for number, (y, z) in enumerate(outputs):
        assert_close(y, X + number)
        assert_close(z, X + number)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_more_batches_are_read_than_depth_allows(program, depth):
    taken, ahead = 0, []

    def batches():
        for number in range(15):
            ahead.append(number - taken)
            yield batch(number)

    stream = program.stream(batches(), depth)
    while len(ahead) < depth:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(ahead) == depth  # as long as nothing is taken
    for each in stream:
        check(each, taken)
        taken += 1
    assert max(ahead) <= depth  # one is being taken
    assert len(ahead) == 15


def test_batches_are_read_ahead_before_anything_is_taken(program):
    third = threading.Event()

    def batches():
        for number in range(5):
            if number == 2:
                third.set()
            yield batch(number)

    with program.stream(batches(), depth=3):
        assert third.wait(PATIENCE)


def test_the_iterator_is_read_on_one_thread_that_is_not_the_callers(program):
    threads = set()

    def batches():
        for number in range(4):
            threads.add(threading.current_thread())
            yield batch(number)

    list(program.stream(batches()))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_numpy_settings_are_the_callers():
    seen = []

    def batches():
        seen.append(np.geterr()["divide"])
        yield X

    made = xrt.compile(model("g (float[3] x) => (float[3] y) { y = Neg (x) }"), engine="host")
    with np.errstate(divide="raise"):
        list(made.stream(batches()))
    assert seen == ["raise"]


# --- failures ------------------------------------------------------------------------------------


def test_an_error_reaches_the_caller_at_its_batch_and_cancels_the_rest(picker):
    read = []
    batches = (read.append(each) or each for each in pick(0, 1, 9, *[2] * 20))
    stream = picker.stream(batches)
    assert [next(stream).item(), next(stream).item()] == [0, 1]
    with pytest.raises(xrt.XrtError) as raised:
        next(stream)
    assert "batch 2" in raised.value.__notes__[-1]
    assert list(stream) == []
    assert len(read) <= 4
    assert xrt_threads() == []


def test_later_batches_run_if_that_is_asked_for(picker):
    stream = picker.stream(pick(0, 9, 1, 8, 2), on_error="continue", depth=3)
    assert next(stream).item() == 0
    with pytest.raises(xrt.XrtError):
        next(stream)
    assert next(stream).item() == 1
    with pytest.raises(xrt.XrtError):
        next(stream)
    assert [each.item() for each in stream] == [2]


@pytest.mark.parametrize("on_error", ["cancel", "continue"])
def test_a_batch_that_does_not_fit_leaves_those_before_it_alone(program, on_error):
    wrong = np.ones((2, 3), np.float32), EYE
    work = [batch(0), batch(1), wrong, batch(3)]
    stream = program.stream(work, depth=4, on_error=on_error)
    check(next(stream), 0)
    check(next(stream), 1)
    with pytest.raises(xrt.XrtError):
        next(stream)
    rest = list(stream)
    assert len(rest) == (1 if on_error == "continue" else 0)


def test_a_step_after_the_launches_may_fail():
    text = (
        "g (float[4] x, int64[1] i) => (float[1] y) { m = Exp (x) n = Neg (m) y = Gather (n, i) }"
    )
    made = xrt.compile(model(text), engine=["xla"], options=xrt.CompileOptions(cache=False, fuel=2))
    x = np.zeros(4, np.float32)
    work = [(x, np.array([i])) for i in (0, 9, 3)]
    stream = made.stream(work, on_error="continue")
    assert [step.kind for step in made.prepare(*work[0]).schedule.steps] == ["launch", "host"]
    assert next(stream).item() == -1
    with pytest.raises(xrt.XrtError):
        next(stream)
    assert next(stream).item() == -1
    stream.close()


class Crowd:
    """Counts the runs that are under way at once; the first wait a while for company."""

    def __init__(self, monkeypatch, patience=5.0):
        self.most, self._now, self._lock = 0, 0, threading.Lock()
        self._company, self._patience = threading.Event(), patience
        run = XlaExecutable.run

        def counted(executable, inputs):
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
                if self.most > 1:
                    self._company.set()
            self._company.wait(self._patience)
            try:
                return run(executable, inputs)
            finally:
                with self._lock:
                    self._now -= 1

        monkeypatch.setattr(XlaExecutable, "run", counted)


@pytest.mark.parametrize(("depth", "most"), [(1, 1), (2, 1), (3, 2), (6, 2)])
def test_two_batches_compute_at_once_from_depth_3_on(monkeypatch, depth, most):
    crowd = Crowd(monkeypatch, patience=5.0 if most > 1 else 0.05)
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0)
    made = xrt.compile(model(SUM), CALM, engine="xla", options=options)
    work = [(np.full((2, 4), number, np.float32),) for number in range(9)]
    for number, y in enumerate(made.stream(work, depth=depth)):
        np.testing.assert_array_equal(y, np.full((2, 4), 2 * number))
    assert crowd.most == most


@pytest.mark.parametrize(("threads", "concurrent"), [(1, False), (2, True)])
def test_on_one_thread_one_batch_computes_at_a_time(threads, concurrent):
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0, threads=threads)
    made = xrt.compile(model(SUM), CALM, engine="xla", options=options)
    assert made.specialization.concurrent == concurrent


def test_on_the_host_one_batch_computes_at_a_time():
    assert not xrt.compile(model(SUM), CALM, engine="host").specialization.concurrent


def test_random_numbers_are_drawn_in_the_order_of_the_batches(monkeypatch):
    text = "g (float[2,4] x) => (float[2,4] y) { r = RandomUniformLike (x)  y = Add (x, r) }"
    crowd = Crowd(monkeypatch, patience=0.05)
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0)
    made = xrt.compile(model(text), CALM, engine="xla", options=options)
    assert len(made.clusters) == 1
    assert not made.specialization.concurrent
    outputs = [np.asarray(y) for y in made.stream([CALM] * 6, depth=4)]
    assert crowd.most == 1
    assert len({y.tobytes() for y in outputs}) == 6


def test_an_engine_that_fails_in_the_middle_is_named(monkeypatch):
    run = XlaExecutable.run

    def failing(self, arguments):
        if np.any(np.asarray(arguments[0]) == 2):  # batch 2
            raise RuntimeError("the device is gone")
        return run(self, arguments)

    monkeypatch.setattr(XlaExecutable, "run", failing)
    made = xrt.compile(model(TEXT), batch(0), engine="xla", options=OPTIONS)
    stream = made.stream(map(batch, range(6)), on_error="continue", depth=3)
    check(next(stream), 0)
    check(next(stream), 1)
    with pytest.raises(xrt.XrtError, match=f"{made.clusters[0].name}.*xla.*the device is gone"):
        next(stream)
    for number, each in enumerate(stream, 3):
        check(each, number)


@pytest.mark.parametrize("on_error", ["cancel", "continue"])
def test_an_error_of_a_generator_ends_the_stream_after_it(program, on_error):
    def batches():
        yield batch(0)
        yield batch(1)
        raise LookupError("the disk is gone")

    stream = program.stream(batches(), depth=5, on_error=on_error)
    check(next(stream), 0)
    check(next(stream), 1)
    with pytest.raises(LookupError, match="the disk is gone"):
        next(stream)
    assert list(stream) == []


class Flaky:
    """An iterator that goes on after an error."""

    def __init__(self):
        self.number = -1

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        if self.number == 1:
            raise LookupError
        if self.number == 3:
            raise StopIteration
        return batch(self.number)


def test_an_iterator_that_failed_is_asked_again_if_later_batches_are_to_run(program):
    stream = program.stream(Flaky(), on_error="continue")
    check(next(stream), 0)
    with pytest.raises(LookupError):
        next(stream)
    (last,) = stream
    check(last, 2)


def test_an_error_keeps_no_batch_alive(picker):
    array = np.array([7])
    held = weakref.ref(array)
    stream = picker.stream(iter([(X, array)]))
    del array
    gc.disable()
    try:
        with pytest.raises(xrt.XrtError):
            next(stream)
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("depth", [0, -1, 1.5, "2", True, None])
def test_depth_is_checked(program, depth):
    with pytest.raises(OptionError, match="depth"):
        program.stream([], depth)


def test_on_error_is_checked(program):
    with pytest.raises(OptionError, match="cancel, continue"):
        program.stream([], on_error="ignore")


@pytest.mark.parametrize("batches", [None, 3, "file", {"x": X}])
def test_what_holds_no_batches_is_refused(program, batches):
    with pytest.raises(InputError, match="iterable of batches"):
        program.stream(batches)


# --- endings -------------------------------------------------------------------------------------


def endless():
    return map(batch, itertools.count())


def test_closing_ends_stream_and_threads(program):
    stream = program.stream(endless())
    check(next(stream), 0)
    stream.close()
    assert xrt_threads() == []
    assert list(stream) == []
    stream.close()
    assert "ended" in repr(stream)


def test_a_with_block_closes(program):
    with program.stream(endless()) as stream:
        check(next(stream), 0)
        assert len(xrt_threads()) == 3
    assert xrt_threads() == []


def test_a_stream_that_nobody_holds_ends_its_threads(program):
    stream = program.stream(endless())
    check(next(stream), 0)
    assert len(xrt_threads()) == 3
    del stream
    gc.collect()
    assert gone()


def test_leaving_a_loop_ends_the_threads(program):
    for number, each in enumerate(program.stream(endless())):
        check(each, number)
        if number == 3:
            break
    gc.collect()
    assert gone()


def test_the_generator_of_an_iterable_is_closed(program):
    closed = threading.Event()

    class Batches:
        def __iter__(self):
            try:
                yield from endless()
            finally:
                closed.set()

    with program.stream(Batches()) as stream:
        check(next(stream), 0)
    assert closed.wait(PATIENCE)


def test_closing_does_not_wait_for_an_iterator_that_hangs(program):
    release, hangs = threading.Event(), threading.Event()

    def batches():
        yield batch(0)
        hangs.set()
        release.wait(PATIENCE)
        yield batch(1)

    stream = program.stream(batches())
    check(next(stream), 0)
    assert hangs.wait(PATIENCE)
    stream.close()
    assert list(stream) == []
    assert xrt_threads() == ["xrt-input"]
    release.set()
    assert gone()


def test_closing_wakes_a_thread_that_waits_for_outputs(program):
    reading, release, ended = (threading.Event() for _ in range(3))

    def batches():
        reading.set()
        release.wait(PATIENCE)
        yield from ()

    stream = program.stream(batches())
    waiting = threading.Thread(target=lambda: (list(stream), ended.set()))
    waiting.start()
    reading.wait(PATIENCE)
    closing = threading.Thread(target=stream.close)  # it has patience with the iterator
    closing.start()
    woken = ended.wait(PATIENCE / 2)  # the iterator is blocked until after it
    release.set()
    closing.join()
    waiting.join()
    assert woken


def test_an_interrupt_while_waiting_closes_the_stream(program):
    release, main = threading.Event(), threading.main_thread()
    assert threading.current_thread() is main

    def batches():
        yield batch(0)
        threading.Timer(0.1, signal.pthread_kill, (main.ident, signal.SIGINT)).start()
        release.wait(PATIENCE)

    stream = program.stream(batches())
    check(next(stream), 0)
    threading.Timer(0.5, release.set).start()
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert list(stream) == []
    assert gone()


LEFT_OPEN = """
import itertools, numpy, xrt
from tests.support import model
program = xrt.compile(model("g (float[3] x) => (float[3] y) { y = Neg (x) }"), engine="host")
x = numpy.ones(3, numpy.float32)
stream = program.stream(itertools.repeat(x))
next(stream)
for number in range(5):
    program.submit(x * number).add_done_callback(lambda done: print(done.result()[0], flush=True))
"""


def test_an_interpreter_ends_with_a_stream_left_open_and_runs_what_was_submitted():
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split() == ["-0.0", "-1.0", "-2.0", "-3.0", "-4.0"]


# --- submit --------------------------------------------------------------------------------------


def test_futures_give_outputs(program):
    futures = [program.submit(batch(number)) for number in range(10)]
    for number, future in enumerate(futures):
        check(future.result(PATIENCE), number)
    program.close()
    assert xrt_threads() == []
    check(program.submit(batch(4)).result(PATIENCE), 4)
    program.close()


def test_closing_waits_for_what_was_submitted(program):
    futures = [program.submit(batch(number)) for number in range(10)]
    program.close()
    assert all(future.done() for future in futures)
    program.close()


def test_a_submitted_batch_that_fails_leaves_the_others_alone(picker):
    futures = [picker.submit(each) for each in pick(0, 9, 2)]
    assert futures[0].result(PATIENCE).item() == 0
    with pytest.raises(xrt.XrtError):
        futures[1].result(PATIENCE)
    assert futures[2].result(PATIENCE).item() == 2
    picker.close()


def test_batches_are_submitted_from_several_threads(program):
    wrong = []

    def work(first):
        futures = [(n, program.submit(batch(n))) for n in range(first, first + 20)]
        for number, future in futures:
            try:
                check(future.result(PATIENCE), number)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(100 * i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    program.close()
    assert wrong == []


def test_a_waiting_batch_can_be_cancelled(program):
    seen = threading.Event()
    first = program.submit(batch(0))
    first.add_done_callback(lambda done: seen.wait(PATIENCE))  # holds the output thread
    futures = [program.submit(batch(number)) for number in range(1, 9)]
    assert futures[-1].cancel()
    seen.set()
    for number, future in enumerate(futures[:-1], 1):
        check(future.result(PATIENCE), number)
    program.close()
    assert futures[-1].cancelled()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ValueError])
def test_a_callback_that_raises_stops_nobody_else(program, monkeypatch, error):
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    threads: list[threading.Thread] = []

    def fail(done: object) -> None:
        threads.append(threading.current_thread())
        raise error("of a callback")

    def ran_elsewhere() -> bool:
        return any(thread is not threading.current_thread() for thread in threads)

    for _ in range(100):  # a future that is done already calls back at once, on this thread
        with contextlib.suppress(error):
            program.submit(batch(1)).add_done_callback(fail)
        later = [program.submit(batch(number)) for number in range(3)]
        assert len([future.result(PATIENCE) for future in later]) == 3
        if ran_elsewhere():
            break
    assert ran_elsewhere()
    program.close()
    assert all(each.exc_type is error for each in seen)


def test_submitting_and_closing_keeps_no_buffers(program):
    tracker = []
    for number in range(3):
        program.submit(batch(number)).result(PATIENCE)
        tracker.append(weakref.ref(program._submitter))
        program.close()
    gc.collect()
    assert [each() for each in tracker] == [None] * 3


def test_a_callback_may_submit_and_close(program):
    more = []
    first = program.submit(batch(1))
    first.add_done_callback(lambda done: (more.append(program.submit(batch(2))), program.close()))
    first.result(PATIENCE)
    end = time.monotonic() + PATIENCE
    while not more and time.monotonic() < end:
        time.sleep(0.01)
    check(more[0].result(PATIENCE), 2)


def test_a_program_that_nobody_holds_ends_its_threads():
    made = xrt.compile(model("g (float[3] x) => (float[3] y) { y = Neg (x) }"), engine="host")
    future = made.submit(X)
    del made
    assert_close(future.result(PATIENCE), -X)
    gc.collect()
    assert gone()


def test_streams_calls_and_submitted_batches_side_by_side(program):
    one, other = program.stream(map(batch, range(9))), program.stream(map(batch, range(10, 19)))
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        future = program.submit(batch(number + 30))
        check(left, number)
        check(right, number + 10)
        check(program(*batch(number + 20)), number + 20)
        check(future.result(PATIENCE), number + 30)
    program.close()


# --- int8 ----------------------------------------------------------------------------------------


def test_a_program_calibrates_in_a_stream_as_it_does_call_by_call():
    text = "g (float[n,8] x) => (float[n,8] y) <float[8,8] w> { m = MatMul (x, w) y = Relu (m) }"
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 8))
    options = xrt.CompileOptions(cache=False, calibration_batches=3)
    batches = [rng.normal(size=(4, 8)).astype(np.float32) for _ in range(8)]

    def compiled():
        made = ir.to_proto(model(text, w=weight))
        return xrt.compile(made, precision="int8", options=options)

    called, streamed = compiled(), compiled()
    want = [called(each) for each in batches]
    got = list(streamed.stream(batches, depth=3))
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)
    assert streamed.specialization.observe is None


# --- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["called", "streamed", "submitted"])
def test_memory_does_not_grow_with_the_number_of_batches(program, way):
    inputs = batch(1)

    def run(count):
        if way == "called":
            for _ in range(count):
                program(*inputs)
        elif way == "streamed":
            for _ in program.stream(itertools.repeat(inputs, count)):
                pass
        else:
            for _ in range(count):
                program.submit(inputs).result(PATIENCE)

    run(500)
    tracemalloc.start()
    try:
        run(500)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        run(3000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        program.close()
    # jaxlib frees what calls made some hundred objects at a time; one object a call is 150 kB.
    assert after - before < 60_000
