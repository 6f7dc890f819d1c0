"""Custom calls of XLA's CPU client in machine code, on x86-64 Linux.

A callback in Python would wait for the interpreter's lock at every launch. The code follows XLA's
foreign function interface, whose binary form is stable (xla/ffi/api/c_api.h).
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import jax

Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
"""XLA_FFI_Error *handler(XLA_FFI_CallFrame *frame)"""

RETURN = bytes.fromhex("31c0c3")  # xor eax, eax; ret
"""The end of a handler: no error."""

# The beginning of a handler, in the System V calling convention: `frame` is in rdi. Asked for its
# metadata, it answers with XLA's own version of the interface, no traits and no state.
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


def register(name: str, code: bytes) -> None:
    """Let programs call `code`, the body of a handler that ends with `RETURN`, by a name."""
    function = Handler(executable(_METADATA + code))
    capsule = jax.ffi.pycapsule(function)  # type: ignore[no-untyped-call]
    jax.ffi.register_ffi_target(name, capsule, platform="cpu")


def jump(function: Any) -> bytes:
    """Go on to a function of ctypes, which must live as long as the process."""
    address: int = ctypes.cast(function, ctypes.c_void_p).value or 0
    return b"\x48\xb8" + address.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, address; jmp rax


def executable(code: bytes) -> int:
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
