"""Let values cross between clusters in the layout that both compute in."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

import onnx_ir as ir

from xrt.graph import is_standard, static_shape, topological_order
from xrt.passes.assign_engines import Assignment, Claim
from xrt.passes.form_clusters import Formation, NodeCluster

_SOURCES = (
    *("AveragePool", "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv"),
    *("GroupNormalization", "InstanceNormalization", "LpPool", "MaxPool", "QLinearConv", "Resize"),
)
"""Operators that are computed channels-last."""

_CARRIERS = (
    *("Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "Concat", "DequantizeLinear", "Div", "Dropout"),
    *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"),
    *("Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pad", "Pow", "QuantizeLinear"),
    *("Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Slice", "Softplus", "Softsign"),
    *("Split", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "ThresholdedRelu", "Where"),
)
"""Operators that keep the layout of an input of their result's rank."""


def exchange_layouts(
    graph: ir.Graph, assignment: Assignment, formation: Formation, engines: Collection[str]
) -> tuple[Assignment, Formation]:
    """Transpose what crosses between clusters of one engine that computes channels-last.

    *Before => after*, for a cluster of the Conv and one of the Relu::

        c = Conv(x, w) | y = Relu(c)
        c = Conv(x, w); l = Transpose<perm = [0, 2, 3, 1]>(c) |
            f = Transpose<perm = [0, 3, 1, 2]>(l); y = Relu(f)

    Inside a cluster such a Transpose only tells where the axes are. Without it, both clusters would
    move all elements: of ResNet-50 in ten clusters that is a fifth of the time.

    Requires static shapes and unique names. Values that the host or another engine uses, and
    outputs of the graph, stay as they are.

    Args:
        graph: The graph, edited in place.
        assignment: Who runs its nodes.
        formation: Its clusters.
        engines: Names of the engines that compute channels-last.

    Returns:
        Both with the new nodes, each in the cluster of its neighbour.
    """
    owners = {node: cluster for cluster in formation for node in cluster.nodes}
    crossing = [
        value
        for value in _channels_last(graph)
        if (maker := owners.get(_producer(value))) is not None
        and maker.engine in engines
        and _is_exchanged(value, maker, owners)
    ]
    added: dict[ir.Node, NodeCluster] = {}
    for value in crossing:
        added.update(_exchange(graph, value, owners))
    return _with(graph, assignment, formation, added) if added else (assignment, formation)


def _channels_last(graph: ir.Graph) -> list[ir.Value]:
    """The values that are there channels-last when they have been computed."""
    found: dict[ir.Value, None] = {}
    for node in topological_order(graph):
        if not is_standard(node, *_SOURCES, *_CARRIERS):
            continue
        ranks = {_rank(value) for value in node.inputs if value in found}
        starts = is_standard(node, *_SOURCES)
        found.update(
            (value, None)
            for value in node.outputs
            if _rank(value) > 2 and (starts or _rank(value) in ranks)
        )
    return list(found)


def _rank(value: ir.Value | None) -> int:
    shape = None if value is None else static_shape(value)
    return 0 if shape is None else len(shape)


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None
    return node


def _is_exchanged(value: ir.Value, maker: NodeCluster, owners: dict[ir.Node, NodeCluster]) -> bool:
    """Whether `value` leaves its cluster, and only to others of the same engine."""
    if value.is_graph_output():
        return False
    users = [owners.get(use.node) for use in value.uses()]
    return any(user is not maker for user in users) and all(
        user is not None and user.engine == maker.engine for user in users
    )


def _exchange(
    graph: ir.Graph, value: ir.Value, owners: dict[ir.Node, NodeCluster]
) -> dict[ir.Node, NodeCluster]:
    """Put Transposes at both ends of `value`; they, each with its cluster."""
    maker = _producer(value)
    rank = _rank(value)
    users: dict[NodeCluster, list[tuple[ir.Node, int]]] = {}
    for use in value.uses():
        if owners[use.node] is not owners[maker]:
            users.setdefault(owners[use.node], []).append((use.node, use.idx))
    away = _transpose(value, [0, *range(2, rank), 1], f"{value.name}/channels_last")
    graph.insert_after(maker, away)
    added = {away: owners[maker]}
    for number, (cluster, uses) in enumerate(users.items()):
        name = f"{value.name}/channels_first_{number}"
        back = _transpose(away.outputs[0], [0, rank - 1, *range(1, rank - 1)], name)
        nodes = {node for node, _ in uses}
        graph.insert_before(next(node for node in cluster.nodes if node in nodes), back)
        for node, position in uses:
            node.replace_input_with(position, back.outputs[0])
        added[back] = cluster
    return added


def _transpose(value: ir.Value, perm: list[int], name: str) -> ir.Node:
    node = ir.node("Transpose", [value], {"perm": perm}, name=name)
    shape = static_shape(value)
    assert shape is not None
    (output,) = node.outputs
    output.name, output.type = name, value.type
    output.shape = ir.Shape([shape[axis] for axis in perm])
    return node


def _with(
    graph: ir.Graph,
    assignment: Assignment,
    formation: Formation,
    added: dict[ir.Node, NodeCluster],
) -> tuple[Assignment, Formation]:
    place = {node: number for number, node in enumerate(topological_order(graph))}

    def ordered(nodes: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
        return tuple(sorted(nodes, key=place.__getitem__))

    clusters = tuple(
        replace(
            cluster,
            nodes=ordered([*cluster.nodes, *(n for n, owner in added.items() if owner is cluster)]),
        )
        for cluster in formation
    )
    claims = {claim.node: claim for claim in assignment.claims}
    claims.update((node, Claim(node, cluster.engine)) for node, cluster in added.items())
    return (
        replace(assignment, claims=tuple(claims[node] for node in ordered(claims))),
        replace(formation, clusters=clusters),
    )
