"""Networks on the GPU through TensorRT. Skipped, with the reason, where it cannot run."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xrt
from tests.engines.tensorrt.trt_support import NETWORKS, OPTIONS, inputs_for, mlp
from tests.support import assert_close, model
from xrt.errors import (
    DeviceMemoryError,
    EngineFallbackWarning,
    EngineRunError,
    EngineUnavailableError,
)
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.runtime.capture import CapturingSchedule

pytestmark = pytest.mark.gpu


@pytest.fixture
def engine(gpu: Any) -> str:
    """The TensorRT engine, where it can run."""
    for status in xrt.engines():
        if status.name == "tensorrt" and status.available:
            return "tensorrt"
        if status.name == "tensorrt":
            pytest.skip(str(status))
    raise AssertionError("the engine is not registered")


def host_of(given: Any, inputs: list[Any]) -> list[Any]:
    return outputs_of(xrt.compile(given, engine="host")(*inputs))


def outputs_of(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_networks_agree_with_the_host(engine, name):
    given = NETWORKS[name]()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    assert {cluster.engine for cluster in program.clusters} == {"tensorrt"}
    for seed in range(5):  # the later calls replay a graph
        inputs = inputs_for(given, seed)
        assert_close(outputs_of(program(*inputs)), host_of(given.clone(), inputs), scale=10)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_agrees_within_its_own(engine, precision):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, precision=precision, options=OPTIONS)
    inputs = inputs_for(given)
    (got,), (want,) = outputs_of(program(*inputs)), host_of(given.clone(), inputs)
    assert np.abs(got - want).max() < 3e-2 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["resnet50", "bert", "vit", "segformer", "detr"])
def test_published_networks_agree_with_torch(engine, name, precision):
    torch = pytest.importorskip("torch")
    from benchmarks import models

    module, inputs = models.load(name)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    program = xrt.compile(module, inputs, engine=engine, precision=precision)
    with torch.no_grad():
        want, got = module(*args, **kwargs), program(*args, **kwargs)
    from torch.utils import _pytree

    bound = 1e-3 if precision == "fp32" else 5e-2
    for mine, theirs in zip(_pytree.tree_leaves(got), _pytree.tree_leaves(want), strict=True):
        assert (mine - theirs).abs().max() < bound * theirs.abs().max()


def test_replay_is_eager(engine):
    given = mlp()
    graphs = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    eager = xrt.compile(
        given.clone(),
        engine=engine,
        options=replace(OPTIONS, tensorrt=xrt.TensorRTOptions(cuda_graphs=False)),
    )
    for seed in range(6):
        inputs = inputs_for(given, seed)
        np.testing.assert_array_equal(graphs(*inputs), eager(*inputs))
    schedule = graphs.specialization.schedule
    assert isinstance(schedule, CapturingSchedule)
    (replay,) = streams.lane().kept[schedule].values()
    assert replay.failed == ""
    assert replay.graph is not None


def test_ten_thousand_calls_take_no_memory(engine, gpu):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    inputs = inputs_for(given)
    want = host_of(given.clone(), inputs)
    for _ in range(100):
        program(*inputs)
    gpu.wait()
    before, _ = device.memory()
    for _ in range(10_000):
        result = program(*inputs)
    gpu.wait()
    assert before - device.memory()[0] < 1 << 20
    assert_close(outputs_of(result), want, scale=10)


def test_two_threads_run_two_programs(engine):
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            given = NETWORKS[name]()
            program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
            for seed in range(30):
                inputs = inputs_for(given, seed)
                want = host_of(given.clone(), inputs)
                assert_close(outputs_of(program(*inputs)), want, scale=10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("mlp", "conv")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert failures == []


def test_two_threads_run_one_program(engine):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    calls = [(inputs_for(given, seed)) for seed in range(8)]
    wants = [host_of(given.clone(), inputs) for inputs in calls]
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                for inputs, want in zip(calls, wants, strict=True):
                    assert_close(outputs_of(program(*inputs)), want, scale=10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_torch_tensors_stay_on_the_gpu(engine, torch_cuda):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    for seed in range(5):
        (x,) = inputs_for(given, seed)
        result = program(torch_cuda.from_numpy(x).cuda())
        assert result.is_cuda
        assert_close([result.cpu().numpy()], host_of(given.clone(), [x]), scale=10)


def test_jax_arrays_are_taken_and_given(engine):
    jax = pytest.importorskip("jax")
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    (x,) = inputs_for(given)
    result = program(jax.numpy.asarray(x))
    assert isinstance(result, jax.Array)
    assert_close([np.asarray(result)], host_of(given.clone(), [x]), scale=10)


def test_pycuda_arrays_are_taken(engine):
    pytest.importorskip("pycuda.autoprimaryctx")
    from pycuda import gpuarray

    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    (x,) = inputs_for(given)
    result = program(gpuarray.to_gpu(x))
    assert isinstance(result, DeviceArray)
    assert_close([np.asarray(result)], host_of(given.clone(), [x]), scale=10)


def test_a_stream_of_the_callers_is_used(engine, gpu):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    (executable,) = program.specialization.executables.values()
    own = device.current().create_stream()
    inputs = inputs_for(given)
    for stream in (own, streams.address(own)):
        (result,) = executable.run(inputs, stream=stream)
        assert streams.address(result.stream) == streams.address(own)
        assert_close([np.asarray(result)], host_of(given.clone(), inputs), scale=10)


def test_profiles_are_switched(engine):
    text = "g (float[n,16] x) => (float[n,16] y) { a = Tanh (x) b = Mul (a, x) y = Add (b, a) }"
    options = replace(OPTIONS, ranges={"n": (1, 4, 32)})
    program = xrt.compile(model(text), engine=engine, options=options)
    rng = np.random.default_rng(0)
    for size in (4, 1, 32, 4, 7, 32, 1):
        x = rng.normal(size=(size, 16)).astype(np.float32)
        assert_close([program(x)], [np.tanh(x) * x + np.tanh(x)], scale=10)


def test_mixed_programs_pass_arrays_on_the_gpu(engine):
    text = """
        g (float[4,16] x) => (float[4,16] y, int64[n,2] z) {
            a = Tanh (x)  b = Mul (a, x)  y = Add (b, a)
            m = Greater (b, a)  t = NonZero (m)  z = Transpose <perm=[1,0]> (t)
        }
    """
    program = xrt.compile(model(text), engine=[engine, "xla"], options=OPTIONS)
    (x,) = inputs_for(mlp())
    want = host_of(model(text), [x])
    for _ in range(5):
        assert_close(outputs_of(program(x)), want, scale=10)


def test_a_saved_program_runs(engine, tmp_path):
    given = mlp()
    program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    program.save(tmp_path / "model.xrt")
    inputs = inputs_for(given)
    loaded = xrt.load(tmp_path / "model.xrt")
    assert_close(outputs_of(loaded(*inputs)), outputs_of(program(*inputs)))


def test_a_plan_for_another_gpu_says_so(engine):
    here = device.present()
    assert isinstance(here, device.Gpu)
    target = "sm_75" if here.target != "sm_75" else "sm_120"
    program = xrt.compile(mlp(), engine=engine, target=target, options=OPTIONS)
    with pytest.raises(EngineUnavailableError, match=f"built for {target}.*cannot run here"):
        program(*inputs_for(mlp()))


def test_too_little_memory_is_an_error_that_leaves_the_program_usable(engine, gpu):
    text = """
        g (float[n,1024] x) => (float[n,1024] y) <float[1024,1024] w> {
            a = MatMul (x, w)  b = Tanh (a)  y = MatMul (b, w)
        }
    """
    given = model(text, w=np.random.default_rng(0).normal(size=(1024, 1024)) / 32)
    options = replace(OPTIONS, ranges={"n": (1, 4, 1 << 16)})
    program = xrt.compile(given, engine=engine, options=options)
    small = np.ones((4, 1024), np.float32)
    want = program(small)
    gpu.wait()
    free, _ = device.memory()
    hog = A.allocate(free - (64 << 20), gpu, "a test")
    try:
        with pytest.raises((DeviceMemoryError, EngineRunError)) as raised:
            program(np.ones((1 << 16, 1024), np.float32))
        assert "memory" in str(raised.value)
    finally:
        del hog
        gpu.wait()
    assert_close([program(small)], [want])


def test_a_cluster_that_does_not_fit_moves_on_when_it_is_built(engine, gpu):
    text = """
        g (float[1,4096] x) => (float[1,4096] y) <float[4096,4096] w> {
            a = MatMul (x, w)  b = Tanh (a)  y = MatMul (b, w)
        }
    """
    given = model(text, w=np.random.default_rng(0).normal(size=(4096, 4096)) / 64)
    x = np.ones((1, 4096), np.float32)
    want = host_of(given.clone(), [x])
    free, _ = device.memory()
    hog = A.allocate(free - (16 << 20), gpu, "a test")
    try:
        with pytest.warns(EngineFallbackWarning):
            program = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
        assert program.clusters == []
    finally:
        del hog
        gpu.wait()
        A.trim()
    assert_close([program(x)], want, scale=10)
    again = xrt.compile(given.clone(), engine=engine, options=OPTIONS)
    assert [cluster.engine for cluster in again.clusters] == ["tensorrt"]
    assert_close([again(x)], want, scale=10)


def test_a_context_lives_until_the_device_has_run_it(engine, gpu):
    program = xrt.compile(mlp(), engine=engine, options=OPTIONS)
    inputs = inputs_for(mlp())
    (executable,) = program.specialization.executables.values()
    (result,) = executable.run(inputs)
    alive = weakref.ref(gpu.kept[executable])
    del program, executable
    gc.collect()
    assert alive() is not None
    assert_close([np.asarray(result)], host_of(mlp(), inputs), scale=10)
    gpu.wait()
    gc.collect()
    assert alive() is None


def test_explain_tells_layers_and_their_precision(engine):
    program = xrt.compile(mlp(), engine=engine, options=OPTIONS)
    (cluster,) = program.explain().to_dict()["clusters"]
    assert cluster["engine_layers"]
    assert cluster["plan_bytes"] > 0
    assert "layers" in cluster["summary"]


def test_compiled_kernels_are_kept_on_disk(engine, tmp_path):
    options = replace(OPTIONS, cache=True, cache_dir=tmp_path)
    program = xrt.compile(mlp(), engine=engine, options=options)
    program(*inputs_for(mlp()))
    (executable,) = program.specialization.executables.values()
    if executable.plan.library.name == "tensorrt_rtx":
        assert list((tmp_path / "tensorrt-kernels").glob("*.xrtcache"))
