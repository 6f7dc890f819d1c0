"""One program and many threads; how many threads a program computes with."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import xrt
from tests.support import model

THREADS = 16

MIXED = """
    g (float[6,8] x) => (float[6,8] y, int64[2,k] where, float[6,8] t) <float[8,8] w> {
        a = MatMul (x, w)
        b = Tanh (a)
        u = Unique <axis=0> (b)
        s = Shape (b)
        r = Reshape (u, s)
        y = Add (r, x)
        where = NonZero (y)
        m = MatMul (y, w)
        t = Softmax (m)
    }
"""
"""Clusters, and host steps between them."""


def together(work: Callable[[int], Any]) -> list[Any]:
    """What `work` gives for each thread's number, all started at once."""
    results: list[Any] = [None] * THREADS
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def batches() -> list[np.ndarray[Any, Any]]:
    return list(np.random.default_rng(0).normal(size=(THREADS, 6, 8)).astype(np.float32))


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_many_threads_get_the_results_of_one(engine, tmp_path):
    weights = np.random.default_rng(1).normal(size=(8, 8))
    options = xrt.CompileOptions(cache_dir=tmp_path, min_cluster_weight=0)
    program = xrt.compile(model(MIXED, w=weights), engine=engine, options=options)
    given = batches()
    want = [program(x) for x in given]
    kinds = {step.kind for step in program.specialization.schedule.steps}
    assert kinds == ({"launch", "host"} if engine == "xla" else {"host"})
    got = together(lambda number: [program(given[number]) for _ in range(20)])
    for results, wanted in zip(got, want, strict=True):
        for result in results:
            for one, other in zip(result, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_many_threads_compile_a_signature_once(tmp_path):
    text = "g (float[n,4] x) => (float[n,4] y) <float[4,4] w> { a = MatMul (x, w) y = Relu (a) }"
    options = xrt.CompileOptions(cache_dir=tmp_path)
    program = xrt.compile(model(text, w=np.eye(4)), engine="xla", options=options)
    got = together(lambda number: program(np.full((1 + number % 3, 4), number, np.float32)))
    for number, result in enumerate(got):
        np.testing.assert_array_equal(result, np.full((1 + number % 3, 4), number, np.float32))
    assert len(program._specializations) == 3


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_no_two_threads_draw_the_same_numbers(engine):
    text = "g (float[64] x) => (float[64] y) { r = RandomNormalLike (x) y = Add (r, x) }"
    options = xrt.CompileOptions(cache=False, min_cluster_weight=0)
    program = xrt.compile(model(text), engine=engine, options=options)
    x = np.zeros(64, np.float32)
    got = together(lambda number: [program(x).tobytes() for _ in range(10)])
    assert len({draw for draws in got for draw in draws}) == 10 * THREADS


COUNT = """
import sys
from pathlib import Path
import jax, numpy as np
import xrt
from tests.support import model

def workers():
    names = [p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm")]
    return sum("XLAEigen" in name for name in names)

text = "g (float[64,64] x) => (float[64,64] y) { a = MatMul (x, x) y = Relu (a) }"
x = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
want = np.maximum(x @ x, 0)
jax.devices()
xrt.compile(model(text), engine="xla", options=xrt.CompileOptions(cache=False))
for threads in (1, 3, 3, 5):
    before = workers()
    options = xrt.CompileOptions(cache_dir=sys.argv[1], threads=threads)
    program = xrt.compile(model(text), engine="xla", options=options)
    assert len(program.clusters) == 1
    np.testing.assert_allclose(program(x), want, rtol=1e-3, atol=1e-4)
    print(workers() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_xla_starts_as_many_threads_as_asked_for_once(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", COUNT, str(tmp_path)], capture_output=True, text=True
    )
    assert (run.stderr, run.stdout.split()) == ("", ["1", "3", "0", "5"])
    # What was compiled for another number of threads is another entry.
    assert len(list((tmp_path / "xla").glob("*.xrtcache"))) == 3


def test_programs_of_different_thread_counts_work_side_by_side(tmp_path):
    weights = np.random.default_rng(1).normal(size=(8, 8))
    programs = [
        xrt.compile(
            model(MIXED, w=weights),
            engine="xla",
            options=xrt.CompileOptions(cache_dir=tmp_path, threads=threads),
        )
        for threads in (None, 1, 2)
    ]
    given = batches()
    want = [programs[0](x) for x in given]
    got = together(lambda number: programs[number % 3](given[number]))
    for result, wanted in zip(got, want, strict=True):
        for one, other in zip(result, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_a_wrong_thread_count_is_refused(threads):
    with pytest.raises(xrt.errors.OptionError, match=r"threads must be a whole number of at least"):
        xrt.CompileOptions(threads=threads)
