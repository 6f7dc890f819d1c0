"""Which GPU there is, or why there is none, and the packages that reach it."""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
import threading
from dataclasses import dataclass
from typing import Any

from xrt.errors import (
    DeviceMemoryError,
    EngineRunError,
    EngineUnavailableError,
    MissingDependencyError,
)
from xrt.graph import Support

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""

REMEDY = "install an NVIDIA driver on a machine with an NVIDIA GPU"


@dataclass(frozen=True)
class Gpu:
    """A GPU and its driver.

    Attributes:
        name: Its marketing name: "NVIDIA L4".
        capability: Its compute capability: (8, 9).
        driver: The CUDA version of the driver: (13, 0).
        memory: Bytes of its memory.
    """

    name: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    memory: int = 0

    @property
    def target(self) -> str:
        """The compute capability as `xrt.compile(target=...)` takes it: "sm_89"."""
        return "sm_{}{}".format(*self.capability)


@functools.cache
def present() -> Gpu | str:
    """The first GPU that CUDA sees, or the reason why there is none.

    The driver alone is asked: no package is needed to know what is missing.
    """
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return "no NVIDIA driver is installed"
    status = int(cuda.cuInit(0))
    if status:
        return f"the NVIDIA driver found no GPU that it can use (cuInit: error {status})"
    count, version = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    if cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "the NVIDIA driver sees no GPU"
    return _describe(cuda, (version.value // 1000, version.value % 1000 // 10))


def _describe(cuda: ctypes.CDLL, driver: tuple[int, int]) -> Gpu | str:
    device, name, memory = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_size_t()
    numbers = [ctypes.c_int(), ctypes.c_int()]
    failed = cuda.cuDeviceGet(ctypes.byref(device), 0)
    failed = failed or cuda.cuDeviceGetName(name, len(name), device)
    failed = failed or cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    for number, attribute in zip(numbers, (_MAJOR, _MINOR), strict=True):
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if failed:
        return f"the NVIDIA driver does not describe its GPU (error {failed})"
    capability = (numbers[0].value, numbers[1].value)
    return Gpu(name.value.decode(), capability, driver, memory.value)


def support() -> Support:
    """Whether programs can run on a GPU here; if not, what is missing and what to do."""
    found = present()
    if isinstance(found, str):
        return Support.no(found, REMEDY)
    try:
        core()
    except MissingDependencyError as error:
        return Support.no(str(error))
    return Support.yes()


@functools.cache
def core() -> Any:
    """The package `cuda.core`.

    Raises:
        MissingDependencyError: If it, or the `cuda.bindings` below it, is not installed.
    """
    try:
        importlib.import_module("cuda.bindings")
    except ImportError:
        raise MissingDependencyError("cuda-bindings", "cuda", "Running on an NVIDIA GPU") from None
    try:
        found = importlib.import_module("cuda.core")
    except ImportError:
        found = None
    if not hasattr(found, "LEGACY_DEFAULT_STREAM"):  # before 1.0 all was called experimental
        raise MissingDependencyError("cuda-core>=1.0", "cuda", "Running on an NVIDIA GPU")
    return found


@functools.cache
def driver() -> Any:
    """The module `cuda.bindings.driver`: the driver's functions as they are."""
    core()
    return importlib.import_module("cuda.bindings.driver")


_THREAD = threading.local()


def current() -> Any:
    """The GPU (a `cuda.core.Device`), its primary context made current in this thread.

    The primary context is the one that torch and JAX use: memory is shared with them.

    Raises:
        EngineUnavailableError: If there is no GPU.
        MissingDependencyError: If the packages are not installed.
    """
    known = getattr(_THREAD, "device", None)
    if known is None:
        found = present()
        if isinstance(found, str):
            raise EngineUnavailableError(f"Running on a GPU is not possible: {found}. {_do()}")
        known = core().Device(0)
        known.set_current()
        _THREAD.device = known
    return known


@functools.cache
def context() -> Any:
    """The primary context of the GPU (a `CUcontext`)."""
    current()
    (found,) = check(driver().cuDevicePrimaryCtxRetain(0), "asking for its primary context")
    return found


def _do() -> str:
    return f"Use engine='xla' or 'host' here, or {REMEDY}."


def check(result: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    """The values of a call of the driver, of which the first is its status.

    Raises:
        DeviceMemoryError: If memory was lacking.
        EngineRunError: If the call failed otherwise.
    """
    status, *values = result
    if int(status):
        raise failure(f"{status.name}", what)
    return tuple(values)


def failure(error: object, what: str) -> EngineRunError:
    """The error to raise for what CUDA said while xrt tried `what`: "copying 12 bytes"."""
    text = str(error)
    if is_out_of_memory(text):
        return DeviceMemoryError(f"The GPU has no memory left for {what}: {text}. {memory_left()}")
    return EngineRunError(f"CUDA failed at {what}: {text}.")


def is_out_of_memory(text: str) -> bool:
    """Whether a message of CUDA or of an engine speaks of missing memory."""
    plain = text.lower().replace("_", " ")
    return any(sign in plain for sign in ("out of memory", "outofmemory", "failed allocation"))


def memory_left() -> str:
    """How much memory is free, and what to do about it, for messages."""
    try:
        free, total = memory()
        left = f"{free >> 20} of {total >> 20} MiB are free. "
    except Exception:  # the message matters more
        left = ""
    return (
        f"{left}Use smaller batches, drop arrays that are no longer needed, or let other libraries "
        "hold less (torch.cuda.empty_cache(), XLA_PYTHON_CLIENT_PREALLOCATE=false)."
    )


def memory() -> tuple[int, int]:
    """Bytes of the GPU's memory that are free, and that there are."""
    current()
    free, total = check(driver().cuMemGetInfo(), "asking for its free memory")
    return int(free), int(total)
