"""Quantization groups: DequantizeLinear -> op -> QuantizeLinear, which no cluster may split.

An engine runs an operator in int8 only if it sees the quantization around it, so a DequantizeLinear
stays with what uses it and a QuantizeLinear with what makes its input. The edge between a
QuantizeLinear and the next DequantizeLinear carries int8 and is where a graph is cut best.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from xrt.graph import dependencies, is_standard
from xrt.passes.typed_fusion import DisjointSets


def quantization_groups(
    nodes: Sequence[ir.Node], predecessors: Sequence[Sequence[int]] | None = None
) -> list[list[int]]:
    """The groups of two or more nodes, as ascending positions in `nodes`.

    Args:
        nodes: Nodes of one graph.
        predecessors: `dependencies(nodes)`, if at hand.
    """
    if not any(_is_quantization(node) for node in nodes):
        return []
    sets = DisjointSets(len(nodes))
    for index, sources in enumerate(predecessors or dependencies(nodes)):
        for source in sources:
            if is_standard(nodes[source], "DequantizeLinear") or _quantizes(
                nodes[index], nodes[source]
            ):
                sets.union(source, index)
    return [group for group in sets.sets().values() if len(group) > 1]


def _is_quantization(node: ir.Node) -> bool:
    return is_standard(node, "DequantizeLinear", "QuantizeLinear")


def _quantizes(node: ir.Node, source: ir.Node) -> bool:
    """Whether `node` is a QuantizeLinear of a result of `source`, not just scaled by one."""
    value = node.inputs[0] if node.inputs else None
    return is_standard(node, "QuantizeLinear") and value is not None and value.producer() is source


def unshare_dequantize(graph: ir.Graph) -> int:
    """Give each user of a DequantizeLinear one of its own; returns how many nodes that added.

    *Before => after*: ``d = DequantizeLinear(q); a = Conv(d); b = Add(d, y)`` =>
    ``d = DequantizeLinear(q); d1 = DequantizeLinear(q); a = Conv(d); b = Add(d1, y)``.

    Without it two users that no cluster can hold together would drag each other to the host; with
    it the int8 tensor goes to both. Values do not change. Uses in nested graphs keep the original.
    """
    added = 0
    for node in list(graph):
        if not is_standard(node, "DequantizeLinear"):
            continue
        value = node.outputs[0]
        direct = {use.node: None for use in value.uses() if use.node.graph is graph}
        # The original goes on serving one user, of which an output or a nested graph is one.
        other = value.is_graph_output() or len(direct) < len({use.node for use in value.uses()})
        for user in list(direct)[0 if other else 1 :]:
            _give_own_copy(graph, node, user)
            added += 1
    return added


def _give_own_copy(graph: ir.Graph, node: ir.Node, user: ir.Node) -> None:
    value = node.outputs[0]
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        list(node.attributes.values()),
        overload=node.overload,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )
    copy.outputs[0].type = value.type
    copy.outputs[0].shape = value.shape.copy() if value.shape is not None else None
    graph.insert_after(node, copy)
    for index, used in enumerate(user.inputs):
        if used is value:
            user.replace_input_with(index, copy.outputs[0])
