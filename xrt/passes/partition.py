"""Partition a model: assign engines, form clusters, outline them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from xrt.graph import Cluster, is_cluster, op_name, static_shape, used_values
from xrt.options import CompileOptions
from xrt.passes.assign_engines import HOST, Claim, Claimant, assign_engines
from xrt.passes.form_clusters import form_clusters
from xrt.passes.outline_clusters import cluster_of, outline
from xrt.passes.quantization_groups import unshare_dequantize

if TYPE_CHECKING:
    import networkx as nx


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
        clusters: The clusters, in schedule order.
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
    Each step says how it decides: `assign_engines`, `form_clusters`, `outline_clusters`.
    """
    options = options or CompileOptions()
    if any(engine.name != HOST for engine in engines):
        unshare_dequantize(model.graph)
    assignment = assign_engines(model.graph, engines, options, context=context)
    formation = form_clusters(assignment, options)
    # Outlining takes nodes out of the graph, and the graph is what names them.
    names = [_node_name(claim.node) for claim in assignment.claims]
    outlined = outline(model, formation)
    owner = {node: cluster for given, cluster in outlined for node in given.nodes}
    placements = tuple(
        _placement(claim, name, owner.get(claim.node), formation.dissolved)
        for claim, name in zip(assignment.claims, names, strict=True)
    )
    return Partition(
        tuple(cluster for _, cluster in outlined), placements, cuts(model.graph), model
    )


def _node_name(node: ir.Node) -> str:
    """The name of `node`; the name of its first result if it has none of its own."""
    return node.name or next((str(value.name) for value in node.outputs), node.op_type)


def _placement(
    claim: Claim, name: str, cluster: Cluster | None, dissolved: Mapping[ir.Node, str]
) -> Placement:
    node = claim.node
    op = op_name(node)
    if cluster is not None:
        return Placement(name, op, cluster.engine, cluster=cluster.name)
    return Placement(name, op, HOST, dissolved.get(node, claim.reason))


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
