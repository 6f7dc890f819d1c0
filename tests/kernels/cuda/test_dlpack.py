"""DLPack both ways, on the CPU: the structures are the same on every device."""

from __future__ import annotations

import gc
import threading
from typing import Any

import jax
import numpy as np
import pytest
import torch

from xrt.errors import InputError
from xrt.kernels.cuda import dlpack

DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "bool",
    "int8",
    "int64",
    "uint8",
    "complex64",
)


class Memory:
    """NumPy memory that is given away by xrt's exporter."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: Any = None,
        dl_device: Any = None,
        copy: Any = None,
    ) -> Any:
        array = self.array
        return dlpack.export(
            array.ctypes.data, array.shape, array.dtype, (dlpack.CPU, 0), array, max_version
        )


def made(dtype: str, shape: tuple[int, ...] = (2, 3)) -> Memory:
    return Memory(np.arange(np.prod(shape)).reshape(shape).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_shares_the_memory(dtype):
    memory = made(dtype)
    tensor = torch.from_dlpack(memory)
    assert tensor.data_ptr() == memory.array.ctypes.data
    assert str(tensor.dtype) == f"torch.{dtype}"
    assert tensor.tolist() == memory.array.tolist()


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "bfloat16"])
def test_numpy_shares_the_memory(dtype):
    memory = made(dtype)
    array = np.from_dlpack(memory)
    assert array.ctypes.data == memory.array.ctypes.data
    np.testing.assert_array_equal(array, memory.array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "int8"])
def test_jax_takes_it(dtype):
    array = jax.dlpack.from_dlpack(made(dtype))
    assert array.dtype.name == dtype
    assert np.asarray(array).tolist() == made(dtype).array.tolist()


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (4, 1, 2)])
def test_every_shape_crosses(shape):
    memory = made("float32", shape)
    assert tuple(torch.from_dlpack(memory).shape) == shape
    assert np.from_dlpack(memory).shape == shape
    assert dlpack.take(memory).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_torch_gives_is_taken(dtype):
    tensor = torch.from_dlpack(made(dtype))
    taken = dlpack.take(tensor)
    assert taken.pointer == tensor.data_ptr()
    assert (taken.shape, taken.dtype.name, taken.device) == ((2, 3), dtype, (dlpack.CPU, 0))
    assert taken.dense


def test_what_numpy_and_jax_give_is_taken():
    array = np.arange(6.0)
    assert dlpack.take(array).pointer == array.ctypes.data
    assert dlpack.take(jax.numpy.ones(3)).dtype == np.float32


def test_gaps_and_other_orders_are_seen():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert not dlpack.take(tensor.T).dense
    assert not dlpack.take(tensor[:, :2]).dense
    assert dlpack.take(tensor[1:]).dense
    assert dlpack.take(tensor[:1].T).dense, "a dimension of size 1 has no order"
    assert dlpack.take(tensor[1:]).pointer == tensor.data_ptr() + 16


def test_memory_lives_as_long_as_the_consumer():
    before = len(dlpack._EXPORTED)
    tensor = torch.from_dlpack(made("float32"))
    gc.collect()
    assert tensor.sum() == 15
    assert len(dlpack._EXPORTED) == before + 1
    del tensor
    assert len(dlpack._EXPORTED) == before


def test_a_capsule_that_nobody_takes_is_freed():
    before = len(dlpack._EXPORTED)
    capsules = [made("float32").__dlpack__(max_version=version) for version in (None, (1, 1))]
    assert len(dlpack._EXPORTED) == before + 2
    del capsules
    assert len(dlpack._EXPORTED) == before


def test_memory_may_be_given_back_on_another_thread():
    before = len(dlpack._EXPORTED)
    held = [torch.from_dlpack(made("float32")) for _ in range(20)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert len(dlpack._EXPORTED) == before


def test_taken_memory_outlives_its_array():
    taken = dlpack.take(torch.full((1000,), 7.0))
    junk = [torch.zeros(1000) for _ in range(10)]
    raw = (np.ctypeslib.ctypes.c_float * 1000).from_address(taken.pointer)
    assert set(raw) == {7.0}
    del junk


def test_a_dtype_without_a_type_is_refused():
    with pytest.raises(BufferError, match="DLPack has no type for dtype datetime64"):
        Memory(np.zeros(3, "datetime64[s]")).__dlpack__()


def test_a_type_without_a_dtype_is_refused():
    class Odd(Memory):
        def __dlpack__(self, **_: Any) -> Any:
            capsule = super().__dlpack__()
            made, *_rest = list(dlpack._EXPORTED.values())[-1]
            made.tensor.dtype.code = 99
            return capsule

    with pytest.raises(InputError, match=r"code 99, 32 bits.*Convert it first"):
        dlpack.take(Odd(np.zeros(3, "float32")))


def test_a_producer_of_the_old_protocol_is_taken():
    class Old:
        def __init__(self) -> None:
            self.memory = made("float32")

        def __dlpack__(self, stream: Any = None) -> Any:
            return self.memory.__dlpack__()

    assert dlpack.take(Old()).shape == (2, 3)
