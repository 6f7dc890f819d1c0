"""What a program of XLA does first at every launch, on the CPU: a custom call of a few bytes.

**Denormals** are kept (`denormals`).

**Huge pages.** XLA gets the memory for all temporaries of a program in one piece and gives it back
at the end. From 32 MiB on, glibc maps such a piece anew each time, and the system clears and maps
its pages of 4 KiB one by one: 15 % of the time of ResNet-50 at batch 8, 20 % of a training step of
BERT. So the custom call asks for pages of 2 MiB there (madvise, MADV_HUGEPAGE), which is a
hint. XLA does not tell it where the temporaries lie. But it lays out the largest first, so a
result that nobody reads, of the size of the largest of them and larger than any result of the
program, lies at or near their beginning: in the page that begins with glibc's own header, which
says how large the piece is. That is checked as glibc's free() does. Where XLA lays out otherwise,
or under another allocator, nothing happens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from xrt.engines.xla import machine_code as M

_DENORMALS = "xrt_keep_denormals"
_BOTH = "xrt_keep_denormals_in_huge_pages"

_WORTHWHILE = 4 << 20
"""Bytes of a temporary from which on huge pages are asked for."""

KEEP_DENORMALS = bytes.fromhex(
    "0fae5c24f8"  # stmxcsr [rsp-8]
    "816424f8bf7fffff"  # and dword [rsp-8], ~0x8040    flush to zero, denormals are zeros
    "0fae5424f8"  # ldmxcsr [rsp-8]
)
_USE_HUGE_PAGES = bytes.fromhex(
    "488b4770"  # mov rax, [rdi+112]        frame->rets.rets
    "488b4008"  # mov rax, [rax+8]          the second result, an XLA_FFI_Buffer
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
    "4881fe00004000"  # cmp rsi, 4 MiB      and has some huge ones
    "720c"  # jb done
    "ba0e000000"  # mov edx, 14             MADV_HUGEPAGE
    "b81c000000"  # mov eax, 28             madvise
    "0f05"  # syscall
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
        temporary: About the bytes of its largest temporary.
        results: The bytes of its results, whose memory XLA also uses for temporaries that fit.
    """
    struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
    made = [struct((), np.int32)]
    if temporary >= _WORTHWHILE:
        made.append(struct((max(temporary, max(results, default=0) + 1),), np.uint8))
    name = _BOTH if len(made) > 1 else _DENORMALS
    call: Any = jax.ffi.ffi_call(name, made, has_side_effect=True)
    done, *_ = call()
    held = jax.lax.optimization_barrier((*arguments, done))  # type: ignore[no-untyped-call]
    return list(held[:-1])
