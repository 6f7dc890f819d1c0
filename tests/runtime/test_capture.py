"""Graphs for the launches of a schedule: what is captured together, and that replay is eager."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest

import xrt
from tests.support import assert_close
from xrt import custom
from xrt.kernels.cuda import device, staging, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.streams import Lane
from xrt.runtime import capture
from xrt.runtime.capture import CapturingSchedule, Replay
from xrt.runtime.schedule import Schedule, Step


def step(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...], frees=()) -> Step:
    kind = "launch" if name.startswith("launch") else "host"
    return Step(kind, name, lambda args: [args[0] + 1], inputs, outputs, frees)


def chain(*names: str) -> list[Step]:
    return [step(name, (n,), (n + 1,), (n,)) for n, name in enumerate(names)]


def is_launch(step: Step) -> bool:
    return step.kind == "launch"


def schedule_of(steps: list[Step]) -> Schedule:
    return Schedule(steps, [None] * (len(steps) + 1), [0], [len(steps)])


@pytest.mark.parametrize(
    ("names", "want"),
    [
        (("host", "host"), []),
        (("launch", "launch"), [range(2)]),
        (("host", "launch", "launch", "host"), [range(1, 3)]),
        (("launch", "host", "launch"), [range(1), range(2, 3)]),
    ],
)
def test_launches_that_follow_each_other_are_one_graph(names, want):
    assert capture._segments(chain(*names), is_launch) == want


def test_what_a_graph_reads_writes_and_frees():
    steps = [
        step("launch 1", (0, 5), (1,), (0,)),
        step("launch 2", (1, 5), (2,), (1,)),
        step("launch 3", (2, -1), (3, -1), ()),
    ]
    reads, writes, frees = capture._boundary(steps)
    assert reads == [0, 5]
    assert writes == [2, 3]
    assert sorted(frees) == [0, 1]


def test_a_schedule_without_launches_stays_as_it_is():
    schedule = schedule_of(chain("host", "host"))
    assert capture.over(schedule, is_launch) is schedule


def test_programs_on_the_cpu_have_no_graphs():
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[2,3] x) => (float[2,3] y) '
        "{ a = Exp(x) y = Tanh(a) }"
    )
    program = xrt.compile(model, engine="xla")
    assert type(program.specialization.schedule) is not CapturingSchedule


@pytest.mark.skipif(not isinstance(device.present(), str), reason="this machine has a GPU")
@pytest.mark.parametrize("names", [("launch",), ("host", "launch", "launch"), ("launch", "host")])
def test_without_a_gpu_all_runs_launch_by_launch(names):
    plain = schedule_of(chain(*names))
    capturing = capture.over(plain, is_launch)
    assert isinstance(capturing, CapturingSchedule)
    for start in range(capture.WARM_UP + 2):
        (got,), (want,) = (each.run([np.full(3, start)]) for each in (capturing, plain))
        assert_close(got, want)


def test_what_is_measured_runs_launch_by_launch():
    capturing = capture.over(schedule_of(chain("launch", "host", "launch")), is_launch)
    for _ in range(capture.WARM_UP + 2):
        seen: list[str] = []
        capturing.run([np.zeros(1)], lambda step, *_, seen=seen: seen.append(step.label))
        assert seen == ["launch", "host", "launch"]


def test_what_cannot_be_captured_yet_runs_launch_by_launch():
    ready = [True]
    capturing = capture.over(schedule_of(chain("launch", "launch")), lambda step: ready[0])
    ready[0] = False
    for start in range(capture.WARM_UP + 3):
        (got,) = capturing.run([np.full(3, start)])
        assert_close(got, np.full(3, start + 2))


# --- with a GPU ----------------------------------------------------------------------------------

SCALE = xrt.CudaKernel(
    """
    extern "C" __global__ void scale(const IN0* x, OUT0* y, long long size, float factor) {
        long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
        if (i < size) y[i] = (OUT0)(x[i] * factor);
    }
    """,
    "scale",
    attributes=("factor",),
)
SUM = xrt.CudaKernel(
    """
    extern "C" __global__ void sum(const IN0* a, const IN1* b, OUT0* y, long long size) {
        long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
        if (i < size) y[i] = a[i] + b[i];
    }
    """,
    "sum",
)


@pytest.fixture
def operators() -> Iterator[None]:
    xrt.register_kernel("com.example", "Scale", SCALE)
    xrt.register_kernel("com.example", "Sum", SUM)
    yield
    for name in custom.names():
        custom.unregister_kernel(*name.split("::"))


def program_of(size: int) -> Any:
    text = (
        '<ir_version: 10, opset_import: ["": 21, "com.example": 1]> '
        f"g (float[{size}] x, float[{size}] z) => (float[{size}] y, float[{size}] w) "
        "{ a = com.example.Scale<factor=2.0>(x) b = com.example.Sum(a, z) "
        "y = com.example.Scale<factor=0.5>(b) w = com.example.Sum(y, y) }"
    )
    return xrt.compile(onnx.parser.parse_model(text), engine="host")


def replay_of(program: Any) -> Replay:
    schedule = program.specialization.schedule
    assert isinstance(schedule, CapturingSchedule)
    assert len(schedule.segments) == 1
    (replay,) = streams.lane().kept[schedule].values()
    assert isinstance(replay, Replay)
    return replay


def expected(x: np.ndarray, z: np.ndarray) -> list[np.ndarray]:
    y = (x * 2 + z) * np.float32(0.5)
    return [y, y + y]


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1000, 1 << 20])
def test_replay_is_eager(gpu, operators, size):
    program = program_of(size)
    rng = np.random.default_rng(0)
    outputs = []
    for _ in range(capture.WARM_UP + 5):
        x, z = (rng.normal(size=size).astype(np.float32) for _ in range(2))
        outputs.append((program(x, z), expected(x, z)))
    replay = replay_of(program)
    assert replay.failed == ""
    assert replay.graph is not None
    assert replay.graph.instantiated == 1
    for got, want in outputs:  # later calls have not overwritten earlier outputs
        assert_close(list(got), want)


def on_gpu(number: float, gpu: Lane) -> DeviceArray:
    return staging.upload(np.full(1 << 20, number, np.float32), gpu)


@pytest.mark.gpu
def test_a_large_input_at_one_address_is_read_in_place(gpu, operators):
    program = program_of(1 << 20)
    x, z = on_gpu(0, gpu), on_gpu(1, gpu)
    for number in range(capture.WARM_UP + 4):
        fresh = on_gpu(number, gpu)
        staging.copy(x.pointer, fresh.pointer, x.nbytes, gpu.compute)
        y, w = program(x, z)
        assert_close(np.asarray(y), np.full(1 << 20, number + 0.5, np.float32))
        assert_close(np.asarray(w), np.full(1 << 20, 2 * number + 1, np.float32))
    graph = replay_of(program).graph
    assert graph is not None
    assert (graph.instantiated, graph.updated) == (1, 0)


@pytest.mark.gpu
def test_other_addresses_are_updates_and_then_copies(gpu, operators):
    program = program_of(1 << 20)
    z = on_gpu(1, gpu)
    kept = [on_gpu(number, gpu) for number in range(12)]
    for number, x in enumerate(kept):
        y, _ = program(x, z)
        assert_close(np.asarray(y), np.full(1 << 20, number + 0.5, np.float32))
    graph = replay_of(program).graph
    assert graph is not None
    assert graph.instantiated == 1
    assert graph.updated == capture.MOST_UPDATES + 1


@pytest.mark.gpu
def test_torch_tensors_go_through_a_graph(gpu, torch_cuda, operators):
    program = program_of(1 << 20)
    z = torch_cuda.ones(1 << 20, device="cuda")
    for number in range(10):
        x = torch_cuda.full((1 << 20,), float(number), device="cuda")
        y, w = program(x, z)
        assert bool((y == number + 0.5).all())
        assert bool((w == y + y).all())


@pytest.mark.gpu
def test_other_shapes_have_graphs_of_their_own(gpu, operators):
    program = program_of(1000)
    schedule = program.specialization.schedule
    rng = np.random.default_rng(0)
    for size in [1000, 50, 1000, 50, 1000, 50, 3000, 1000, 50] * 2:
        x, z = (rng.normal(size=size).astype(np.float32) for _ in range(2))
        got = [np.asarray(each) for each in schedule.run([x, z])]
        assert_close(got, expected(x, z))
    replays = streams.lane().kept[schedule].values()
    assert [replay.graph is not None for replay in replays].count(True) >= 2


@pytest.mark.gpu
def test_only_so_many_shapes_are_kept(gpu, operators):
    program = program_of(1000)
    schedule = program.specialization.schedule
    for size in range(1, capture.MOST_SHAPES + 5):
        for _ in range(capture.WARM_UP + 1):
            x = np.full(size, size, np.float32)
            assert_close([np.asarray(y) for y in schedule.run([x, x])], expected(x, x))
    assert len(streams.lane().kept[schedule]) == capture.MOST_SHAPES


@pytest.mark.gpu
def test_threads_replay_graphs_of_their_own(gpu, operators):
    program = program_of(5000)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(50):
                x, z = (rng.normal(size=5000).astype(np.float32) for _ in range(2))
                assert_close(list(program(x, z)), expected(x, z))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.gpu
def test_a_graph_lives_until_the_device_has_replayed_it(gpu, operators):
    program = program_of(1 << 20)
    x, z = on_gpu(1, gpu), on_gpu(2, gpu)
    for _ in range(capture.WARM_UP + 1):
        y, _ = program(x, z)
    alive = weakref.ref(replay_of(program))
    del program
    gc.collect()
    assert alive() is not None
    assert_close(np.asarray(y), np.full(1 << 20, 2, np.float32))
    gpu.wait()
    gc.collect()
    assert alive() is None


@pytest.mark.gpu
def test_a_stream_replays_too(gpu, operators):
    program = program_of(5000)
    rng = np.random.default_rng(0)
    batches = [tuple(rng.normal(size=5000).astype(np.float32) for _ in range(2)) for _ in range(20)]
    with program.stream(batches) as outputs:
        for got, (x, z) in zip(outputs, batches, strict=True):
            assert_close(list(got), expected(x, z))


@pytest.mark.gpu
def test_ten_thousand_replays_take_no_memory(gpu, operators):
    program = program_of(100_000)
    x, z = np.ones(100_000, np.float32), np.zeros(100_000, np.float32)
    for _ in range(100):
        program(x, z)
    gpu.wait()
    before, _ = device.memory()
    for _ in range(10_000):
        program(x, z)
    gpu.wait()
    assert before - device.memory()[0] < 1 << 20
