"""Control flow: operators whose attributes are graphs.

The nested graph is resolved once to a list of kernels, by a function `find` that the caller may
give: a program's runs the clusters that stand in nested graphs by their engines. A kernel made here
takes the node's own inputs, NumPy arrays, followed by the values that its graphs capture, in the
order of `captured_values`. What comes from a body may be the array of an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import UnsupportedOpError
from xrt.graph import captured_values, is_cluster
from xrt.kernels.host import registry
from xrt.kernels.host.common import Array, normalize_axes

Environment = dict[ir.Value | None, Any]
Run = Callable[[Sequence[Any]], Sequence[Any]]
Find = Callable[[ir.Node], Run]
"""Resolves a node of a nested graph to a function like that of `registry.find`."""


class Body:
    """A nested graph, ready to run."""

    def __init__(self, graph: ir.Graph, find: Find) -> None:
        self.inputs = tuple(graph.inputs)
        self.outputs = tuple(graph.outputs)
        self._constants: Environment = {
            value: value.const_value.numpy()
            for value in graph.initializers.values()
            if value.const_value is not None and value not in self.inputs
        }
        self._steps = [
            (find(node), (*node.inputs, *captured_values(node)), node.outputs) for node in graph
        ]

    def __call__(self, captured: Environment, arguments: Sequence[Any]) -> list[Any]:
        """The outputs for `arguments`, with captured outer values at hand."""
        values: dict[ir.Value | None, Any] = {None: None, **captured, **self._constants}
        values.update(zip(self.inputs, arguments, strict=True))
        for run, inputs, outputs in self._steps:
            results = run([values[value] for value in inputs])
            values.update(zip(outputs, results, strict=False))
        return [values[value] for value in self.outputs]


def on_host(node: ir.Node) -> Run:
    """Runs a node of a nested graph by host kernels, a cluster node by node."""
    if not is_cluster(node):
        return registry.find(node)
    body = Body(_graph(node, "body"), on_host)
    return lambda inputs: body({}, inputs)


def _graph(node: ir.Node, name: str) -> ir.Graph:
    if name not in node.attributes:
        raise UnsupportedOpError(f"{node.op_type} at node {node.name!r} lacks its graph {name!r}.")
    return node.attributes[name].as_graph()


def _split(node: ir.Node) -> Callable[[Sequence[Any]], tuple[Sequence[Any], Environment]]:
    """A function that parts what a kernel is called with: the node's inputs, captured values."""
    count, captured = len(node.inputs), tuple(captured_values(node))

    def split(inputs: Sequence[Any]) -> tuple[Sequence[Any], Environment]:
        return inputs[:count], dict(zip(captured, inputs[count:], strict=True))

    return split


@registry.builder("If")
def if_(node: ir.Node, find: Find = on_host) -> registry.Kernel:
    """Runs one of two graphs."""
    branches = [Body(_graph(node, name), find) for name in ("else_branch", "then_branch")]
    split = _split(node)

    def run(*inputs: Any) -> tuple[Any, ...]:
        (condition,), captured = split(inputs)
        return tuple(branches[bool(condition.reshape(()))](captured, ()))

    return run


@registry.builder("Loop")
def loop(node: ir.Node, find: Find = on_host) -> registry.Kernel:
    """Runs a graph a number of times, or while it says so; states are handed on, scans stacked."""
    body, split = Body(_graph(node, "body"), find), _split(node)
    # The declared types of scan outputs are what tells an empty one's dtype and shape.
    carried = len(body.inputs) - 2
    scanned = body.outputs[1 + carried :]

    def run(*inputs: Any) -> tuple[Any, ...]:
        own, captured = split(inputs)
        trips = own[0] if own else None
        limit = None if trips is None else int(trips.reshape(()))
        going = True if len(own) < 2 or own[1] is None else bool(own[1].reshape(()))
        states = list(own[2:])
        scans: list[list[Array]] = [[] for _ in scanned]
        count = 0
        while going and (limit is None or count < limit):
            arguments = (np.array(count, np.int64), np.array(going), *states)
            condition, *results = body(captured, arguments)
            going = bool(np.asarray(condition).reshape(()))
            states = results[:carried]
            for scan, result in zip(scans, results[carried:], strict=True):
                scan.append(result)
            count += 1
        stacked = [_stack(scan, value) for scan, value in zip(scans, scanned, strict=True)]
        return (*states, *stacked)

    return run


def _stack(parts: list[Array], value: ir.Value, axis: int = 0) -> Array:
    if parts:
        return np.stack(parts, axis)
    dims = () if value.shape is None else value.shape
    shape = [dim if isinstance(dim, int) else 0 for dim in dims]
    shape.insert(axis, 0)
    return np.zeros(shape, np.float32 if value.dtype is None else value.dtype.numpy())


@registry.builder("Scan")
def scan(node: ir.Node, find: Find = on_host) -> registry.Kernel:
    """Runs a graph over slices of its last inputs; states are handed on, results stacked."""
    body, split = Body(_graph(node, "body"), find), _split(node)
    count = node.attributes["num_scan_inputs"].as_int()
    state_count = len(node.inputs) - count
    scan_outputs = len(body.outputs) - state_count

    def option(name: str, length: int) -> tuple[int, ...]:
        return tuple(node.attributes[name].as_ints()) if name in node.attributes else (0,) * length

    in_axes = option("scan_input_axes", count)
    in_reversed = option("scan_input_directions", count)
    out_axes = option("scan_output_axes", scan_outputs)
    out_reversed = option("scan_output_directions", scan_outputs)

    def run(*inputs: Any) -> tuple[Any, ...]:
        own, captured = split(inputs)
        states = list(own[:state_count])
        slices = [
            np.moveaxis(x, axis, 0)[:: -1 if back else 1]
            for x, axis, back in zip(own[state_count:], in_axes, in_reversed, strict=True)
        ]
        collected: list[list[Array]] = [[] for _ in range(scan_outputs)]
        for elements in zip(*slices, strict=True):
            results = body(captured, (*states, *map(np.asarray, elements)))
            states = results[:state_count]
            for parts, result in zip(collected, results[state_count:], strict=True):
                parts.append(result)
        stacked = []
        for index, parts in enumerate(collected):
            value = body.outputs[state_count + index]
            rank = parts[0].ndim + 1 if parts else len(value.shape or ()) + 1
            (axis,) = normalize_axes((out_axes[index],), rank)
            stacked.append(_stack(parts[::-1] if out_reversed[index] else parts, value, axis))
        return (*states, *stacked)

    return run


@registry.builder("SequenceMap")
def sequence_map(node: ir.Node, find: Find = on_host) -> registry.Kernel:
    """Runs a graph on each element of a sequence; other sequences are walked along."""
    body, split = Body(_graph(node, "body"), find), _split(node)

    def run(*inputs: Any) -> tuple[Any, ...]:
        (sequence, *others), captured = split(inputs)
        collected: tuple[list[Any], ...] = tuple([] for _ in body.outputs)
        for index, element in enumerate(sequence):
            rest = [other[index] if isinstance(other, list) else other for other in others]
            for parts, result in zip(collected, body(captured, (element, *rest)), strict=True):
                parts.append(np.asarray(result))
        return collected

    return run
