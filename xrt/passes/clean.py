"""Removes nodes that copy, repeat or feed nothing."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from xrt.graph import constant, nested_graphs, static_shape, tensor_digest
from xrt.passes.rewrite import (
    all_nodes,
    attributes_key,
    detach,
    is_constant,
    is_pure,
    is_training_dropout,
    replace_value,
)


class EliminateIdentityPass(ir.passes.InPlacePass):
    """y = Identity(x) => x, and so for every node that only copies a value.

    Those are: Identity; Dropout that does not drop; Cast to the type that x has; Transpose that
    keeps the order; Reshape, Flatten, Expand, Squeeze, Unsqueeze to the static shape of x, also
    after others of these; Pad by nothing; Concat, Sum, Mean, Max, Min of x alone; Where that a
    constant condition makes choose x throughout.

    Requires nothing; knows more after shape inference. Preserves names of graph outputs, so a copy
    stays where its output is one of a graph and x is not computed in that graph, or is an output
    as well. (onnx_ir's IdentityEliminationPass renames x in that case, and loses an output.)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove the copies in all graphs of `model`."""
        modified = False
        for node in all_nodes(model):
            source = _copied(node)
            if source is None:
                continue
            copy = node.outputs[0]
            if source.shape is None:
                source.shape = copy.shape
            if source.type is None:
                source.type = copy.type
            if replace_value(copy, source):
                detach(node)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _copied(node: ir.Node) -> ir.Value | None:
    """The value that `node` copies, or None."""
    if node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    if node.op_type == "Where":
        return _chosen(node)
    if node.op_type in _RESHAPES:
        return _reshaped(node)
    rule = _COPY_RULES.get(node.op_type)
    return node.inputs[0] if rule is not None and rule(node) else None


def _chosen(node: ir.Node) -> ir.Value | None:
    """What a Where with a constant condition takes every element from."""
    condition, *choices = node.inputs
    array = constant(condition)
    if array is None or not (array.all() or not array.any()):
        return None
    taken = choices[0] if array.all() else choices[1]
    shape = static_shape(taken)
    return taken if shape is not None and shape == static_shape(node.outputs[0]) else None


def _reshaped(node: ir.Node) -> ir.Value | None:
    """The nearest value before `node` of its shape, with only changes of shape in between."""
    shape = static_shape(node.outputs[0])
    step: ir.Node | None = node
    while shape is not None and step is not None and step.op_type in _RESHAPES:
        source = step.inputs[0]
        if source is None or step.domain != "":
            return None
        if static_shape(source) == shape:
            return source
        if step.op_type == "Expand":
            return None
        step = source.producer()
    return None


def _keeps_type(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype == node.attributes["to"].as_int()


def _keeps_order(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm")
    return perm is not None and list(perm) == list(range(len(perm)))


def _pads_nothing(node: ir.Node) -> bool:
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return pads is not None and not pads.any()


def _is_alone(node: ir.Node) -> bool:
    return len(node.inputs) == 1


_COPY_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": lambda node: True,
    "Dropout": lambda node: not is_training_dropout(node),
    "Cast": _keeps_type,
    "Transpose": _keeps_order,
    "Pad": _pads_nothing,
    **dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min"), _is_alone),
}


_RESHAPES = frozenset({"Reshape", "Flatten", "Expand", "Squeeze", "Unsqueeze"})


_Constants = ChainMap[object, list[ir.Value]]


class EliminateCommonSubexpressionsPass(ir.passes.InPlacePass):
    """a = f(x); b = f(x) => a for both; equal initializers => one.

    A nested graph also takes what a graph around it has computed before its node. Requires nodes in
    topological order. Preserves names of graph outputs, and every random operator, dropout in
    training and operator outside ONNX: two such nodes need not give one value.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Merge equal nodes and initializers of `model`."""
        modified = _merge(model.graph, ChainMap(), ChainMap())
        return ir.passes.PassResult(model, modified=modified)


def _merge(
    graph: ir.Graph,
    nodes: ChainMap[object, ir.Node],
    constants: _Constants,
) -> bool:
    modified = _merge_constants(graph, constants)
    for node in list(graph):
        bodies = list(nested_graphs(node))
        for body in bodies:
            modified |= _merge(body, nodes.new_child(), constants.new_child())
        if bodies or not is_pure(node):
            continue
        key = (
            node.domain,
            node.op_type,
            attributes_key(node),
            tuple(node.inputs),
            tuple(bool(value.name) for value in node.outputs),
        )
        known = nodes.setdefault(key, node) if key not in nodes else nodes[key]
        if known is not node and _take_over(node, known):
            modified = True
    return modified


def _take_over(node: ir.Node, known: ir.Node) -> bool:
    """Replace the outputs of `node` by those of the equal node `known`, where names allow it."""
    for old, new in zip(node.outputs, known.outputs, strict=True):
        if old.is_graph_output() and (new.graph is not old.graph or new.is_graph_output()):
            return False
    for old, new in zip(node.outputs, known.outputs, strict=True):
        if new.shape is None:
            new.shape = old.shape
        replace_value(old, new)
    detach(node)
    return True


def _merge_constants(graph: ir.Graph, constants: _Constants) -> bool:
    modified = False
    for name, value in list(graph.initializers.items()):
        if not is_constant(value) or value.is_graph_output():
            continue
        key = _sample(value)
        alike = [other for scope in constants.maps for other in scope.get(key, ())]
        known = next((other for other in alike if _same(value, other)), None)
        if known is None:
            constants[key] = [*constants.maps[0].get(key, ()), value]
        else:
            value.replace_all_uses_with(known)
            del graph.initializers[name]
            modified = True
    return modified


def _sample(value: ir.Value) -> object:
    """A key that equal constants share, and that hashes little of a large one."""
    tensor = value.const_value
    assert tensor is not None
    key = (tensor.dtype, tuple(tensor.shape))
    if tensor.size <= 64:
        return (*key, tensor_digest(tensor))
    if tensor.dtype.is_string():
        return key
    flat = tensor.numpy().reshape(-1)
    return (*key, flat[:: max(1, flat.size // 64)].tobytes())


def _same(left: ir.Value, right: ir.Value) -> bool:
    one, other = left.const_value, right.const_value
    if one is None or other is None:
        return False
    return one is other or tensor_digest(one) == tensor_digest(other)


class EliminateDeadCodePass(ir.passes.InPlacePass):
    """Nodes and initializers that no output needs => nothing; so for unused optional outputs.

    Requires nodes in topological order. Preserves inputs and outputs of all graphs. (onnx_ir's
    RemoveUnusedNodesPass keeps what the bodies of a removed If, Loop or Scan used.)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Remove dead code from all graphs of `model`."""
        modified = _remove_dead(model.graph)
        modified |= RemoveUnusedNodesPass()(model).modified
        return ir.passes.PassResult(model, modified=modified)


def _remove_dead(graph: ir.Graph) -> bool:
    modified = False
    for node in reversed(list(graph)):
        if not any(value.is_graph_output() or value.uses() for value in node.outputs):
            detach(node)
            modified = True
        else:
            for body in nested_graphs(node):
                modified |= _remove_dead(body)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]
            modified = True
    return modified
