"""The device that XLA clusters run on, and arrays on it.

On the CPU xrt owns a client of its own. It dispatches synchronously, which uses every core (see
docs/adr), and the user's own JAX keeps its backend and its global configuration.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from xrt.kernels.cpu import cpu_flags
from xrt.kernels.jax.integer import GPU, SIGNED, VNNI, Form

ALIGNMENT = 64
"""Bytes: XLA's CPU client shares memory of this alignment without a copy."""

_UNSIGNED_BY_SIGNED = ("avx512_vnni", "amx_int8")
"""Instruction sets for which XLA's CPU library has products of uint8 by int8."""


@functools.cache
def device() -> jax.Device:
    """The device of the XLA engine: the first accelerator JAX sees, else xrt's own CPU client."""
    default = jax.devices()[0]
    if default.platform != "cpu":
        return default
    return xla_client.make_cpu_client(asynchronous=False).devices()[0]


@functools.cache
def integer_form() -> Form:
    """Which integer products the device is fast at."""
    if device().platform != "cpu":
        return GPU
    return VNNI if cpu_flags().intersection(_UNSIGNED_BY_SIGNED) else SIGNED


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Trace and compile under xrt's settings, whatever the user's JAX configuration says.

    All of them are thread-local contexts, so nothing leaks. Without x64, JAX would narrow int64.
    """
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
    """`array` (NumPy, or a JAX array of any client) on `target`, by default the engine's device.

    On the CPU aligned memory is shared, not copied: the caller must leave it alone while the
    result lives. Any dtype keeps its width.
    """
    target = target or device()
    if isinstance(array, jax.Array) and array.devices() == {target}:
        return array
    array = np.asarray(array)
    if target.platform == "cpu":
        array = _aligned(array)
    # What jax.device_put ends in; on the way there it spends ten times as long.
    with jax.enable_x64(True):  # without it, JAX narrows int64
        placed: jax.Array = xla_client.batched_device_put(
            jax.core.ShapedArray(array.shape, array.dtype), _sharding(target), [array], [target]
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


@functools.cache
def _sharding(target: jax.Device) -> jax.sharding.SingleDeviceSharding:
    return jax.sharding.SingleDeviceSharding(target)
