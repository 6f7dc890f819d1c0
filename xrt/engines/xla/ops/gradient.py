"""xrt::Gradient: the derivative of the function in its body, by JAX's reverse mode."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.xla import device, keys, trace
from xrt.engines.xla.lowering import Context, Operand, apply, draws, find, lowering
from xrt.graph import DOMAIN, Support, op_name
from xrt.kernels.host import registry


def _supports_body(node: ir.Node) -> Support:
    from xrt.engines.xla.engine import XlaEngine  # which registers the lowerings, this one too

    engine = XlaEngine()
    for value in node.inputs[: len(node.outputs)]:
        if value is None or value.dtype is None or not value.dtype.is_floating_point():
            return Support.no("Gradient: only floating-point values can be differentiated for")
    for inner in node.attributes["body"].as_graph():
        answer = engine.supports(inner)
        if not answer:
            return Support.no(f"Gradient through {op_name(inner)}: {answer.reason}")
    return Support.yes()


def _draws(node: ir.Node) -> bool:
    return any(map(draws, node.attributes["body"].as_graph()))


@lowering("Gradient", domain=DOMAIN, supports=_supports_body, draws=_draws)
def gradient(ctx: Context, *inputs: Any, body: ir.Graph) -> tuple[Any, ...]:
    """The gradient, for each output, of the sum of the body's result by the input there."""
    chosen = trace.plan(body)
    constants = [jnp.asarray(parameter.array()) for parameter in chosen.parameters]
    function = trace.function(body, chosen)
    if chosen.draws:
        constants.append(keys.to_data(ctx.key))
    count = ctx.output_count

    def result(*variables: Any) -> Any:
        return function(*variables, *inputs[count:], *constants)[0]

    value, pull = jax.vjp(result, *map(jnp.asarray, inputs[:count]))
    gradients: tuple[Any, ...] = pull(jnp.ones_like(value))
    return gradients


@registry.builder("xrt::Gradient")
def on_host(node: ir.Node) -> registry.Kernel:
    """The host's kernel: the same, one operation at a time."""
    rule = find(node)
    assert rule is not None
    source = keys.KeySource()

    def run(*inputs: Any) -> tuple[Any, ...]:
        with device.isolated():
            operands = [Operand(array) for array in inputs]
            key = keys.from_data(source()) if draws(node) else None
            return tuple(np.asarray(each.array) for each in apply(rule, node, operands, key=key))

    return run
