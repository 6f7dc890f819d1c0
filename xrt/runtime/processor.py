"""What narrow numbers gain on the device of this machine."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The instruction sets of the CPU, as Linux names them; empty where that cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


_HALF = {
    "fp16": ("avx512_fp16", "amx_fp16", "fphp", "asimdhp"),
    "bf16": ("avx512_bf16", "amx_bf16", "bf16"),
}
"""Instruction sets that compute in a type."""

_EXACT_BYTES = ("avx_vnni", "avx512_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
"""Instruction sets that add products of bytes in 32 bits."""


def half_gain(precision: str) -> str:
    """What "fp16" or "bf16" does not gain here, in a sentence; empty where it is all one hopes."""
    if _is_gpu() or not cpu_flags() or cpu_flags().intersection(_HALF[precision]):
        return ""
    return (
        f"This CPU does not compute in {precision}: the program gains memory, not speed. "
        "It computes in fp32 and stores the results rounded."
    )


def weight_bits() -> int:
    """Bits of weights with which products of bytes do not saturate here: 7 without VNNI, else 8."""
    if _is_gpu() or not cpu_flags():
        return 8
    return 8 if cpu_flags().intersection(_EXACT_BYTES) else 7


def _is_gpu() -> bool:
    from xrt.engines.xla.device import device

    return str(device().platform) != "cpu"
