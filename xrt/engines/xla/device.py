"""The device that XLA clusters run on, and arrays on it.

On the CPU xrt owns a client of its own. It dispatches synchronously, which uses every core (see
docs/adr), and the user's own JAX keeps its backend and its global configuration. There is one
client for each number of threads that programs are compiled for.

A client's threads do not live on in a forked process. `generation` counts forks, so that whoever
holds something of a client can tell that it is the parent's; what is asked for here is new.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from xrt.engines.xla import denormals
from xrt.kernels.cpu import cpu_flags
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.jax.integer import GPU, SIGNED, VNNI, Form
from xrt.process import core_count

ALIGNMENT = 64
"""Bytes: XLA's CPU client shares memory of this alignment without a copy."""

_UNSIGNED_BY_SIGNED = ("avx512_vnni", "amx_int8")
"""Instruction sets for which XLA's CPU library has products of uint8 by int8."""


generation = 0
"""How many forks lie between this process and the one that loaded this module first."""

_THREADS: ContextVar[int | None] = ContextVar("xrt_xla_threads", default=None)
_devices: dict[int | None, jax.Device] = {}
_virtual: dict[int, list[jax.Device]] = {}
"""Clients of several CPU devices, by their number."""
_lock = threading.Lock()
_left_behind: list[Any] = []
"""Devices of the parent process: to free their clients is to wait for threads that are not here."""


def device() -> jax.Device:
    """The device of the XLA engine: the first accelerator JAX sees, else xrt's own CPU client.

    Within `isolated(threads)` it is the client that computes with so many threads.
    """
    threads = _THREADS.get()
    found = _devices.get(threads)
    return _open(threads) if found is None else found


def _open(threads: int | None) -> jax.Device:
    with _lock:
        if threads not in _devices:
            default = jax.local_devices()[0]
            _devices[threads] = default if default.platform != "cpu" else _open_cpu(threads)
        return _devices[threads]


def _open_cpu(threads: int | None) -> jax.Device:
    # The client takes no such argument, but looks for this variable while it is made.
    before = os.environ.get("NPROC")
    if threads is not None:
        os.environ["NPROC"] = str(threads)
    try:
        own = xla_client.make_cpu_client(asynchronous=False).devices()[0]
    finally:
        if threads is not None and before is None:
            del os.environ["NPROC"]
        elif before is not None:
            os.environ["NPROC"] = before
    denormals.kept(own)  # sets its threads, and names what stored programs call
    return own


def virtual_devices(count: int) -> list[jax.Device]:
    """So many CPU devices, of a client of xrt's own; they share the threads of the processor."""
    with _lock:
        if count not in _virtual:
            client = xla_client.make_cpu_client(asynchronous=False, num_devices=count)
            _virtual[count] = client.devices()
            denormals.kept(_virtual[count][0])  # sets the threads of the client
        return list(_virtual[count])


def thread_count() -> int:
    """How many threads the CPU client of `device()` computes with."""
    given = os.environ.get("NPROC", "")
    default = int(given) if given.isdecimal() else core_count()
    return _THREADS.get() or default


def is_forked() -> bool:
    """Whether a parent of this process had started XLA before it forked.

    XLA compiles in threads that all clients share, so a forked process cannot compile: it would
    abort. It can load and run what was compiled elsewhere.
    """
    return bool(_left_behind)


def _after_fork() -> None:
    global generation, _lock
    _left_behind.extend([*_devices.values(), *_virtual.values()])
    _devices.clear()
    _virtual.clear()
    _lock = threading.Lock()
    generation += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def integer_form() -> Form:
    """Which integer products the device is fast at."""
    if device().platform != "cpu":
        return GPU
    return VNNI if cpu_flags().intersection(_UNSIGNED_BY_SIGNED) else SIGNED


@contextlib.contextmanager
def isolated(threads: int | None = None) -> Iterator[None]:
    """Trace and compile under xrt's settings, whatever the user's JAX configuration says.

    All of them are thread-local contexts, so nothing leaks. Without x64, JAX would narrow int64.

    Args:
        threads: How many threads the CPU computes with; None for one a core.
    """
    with _computing_with(threads), _settings():
        yield


@contextlib.contextmanager
def _computing_with(threads: int | None) -> Iterator[None]:
    token = _THREADS.set(threads)
    try:
        yield
    finally:
        _THREADS.reset(token)


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    precision = None if device().platform == "cpu" else "highest"
    with (
        jax.enable_x64(True),
        jax.default_matmul_precision(precision),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.threefry_partitionable(True),  # which decides the numbers that a key gives
        jax.debug_nans(False),
        jax.debug_infs(False),
        jax.disable_jit(False),
    ):
        yield


def put(array: Any, target: jax.Device | None = None) -> jax.Array:
    """`array` on `target`, by default the engine's device.

    It may be NumPy's, a JAX array of any client, or xrt's own on a GPU, whose memory is shared.

    On the CPU aligned memory is shared, not copied: the caller must leave it alone while the
    result lives. Any dtype keeps its width.
    """
    target = target or device()
    if isinstance(array, jax.Array) and array.devices() == {target}:
        return array
    if isinstance(array, DeviceArray) and target.platform in ("gpu", "cuda"):
        with jax.enable_x64(True):
            shared: jax.Array = jax.dlpack.from_dlpack(array)  # on the same GPU, the first one
        return shared
    array = np.asarray(array)
    if target.platform == "cpu":
        array = _aligned(array)
    return place(array, target)


def copied(
    array: np.ndarray[Any, Any], sharding: jax.sharding.Sharding, devices: Sequence[jax.Device]
) -> jax.Array:
    """`array` on each of `devices`, by a sharding that repeats it, in memory that XLA owns.

    Only such memory can be donated. The caller may change `array` afterwards.
    """
    with jax.enable_x64(True):
        made: jax.Array = xla_client.batched_device_put(
            _shaped(array.shape, array.dtype),
            sharding,
            [array] * len(devices),
            list(devices),
            True,
            True,
            xla_client.HostBufferSemantics.IMMUTABLE_ONLY_DURING_CALL,
        )
    return made


def place(array: np.ndarray[Any, Any], target: jax.Device) -> jax.Array:
    """`array` on `target`, copied by XLA in the background unless it is aligned."""
    # What jax.device_put ends in; on the way there it spends ten times as long.
    with jax.enable_x64(True):  # without it, JAX narrows int64
        placed: jax.Array = xla_client.batched_device_put(
            _shaped(array.shape, array.dtype), _sharding(target), [array], [target]
        )
    return placed


def _aligned(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """`array`, copied if its memory is not aligned and dense.

    XLA would copy it too, but in the background, and a launch that waits for its input leaves the
    calling thread: it would return before it has run.
    """
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    copy: np.ndarray[Any, Any] = memory[start : start + array.nbytes].view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


@functools.lru_cache(maxsize=4096)
def _shaped(shape: tuple[int, ...], dtype: np.dtype[Any]) -> jax.core.ShapedArray:
    """Asked for within `enable_x64` only, since it keeps the width of what it saw first."""
    return jax.core.ShapedArray(shape, dtype)


@functools.cache
def _sharding(target: jax.Device) -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(target)
