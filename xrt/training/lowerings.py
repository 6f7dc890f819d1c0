"""Lowerings whose derivative is the one that training wants, in place of the XLA engine's own.

What is not here is differentiated as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.xla import lowering as L
from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
from xrt.engines.xla.ops import gather, reduction
from xrt.engines.xla.ops.numerics import wide
from xrt.graph import DOMAIN, Support, op_name
from xrt.training.batch_norm import batch_normalization
from xrt.training.convolution import conv
from xrt.training.products import product
from xrt.training.sums import total

_VARIANTS: dict[str, L.Lowering] = {}


def _vary(op_type: str, function: L.Lower) -> None:
    """Let `function` lower an operator in training; the rest of its declaration stays."""
    declared = L.find(ir.node(op_type, []))
    assert declared is not None
    _VARIANTS[op_type] = replace(declared, function=function)


def find(node: ir.Node) -> L.Lowering | None:
    """The declaration by which a training step lowers `node`, or None."""
    return _VARIANTS.get(op_name(node)) or L.find(node)


def supports(node: ir.Node) -> Support:
    """Whether a training step can hold `node`."""
    return L.supports_node(node)


@L.lowering("StopGradient", domain=DOMAIN, layouts=True)
def stop_gradient(ctx: L.Context, x: L.Operand) -> L.Operand:
    """x, which passes no gradient: torch's detach()."""
    return L.Operand(jax.lax.stop_gradient(x.array), x.channels_last)


def _relu(ctx: L.Context, x: Any) -> Any:
    """max(x, 0) with the derivative 0 at 0, as torch has it; the derivative of max is 1/2 there."""
    return jax.nn.relu(jnp.asarray(x))


_vary("Relu", _relu)


@jax.custom_jvp
def clip(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """x within [low, high]; the derivative is 1 at the bounds, as that of torch.clamp."""
    return jnp.minimum(jnp.maximum(x, low), high)


@clip.defjvp
def _clip_jvp(primals: Any, tangents: Any) -> Any:
    x, low, high = primals
    inside = (x >= low) & (x <= high)
    return clip(x, low, high), jnp.where(inside, tangents[0], jnp.zeros((), x.dtype))


def _clip(ctx: L.Context, x: Any, low: Any = None, high: Any = None) -> Any:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        rule = L.find(ctx.node)
        assert rule is not None
        return rule.function(ctx, x, low, high)
    bounds = [
        jnp.asarray(default if given is None else given, x.dtype)
        for given, default in ((low, -np.inf), (high, np.inf))
    ]
    return clip(x, *bounds)


_vary("Clip", _clip)


def _real(x: Any) -> Any:
    return wide(x) if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float64)


def _mean(x: Any, axes: tuple[int, ...]) -> Any:
    count = math.prod(x.shape[axis] for axis in axes)
    return total(_real(x), axes) / count


_vary("ReduceSum", reduction._reduction(lambda x, axes: total(wide(x), axes)))
_vary("ReduceMean", reduction._reduction(_mean))

# A label or a token beyond the end makes the loss NaN: see `TrainingOptions.nonfinite`.
_vary("Gather", gather.gather_or_nan)
_vary("GatherElements", gather.gather_elements_or_nan)
_vary("GatherND", gather.gather_nd_or_nan)


_HALF = (jnp.dtype(jnp.float16), jnp.dtype(jnp.bfloat16))


def _in_own_type(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` so that it and its derivative multiply in the half precision of their factors.

    The inference lowerings ask for float32 results, whose derivative would multiply in float32.
    """

    def lower(ctx: L.Context, *operands: Any, **attributes: Any) -> Any:
        a, b = operands[0].plain(), operands[1].plain()
        known, dtype = ctx.node.inputs[1], jnp.asarray(a).dtype
        constant = known is not None and known.const_value is not None
        if constant or dtype not in _HALF:
            rule = L.find(ctx.node)
            assert rule is not None
            return rule.function(ctx, *operands, **attributes)
        c = operands[2].plain() if len(operands) > 2 and operands[2] is not None else None
        return L.Operand(function(jnp.asarray(a), jnp.asarray(b, a.dtype), c, **attributes))

    return lower


def _matmul(a: Any, b: Any, c: None) -> Any:
    return product(a, b)


def _gemm(
    a: Any,
    b: Any,
    c: Any,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    a, b = a.T if transA else a, b.T if transB else b
    result = alpha * wide(product(a, b))
    return (result if c is None else result + beta * wide(c)).astype(a.dtype)


_vary("MatMul", _in_own_type(_matmul))
_vary("Gemm", _in_own_type(_gemm))
_vary("Conv", conv)
_vary("BatchNormalization", batch_normalization)
