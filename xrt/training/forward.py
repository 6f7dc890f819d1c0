"""The forward pass: the graph of a model as a pure JAX function of its weights.

`Forward` traces the nodes with the lowerings of the XLA engine, or the differentiable variants of
`training.lowerings`. Every node that draws random numbers has a stream of its own, numbered by its
place among those nodes: how the graph is cut, or whether it is, does not change the numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import lowering as L
from xrt.engines.xla import trace as T
from xrt.errors import TrainingError
from xrt.importers.training import TrainingModel
from xrt.training.lowerings import find, supports

Arrays = dict[str, Any]
"""Arrays by the name of their weight."""

_Values = dict[ir.Value, L.Operand]


class Forward:
    """What a prepared training graph computes: (weights, inputs, key) -> outputs and new state.

    Args:
        source: The model, its graph prepared (`passes.PREPARE_TRAINING`) and of static shapes.
        segments: Into how many pieces the graph is cut whose inner values are computed again for
            the backward pass. 1 keeps every value.

    Raises:
        TrainingError: If XLA lacks an operator of the graph.
    """

    def __init__(self, source: TrainingModel, segments: int = 1) -> None:
        self.graph = source.model.graph
        _refuse(self.graph)
        self.plan = T.plan(self.graph)
        self.constants = [parameter.array() for parameter in self.plan.parameters]
        self.weights = tuple(source.weights)
        self.state = source.state
        self.nodes = list(self.graph)
        self.streams = {node: i for i, node in enumerate(filter(L.draws, self.nodes))}
        inputs = list(self.graph.inputs)
        self.input_count = len(inputs) - len(self.weights)
        self.weight_values = dict(zip(self.weights, inputs[self.input_count :], strict=True))
        self.users: dict[ir.Value, set[ir.Node]] = {}
        for node in self.nodes:
            for value in G.used_values(node):
                self.users.setdefault(value, set()).add(node)
        self.segments = min(segments, len(self.nodes)) or 1

    @property
    def inputs(self) -> list[ir.Value]:
        """The inputs of a call."""
        return list(self.graph.inputs)[: self.input_count]

    @property
    def outputs(self) -> list[ir.Value]:
        """The outputs of a call, without the new state."""
        return list(self.graph.outputs)[: len(self.graph.outputs) - len(self.state)]

    def __call__(
        self, weights: Arrays, constants: Sequence[Any], inputs: Sequence[Any], key: Any
    ) -> tuple[list[Any], Arrays]:
        """The outputs of a call and the new state.

        Args:
            weights: All weights by name.
            constants: `self.constants`, on the device.
            inputs: The inputs of a call.
            key: The JAX key of the call.
        """
        given = [*inputs, *(weights[name] for name in self.weights)]
        values: _Values = {
            value: L.Operand(array) for value, array in zip(self.graph.inputs, given, strict=True)
        }
        for number, (start, stop) in enumerate(_pieces(len(self.nodes), self.segments)):
            nodes = self.nodes[start:stop]
            if number == self.segments - 1:
                self._run(nodes, values, constants, key)
            else:
                self._run_again(nodes, values, constants, key)
        found = [self._output(values, value) for value in self.graph.outputs]
        count = len(found) - len(self.state)
        return found[:count], dict(zip(self.state, found[count:], strict=True))

    def _run_again(
        self, nodes: Sequence[ir.Node], values: _Values, constants: Sequence[Any], key: Any
    ) -> None:
        """Run `nodes`; the backward pass computes what they hold in between once more."""
        inside = set(nodes)
        read = {v: None for node in nodes for v in G.used_values(node) if v in values}
        made = [
            value
            for node in nodes
            for value in node.outputs
            if value.is_graph_output() or not self.users.get(value, inside) <= inside
        ]
        layouts: list[bool] = []

        def piece(arrays: Sequence[Any], constants: Sequence[Any], key: Any) -> list[Any]:
            inner = {
                value: L.Operand(array, values[value].channels_last)
                for value, array in zip(read, arrays, strict=True)
            }
            self._run(nodes, inner, constants, key)
            results = [inner[value] for value in made]
            layouts[:] = [result.channels_last for result in results]
            return [result.array for result in results]

        arrays = [values[value].array for value in read]
        results = jax.checkpoint(piece)(arrays, constants, key)
        for value, array, last in zip(made, results, layouts, strict=True):
            values[value] = L.Operand(array, last)

    def _run(
        self, nodes: Sequence[ir.Node], values: _Values, constants: Sequence[Any], key: Any
    ) -> None:
        for node in nodes:
            if node in self.plan.absorbed:
                continue
            results = self.apply(
                node, self.operands(node, values, constants), values, constants, key
            )
            values.update(zip(node.outputs, results, strict=False))

    def operands(
        self, node: ir.Node, values: Mapping[ir.Value, L.Operand], constants: Sequence[Any]
    ) -> list[L.Operand | None]:
        """The inputs of `node`."""
        return [self._operand(values, node, i, constants) for i in range(len(node.inputs))]

    def _operand(
        self,
        values: Mapping[ir.Value, L.Operand],
        node: ir.Node,
        position: int,
        constants: Sequence[Any],
    ) -> L.Operand | None:
        value = node.inputs[position]
        if value is None:
            return None
        slot = self.plan.slots.get((node, position))
        if slot is not None:
            return L.Operand(constants[slot])
        if value.const_value is not None and value not in values:
            return L.Operand(value.const_value.numpy())
        return values[value]

    def apply(
        self,
        node: ir.Node,
        operands: Sequence[L.Operand | None],
        values: Mapping[ir.Value, L.Operand],
        constants: Sequence[Any],
        key: Any,
    ) -> tuple[L.Operand, ...]:
        """Trace one node; the graphs nested in it may use `values`."""
        rule = find(node)
        assert rule is not None
        stream = self.streams.get(node)
        own = None if stream is None else jax.random.fold_in(key, stream)
        nested = partial(self._nested, values, constants, own)
        try:
            return L.apply(rule, node, operands, nested, own)
        except Exception as error:
            raise TrainingError(
                f"The forward pass failed at {G.describe(node)}: {type(error).__name__}: {error}"
            ) from error

    def _nested(
        self,
        outer: Mapping[ir.Value, L.Operand],
        constants: Sequence[Any],
        key: Any,
        graph: ir.Graph,
        arrays: Sequence[Any],
        turn: Any = None,
    ) -> tuple[Any, ...]:
        """The outputs of a nested graph; its nodes draw in another way at each `turn`."""
        if key is not None and turn is not None:
            key = jax.random.fold_in(key, turn)
        values: _Values = {**outer}
        values.update((v, L.Operand(a)) for v, a in zip(graph.inputs, arrays, strict=True))
        for number, node in enumerate(graph):
            rule = find(node)
            assert rule is not None
            own = jax.random.fold_in(key, number) if L.draws(node) else None
            inner = partial(self._nested, values, constants, own)
            results = L.apply(rule, node, self.operands(node, values, constants), inner, own)
            values.update(zip(node.outputs, results, strict=False))
        return tuple(self._output(values, value) for value in graph.outputs)

    def _output(self, values: Mapping[ir.Value, L.Operand], value: ir.Value) -> Any:
        if value not in values:
            assert value.const_value is not None
            return jax.numpy.asarray(value.const_value.numpy())
        return values[value].plain()


def reached(graph: ir.Graph, outputs: Sequence[ir.Value]) -> set[ir.Value]:
    """The values that `outputs` depend on, themselves included."""
    seen: set[ir.Value] = set(outputs)
    for node in reversed(list(graph)):
        if not seen.isdisjoint(node.outputs):
            seen.update(value for value in G.used_values(node))
    return seen


def _pieces(count: int, pieces: int) -> list[tuple[int, int]]:
    """`count` items cut into so many consecutive ranges of about the same length."""
    bounds = np.linspace(0, count, pieces + 1).astype(int)
    return [(int(a), int(b)) for a, b in itertools.pairwise(bounds)]


def _refuse(graph: ir.Graph) -> None:
    """Raise if XLA cannot run a node of `graph`: a step is one executable."""
    for node in graph:
        answer = supports(node)
        if not answer:
            remedy = f" {answer.remedy[:1].upper()}{answer.remedy[1:]}." if answer.remedy else ""
            raise TrainingError(
                f"{G.describe(node)} cannot be part of a training step: {answer.reason}.{remedy} "
                "A step is one executable of static shapes; move what cannot be in it out of the "
                "model."
            )
