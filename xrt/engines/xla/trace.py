"""From the body of a cluster to a JAX function and the parameters it needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import keys
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
        slots: (node, input index) -> index into `parameters`.
        draws: Whether the function takes a key for random numbers, as its last argument.
        absorbed: Nodes whose users all take a parameter instead.
    """

    parameters: tuple[Parameter, ...]
    slots: dict[tuple[ir.Node, int], int]
    draws: bool = False
    absorbed: frozenset[ir.Node] = frozenset()


def plan(body: ir.Graph) -> Plan:
    """Decide, for each use of a constant in `body`, whether it is a parameter or a literal.

    Nested graphs count; a constant that one hands out untouched is a literal.
    """
    index: dict[tuple[str, str], int] = {}
    parameters: list[Parameter] = []
    slots: dict[tuple[ir.Node, int], int] = {}
    nodes = list(_planned(body))
    taken = {
        (node, position): parameter
        for node in nodes
        for position in _rule(node).levels or ()
        if (parameter := _levels(node, position)) is not None
    }
    absorbed = _absorbed(nodes, taken)
    for node in nodes:
        for position in range(len(node.inputs)):
            parameter = taken.get((node, position)) or _parameter(node, position)
            if parameter is None or node in absorbed:
                continue
            slot = index.setdefault(parameter.key, len(parameters))
            if slot == len(parameters):
                parameters.append(parameter)
            slots[node, position] = slot
    return Plan(tuple(parameters), slots, any(map(L.draws, body)), absorbed)


def _parameter(node: ir.Node, position: int) -> Parameter | None:
    """The parameter that a constant input is, if it is one."""
    rule, value = _rule(node), node.inputs[position]
    if value is None or value.const_value is None or position in rule.static:
        return None
    prepared = L.preparation(rule, node, position)
    if prepared is None and value.const_value.size <= LITERAL_SIZE:
        return None
    return Parameter(value.const_value, prepared)


def _levels(node: ir.Node, position: int) -> Parameter | None:
    """The parameter made of the integers behind a dequantized constant, if `node` wants those."""
    if position >= len(node.inputs):
        return None
    prepared = L.level_preparation(_rule(node), node, position)
    source = L.dequantized_constant(node.inputs[position])
    if prepared is None or source is None:
        return None
    value = source.inputs[0]
    assert value is not None
    assert value.const_value is not None
    return Parameter(value.const_value, prepared)


def _absorbed(
    nodes: Sequence[ir.Node], taken: Mapping[tuple[ir.Node, int], Parameter]
) -> frozenset[ir.Node]:
    sources = {node.inputs[position].producer() for node, position in taken}  # type: ignore[union-attr]
    found = {node for node in nodes if node in sources}
    return frozenset(
        node
        for node in found
        if not node.outputs[0].is_graph_output()
        and all((use.node, use.idx) in taken for use in node.outputs[0].uses())
    )


def _planned(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of `graph` and of the graphs nested in it that are traced with it."""
    for node in graph:
        yield node
        if _rule(node).nested:
            for inner in G.nested_graphs(node):
                yield from _planned(inner)


# What XLA computes where it is read, besides the elementwise: views, copies and generators.
_COMPUTED_IN_PLACE = frozenset(
    (
        *("ConstantOfShape", "DequantizeLinear", "Expand", "Flatten", "Identity", "Range"),
        *("Reshape", "Squeeze", "Unsqueeze"),
    )
)


def largest_temporary(body: ir.Graph, chosen: Plan) -> int:
    """Bytes of the largest value in `body`, of static shapes, that XLA is likely to keep in memory.

    Results lie elsewhere.
    """
    nodes = (
        node
        for node in body
        if node not in chosen.absorbed
        and node.op_type not in _COMPUTED_IN_PLACE
        and not _rule(node).elementwise
    )
    values = (value for node in nodes for value in node.outputs if not value.is_graph_output())
    return max(map(byte_count, values), default=0)


def byte_count(value: ir.Value) -> int:
    """The bytes of a value of static shape; 0 for another."""
    shape = G.static_shape(value)
    if shape is None or value.dtype is None:
        return 0
    return math.ceil(math.prod(shape) * value.dtype.itemsize)


def _rule(node: ir.Node) -> L.Lowering:
    rule = L.find(node)
    assert rule is not None, f"{node.op_type} has no lowering"
    return rule


def function(body: ir.Graph, chosen: Plan) -> Callable[..., tuple[Any, ...]]:
    """A JAX-traceable function of `body`: (inputs..., parameters..., key) -> outputs.

    The key's data (uint32[2]) is an argument only if `chosen.draws`.
    """

    def run(*arguments: Any) -> tuple[Any, ...]:
        split = len(body.inputs)
        key = keys.from_data(arguments[-1]) if chosen.draws else None
        return _Trace(chosen, arguments[split:]).graph({}, key, body, arguments[:split])

    return run


Values = dict[ir.Value, L.Operand]


class _Trace:
    """One trace of a cluster, its nested graphs included."""

    def __init__(self, chosen: Plan, parameters: Sequence[Any]) -> None:
        self._plan, self._parameters = chosen, parameters

    def graph(
        self,
        outer: Mapping[ir.Value, L.Operand],
        key: Any,
        graph: ir.Graph,
        arrays: Sequence[Any],
        turn: Any = None,
    ) -> tuple[Any, ...]:
        """The outputs of `graph` for `arrays`, all in ONNX's layout; it may use `outer` values.

        Its nodes draw with `key`, in another way at each `turn`.
        """
        if key is not None and turn is not None:
            key = jax.random.fold_in(key, turn)
        values: Values = {**outer}
        values.update((v, L.Operand(a)) for v, a in zip(graph.inputs, arrays, strict=True))
        for number, node in enumerate(graph):
            if node in self._plan.absorbed:
                continue
            operands = [self._operand(values, node, i) for i in range(len(node.inputs))]
            own = jax.random.fold_in(key, number) if L.draws(node) else None
            results = _lower(node, operands, partial(self.graph, values, own), own)
            values.update(zip(node.outputs, results, strict=False))
        return tuple(_output(values, value) for value in graph.outputs)

    def _operand(self, values: Values, node: ir.Node, position: int) -> L.Operand | None:
        value = node.inputs[position]
        if value is None:
            return None
        slot = self._plan.slots.get((node, position))
        if slot is not None:
            return L.Operand(self._parameters[slot])
        if value.const_value is not None and value not in values:
            return L.Operand(value.const_value.numpy())
        return values[value]


def _output(values: Values, value: ir.Value) -> Any:
    if value not in values:
        assert value.const_value is not None
        return jax.numpy.asarray(value.const_value.numpy())
    return values[value].plain()


def _lower(
    node: ir.Node,
    operands: Sequence[L.Operand | None],
    trace: L.TraceGraph | None = None,
    key: Any = None,
) -> tuple[L.Operand, ...]:
    try:
        results = L.apply(_rule(node), node, operands, trace, key)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, EngineBuildError):  # at a node of a nested graph
            reason = f"at {error.op} {error.place!r} inside it: {error.reason}"
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
