"""What a process has: locks, also after a fork, and its umask."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from xrt import process

FORK = """
import os, signal, sys, threading
from xrt.process import new_lock
mine, others = new_lock(), new_lock()
held, go_on = threading.Event(), threading.Event()
def hold():
    with others:
        held.set()
        go_on.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
with mine:
    pid = os.fork()
    if not pid:
        signal.alarm(60)  # ends a process that hangs
        with others:
            print("others", flush=True)
        taken = []
        other = threading.Thread(target=lambda: taken.append(mine.acquire(blocking=False)))
        other.start()
        other.join()
        print("mine", taken, flush=True)
if not pid:
    with mine:
        print("released", flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1], others.acquire(blocking=False))
go_on.set()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_holds_the_locks_of_the_thread_that_forked_and_no_others():
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=100
    )
    want = ["others", "mine [False]", "released", "0 False"]
    assert (run.stderr, run.stdout.splitlines()) == ("", want)


def test_a_lock_keeps_other_threads_out_and_lets_its_own_in():
    lock = process.new_lock()
    steps = []

    def wait():
        with lock:
            steps.append("other")

    thread = threading.Thread(target=wait)
    with lock, lock:
        thread.start()
        thread.join(0.05)
        steps.append("own")
    thread.join()
    assert steps == ["own", "other"]


def test_cores_where_the_system_tells_which_and_where_not(monkeypatch):
    assert 1 <= process.core_count() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert process.core_count() == (os.cpu_count() or 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_umask_is_read_and_not_touched(monkeypatch):
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")
            assert process.umask() == 0o027
    finally:
        os.umask(before)


@pytest.fixture
def _interruptible():
    """Ctrl-C as in a program in the foreground, even if these tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(depth, done):
    """Is interrupted in the innermost of `depth` blocks."""
    with process.interrupts_deferred():
        if depth == 1:
            signal.raise_signal(signal.SIGINT)
        else:
            interrupted(depth - 1, done)
        done.append(depth)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_interrupt_waits_for_the_end_of_the_outermost_block(depth):
    done = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(depth, done)
    assert done == [*range(1, depth + 1)]
    with pytest.raises(KeyboardInterrupt):  # as before
        signal.raise_signal(signal.SIGINT)


def test_who_ignores_interrupts_is_not_interrupted():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with process.interrupts_deferred():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_interrupts_to_defer():
    entered = []

    def work():
        with process.interrupts_deferred():
            entered.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entered
