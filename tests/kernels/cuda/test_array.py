"""Arrays on the GPU, and arrays of other libraries taken for one."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from tests.support import assert_close
from xrt.errors import DeviceMemoryError, InputError
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device, staging, streams


class Interface:
    """An object with a CUDA array interface, as pycuda and Numba have."""

    def __init__(self, **said: Any) -> None:
        base = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}
        self.__cuda_array_interface__ = {**base, **said}


@pytest.mark.parametrize(
    ("strides", "dense"),
    [(None, True), ((12, 4), True), ((4, 8), False), ((24, 4), False)],
)
def test_an_interface_is_read(strides, dense):
    taken = A.interface(Interface(strides=strides))
    assert (taken.pointer, taken.shape, taken.dtype.name) == (4096, (2, 3), "float32")
    assert taken.dense is dense


def test_strides_of_size_one_do_not_count():
    assert A.interface(Interface(shape=(1, 3), strides=(999, 4))).dense
    assert A.interface(Interface(shape=(0, 3), strides=(1, 1))).dense


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"typestr": "<M8[s]"}, "arrays of plain numbers"),
        ({"mask": np.ones(3)}, "with a mask"),
        ({"typestr": "nonsense"}, "malformed"),
        ({"data": None}, "malformed"),
    ],
)
def test_an_interface_that_makes_no_sense_is_refused(said, message):
    with pytest.raises(InputError, match=message):
        A.interface(Interface(**said))


def test_an_array_that_is_not_dense_or_elsewhere_is_refused():
    with pytest.raises(InputError, match="Make it contiguous"):
        A.check(A.interface(Interface(strides=(4, 8))), "GPUArray")
    there = A.dlpack.Taken(1, (2,), np.dtype("f"), True, (A.dlpack.CUDA, 1), None)
    with pytest.raises(InputError, match=r"device \(2, 1\).*CUDA_VISIBLE_DEVICES"):
        A.check(there, "Tensor")


def test_where_an_array_is():
    assert not A.is_on_device(np.ones(3))
    assert not A.is_on_device(np.float32(1))
    assert A.is_on_device(Interface())
    torch = pytest.importorskip("torch")
    assert not A.is_on_device(torch.ones(3))
    jax = pytest.importorskip("jax")
    assert not A.is_on_device(jax.device_put(np.ones(3), jax.devices("cpu")[0]))


def test_streams_of_other_libraries_are_understood():
    class Torch:
        cuda_stream = 77

    class CuPy:
        ptr = 78

    class Protocol:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 79

    found = [streams.handle_of(each) for each in (Torch(), CuPy(), Protocol(), 80, 0)]
    assert found == [77, 78, 79, 80, streams.LEGACY]
    with pytest.raises(InputError, match="A str was passed as a CUDA stream"):
        streams.handle_of("stream")


# --- with a GPU ----------------------------------------------------------------------------------

DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", "int8", "int64", "uint8")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3, 5), (0, 4)])
def test_numbers_go_there_and_back(gpu, dtype, shape):
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    there = staging.upload(value, gpu)
    assert (there.shape, there.dtype.name) == (shape, dtype)
    assert_close(np.asarray(there), value)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_shares_the_memory(gpu, dtype, torch_cuda):
    torch = torch_cuda
    value = np.arange(12).reshape(3, 4).astype(dtype)
    there = staging.upload(value, gpu)
    tensor = torch.from_dlpack(there)
    assert tensor.is_cuda
    assert tensor.data_ptr() == there.pointer
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.tolist() == value.tolist()


@pytest.mark.gpu
def test_torch_tensors_are_taken_in_order(gpu, torch_cuda):
    torch = torch_cuda
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensor = torch.zeros(1 << 24, device="cuda")
        for _ in range(50):  # long enough that xrt's copy would come too early
            tensor += 1
        taken = A.of(tensor, gpu)
    assert taken.pointer == tensor.data_ptr()
    assert np.asarray(taken)[-1] == 50


@pytest.mark.gpu
def test_jax_arrays_are_shared_both_ways(gpu):
    jax = pytest.importorskip("jax")
    if jax.devices()[0].platform == "cpu":
        pytest.skip("this JAX has no GPU")
    array = jax.numpy.arange(12.0).reshape(3, 4) * 2
    taken = A.of(array, gpu)
    assert_close(np.asarray(taken), np.asarray(array))
    back = jax.dlpack.from_dlpack(staging.upload(np.ones((2, 2), np.float32), gpu))
    assert_close(np.asarray(back + 1), np.full((2, 2), 2, np.float32))


@pytest.mark.gpu
def test_cupy_arrays_are_shared_both_ways(gpu):
    cupy = pytest.importorskip("cupy")
    array = cupy.arange(12, dtype="float32").reshape(3, 4) * 2
    taken = A.of(array, gpu)
    assert taken.pointer == array.data.ptr
    assert_close(np.asarray(taken), cupy.asnumpy(array))
    there = staging.upload(np.ones(5, np.float32), gpu)
    assert_close(cupy.asnumpy(cupy.asarray(there) + 1), np.full(5, 2, np.float32))


@pytest.mark.gpu
def test_pycuda_arrays_are_shared_on_the_primary_context(gpu):
    pytest.importorskip("pycuda.autoprimaryctx")
    from pycuda import gpuarray

    value = np.arange(12, dtype=np.float32)
    array = gpuarray.to_gpu(value)
    assert_close(np.asarray(A.of(array, gpu)), value)


@pytest.mark.gpu
def test_the_interface_is_read_with_its_stream(gpu):
    there = staging.upload(np.arange(6, dtype=np.float32), gpu)
    said = there.__cuda_array_interface__
    assert said["stream"] == streams.address(gpu.compute)
    assert_close(np.asarray(A.of(Interface(**said), gpu)), np.arange(6, dtype=np.float32))


@pytest.mark.gpu
def test_memory_is_used_again(gpu):
    def once() -> None:
        for _ in range(1000):
            A.empty((1 << 18,), "float32", gpu)

    once()
    gpu.wait()
    before, _ = device.memory()
    for _ in range(10):
        once()
    gpu.wait()
    assert device.memory()[0] >= before


@pytest.mark.gpu
def test_memory_that_others_hold_is_not_used_again(gpu, torch_cuda):
    torch = torch_cuda
    held = torch.from_dlpack(staging.upload(np.full(1 << 20, 7, np.float32), gpu))
    for _ in range(10):
        staging.upload(np.zeros(1 << 20, np.float32), gpu)
    gc.collect()
    gpu.wait()
    assert bool((held == 7).all())


@pytest.mark.gpu
def test_the_last_reference_may_go_on_another_thread(gpu):
    arrays = [staging.upload(np.ones(100, np.float32), gpu) for _ in range(10)]
    thread = threading.Thread(target=arrays.clear)
    thread.start()
    thread.join()
    assert_close(np.asarray(staging.upload(np.ones(3, np.float32), gpu)), np.ones(3, np.float32))


@pytest.mark.gpu
def test_too_much_memory_is_an_error_that_leaves_all_usable(gpu):
    _, total = device.memory()
    with pytest.raises(DeviceMemoryError, match=r"for a test.*MiB are free"):
        A.allocate(total * 2, gpu, "a test")
    assert_close(np.asarray(staging.upload(np.ones(3, np.float32), gpu)), np.ones(3, np.float32))


@pytest.mark.gpu
def test_threads_have_lanes_of_their_own(gpu):
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(streams.lane()))
    thread.start()
    thread.join()
    assert seen[0] is not gpu
    assert streams.address(seen[0].compute) not in (0, 1, 2, streams.address(gpu.compute))


@pytest.mark.gpu
def test_a_lane_outlives_its_thread(gpu):
    seen: list[Any] = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: seen.append(streams.lane()))
        thread.start()
        thread.join()
    assert seen[0] is seen[1] is seen[2]


@pytest.mark.gpu
def test_an_array_of_another_lane_is_waited_for(gpu):
    there: list[Any] = []

    def make() -> None:
        lane = streams.lane()
        there.append(staging.upload(np.arange(1 << 20, dtype=np.float32), lane))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert_close(np.asarray(there[0]), np.arange(1 << 20, dtype=np.float32))
