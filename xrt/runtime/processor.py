"""What narrow numbers gain on the device of this machine."""

from __future__ import annotations

from xrt.kernels.cpu import cpu_flags

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
    gains = "the model gains size on disk" if precision == "fp16" else "the program gains memory"
    # XLA has no products of float16 on a CPU: weights of products are widened once, on loading.
    return (
        f"This CPU does not compute in {precision}: {gains}, not speed. It computes in fp32 and "
        "rounds the results."
    )


def weight_bits() -> int:
    """Bits of weights with which products of bytes do not saturate here: 7 without VNNI, else 8."""
    if _is_gpu() or not cpu_flags():
        return 8
    return 8 if cpu_flags().intersection(_EXACT_BYTES) else 7


def _is_gpu() -> bool:
    from xrt.engines.xla.device import device

    return str(device().platform) != "cpu"
