"""The optimizers of ai.onnx.preview.training, one step each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from xrt.engines.xla.lowering import Context, lowering
from xrt.kernels.portable import optimizers


def _step(function: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    def step(ctx: Context, *tensors: Any, **attributes: Any) -> tuple[Any, ...]:
        return function(jnp, *tensors, **attributes)

    return step


def _register() -> None:
    declare: dict[str, Callable[..., tuple[Any, ...]]] = {
        "Adagrad": optimizers.adagrad,
        "Adam": optimizers.adam,
        "Momentum": optimizers.momentum,
    }
    for op_type, function in declare.items():
        lowering(op_type, domain="ai.onnx.preview.training")(_step(function))


_register()
