"""What the passes share: questions about nodes, and one way to replace a node by another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import add_constant, constant, is_standard, nested_graphs, tensor_digest

RANDOM_OPS = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Operators of ONNX that draw random numbers: two equal nodes give different values."""

GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
"""Kinds of attributes that hold nested graphs."""

ONNX_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training"})


def has_graphs(node: ir.Node) -> bool:
    """Whether `node` has nested graphs."""
    return any(attribute.type in GRAPHS for attribute in node.attributes.values())


class Names:
    """Names of a model, to find fresh ones: unique in all its graphs, so visible anywhere."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for graph in model.graphs():
            self._taken.update(str(value.name) for value in graph.inputs)
            self._taken.update(graph.initializers)
            self._taken.update(str(v.name) for node in graph for v in node.outputs if v.name)

    def fresh(self, wanted: str) -> str:
        """`wanted`, or `wanted` with the first number that makes it unused; taken from now."""
        name, count = wanted, 0
        while name in self._taken:
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        return name

    def constant(
        self, graph: ir.Graph | None, wanted: str, array: np.ndarray[Any, Any]
    ) -> ir.Value:
        """Register `array` as an initializer of `graph` under a fresh name."""
        assert graph is not None
        return add_constant(graph, self.fresh(wanted), array)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node of the main graph and of nested graphs that is still in its graph when reached.

    The nodes are in topological order; a pass may remove and insert nodes meanwhile. It does not
    get to see those that it inserts.
    """
    for node in list(model.graph.all_nodes()):
        if node.graph is not None:
            yield node


def is_training_dropout(node: ir.Node) -> bool:
    """Whether `node` is a Dropout that may drop: its training_mode is not known to be false."""
    if not is_standard(node, "Dropout") or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    mode = constant(node.inputs[2])
    return mode is None or bool(mode.any())


def is_pure(node: ir.Node) -> bool:
    """Whether equal inputs always give `node` equal outputs, and nothing else happens.

    Random operators, dropout in training and operators outside ONNX are not taken to be pure, nor
    is a node whose nested graphs hold such a node.
    """
    if node.domain not in ONNX_DOMAINS or node.op_type in RANDOM_OPS or is_training_dropout(node):
        return False
    return all(is_pure(inner) for graph in nested_graphs(node) for inner in graph.all_nodes())


def only_user(value: ir.Value) -> ir.Node | None:
    """The node that is alone in using `value`, once, in the graph that makes it; else None."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    user: ir.Node = next(iter(uses)).node
    return user if user.graph is value.graph else None


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node of one of the given operators that produces `value`, else None."""
    node = None if value is None else value.producer()
    return node if node is not None and is_standard(node, *op_types) else None


def sole_producer(value: ir.Value | None, user: ir.Node, *op_types: str) -> ir.Node | None:
    """As `producer`, but only if `user` is alone in using `value`, in the same graph."""
    node = producer(value, *op_types)
    return node if node is not None and value is not None and only_user(value) is user else None


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, else None."""
    array = constant(value)
    if array is None or array.size != 1 or not is_numeric(value):
        return None
    return float(array.reshape(()).astype(np.float64))


def is_numeric(value: ir.Value | None) -> bool:
    """Whether `value` is a tensor of real numbers that NumPy can compute with."""
    dtype = None if value is None else value.dtype
    return dtype is not None and not dtype.is_string() and dtype != ir.DataType.BOOL


def is_floating(value: ir.Value | None) -> bool:
    """Whether `value` is a tensor of floating-point numbers that ONNX computes with."""
    dtype = None if value is None else value.dtype
    return dtype in (
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
    )


def operand_and_constant(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The inputs of a binary node as (computed, constant), whichever order they come in."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    if constant(right) is not None and constant(left) is None:
        return left, right
    if constant(left) is not None and constant(right) is None:
        return right, left
    return None


def rank(value: ir.Value | None) -> int | None:
    """The rank of `value` where it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def new_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | None = None,
    *,
    before: ir.Node,
    name: str,
    dtype: ir.DataType | None = None,
    shape: ir.Shape | Sequence[int] | None = None,
) -> ir.Value:
    """Insert a node of one output, called `name`, before another node; return its output."""
    output = ir.Value(
        name=name,
        type=None if dtype is None else ir.TensorType(dtype),
        shape=None if shape is None else ir.Shape(shape),
    )
    node = ir.node(op_type, inputs, attributes, outputs=[output], name=name)
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return output


def replace_node(
    old: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any] | Iterable[ir.Attr] | None = None,
) -> ir.Node:
    """Put a new node in the place of `old`, whose first output is the only one in use.

    The new output takes over name, type, shape, uses and the place among the graph's outputs. What
    only `old` needed stays behind, unused, unless `prune` removes it.
    """
    graph, value = old.graph, old.outputs[0]
    assert graph is not None
    output = ir.Value(
        name=value.name,
        type=value.type,
        shape=None if value.shape is None else value.shape.copy(),
        metadata_props=dict(value.metadata_props),
    )
    if attributes is not None and not isinstance(attributes, Mapping):
        attributes = {attribute.name: attribute for attribute in attributes}
    node = ir.node(op_type, inputs, attributes, outputs=[output], name=old.name)
    node.metadata_props.update(old.metadata_props)
    graph.insert_before(old, node)
    value.replace_all_uses_with(output, replace_graph_outputs=True)
    remaining = [value for value in old.inputs if value is not None]
    detach(old)
    for value in remaining:
        prune(value)
    return node


def replace_value(old: ir.Value, new: ir.Value) -> bool:
    """Let `new` stand for `old` everywhere, and keep the names of graph outputs.

    Returns False, and changes nothing, where `old` is a graph output whose name `new` cannot take:
    `new` comes from another graph or from no node, or is a graph output itself.
    """
    if old.is_graph_output():
        if new.producer() is None or new.graph is not old.graph or new.is_graph_output():
            return False
        name = old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = None
        new.name = name
        return True
    old.replace_all_uses_with(new)
    return True


def splice(node: ir.Node, body: ir.Graph, names: Names) -> list[ir.Node]:
    """Put the nodes of `body`, which computes what `node` does, in its place; returns them.

    The inputs of `body` stand for those of `node`, its outputs for the outputs. Its constants go to
    the graph of `node`, its values get fresh names, and what remains of `body` is of no use.
    """
    graph = node.graph
    assert graph is not None
    for inner, outer in zip(body.inputs, node.inputs, strict=False):
        if outer is not None:
            inner.replace_all_uses_with(outer, replace_graph_outputs=True)
    for initializer in list(body.initializers.values()):
        assert initializer.const_value is not None
        moved = names.constant(graph, str(initializer.name), initializer.const_value.numpy())
        initializer.replace_all_uses_with(moved, replace_graph_outputs=True)
    results = list(body.outputs)
    body.outputs.clear()
    nodes = list(body)
    body.remove(nodes)
    graph.insert_before(node, nodes)
    for inner_node in nodes:
        for value in inner_node.outputs:
            # Two bodies may use one name, which would now be visible twice.
            if value.name:
                value.name = names.fresh(value.name)
    for value, result in zip(node.outputs, results, strict=False):
        _take_over(node, value, result, names)
    detach(node)
    return nodes


def _take_over(node: ir.Node, value: ir.Value, result: ir.Value, names: Names) -> None:
    """Let `result` stand for an output of `node`, by an Identity where it cannot take the name."""
    if result.type is None:
        result.type, result.shape = value.type, value.shape
    if not replace_value(value, result):
        name, value.name = str(value.name), names.fresh(str(value.name))
        copy = new_node(
            "Identity", [result], before=node, name=name, dtype=result.dtype, shape=result.shape
        )
        value.replace_all_uses_with(copy, replace_graph_outputs=True)


def attributes_key(node: ir.Node) -> tuple[object, ...] | None:
    """A hashable value that is equal for equal attributes, or None if `node` has nested graphs."""
    parts: list[object] = []
    for name in sorted(node.attributes):
        attribute = node.attributes[name]
        kind, value = attribute.type, attribute.value
        if kind in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) or attribute.is_ref():
            return None
        if kind == ir.AttributeType.TENSOR:
            value = tensor_digest(value)
        elif kind in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            value = repr(value)  # tells 0.0 from -0.0, and NaN equals itself
        elif isinstance(value, (list, tuple)):
            value = tuple(value)
        elif not isinstance(value, (int, str, bytes)):
            value = repr(value)
        parts.append((name, kind, value))
    return tuple(parts)


def is_constant(value: ir.Value | None) -> bool:
    """Whether `constant(value)` is an array, without loading it."""
    return (
        value is not None
        and value.const_value is not None
        and value.producer() is None
        and not value.is_graph_input()
    )


def detach(node: ir.Node) -> None:
    """Remove an unused node, and what its nested graphs use: `Graph.remove` leaves those uses."""
    assert node.graph is not None
    forget(nested_graphs(node))
    node.graph.remove(node, safe=True)


def forget(graphs: Iterable[ir.Graph]) -> None:
    """Take graphs that are no longer needed off the lists of uses of outer values."""
    for graph in graphs:
        for node in graph.all_nodes():
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)


def prune(value: ir.Value) -> None:
    """Remove the node that makes `value` if nothing uses it, and so on upwards."""
    pending = [value]
    while pending:
        current = pending.pop()
        node = current.producer()
        if node is None:
            _drop_initializer(current)
            continue
        if node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inputs = [value for value in node.inputs if value is not None]
        detach(node)
        pending.extend(inputs)


def _drop_initializer(value: ir.Value) -> None:
    if not value.is_initializer() or value.is_graph_input() or value.is_graph_output():
        return
    if not value.uses() and value.graph is not None:
        value.graph.initializers.pop(str(value.name))
