"""What a program of XLA does first at every launch, on the CPU: a custom call of a few bytes.

**Denormals** are kept (`denormals`).

**Huge pages.** XLA gets the memory for all temporaries of a program in one piece and gives it back
at the end. From 32 MiB on, glibc maps such a piece anew each time, and the system clears and maps
its pages of 4 KiB one by one: a sixth of the time of ResNet-50 at batch 8, or of a training step of
BERT (docs/adr/0012-huge-pages.md). So the call asks for pages of 2 MiB there (madvise,
MADV_HUGEPAGE), which is a hint. XLA does not tell it where the temporaries lie. But a result that
nobody reads, and that is too large for the memory of the program's own results, lies at or near
their beginning, since nothing else lives during the call: in the page that begins with glibc's
header, which says how large the piece is. That is checked as glibc's free() does. Where XLA lays
out otherwise, or under another allocator, nothing happens; nor after a pause (see `run`).
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xrt.engines.xla import machine_code as M

_DENORMALS = "xrt_keep_denormals"
_BOTH = "xrt_keep_denormals_in_huge_pages"

_WORTHWHILE = 4 << 20
"""Bytes of a value from which on a program may have 32 MiB of temporaries; convolutions take up to
eight times their input. Also the least piece that has a huge page wherever it begins."""
_TOO_FAR = 4
"""How many times larger than that value a result may be: the piece grows to its size, too."""
_PAUSE = 1.0
"""Seconds after which memory that was freed may be gone."""
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

KEEP_DENORMALS = bytes.fromhex(
    "0fae5c24f8"  # stmxcsr [rsp-8]
    "816424f8bf7fffff"  # and dword [rsp-8], ~0x8040    flush to zero, denormals are zeros
    "0fae5424f8"  # ldmxcsr [rsp-8]
)
_busy = ctypes.c_uint8()
"""Whether launches follow each other closely, so that freed memory is still at hand."""
_last = -math.inf
"""When the last launch ended, in seconds."""

_USE_HUGE_PAGES = (
    b"\x48\xb8"  # mov rax, &_busy
    + ctypes.addressof(_busy).to_bytes(8, "little")
    + bytes.fromhex(
        "803800"  # cmp byte [rax], 0
        "7450"  # je done
        "48837f6002"  # cmp qword [rdi+96], 2   frame->rets.size
        "7549"  # jne done
        "488b4770"  # mov rax, [rdi+112]        frame->rets.rets
        "488b4008"  # mov rax, [rax+8]          the second, an XLA_FFI_Buffer
        "488b7818"  # mov rdi, [rax+24]         its data
        "4881e700f0ffff"  # and rdi, -4096      its page: 48 bytes unused, a header of 16, the block
        "48837f3030"  # cmp qword [rdi+48], 48  header: bytes unused
        "752f"  # jne done
        "488b7738"  # mov rsi, [rdi+56]         header: size and flags
        "40f6c602"  # test sil, 2               a mapping of its own
        "7425"  # jz done
        "4883e6f8"  # and rsi, -8
        "4883c630"  # add rsi, 48               the whole mapping
        "f7c6ff0f0000"  # test esi, 4095        is of whole pages
        "7515"  # jnz done
        "4881fe"  # cmp rsi, _WORTHWHILE        and has some huge ones
    )
    + _WORTHWHILE.to_bytes(4, "little")
    + bytes.fromhex(
        "720c"  # jb done
        "ba0e000000"  # mov edx, 14             MADV_HUGEPAGE
        "b81c000000"  # mov eax, 28             madvise
        "0f05"  # syscall
    )
)  # done:


def register() -> None:
    """Let the programs of this process call what `head` puts at their beginning."""
    M.register(_DENORMALS, KEEP_DENORMALS + M.RETURN)
    M.register(_BOTH, KEEP_DENORMALS + _USE_HUGE_PAGES + M.RETURN)


def head(arguments: Sequence[Any], temporary: int = 0, results: Iterable[int] = ()) -> list[Any]:
    """The arguments of a traced function, for use after the custom call.

    They pass an optimization barrier, which costs nothing where `compiler_flags.keep_barriers`.

    Args:
        arguments: What the function takes.
        temporary: The bytes of the largest value that it keeps in memory; 0 for no huge pages.
        results: The bytes of its results.
    """
    beyond = max(results, default=0) + 1  # XLA also uses their memory for temporaries that fit
    if temporary >= _WORTHWHILE and beyond <= _TOO_FAR * temporary:
        done, _ = call(_BOTH, ((), np.int32), ((max(temporary, beyond),), np.uint8))
    else:
        (done,) = call(_DENORMALS, ((), np.int32))
    held = jax.lax.optimization_barrier((*arguments, done))  # type: ignore[no-untyped-call]
    return list(held[:-1])


def call(name: str, *results: tuple[tuple[int, ...], Any]) -> Any:
    """The results of a custom call without arguments, of these shapes and dtypes."""
    struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
    made = [struct(*each) for each in results]
    return jax.ffi.ffi_call(name, made, has_side_effect=True)()


def run(program: Callable[..., Any], *arguments: Any) -> Any:
    """What `program` gives, launched with huge pages if another was less than a second before.

    A virtual machine may give free memory back to its host after two seconds (free page reporting),
    and then has a huge page cleared by both: ResNet-50 at batch 8 took 430 ms after a pause of 3
    seconds, and 307 in small pages.
    """
    global _last
    _busy.value = time.monotonic() - _last < _PAUSE
    results = program(*arguments)
    _last = time.monotonic()
    return results


@functools.cache
def has_huge_pages() -> bool:
    """Whether the system gives huge pages to those who ask."""
    try:
        return "[never]" not in _SETTING.read_text()
    except OSError:
        return False
