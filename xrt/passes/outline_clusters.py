"""Put each cluster into one node of its own, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import onnx_ir as ir

from xrt.errors import VerificationError
from xrt.graph import (
    CLUSTER_OP,
    DOMAIN,
    Boundary,
    Cluster,
    boundary,
    dependencies,
    detach,
    digest,
    extract,
    is_cluster,
    stable_order,
    topological_order,
)
from xrt.passes.typed_fusion import compact, contract

VERSION = 1
"""Version of the operators in `DOMAIN`."""


class Outlinable(Protocol):
    """Nodes that one engine is to run, like `NodeCluster`."""

    @property
    def engine(self) -> str:
        """Name of the engine."""
        ...

    @property
    def nodes(self) -> Sequence[ir.Node]:
        """The nodes."""
        ...


_Given = TypeVar("_Given", bound=Outlinable)


def cluster_of(node: ir.Node) -> Cluster:
    """The cluster that a cluster node stands for."""
    attributes = node.attributes
    body = attributes["body"].as_graph()
    if not body.opset_imports and node.graph is not None:
        # A file holds the imports of the model only, not of nested graphs.
        imports = node.graph.opset_imports.items()
        body.opset_imports.update((domain, v) for domain, v in imports if domain != DOMAIN)
    return Cluster(
        name=attributes["name"].as_string(),
        engine=attributes["engine"].as_string(),
        body=body,
        digest=attributes["digest"].as_string(),
    )


def outline_clusters(model: ir.Model, clusters: Iterable[Outlinable]) -> tuple[Cluster, ...]:
    """Replace each cluster in the graph of `model` by one node; returns them in schedule order.

    *Before => after*, for a cluster of a and b::

        a = MatMul(x, w); b = Relu(a); y = NonZero(b)
        b = xrt.Cluster<body = (x) => (b) <w> {a = MatMul(x, w); b = Relu(a)}>(x); y = NonZero(b)

    The node has the attributes `body`, `engine`, `name` and `digest`. Constants that the nodes use
    become initializers of the body, which share their tensors; those that nothing else uses leave
    the graph. Captured values become inputs like others. The graph comes out sorted, ties in its
    former order, a cluster where its first node was.

    A cluster is named by its engine and the digest of its body, so by what it computes and not by
    how its values are called; of several with one digest the second is named "..._2", and so on.

    Raises:
        VerificationError: If a cluster is not convex, or clusters overlap. The model is unchanged.
    """
    return tuple(cluster for _, cluster in outline(model.graph, clusters))


def outline(
    graph: ir.Graph, clusters: Iterable[_Given], names: dict[str, int] | None = None
) -> list[tuple[_Given, Cluster]]:
    """Like `outline_clusters`, but pairs what was given with the cluster that came of it.

    Args:
        graph: The graph, which may be nested.
        clusters: The clusters in it.
        names: How many clusters have each name so far; counts on.
    """
    steps = _steps(topological_order(graph), tuple(clusters))
    names = {} if names is None else names
    # All copies come before the first change: they read values that the changes replace.
    outlined = [
        (step, step.given, edge, _cluster(step.given.engine, step.nodes, edge, names))
        for step in steps
        if step.given is not None
        for edge in (boundary(step.nodes),)
    ]
    placed = {step: _cluster_node(edge, cluster) for step, _, edge, cluster in outlined}
    for step, _, edge, _ in outlined:
        detach(step.nodes)
        graph.remove(step.nodes)
        for old, new in zip(edge.outputs, placed[step].outputs, strict=True):
            old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.extend([placed[step] if step in placed else step.nodes[0] for step in steps])
    if placed:
        graph.opset_imports.setdefault(DOMAIN, VERSION)
    drop_unused_initializers(graph)
    return [(given, cluster) for _, given, _, cluster in outlined]


@dataclass(frozen=True, eq=False)
class _Step(Generic[_Given]):
    """A cluster, its nodes in topological order; or a node that is in none."""

    given: _Given | None
    nodes: tuple[ir.Node, ...]


def _steps(nodes: Sequence[ir.Node], clusters: Sequence[_Given]) -> list[_Step[_Given]]:
    """The clusters and the nodes in none, in topological order."""
    owner = _owners(nodes, clusters)
    blocks = compact([owner.get(index, -1 - index) for index in range(len(nodes))])
    members: list[list[int]] = [[] for _ in range(1 + max(blocks, default=-1))]
    for index, block in enumerate(blocks):
        members[block].append(index)
    order = stable_order(contract(dependencies(nodes), blocks))
    if len(order) < len(members):
        first = members[min(set(range(len(members))).difference(order))][0]
        raise VerificationError(
            "The clusters cannot be put in order: a path leaves one and comes back, at or before "
            f"the step of {nodes[first].op_type} {nodes[first].name!r}."
        )
    steps = []
    for block in order:
        number = owner.get(members[block][0])
        given = None if number is None else clusters[number]
        steps.append(_Step(given, tuple(nodes[index] for index in members[block])))
    return steps


def _owners(nodes: Sequence[ir.Node], clusters: Sequence[Outlinable]) -> dict[int, int]:
    """By position of a node that is in a cluster: the position of the cluster."""
    position = {node: index for index, node in enumerate(nodes)}
    owner: dict[int, int] = {}
    for number, cluster in enumerate(clusters):
        for node in cluster.nodes:
            index = position.get(node)
            if index is None or owner.setdefault(index, number) != number:
                where = "in two clusters" if index is not None else "not in the main graph"
                raise VerificationError(
                    f"{node.op_type} {node.name!r} of a cluster for {cluster.engine!r} is {where}."
                )
    return owner


def _cluster(
    engine: str, nodes: Sequence[ir.Node], edge: Boundary, names: dict[str, int]
) -> Cluster:
    body = extract(nodes, edge=edge)
    content = digest(body)
    name = f"{engine}_{content[:12]}"
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}_{names[name]}"
    return Cluster(name=name, engine=engine, body=body, digest=content)


def _cluster_node(edge: Boundary, cluster: Cluster) -> ir.Node:
    node = ir.Node(
        DOMAIN,
        CLUSTER_OP,
        edge.inputs,
        [
            ir.AttrGraph("body", cluster.body),
            ir.AttrString("engine", cluster.engine),
            ir.AttrString("name", cluster.name),
            ir.AttrString("digest", cluster.digest),
        ],
        num_outputs=len(edge.outputs),
        name=cluster.name,
    )
    for old, new in zip(edge.outputs, node.outputs, strict=True):
        _describe(new, old)
    return node


def _describe(new: ir.Value, old: ir.Value) -> None:
    """Give `new` the name, type and notes of `old`."""
    new.name, new.type, new.doc_string = old.name, old.type, old.doc_string
    new.shape = old.shape.copy() if old.shape is not None else None
    new.metadata_props.update(old.metadata_props)


def drop_unused_initializers(graph: ir.Graph) -> None:
    """Remove the initializers of `graph` that nothing uses."""
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output() or value.is_graph_input()):
            del graph.initializers[name]


def inline_clusters(model: ir.Model) -> None:
    """Undo `outline_clusters`: put the nodes of each cluster back into the graph of `model`.

    Bodies are copied, so that clusters taken from the model before stay whole.
    """
    for node in list(model.graph.all_nodes()):
        if is_cluster(node):
            assert isinstance(node.graph, ir.Graph)
            _inline(node.graph, node)
    model.graph.opset_imports.pop(DOMAIN, None)


def _inline(graph: ir.Graph, node: ir.Node) -> None:
    body = node.attributes["body"].as_graph().clone()
    results = list(body.outputs)
    arguments = {
        inner: outer for inner, outer in zip(body.inputs, node.inputs, strict=True) if outer
    }
    for name, value in list(body.initializers.items()):
        arguments[value] = _outer_constant(graph, name, value)
    body.outputs.clear()
    inside = list(body)
    for inner, outer in arguments.items():
        inner.replace_all_uses_with(outer)
    body.remove(inside)
    graph.insert_before(node, inside)
    for inner, outer in zip(results, node.outputs, strict=True):
        outer.replace_all_uses_with(inner, replace_graph_outputs=True)
    detach([node])
    graph.remove(node)


def _outer_constant(graph: ir.Graph, name: str, value: ir.Value) -> ir.Value:
    """The initializer of `graph` for a constant of a body: the one it was copied from, or a new."""
    count = 0
    unique = name
    while (known := graph.initializers.get(unique)) is not None:
        if known.const_value is value.const_value:
            return known
        count += 1
        unique = f"{name}_{count}"
    new = ir.Value(name=unique, const_value=value.const_value, type=value.type)
    new.shape = value.shape.copy() if value.shape is not None else None
    graph.register_initializer(new)
    return new
