"""Partition a model: assign engines, form clusters, outline them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from xrt.graph import (
    DOMAIN,
    Cluster,
    is_cluster,
    is_standard,
    nested_graphs,
    op_name,
    static_shape,
    used_values,
)
from xrt.options import CompileOptions
from xrt.passes.assign_engines import HOST, Claim, Claimant, assign_engines
from xrt.passes.exchange_layouts import exchange_layouts
from xrt.passes.form_clusters import form_clusters
from xrt.passes.outline_clusters import VERSION, cluster_of, drop_unused_initializers, outline
from xrt.passes.quantization_groups import unshare_dequantize

if TYPE_CHECKING:
    import networkx as nx

HOST_DRIVEN = ("If", "Loop", "Scan", "SequenceMap")
"""Operators whose nested graphs the host can run with clusters in them."""


@dataclass(frozen=True)
class Placement:
    """Where a node of the main graph runs.

    Attributes:
        node: Name of the node, or of its first result where it has none.
        op: Its operator, with the domain if that is not ONNX's own.
        engine: Name of the engine, or "host".
        reason: Why it runs on the host; empty otherwise.
        cluster: Name of its cluster; empty on the host.
    """

    node: str
    op: str
    engine: str
    reason: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Cut:
    """A value that goes from a cluster to another or to the host, or from the host to a cluster.

    Attributes:
        name: Name of the value.
        dtype: Its data type, as ONNX names it; empty if unknown.
        shape: Its shape, symbolic dimensions by name, unknown ones as "?"; None if unknown.
        bytes: Its size; None if that is not known.
        source: Name of the cluster that makes it, or "host".
        targets: Names of the clusters that use it, or "host", each once.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...] | None
    bytes: int | None
    source: str
    targets: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Partition:
    """A model cut into clusters.

    Attributes:
        clusters: The clusters, in schedule order; those in graphs that the host drives come last.
        placements: Where each node of the main graph runs, in topological order.
        cuts: What crosses between clusters and the host; inputs and outputs of the model do not.
        model: The model, with a node for each cluster.
    """

    clusters: tuple[Cluster, ...]
    placements: tuple[Placement, ...]
    cuts: tuple[Cut, ...]
    model: ir.Model = field(repr=False)

    @property
    def cut_bytes(self) -> int:
        """Bytes that cross between clusters and the host, counting values of known size once."""
        return sum(cut.bytes or 0 for cut in self.cuts)

    def quotient(self) -> nx.DiGraph[str]:
        """The graph of steps: one vertex a cluster (by its name) or a host node.

        Vertices have the attributes `engine`, `op` and `nodes` (how many); edges have `values`, the
        names of what passes along them, and `bytes`.
        """
        return quotient(self.model.graph)


def partition(
    model: ir.Model,
    engines: Sequence[Claimant],
    options: CompileOptions | None = None,
    *,
    context: Any = None,
) -> Partition:
    """Cut `model` into clusters for `engines`, in order of preference. Edits its graph in place.

    Requires one opset, inferred types and shapes, constants as initializers. Preserves every value.
    Each step says how it decides: `assign_engines`, `form_clusters`, `exchange_layouts`,
    `outline_clusters`. Where no engine takes an If, Loop, Scan or SequenceMap, its nested graphs
    are cut in the same way.
    """
    options = options or CompileOptions()
    cutter = _Cutter(engines, options, context)
    placements = cutter.cut(model.graph, dict(model.graph.opset_imports))
    return Partition(tuple(cutter.clusters), tuple(placements), cuts(model.graph), model)


class _Cutter:
    """Cuts the graphs of one model. What `fuel` and `max_clusters` leave goes to nested graphs."""

    def __init__(self, engines: Sequence[Claimant], options: CompileOptions, context: Any) -> None:
        self.clusters: list[Cluster] = []
        self._engines, self._options, self._context = engines, options, context
        self._names: dict[str, int] = {}

    def cut(self, graph: ir.Graph, imports: Mapping[str, int]) -> list[Placement]:
        """Put clusters into `graph`, and into graphs nested in it; where its nodes run."""
        if any(engine.name != HOST for engine in self._engines):
            unshare_dequantize(graph)
        assignment = assign_engines(graph, self._engines, self._options, context=self._context)
        claimed = sum(claim.engine is not None for claim in assignment.claims)
        formation = form_clusters(assignment, self._options)
        last = [each.name for each in self._engines if getattr(each, "channels_last", False)]
        assignment, formation = exchange_layouts(graph, assignment, formation, last)
        # Outlining takes nodes out of the graph, and the graph is what names them.
        names = [_node_name(claim.node) for claim in assignment.claims]
        outlined = outline(graph, formation, self._names)
        self.clusters += (cluster for _, cluster in outlined)
        self._spend(claimed, len(outlined))
        owner = {node: cluster for given, cluster in outlined for node in given.nodes}
        inside = {
            claim.node: self._cut_nested(claim.node, imports)
            for claim in assignment.claims
            if claim.engine is None and is_standard(claim.node, *HOST_DRIVEN)
        }
        if any(inside.values()):
            graph.opset_imports.setdefault(DOMAIN, VERSION)
            drop_unused_initializers(graph)
        return [
            _placement(claim, name, owner.get(claim.node), formation.dissolved, inside)
            for claim, name in zip(assignment.claims, names, strict=True)
        ]

    def _spend(self, claims: int, clusters: int) -> None:
        fuel, most = self._options.fuel, self._options.max_clusters
        self._options = replace(
            self._options,
            fuel=None if fuel is None else max(fuel - claims, 0),
            max_clusters=None if most is None else max(most - clusters, 0),
        )

    def _cut_nested(self, node: ir.Node, imports: Mapping[str, int]) -> int:
        """Cut the nested graphs of a node that the host drives; how many clusters that gives."""
        before = len(self.clusters)
        for graph in nested_graphs(node):
            graph.opset_imports.update(imports)  # a graph that was read from a file has none
            self.cut(graph, imports)
        return len(self.clusters) - before


def _node_name(node: ir.Node) -> str:
    """The name of `node`; the name of its first result if it has none of its own."""
    return node.name or next((str(value.name) for value in node.outputs), node.op_type)


def _placement(
    claim: Claim,
    name: str,
    cluster: Cluster | None,
    dissolved: Mapping[ir.Node, str],
    inside: Mapping[ir.Node, int],
) -> Placement:
    node = claim.node
    op = op_name(node)
    if cluster is not None:
        return Placement(name, op, cluster.engine, cluster=cluster.name)
    reason = dissolved.get(node, claim.reason)
    if count := inside.get(node, 0):
        reason += f"; {count} cluster{'s' if count > 1 else ''} inside it"
    return Placement(name, op, HOST, reason)


def cuts(graph: ir.Graph) -> tuple[Cut, ...]:
    """The values that cross between cluster nodes and others, in order of production."""
    users: dict[ir.Value, dict[str, None]] = {}
    for node in graph:
        for value in used_values(node):
            users.setdefault(value, {})[_step_name(node)] = None
    return tuple(
        _cut(value, _step_name(node), tuple(users[value]))
        for node in graph
        for value in node.outputs
        if users.get(value, {_step_name(node): None}).keys() != {_step_name(node)}
    )


def _step_name(node: ir.Node) -> str:
    return cluster_of(node).name if is_cluster(node) else HOST


def _cut(value: ir.Value, source: str, targets: tuple[str, ...]) -> Cut:
    shape = None
    if value.shape is not None:
        shape = tuple(dim if isinstance(dim, int) else dim.value or "?" for dim in value.shape)
    dtype = value.dtype.name if value.dtype is not None else ""
    return Cut(str(value.name), dtype, shape, _byte_size(value), source, targets)


def _byte_size(value: ir.Value) -> int | None:
    """Bytes of a tensor of static shape; None for others, strings and sequences included."""
    shape = static_shape(value)
    if shape is None or not isinstance(value.type, ir.TensorType):
        return None
    if value.type.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return (prod(shape) * value.type.dtype.bitwidth + 7) // 8


def quotient(graph: ir.Graph) -> nx.DiGraph[str]:
    """The graph of steps of an outlined graph; see `Partition.quotient`."""
    import networkx as nx  # costs 0.1 s, and a program does not need it to run

    result: nx.DiGraph[str] = nx.DiGraph()
    vertex = {node: _node_name(node) for node in graph}
    if len(set(vertex.values())) < len(vertex):  # node names need not be unique
        vertex = {node: f"{name}#{index}" for index, (node, name) in enumerate(vertex.items())}
    for node, name in vertex.items():
        cluster = cluster_of(node) if is_cluster(node) else None
        result.add_node(
            name,
            engine=cluster.engine if cluster else HOST,
            op=node.op_type,
            nodes=len(cluster.body) if cluster else 1,
        )
        for value in dict.fromkeys(used_values(node)):
            if (source := value.producer()) in vertex:
                _add_edge(result, vertex[source], name, value)
    return result


def _add_edge(result: nx.DiGraph[str], source: str, target: str, value: ir.Value) -> None:
    if not result.has_edge(source, target):
        result.add_edge(source, target, values=[], bytes=0)
    edge = result.edges[source, target]
    edge["values"].append(str(value.name))
    edge["bytes"] += _byte_size(value) or 0
