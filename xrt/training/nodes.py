"""Single nodes as functions of arrays: what the engine "host" runs, and how to find a failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import lowering as L
from xrt.errors import TrainingError
from xrt.passes.rewrite import attributes_key, has_graphs
from xrt.training.forward import Forward

Moving = list[ir.Value]


class NodeFunction:
    """One node as a pure function of the arrays that are not constants of the graph.

    Args:
        forward: The pass that the node is of.
        node: The node.
        layouts: Of each value in `moving`, whether it is channels-last.

    Attributes:
        layouts: Of each result, whether it is channels-last; known once it has been traced.
    """

    def __init__(self, forward: Forward, node: ir.Node, layouts: Sequence[bool]) -> None:
        self._forward, self._node, self._given = forward, node, tuple(layouts)
        self.moving = moving(node)
        self.layouts: tuple[bool, ...] = ()

    def __call__(self, arrays: Sequence[Any], constants: Sequence[Any], key: Any) -> list[Any]:
        """The results of the node.

        Args:
            arrays: One for each value of `moving`.
            constants: Of the forward pass.
            key: The JAX key of the call.
        """
        values = {
            value: L.Operand(array, last)
            for value, array, last in zip(self.moving, arrays, self._given, strict=True)
        }
        operands = self._forward.operands(self._node, values, constants)
        results = self._forward.apply(self._node, operands, values, constants, key)
        self.layouts = tuple(each.channels_last for each in results)
        return [each.array for each in results]


def moving(node: ir.Node) -> Moving:
    """The values that `node` reads, each once, without constants."""
    return list(dict.fromkeys(v for v in G.used_values(node) if v.const_value is None))


def signature(forward: Forward, node: ir.Node, layouts: Sequence[bool]) -> object:
    """What nodes of one function have in common; nodes that draw, or hold graphs, share none."""
    attributes = attributes_key(node)
    if attributes is None or has_graphs(node) or node in forward.streams:
        return node
    slots = {read: index for index, read in enumerate(moving(node))}

    def operand(position: int, value: ir.Value | None) -> object:
        if value is None:
            return None
        if value.const_value is None:
            return slots[value], G.static_shape(value), value.dtype
        return forward.plan.slots.get((node, position)), G.tensor_digest(value.const_value)

    return (
        node.domain,
        node.op_type,
        attributes,
        tuple(operand(i, value) for i, value in enumerate(node.inputs)),
        tuple((G.static_shape(v), v.dtype, bool(v.uses())) for v in node.outputs),
        tuple(layouts),
    )


def is_float(value: ir.Value) -> bool:
    """Whether gradients pass through `value`."""
    return value.dtype is not None and value.dtype.is_floating_point()


def first_failure(forward: Forward) -> str | None:
    """What to say about the first node that cannot be traced or differentiated, or None."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    struct: Any = jax.ShapeDtypeStruct
    constants = [struct(c.shape, c.dtype) for c in forward.constants]
    for node in forward.nodes:
        function = NodeFunction(forward, node, [False] * len(moving(node)))
        shapes: list[Any] = []
        for value in function.moving:
            assert value.dtype is not None
            shapes.append(struct(G.static_shape(value) or (), value.dtype.numpy()))
        try:
            jax.eval_shape(lambda *a, f=function: _derivative(f, *a), shapes, constants, key)
        except TrainingError as error:
            return str(error)
        except Exception as error:
            return (
                f"{G.describe(node)} cannot be differentiated: {type(error).__name__}: {error}. "
                "Put tensor.detach() before it if no gradient should pass, or write that part of "
                "the model with other operators."
            )
    return None


def _derivative(
    function: NodeFunction, arrays: Sequence[Any], constants: Sequence[Any], key: Any
) -> list[Any]:
    """The gradients of the sum of all results with respect to all floating-point arrays."""
    floats = [i for i, value in enumerate(function.moving) if is_float(value)]

    def total(given: Sequence[Any]) -> Any:
        inputs = list(arrays)
        for place, array in zip(floats, given, strict=True):
            inputs[place] = array
        results = function(inputs, constants, key)
        sums = [jnp.sum(r) for r in results if jnp.issubdtype(r.dtype, jnp.floating)]
        return sum(sums, np.float32(0))

    return jax.grad(total)([arrays[i] for i in floats]) if floats else []
