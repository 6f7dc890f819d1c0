"""CUDA graphs: captured, updated, launched."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import assert_close
from xrt.errors import EngineRunError
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import source, staging
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.graph import Graph
from xrt.kernels.cuda.streams import Lane

pytestmark = pytest.mark.gpu

ADD = """
extern "C" __global__ void add(const float* x, float* y, long long size, float term) {
    long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
    if (i < size) y[i] = x[i] + term;
}
"""


def add(array: DeviceArray, term: float, lane: Lane) -> DeviceArray:
    made = A.empty(array.shape, array.dtype, lane)
    arguments = (array.pointer, made.pointer, np.int64(array.size), np.float32(term))
    source.launch(source.load(ADD, "add"), array.size, arguments, lane)
    return made


def test_a_graph_replays_what_was_captured(gpu):
    given = staging.upload(np.arange(1000, dtype=np.float32), gpu)
    assert_close(np.asarray(add(given, 1, gpu)), np.arange(1, 1001, dtype=np.float32))
    graph = Graph()
    result = graph.capture(gpu, lambda: add(add(given, 1, gpu), 2, gpu))
    for start in (0, 10):
        fresh = staging.upload(np.arange(start, start + 1000, dtype=np.float32), gpu)
        staging.copy(given.pointer, fresh.pointer, given.nbytes, gpu.compute)
        graph.launch(gpu)
        assert_close(np.asarray(result), np.arange(start + 3, start + 1003, dtype=np.float32))


def test_other_addresses_are_an_update(gpu):
    arrays = [staging.upload(np.full(1000, n, np.float32), gpu) for n in range(4)]
    graph = Graph()
    for number, array in enumerate(arrays):
        result = graph.capture(gpu, lambda array=array: add(array, 1, gpu))
        graph.launch(gpu)
        assert_close(np.asarray(result), np.full(1000, number + 1, np.float32))
    assert (graph.instantiated, graph.updated) == (1, 3)


def test_other_work_is_built_anew(gpu):
    given = staging.upload(np.zeros(1000, np.float32), gpu)
    graph = Graph()
    graph.capture(gpu, lambda: add(given, 1, gpu))
    result = graph.capture(gpu, lambda: add(add(given, 1, gpu), 1, gpu))
    graph.launch(gpu)
    assert_close(np.asarray(result), np.full(1000, 2, np.float32))
    assert graph.instantiated == 2


def test_what_cannot_be_captured_is_an_error_and_the_lane_goes_on(gpu):
    given = staging.upload(np.zeros(1000, np.float32), gpu)
    graph = Graph()

    def waits() -> None:
        add(given, 1, gpu)
        gpu.compute.sync()  # CUDA forbids to wait for work that is not enqueued

    with pytest.raises(EngineRunError, match="could not be captured"):
        graph.capture(gpu, waits)
    assert not gpu.capturing
    assert_close(np.asarray(add(given, 5, gpu)), np.full(1000, 5, np.float32))


def test_an_error_in_the_work_leaves_the_lane_as_it_was(gpu):
    graph = Graph()

    def fails() -> None:
        raise EngineRunError("on purpose")

    with pytest.raises(EngineRunError, match="on purpose"):
        graph.capture(gpu, fails)
    assert not gpu.capturing
    gpu.wait()


def test_memory_that_is_dropped_in_a_capture_goes_back_after_it(gpu):
    given = staging.upload(np.zeros(1000, np.float32), gpu)
    dropped = [staging.upload(np.ones(1000, np.float32), gpu)]
    waiting = len(A._LATE)
    graph = Graph()

    def drops() -> DeviceArray:
        dropped.clear()
        return add(given, 1, gpu)

    result = graph.capture(gpu, drops)
    assert len(A._LATE) == waiting + 1
    graph.launch(gpu)
    assert_close(np.asarray(result), np.ones(1000, np.float32))
    A.empty((1000,), np.float32, gpu)
    assert not A._LATE
