"""Gives every Gradient the function that it differentiates."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from xrt.errors import ModelImportError
from xrt.graph import DOMAIN, Boundary, constant, describe, extract, topological_order, used_values
from xrt.passes.rewrite import Names, all_nodes

TRAINING = "ai.onnx.preview.training"


class OutlineGradientPass(ir.passes.InPlacePass):
    """Gradient(x, z, xs=["x"], zs=["z"], y="y") => xrt::Gradient(x, z, body={y = f(x, z)}).

    ONNX's Gradient tells the function by names of values around it, which other passes change. The
    new operator holds a copy of the nodes between xs, zs and y in its attribute `body`, whose
    inputs are xs and zs, and whose output is y; constants are shared.

    Requires the names that the model was read with. Preserves all values.

    Raises:
        ModelImportError: A name is no value here, or y depends on more than xs, zs and constants.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Outline the gradients in all graphs of `model`."""
        modified = False
        for node in all_nodes(model):
            if node.op_type == "Gradient" and node.domain == TRAINING:
                _rename(_outline(node), Names(model))
                modified = True
        if modified:
            model.graph.opset_imports[DOMAIN] = 1
        return ir.passes.PassResult(model, modified=modified)


def _outline(node: ir.Node) -> ir.Graph:
    """Give `node` its body, which is returned."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    values = {str(value.name): value for value in (*graph.inputs, *graph.initializers.values())}
    values.update((str(value.name), value) for inner in graph for value in inner.outputs)
    xs = node.attributes["xs"].as_strings()
    names = [*xs, *(node.attributes.get_strings("zs") or ())]
    target = node.attributes["y"].as_string()
    for name in (*names, target):
        if name not in values:
            raise ModelImportError(f"{describe(node)} names {name!r}, which is no value beside it.")
    if len(names) != len(node.inputs):
        raise ModelImportError(
            f"{describe(node)} has {len(node.inputs)} inputs for {len(names)} names in xs and zs."
        )
    body = _function([values[name] for name in names], values[target], node)
    node.attributes.clear()
    node.attributes["body"] = ir.AttrGraph("body", body)
    node.domain = DOMAIN
    node.version = None
    return body


def _rename(body: ir.Graph, names: Names) -> None:
    """Give the copies names of their own: what is visible together must differ in name."""
    made = [value for node in body.all_nodes() for value in node.outputs]
    for value in (*body.inputs, *body.initializers.values(), *made):
        if value.name:
            value.name = names.fresh(value.name)


def _function(inputs: Sequence[ir.Value], target: ir.Value, node: ir.Node) -> ir.Graph:
    """The nodes from `inputs` to `target`, copied into a graph."""
    needed: set[ir.Node] = set()
    constants: dict[ir.Value, None] = {}
    waiting = [target]
    while waiting:
        value = waiting.pop()
        producer = value.producer()
        if value in inputs or producer in needed:
            continue
        if producer is not None:
            needed.add(producer)
            waiting += used_values(producer)
        elif constant(value) is not None:
            constants[value] = None
        else:
            raise ModelImportError(
                f"{describe(node)}: {target.name!r} depends on {value.name!r} too. Add it to zs."
            )
    assert node.graph is not None
    ordered = [other for other in topological_order(node.graph) if other in needed]
    edge = Boundary(tuple(inputs), tuple(constants), (target,))
    body = extract(ordered, edge=edge)
    for value in body.inputs:
        value.const_value = None  # a weight that is differentiated for is no constant here
    return body
