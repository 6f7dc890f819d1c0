"""Denormal floats in XLA clusters, on x86-64 Linux.

XLA's CPU runtime has the processor flush denormals to zero during every launch, and in the threads
of its pool from their start. A custom call at the head of a cluster undoes it on the launching
thread; XLA gives the caller its own setting back when the launch ends. The pool is that of xrt's
own client, so its threads are set once and for all. Neither reaches the user's JAX.

The custom call is a few bytes of machine code, since a Python callback would wait for the
interpreter's lock at every launch. It follows XLA's foreign function interface, whose binary form
is stable (xla/ffi/api/c_api.h).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxlib import xla_client

from xrt.engines.xla import compiler_flags

_HEAD = "xrt_keep_denormals"
_POOL = "xrt_keep_denormals_in_pool"
_PATIENCE = 60
"""Seconds that the threads of the pool may take to answer."""

# XLA_FFI_Error *handler(XLA_FFI_CallFrame *frame), in the System V calling convention. Asked for
# its metadata, it answers with XLA's own version of the interface, no traits and no state.
_METADATA = bytes.fromhex(
    "488b4708"  # mov rax, [rdi+8]      frame->extension_start
    "4885c0"  # test rax, rax
    "7422"  # jz rest
    "83780801"  # cmp dword [rax+8], 1  extension->type, XLA_FFI_Extension_Metadata
    "751c"  # jne rest
    "488b4018"  # mov rax, [rax+24]     extension->metadata
    "488b4f10"  # mov rcx, [rdi+16]     frame->api
    "488b4920"  # mov rcx, [rcx+32]     api->api_version, major and minor
    "48894818"  # mov [rax+24], rcx     metadata->api_version
    "31c9"  # xor ecx, ecx
    "894820"  # mov [rax+32], ecx       metadata->traits
    "48894828"  # mov [rax+40], rcx     metadata->state_type_id
    "31c0"  # xor eax, eax              no error
    "c3"  # ret
)
_KEEP = bytes.fromhex(
    "0fae5c24f8"  # stmxcsr [rsp-8]
    "816424f8bf7fffff"  # and dword [rsp-8], ~0x8040    flush to zero, denormals are zeros
    "0fae5424f8"  # ldmxcsr [rsp-8]
    "31c0"  # xor eax, eax
    "c3"  # ret
)
# void task(int64_t meeting[2]): meeting[0] counts who came, meeting[1] is how many are to come.
_KEEP_TOGETHER = _KEEP[:-3] + bytes.fromhex(
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

_Function = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
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


def head(arguments: Sequence[Any]) -> list[Any]:
    """The arguments of a traced function, for use after the custom call that keeps denormals.

    They pass an optimization barrier, which costs nothing where `compiler_flags.keep_barriers`.
    """
    done = _custom_call(_HEAD)
    held = jax.lax.optimization_barrier((*arguments, done))  # type: ignore[no-untyped-call]
    return list(held[:-1])


def _custom_call(name: str) -> Any:
    struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
    call: Any = jax.ffi.ffi_call(name, struct((), np.int32), has_side_effect=True)
    return call()


@functools.cache
def kept(device: jax.Device) -> bool:
    """Whether functions with a `head` keep denormals on `device`; sets the threads of its pool.

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
        _register(_HEAD, _KEEP)
        _register(_POOL, _call(_pool_handler()))
        struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
        sharding = jax.sharding.SingleDeviceSharding(device)
        with jax.disable_jit(False):
            lowered = jax.jit(_double).lower(struct((64,), np.float32, sharding=sharding))
            made: Any = lowered.compile(compiler_options=compiler_flags.keep_barriers({}))
            compiled = made.runtime_executable()
        _programs.append(compiled.serialize())
    return _programs[0]


def _double(x: Any) -> Any:
    _custom_call(_POOL)
    (x,) = head([x])
    return x + x


def _register(name: str, code: bytes) -> None:
    function = _Function(_executable(_METADATA + code))
    capsule = jax.ffi.pycapsule(function)  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def _call(function: Any) -> bytes:
    """Machine code that goes on to `function`."""
    _IMMORTAL.append(function)
    address: int = ctypes.cast(function, ctypes.c_void_p).value or 0
    return b"\x48\xb8" + address.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, address; jmp rax


def _executable(code: bytes) -> int:
    """The address of `code`, in memory of its own that is never freed."""
    libc = ctypes.CDLL(None, use_errno=True)
    length, integer = ctypes.c_size_t, ctypes.c_int
    allocate, protect = libc.mmap, libc.mprotect
    allocate.restype = ctypes.c_void_p
    allocate.argtypes = (ctypes.c_void_p, length, integer, integer, integer, ctypes.c_long)
    protect.argtypes = (ctypes.c_void_p, length, integer)
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    address: int = allocate(
        None, mmap.PAGESIZE, writable, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "no memory for machine code")
    ctypes.memmove(address, code, len(code))
    if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory cannot be made executable")
    return address


def _pool_handler() -> Any:
    """A handler that sets each thread of the pool."""
    task = ctypes.cast(_executable(_KEEP_TOGETHER), _Task)

    def handle(frame: int) -> int:
        api, context = (ctypes.c_size_t * 2).from_address(frame + _FRAME_API)
        schedule, count = (ctypes.c_size_t * 2).from_address(api + _API_POOL_SCHEDULE)
        threads = ctypes.c_int64()
        size = ctypes.sizeof(_NumThreads)
        ask = _NumThreads(size, None, context, ctypes.pointer(threads))
        if not _Function(count)(ctypes.addressof(ask)):
            _on_each(schedule, context, threads.value, task)
        return 0

    return _Function(handle)


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
    scheduled = [not _Function(schedule)(ctypes.addressof(plan)) for plan in plans]
    end = time.monotonic() + _PATIENCE
    while all(scheduled) and meeting[0] < threads and time.monotonic() < end:
        time.sleep(0.0002)
    if meeting[0] >= threads:
        _answers.append(threads)
    meeting[1] = 0  # whoever waits in vain goes on
