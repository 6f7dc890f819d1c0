"""Denormal floats in XLA clusters, on x86-64 Linux.

XLA's CPU runtime has the processor flush denormals to zero during every launch, and in the threads
of its pool from their start. A custom call at the head of a program (`launch`) undoes it on the
launching thread; XLA gives the caller its own setting back when the launch ends. The pool is that
of xrt's own client, so its threads are set once and for all. Neither reaches the user's JAX.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
import time
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from xrt.engines.xla import compiler_flags, launch, machine_code

_POOL = "xrt_keep_denormals_in_pool"
_PATIENCE = 60
"""Seconds that the threads of the pool may take to answer."""

# void task(int64_t meeting[2]): meeting[0] counts who came, meeting[1] is how many are to come.
_KEEP_TOGETHER = launch.KEEP_DENORMALS + bytes.fromhex(
    "f048830701"  # lock add qword [rdi], 1
    "488b07"  # wait: mov rax, [rdi]
    "483b4708"  # cmp rax, [rdi+8]
    "7d04"  # jge done
    "f390"  # pause
    "ebf3"  # jmp wait
    "c3"  # done: ret
)
_FRAME_API = 16
"""Offset of `api` in XLA_FFI_CallFrame; `ctx` follows."""
_API_POOL_SCHEDULE = 136
"""Offset of XLA_FFI_ThreadPool_Schedule in XLA_FFI_Api; XLA_FFI_ThreadPool_NumThreads follows."""

_Task = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_IMMORTAL: list[Any] = []
"""Callbacks that XLA keeps the addresses of."""
_programs: list[bytes] = []
_answers: list[int] = []
"""How many threads the pool has that was set last; empty if that failed."""


class _NumThreads(ctypes.Structure):
    """XLA_FFI_ThreadPool_NumThreads_Args."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
        ("num_threads", ctypes.POINTER(ctypes.c_int64)),
    )


class _Schedule(ctypes.Structure):
    """XLA_FFI_ThreadPool_Schedule_Args."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
        ("task", _Task),
        ("data", ctypes.c_void_p),
    )


@functools.cache
def kept(device: jax.Device) -> bool:
    """Whether functions with a head keep denormals on `device`; sets the threads of its pool.

    It is tried out: where XLA works in another way, clusters stay as XLA runs them.
    """
    if (sys.platform, platform.machine(), device.platform) != ("linux", "x86_64", "cpu"):
        return False
    tiny = np.full(64, 1e-40, np.float32)
    _answers.clear()
    try:
        doubled = _trial(device, tiny)
    except (OSError, AttributeError, RuntimeError, ValueError, TypeError):
        return False
    return bool(_answers) and np.array_equal(doubled, tiny + tiny)


def _trial(device: jax.Device, x: Any) -> Any:
    """2 * `x`, float32[64], computed on `device` after its pool has been set."""
    devices = xla_client.DeviceList((device,))
    loaded = device.client.deserialize_executable(_program(device), devices)
    results = loaded.execute_sharded([jax.device_put(x, device)])
    (shards,) = results.disassemble_into_single_device_arrays()
    return np.asarray(shards[0])


def _program(device: jax.Device) -> bytes:
    """The serialized program of `_trial`; a forked process has it from its parent.

    XLA cannot compile there.
    """
    if not _programs:
        launch.register()
        function = _pool_handler()
        _IMMORTAL.append(function)
        machine_code.register(_POOL, machine_code.jump(function))
        struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
        sharding = jax.sharding.SingleDeviceSharding(device)
        with jax.disable_jit(False):
            lowered = jax.jit(_double).lower(struct((64,), np.float32, sharding=sharding))
            made: Any = lowered.compile(compiler_options=compiler_flags.keep_barriers({}))
            compiled = made.runtime_executable()
        _programs.append(compiled.serialize())
    return _programs[0]


def _double(x: Any) -> Any:
    launch.call(_POOL, ((), np.int32))
    (x,) = launch.head([x])
    return x + x


def _pool_handler() -> Any:
    """A handler that sets each thread of the pool."""
    task = ctypes.cast(machine_code.executable(_KEEP_TOGETHER), _Task)

    def handle(frame: int) -> int:
        api, context = (ctypes.c_size_t * 2).from_address(frame + _FRAME_API)
        schedule, count = (ctypes.c_size_t * 2).from_address(api + _API_POOL_SCHEDULE)
        threads = ctypes.c_int64()
        size = ctypes.sizeof(_NumThreads)
        ask = _NumThreads(size, None, context, ctypes.pointer(threads))
        if not machine_code.Handler(count)(ctypes.addressof(ask)):
            _on_each(schedule, context, threads.value, task)
        return 0

    return machine_code.Handler(handle)


def _on_each(schedule: int, context: int, threads: int, task: Any) -> None:
    """Run `task` once on each of the pool's threads, which wait there for one another.

    No Python runs on them: one that is still on its way out of it when the interpreter ends would
    never finish, and XLA waits for its threads.
    """
    meeting = (ctypes.c_int64 * 2)(0, threads)
    _IMMORTAL.append(meeting)
    plans = [
        _Schedule(ctypes.sizeof(_Schedule), None, context, task, ctypes.addressof(meeting))
        for _ in range(threads)
    ]
    scheduled = [not machine_code.Handler(schedule)(ctypes.addressof(plan)) for plan in plans]
    end = time.monotonic() + _PATIENCE
    while all(scheduled) and meeting[0] < threads and time.monotonic() < end:
        time.sleep(0.0002)
    if meeting[0] >= threads:
        _answers.append(threads)
    meeting[1] = 0  # whoever waits in vain goes on
