"""Arrays on the GPU, shared with torch, JAX, CuPy, Numba and pycuda without a copy.

Memory comes from the driver's stream-ordered pool, so that taking and giving back neither waits
nor asks the operating system. Who reads memory on another stream is made to wait by events on the
device; the host never waits, but where NumPy wants to see numbers.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 by name then)
import numpy as np

from xrt.errors import DeviceMemoryError, EngineRunError, InputError
from xrt.kernels.cuda import device, dlpack, streams
from xrt.kernels.cuda.streams import LEGACY, Lane

_UNKNOWN = 0
"""Stands for a user whose stream is not known, among the users of a block."""


class Block:
    """Memory of the device, which goes back to the pool when nobody refers to it.

    Attributes:
        pointer: Its address.
        stream: The stream that it is used on, and freed on.
        users: Handles of streams of other libraries that were given the memory.
    """

    def __init__(self, buffer: Any, stream: Any) -> None:
        self.pointer = int(buffer.handle)
        self.users: set[int] = set()
        self._buffer, self.stream = buffer, stream

    def __del__(self) -> None:
        # While the interpreter shuts down anything here may be gone, and the driver frees it all.
        try:  # noqa: SIM105
            _give_back(self._buffer, self.stream, self.users)
        except Exception:
            pass


_LATE: deque[tuple[Any, Any, set[int]]] = deque()
"""Memory that could not go back when it was dropped: a graph was being captured."""


def _give_back(buffer: Any, stream: Any, users: set[int]) -> None:
    """Free memory on `stream`, once those who were given it have done what they enqueued so far."""
    device.current()  # the last reference may go in a thread that has no context yet
    try:
        _check_not_captured(stream)
        if users - {LEGACY}:
            stream.wait(_everything())
        elif users:
            stream.wait(streams.foreign(LEGACY))
        buffer.close(stream)
    except Exception:
        _LATE.append((buffer, stream, users))


def _give_back_late() -> None:
    """Free what could not be freed when it was dropped; what still cannot waits on."""
    for _ in range(len(_LATE)):
        try:
            late = _LATE.popleft()
        except IndexError:  # another thread was faster
            return
        _give_back(*late)


def _check_not_captured(stream: Any) -> None:
    """A graph would free, at each launch, memory that is none of its own: CUDA breaks it off."""
    asked = device.driver().cuStreamIsCapturing(stream.handle)
    (captured,) = device.check(asked, "asking whether a stream is captured")
    if int(captured):
        raise EngineRunError("Memory was dropped whose stream is being captured.")


def _everything() -> Any:
    """An event after all that is enqueued in the context now, on whichever stream.

    Streams of other libraries may be gone by now, or not be those that they launch on (JAX).
    """
    event = device.current().create_event()
    result = device.driver().cuCtxRecordEvent(device.context(), event.handle)
    device.check(result, "recording an event")
    return event


def allocate(nbytes: int, lane: Lane, what: str) -> Block:
    """Memory of the device, to be used on `lane`.

    While a graph is captured the memory belongs to the graph, which works in it at every launch.

    Raises:
        DeviceMemoryError: If there is not enough, even after waiting for what is in flight.
    """
    if lane.arena is not None:
        block = _allocate(nbytes, lane.copies, lane.compute, what)
        lane.arena.append(block)
        return block
    _give_back_late()
    try:
        return _allocate(nbytes, lane.compute, lane.compute, what)
    except DeviceMemoryError:
        lane.wait()
        trim()
        return _allocate(nbytes, lane.compute, lane.compute, what)


def _allocate(nbytes: int, stream: Any, user: Any, what: str) -> Block:
    try:
        return Block(device.current().allocate(max(1, nbytes), stream=stream), user)
    except Exception as error:
        raise device.failure(error, f"{nbytes} bytes for {what}") from error


def trim() -> None:
    """Give memory that the pool holds and nobody uses back to the driver, for others to take."""
    driver, gpu = device.driver(), device.current()
    (pool,) = device.check(driver.cuDeviceGetMemPool(int(gpu)), "asking for its memory pool")
    device.check(driver.cuMemPoolTrimTo(pool, 0), "trimming its memory pool")


class DeviceArray:
    """A dense array on the GPU.

    NumPy takes it by copying (`np.asarray`); torch, JAX and CuPy share its memory through DLPack
    (`torch.from_dlpack`), pycuda and Numba through `__cuda_array_interface__`.

    Attributes:
        pointer: Address of its memory.
        shape: Its shape.
        dtype: Its NumPy dtype.
        stream: The stream that its contents are ordered on (a `cuda.core.Stream`).
    """

    __slots__ = ("_owner", "_ready", "dtype", "pointer", "shape", "stream")

    def __init__(
        self,
        pointer: int,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        stream: Any,
        owner: object,
        ready: Any = None,
    ) -> None:
        self.pointer, self.shape, self.dtype = pointer, tuple(shape), dtype
        self.stream, self._owner, self._ready = stream, owner, ready

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def is_at_home(self, lane: Lane) -> bool:
        """Whether dropping it frees its memory only after what is enqueued on `lane`."""
        return isinstance(self._owner, Block) and self._owner.stream is lane.compute

    def on(self, lane: Lane) -> DeviceArray:
        """The same memory, for use on `lane`, which waits for the contents already."""
        return DeviceArray(self.pointer, self.shape, self.dtype, lane.compute, self._owner)

    def done_at(self, event: Any) -> None:
        """Say that the contents are there once the device has passed `event`."""
        self._ready = event

    def block_until_ready(self) -> DeviceArray:
        """The array itself, once the device has computed it: the host waits."""
        (self.stream if self._ready is None else self._ready).sync()
        return self

    def wait_on(self, stream: Any) -> None:
        """Make `stream` wait until the contents are there."""
        if stream is not self.stream:
            stream.wait(self.stream if self._ready is None else self._ready)

    def _lend(self, handle: int) -> None:
        """Let work on a stream of another library, from now on, use the memory."""
        if handle not in (_UNKNOWN, streams.address(self.stream)):
            self.wait_on(streams.foreign(handle))
        if isinstance(self._owner, Block):
            self._owner.users.add(handle)

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, 0

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("A DeviceArray is given as it is: on its GPU, without a copy.")
        if stream != -1:  # -1: the consumer sees to the order itself
            self._lend(int(stream or LEGACY))
        owner = (self._owner, self.stream)
        return dlpack.export(self.pointer, self.shape, self.dtype, (2, 0), owner, max_version)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self.dtype.isbuiltin != 1:
            raise AttributeError(f"The CUDA array interface has no dtype {self.dtype.name}.")
        self._lend(_UNKNOWN)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer if self.size else 0, False),
            "strides": None,
            "stream": streams.address(self.stream),
            "version": 3,
        }

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        if copy is False:
            raise ValueError("An array on the GPU becomes a NumPy array by copying only.")
        from xrt.kernels.cuda import staging

        (host,) = staging.download([self])
        return host if dtype is None else host.astype(dtype)

    def __repr__(self) -> str:
        return f"<xrt DeviceArray {self.dtype.name}{list(self.shape)} at {self.pointer:#x}>"


def empty(shape: Sequence[int], dtype: Any, lane: Lane, what: str = "an array") -> DeviceArray:
    """A new array of any contents.

    Raises:
        DeviceMemoryError: If there is not enough memory.
    """
    kind = np.dtype(dtype)
    block = allocate(math.prod(shape) * kind.itemsize, lane, what)
    return DeviceArray(block.pointer, shape, kind, lane.compute, block)


def is_on_device(array: Any) -> bool:
    """Whether `array`, of any library, is in the memory of a GPU."""
    if isinstance(array, (np.ndarray, np.generic)):
        return False
    if isinstance(array, DeviceArray):
        return True
    place = getattr(array, "__dlpack_device__", None)
    if place is not None:
        with contextlib.suppress(Exception):  # a library may refuse for an array of many devices
            return place()[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    return hasattr(array, "__cuda_array_interface__")


def of(array: Any, lane: Lane) -> DeviceArray:
    """An array of another library that is on the GPU, its memory shared, in order on `lane`.

    Args:
        array: Anything with `__dlpack__` or `__cuda_array_interface__`.
        lane: Where it will be read.

    Raises:
        InputError: If it is not dense, or not on the GPU and in the context that xrt works in.
    """
    if isinstance(array, DeviceArray):
        return array
    if hasattr(array, "__dlpack__"):
        taken = dlpack.take(array, streams.address(lane.compute))
    else:
        taken = interface(array)
        _check_context(taken, type(array).__name__)
        lane.compute.wait(streams.foreign(_producer(array)))
    check(taken, type(array).__name__)
    return DeviceArray(taken.pointer, taken.shape, taken.dtype, lane.compute, taken.owner)


def interface(array: Any) -> dlpack.Taken:
    """What `array.__cuda_array_interface__` says, versions 0 to 3.

    Raises:
        InputError: If it describes no dense array of numbers.
    """
    said = array.__cuda_array_interface__
    name = type(array).__name__
    try:
        dtype = np.dtype(said["typestr"])
        shape, strides = tuple(said["shape"]), said.get("strides")
        pointer = int(said["data"][0])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"The __cuda_array_interface__ of a {name} is malformed: {error}"
        ) from None
    if said.get("mask") is not None or dtype.kind not in "biufc":
        raise InputError(
            f"A {name} of typestr {said['typestr']!r}{' with a mask' * ('mask' in said)} was "
            "passed; programs take arrays of plain numbers without masks."
        )
    dense = strides is None or 0 in shape or _is_dense(shape, strides, dtype.itemsize)
    return dlpack.Taken(pointer, shape, dtype, dense, (dlpack.CUDA, 0), array)


def _is_dense(shape: tuple[int, ...], strides: Sequence[int], step: int) -> bool:
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _producer(array: Any) -> int:
    """The handle of the stream that an array is ordered on.

    Who names none (pycuda, and versions before 3) works on the default stream as a rule. xrt's own
    streams do not wait for that by themselves.
    """
    named = array.__cuda_array_interface__.get("stream")
    return int(named) if named else LEGACY


def check(taken: dlpack.Taken, name: str) -> None:
    """Whether programs can read what was taken from an array of type `name`.

    Raises:
        InputError: If it is not on the first GPU, or not dense.
    """
    if taken.device[0] not in (dlpack.CUDA, dlpack.CUDA_MANAGED) or taken.device[1] != 0:
        raise InputError(
            f"A {name} on device {taken.device} was passed; programs run on the first GPU. Move it "
            "there, or choose the GPU with CUDA_VISIBLE_DEVICES."
        )
    if not taken.dense:
        raise InputError(
            f"A {name} of shape {list(taken.shape)} was passed whose elements do not lie in "
            "row-major order. Make it contiguous first."
        )


def _check_context(taken: dlpack.Taken, name: str) -> None:
    """Memory of one CUDA context cannot be used in another."""
    driver = device.driver()
    asked = driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_CONTEXT
    status, context = driver.cuPointerGetAttribute(asked, taken.pointer)
    if int(status) or not int(context or 0):  # memory of a pool belongs to no context
        return
    if int(context) != int(device.context()):
        raise InputError(
            f"A {name} was passed whose memory belongs to a CUDA context of its own. xrt, like "
            "torch and JAX, works in the primary context: with pycuda, import "
            "pycuda.autoprimaryctx instead of pycuda.autoinit."
        )
