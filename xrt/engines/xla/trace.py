"""From the body of a cluster to a JAX function and the parameters it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import lowering as L
from xrt.errors import EngineBuildError

LITERAL_SIZE = 256
"""Constants of up to so many elements are literals of the program, where XLA can fold them;
larger ones are parameters, which live on the device once and keep the program small."""


@dataclass(frozen=True)
class Parameter:
    """A constant that the function takes as an argument.

    Attributes:
        tensor: The constant.
        prepared: What is done to it before it goes to the device; None for nothing.
    """

    tensor: ir.TensorProtocol
    prepared: L.Prepared | None

    @property
    def key(self) -> tuple[str, str]:
        """Content digest and preparation: equal keys mean equal device arrays."""
        return (G.tensor_digest(self.tensor), self.prepared.key if self.prepared else "")

    def array(self) -> np.ndarray[Any, Any]:
        """The array that goes to the device."""
        array = self.tensor.numpy()
        return self.prepared.function(array) if self.prepared else array


@dataclass(frozen=True)
class Plan:
    """Which constants of a cluster are parameters.

    Attributes:
        parameters: The parameters in the order in which the function takes them.
        slots: (node index, input index) -> index into `parameters`.
    """

    parameters: tuple[Parameter, ...]
    slots: dict[tuple[int, int], int]


def plan(body: ir.Graph) -> Plan:
    """Decide, for each use of a constant in `body`, whether it is a parameter or a literal."""
    index: dict[tuple[str, str], int] = {}
    parameters: list[Parameter] = []
    slots: dict[tuple[int, int], int] = {}
    for number, node in enumerate(body):
        rule = L.find(node)
        assert rule is not None, f"{node.op_type} has no lowering"
        for position, value in enumerate(node.inputs):
            if value is None or value.const_value is None or position in rule.static:
                continue
            prepared = L.preparation(rule, node, position)
            if prepared is None and value.const_value.size <= LITERAL_SIZE:
                continue
            parameter = Parameter(value.const_value, prepared)
            slot = index.setdefault(parameter.key, len(parameters))
            if slot == len(parameters):
                parameters.append(parameter)
            slots[number, position] = slot
    return Plan(tuple(parameters), slots)


def function(body: ir.Graph, chosen: Plan) -> Callable[..., tuple[Any, ...]]:
    """A JAX-traceable function of `body`: (inputs..., parameters...) -> outputs."""

    def run(*arguments: Any) -> tuple[Any, ...]:
        split = len(body.inputs)
        parameters = arguments[split:]
        values = {
            value: L.Operand(array) for value, array in zip(body.inputs, arguments, strict=False)
        }
        for number, node in enumerate(body):
            operands = [
                _operand(values, value, chosen, parameters, number, position)
                for position, value in enumerate(node.inputs)
            ]
            results = _lower(node, operands)
            for value, operand in zip(node.outputs, results, strict=False):
                values[value] = operand
        return tuple(_output(values, value) for value in body.outputs)

    return run


def _operand(
    values: dict[ir.Value, L.Operand],
    value: ir.Value | None,
    chosen: Plan,
    parameters: tuple[Any, ...],
    number: int,
    position: int,
) -> Any:
    if value is None:
        return None
    slot = chosen.slots.get((number, position))
    if slot is not None:
        return L.Operand(parameters[slot])
    if value.const_value is not None and value not in values:
        return L.Operand(value.const_value.numpy())
    return values[value]


def _output(values: dict[ir.Value, L.Operand], value: ir.Value) -> Any:
    if value not in values:
        assert value.const_value is not None
        return jax.numpy.asarray(value.const_value.numpy())
    return values[value].plain()


def _lower(node: ir.Node, operands: list[Any]) -> tuple[L.Operand, ...]:
    rule = L.find(node)
    assert rule is not None, f"{node.op_type} has no lowering"
    try:
        results = L.apply(rule, node, operands)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise EngineBuildError(
            "xla", reason, op=node.op_type, place=node.name or str(node.outputs[0].name)
        ) from error
    _check(node, results)
    return results


def _check(node: ir.Node, results: tuple[L.Operand, ...]) -> None:
    """Raise if a lowering broke the types that inference found: better here than at a use."""
    for value, operand in zip(node.outputs, results, strict=False):
        want = (G.static_shape(value), value.dtype and value.dtype.numpy())
        shape = np.shape(operand.array)
        if operand.channels_last:
            shape = (shape[0], shape[-1], *shape[1:-1])
        got = (shape, np.dtype(operand.array.dtype))
        if got != want and value.name:
            raise EngineBuildError(
                "xla",
                f"the lowering gave {got[1]}{list(got[0])}, inference says {want[1]}{want[0]}",
                op=node.op_type,
                place=node.name or str(value.name),
            )
