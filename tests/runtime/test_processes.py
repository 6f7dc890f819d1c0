"""Programs and processes: fork, spawn, limits, interrupts, and an engine that fails."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xrt
from tests.support import model
from xrt.engines.cache import entries
from xrt.engines.engine import Engine, Executable, Support
from xrt.runtime import build

TEXT = """
    g (float[n,64] x) => (float[n,64] y) <float[64,64] w> {
        a = MatMul (x, w)
        b = Tanh (a)
        c = MatMul (b, w)
        y = Relu (c)
    }
"""
PRELUDE = f"""
import os, resource, signal, sys
import numpy as np
import xrt
from tests.support import model

TEXT = '''{TEXT}'''
W = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32) / 8
def compiled(text=TEXT, **options):
    chosen = xrt.CompileOptions(cache_dir=sys.argv[1], **options)
    return xrt.compile(model(text, w=W), engine="xla", options=chosen)
x = np.random.default_rng(1).normal(size=(512, 64)).astype(np.float32)
want = np.maximum(np.tanh(x @ W) @ W, 0)
def right(program, x=x, want=want):
    return bool(np.allclose(program(x), want, atol=1e-4))
"""


def script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", PRELUDE + text, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

FORK = """
program, single = compiled(), compiled(threads=1)
assert right(program) and right(single)
def child(depth):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    print("runs", right(program), right(single), flush=True)
    again = compiled()
    print("loads", right(again), again.clusters == [], flush=True)
    try:
        compiled(strict=True)(x[:1])
    except xrt.XrtError as error:
        print(type(error).__name__, error, flush=True)
    assert depth == 0 or child(depth - 1) == 0
    os._exit(0)  # as multiprocessing does; JAX crashes in a forked process that ends otherwise
print("status", child(1), right(program))
"""


@needs_fork
def test_a_forked_process_runs_what_its_parent_compiled_and_says_that_it_cannot_compile(tmp_path):
    # Once compiled by the parent, once loaded from the cache.
    for _ in range(2):
        run = script(FORK, tmp_path)
        lines = run.stdout.splitlines()
        assert run.stderr == ""
        assert lines[0::3][:2] == ["runs True True"] * 2
        assert lines[1::3] == ["loads True False"] * 2
        assert all(
            line.startswith("EngineBuildError Engine 'xla' could not") for line in lines[2:6:3]
        )
        assert "'spawn' or 'forkserver'" in lines[2]
        assert lines[6] == "status 0 True"


KEPT = """
from xrt.engines.xla import XlaEngine
from xrt.graph import Support
from xrt.passes import InferShapesPass
from xrt.runtime.build import build

class Split(XlaEngine):
    def supports(self, node, context=None):
        return Support.no("a cut") if node.op_type == "Sigmoid" else super().supports(node, context)

made = model('''
    g (float[8,16384] x) => (float[8,16384] y) <int64[1] axes = {1}> {
        a = Tanh (x)  p = ReduceMax (a, axes)  s = Sigmoid (p)  y = Mul (a, s)
    }''')
InferShapesPass()(made)
x = np.random.default_rng(0).normal(size=(8, 16384)).astype(np.float32)
options = xrt.CompileOptions(cache=False, min_cluster_weight=0)
schedule = build(made, [Split()], options).schedule
run = lambda: schedule.run([x])[0].__array__().tobytes()
want = run()
assert len(schedule.arenas._idle) == 1
pid = os.fork()
if not pid:
    print(all(run() == want for _ in range(3)), flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1], all(run() == want for _ in range(3)))
"""


@needs_fork
def test_memory_that_is_kept_between_calls_is_not_the_childs(tmp_path):
    run = script(KEPT, tmp_path)
    assert (run.stderr, run.stdout.split()) == ("", ["True", "0", "True"])


HELD = """
import threading, warnings
warnings.simplefilter("ignore", xrt.errors.EngineFallbackWarning)
compiling, go_on = threading.Event(), threading.Event()
def types(x):  # called while the program compiles
    if threading.current_thread().name == "slow":
        compiling.set()
        go_on.wait()
    return x.shape, x.dtype
xrt.register_kernel("com.example", "Same", np.copy, outputs=types)
text = TEXT.replace("y = Relu (c)", "d = com.example.Same (c) y = Relu (d)")
options = xrt.CompileOptions(cache=False)
made = model('<ir_version: 10, opset_import: ["" : 18, "com.example" : 1]>' + text, w=W)
program = xrt.compile(made, engine="xla", options=options)
assert right(program)
thread = threading.Thread(target=program, args=(x[:3],), name="slow")
thread.start()
compiling.wait()
pid = os.fork()
if not pid:
    signal.alarm(120)  # ends a process that hangs
    print(right(program), right(program, x[:5], want[:5]), program.submit(x[:3]).result().shape)
    program.close()
    sys.stdout.flush()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
go_on.set()
thread.join()
print(right(program, x[:5], want[:5]))
"""


@needs_fork
def test_a_process_that_is_forked_while_a_thread_compiles_does_not_wait_for_it(tmp_path):
    run = script(HELD, tmp_path)
    assert (run.stderr, run.stdout.splitlines()) == ("", ["True True (3, 64)", "0", "True"])


UNTOUCHED = """
pid = os.fork()
if not pid:
    print(right(compiled()), flush=True)
    os._exit(0)
print(os.waitpid(pid, 0)[1], right(compiled()))
"""


@needs_fork
def test_a_process_forked_before_anything_was_compiled_is_like_any_other(tmp_path):
    run = script(UNTOUCHED, tmp_path)
    assert (run.stderr, run.stdout.split()) == ("", ["True", "0", "True"])


def squared(folder: str, number: int) -> list[float]:
    """What a worker computes."""
    text = "g (float[2] x) => (float[2] y) { a = Mul (x, x) y = Relu (a) }"
    options = xrt.CompileOptions(cache_dir=folder, min_cluster_weight=0)
    program = xrt.compile(model(text), engine="xla", options=options)
    assert len(program.clusters) == 1
    result: list[float] = program(np.full(2, number, np.float32)).tolist()
    return result


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_compile_for_themselves(method, tmp_path):
    assert squared(str(tmp_path), 3) == [9, 9]
    with multiprocessing.get_context(method).Pool(2) as pool:
        got = pool.starmap(squared, [(str(tmp_path), number) for number in range(4)])
    assert got == [[number**2] * 2 for number in range(4)]


def test_a_program_cannot_be_pickled():
    program = xrt.compile(model("g (float[2] x) => (float[2] y) { y = Relu (x) }"), engine="host")
    with pytest.raises(xrt.XrtError, match="cannot be pickled"):
        pickle.dumps(program)


LIMITED = """
def limit(extra):
    size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
program = compiled()
large = np.ones((1_000_000, 64), np.float32)
program.prepare(large)
assert right(program)
limit(100 << 20)  # the results take 256 MB
try:
    program(large)
except xrt.XrtError as error:
    print(type(error).__name__, error)
print(right(program))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_memory_limit_that_a_call_hits_is_an_error_and_the_program_stays_usable(tmp_path):
    run = script(LIMITED, tmp_path)
    assert run.stderr == ""
    said, usable = run.stdout.splitlines()
    assert said.startswith("EngineRunError Cluster 'xla_")
    assert "on engine 'xla'" in said
    assert "give the process more memory" in said
    assert usable == "True"


HEAVY = """
import onnx_ir as ir
from xrt.engines.xla import XlaEngine
from xrt.passes import InferShapesPass
from xrt.runtime.build import build

weights = np.zeros((4096, 8192), np.float32)  # 128 MiB
weights[:, 0] = 1
heavy = model("g (float[1,4096] x) => (float[1,8192] y) <float[4096,8192] w> {"
              " a = MatMul (x, w) y = Relu (a) }", w=weights)
heavy.graph.initializers["w"].const_value = ir.tensor(weights, name="w")  # without a copy
InferShapesPass()(heavy)
compiled()
options = xrt.CompileOptions(cache_dir=sys.argv[1], strict=True)
x = np.ones((1, 4096), np.float32)
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (100 << 20), resource.RLIM_INFINITY))
try:
    build(heavy, [XlaEngine()], options)
except xrt.XrtError as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(float(build(heavy, [XlaEngine()], options).schedule.run([x])[0][0, 0]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_memory_limit_that_weights_hit_is_a_build_error_that_says_so(tmp_path):
    run = script(HEAVY, tmp_path)
    assert run.stderr == ""
    said, after = run.stdout.splitlines()
    assert said.startswith("EngineBuildError Engine 'xla' could not build a cluster: no memory for")
    assert after == "4096.0"


STARVED = """
compiled("g (float[4,64] x) => (float[4,64] y) { a = MatMul (x, w) y = Relu (a) }".replace(
    " {", " <float[64,64] w> {"))
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + (int(sys.argv[2]) << 20),) * 2)
compiled().prepare(x)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("mebibytes", [0, 1, 8])
def test_a_memory_limit_while_compiling_leaves_a_cache_that_is_whole(mebibytes, tmp_path):
    # LLVM ends a process that has no memory left; what counts is what the next one finds.
    command = [sys.executable, "-c", PRELUDE + STARVED, str(tmp_path), str(mebibytes)]
    subprocess.run(command, capture_output=True, timeout=300)
    assert all(entry.about for entry in entries(tmp_path))
    run = script("print(right(compiled(strict=True)))", tmp_path)
    assert (run.stderr, run.stdout.strip()) == ("", "True")


SLOW = """
text = "g (float[n,64] x) => (float[n,64] y) <float[64,64] w> {" + "".join(
    f" a{i} = MatMul ({'x' if not i else f'b{i - 1}'}, w) b{i} = Tanh (a{i})" for i in range(60)
) + " y = Relu (b59) }"
program = compiled(text)
try:
    print("compiling", flush=True)
    program(x)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
except KeyboardInterrupt:
    print("interrupted", flush=True)
print(right(compiled()), program(x).shape)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("delay", [0.05, 0.4, 0.8])
def test_an_interrupt_while_compiling_reaches_the_caller_and_leaves_nothing(delay, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + SLOW, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "compiling\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == "True (512, 64)"
    assert len(out.splitlines()) <= 2  # "interrupted", unless it had compiled by then
    assert all(entry.about for entry in entries(tmp_path))
    assert not list(tmp_path.rglob(".writing-*"))


class Failing(Executable):
    """Computes Relu; every other call fails."""

    def __init__(self, error: Exception) -> None:
        self.calls = 0
        self.error = error

    def run(self, inputs, stream: Any = None):
        self.calls += 1
        if self.calls % 2 == 0:
            raise self.error
        return [np.maximum(inputs[0], 0)]

    def serialize(self) -> bytes:
        return b""


class Vendor(Engine):
    """An engine whose device disappears now and then."""

    name = "vendor"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def available(self) -> Support:
        return Support.yes()

    def supports(self, node, context=None) -> Support:
        return Support.yes() if node.op_type == "Relu" else Support.no("only Relu")

    def compile(self, cluster, options):
        return Failing(self.error)

    def deserialize(self, data, cluster, options):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the device was lost"), "ValueError: the device was lost"),
        (MemoryError("no room"), "MemoryError: no room. Use a smaller batch"),
        (xrt.errors.InputError("its own words"), "^its own words$"),
    ],
)
def test_an_engine_that_fails_in_a_call_is_named_and_the_next_call_works(error, told):
    made = model("g (float[3] x) => (float[3] y) { a = Neg (x) b = Relu (a) y = Neg (b) }")
    built = build.build(made, [Vendor(error)], xrt.CompileOptions(min_cluster_weight=0))
    (cluster,) = built.partition.clusters
    x = np.array([-1, 0, 1], np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(built.schedule.run([x])[0], [-1, 0, 0])
        with pytest.raises(xrt.XrtError, match=told) as caught:
            built.schedule.run([x])
        if not isinstance(error, xrt.XrtError):
            assert f"Cluster {cluster.name!r} failed on engine 'vendor'" in str(caught.value)
            assert caught.value.__cause__ is error
