"""Compile options of XLA that xrt sets by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# jaxlib 0.10.2 computes wrong results on the CPU through its YNNPACK reduce fusion (jax issue
# 39103): allow that library single dots and convolutions only. test_engine.py watches.
CPU = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    )
}
_DISABLED = "xla_disable_hlo_passes"


def keep_barriers(flags: Mapping[str, Any]) -> dict[str, Any]:
    """`flags`, and that XLA's CPU compiler leaves optimization barriers until code generation.

    It removes them before it fuses otherwise, and computes what is behind them in every reader.
    """
    disabled = [*filter(None, str(flags.get(_DISABLED, "")).split(",")), "cse_barrier_expander"]
    return {**flags, _DISABLED: ",".join(dict.fromkeys(disabled))}
