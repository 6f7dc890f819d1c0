"""Form clusters from claims: few, convex, none too small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import onnx_ir as ir

from xrt.graph import dependencies, nested_nodes, stable_order
from xrt.options import CompileOptions
from xrt.passes.assign_engines import Assignment
from xrt.passes.quantization_groups import quantization_groups
from xrt.passes.typed_fusion import (
    NO_COLOUR,
    DisjointSets,
    compact,
    contract,
    find_islands,
    fuse,
)

_HEAVY = 10
_WEIGHTS: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "Attention",
            "Conv",
            "ConvInteger",
            "ConvTranspose",
            "DeformConv",
            "Det",
            "DFT",
            "Einsum",
            "Gemm",
            "Gradient",
            "GRU",
            "LSTM",
            "MatMul",
            "MatMulInteger",
            "QLinearConv",
            "QLinearMatMul",
            "RNN",
            "STFT",
        ),
        _HEAVY,
    ),
    **dict.fromkeys(("Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze"), 0),
}
"""Weight by operator; others weigh 1. `CompileOptions.min_cluster_weight` counts in it."""

_MOST_ROUNDS = 8
"""How often clusters form anew after small ones left; then small ones leave without that."""


@dataclass(frozen=True, eq=False)
class NodeCluster:
    """Nodes that one engine is to run.

    Attributes:
        engine: Name of the engine.
        nodes: The nodes, in topological order.
        weight: Their summed weight.
    """

    engine: str
    nodes: tuple[ir.Node, ...]
    weight: int


@dataclass(frozen=True, eq=False)
class Formation:
    """What forming clusters decided.

    Attributes:
        clusters: The clusters, in order of their first nodes.
        dissolved: Nodes that an engine claimed and the host runs after all, with the reason.
    """

    clusters: tuple[NodeCluster, ...]
    dissolved: Mapping[ir.Node, str]

    def __iter__(self) -> Iterator[NodeCluster]:
        return iter(self.clusters)

    def __len__(self) -> int:
        return len(self.clusters)


def node_weight(node: ir.Node) -> int:
    """How much `node` computes: see `_WEIGHTS`. A node with nested graphs weighs as they do."""
    return sum(_own_weight(inner) for inner in (node, *nested_nodes(node)))


def _own_weight(node: ir.Node) -> int:
    return _WEIGHTS.get(node.op_type, 1) if node.domain in ("", "ai.onnx") else 1


def form_clusters(assignment: Assignment, options: CompileOptions | None = None) -> Formation:
    """Form clusters of the nodes that engines claimed; changes nothing.

    Nodes of one engine share a cluster whenever convexity allows, connected or not, by typed fusion
    (see `xrt.passes.typed_fusion`: convex and acyclic by construction, the fewest clusters for the
    preferred engine, no two that could be merged, linear time). Uses by nested graphs count as
    edges. Then what is too small goes to the host, and clusters form anew around it:

    * a cluster lighter than `options.min_cluster_weight`, and an island (a part of a cluster that
      exchanges nothing with the rest) as light, unless it meets only the inputs and outputs of the
      model;
    * a quantization group that no cluster can hold, because a node between its nodes runs
      elsewhere;
    * the lightest clusters beyond `options.max_clusters`, the later of two that weigh the same.

    At last clusters of more nodes than `options.max_cluster_nodes` are cut.

    But for such ties the result does not depend on names or on the order of nodes.
    """
    options = options or CompileOptions()
    former = _Former(assignment)
    former.join_quantization_groups()
    former.form(options.min_cluster_weight)
    former.keep_heaviest(options.max_clusters)
    former.cut(options.max_cluster_nodes)
    return former.formation()


class _Former:
    """Vertices are units: nodes, or quantization groups that one engine claims.

    Attributes:
        units: Positions of nodes by unit.
        predecessors, colours, weights: By unit. A colour is an index into the engines.
        labels: By unit, its cluster, once formed. A unit without a colour has a label of its own.
    """

    def __init__(self, assignment: Assignment) -> None:
        self.engines = assignment.engines
        self.nodes = [claim.node for claim in assignment.claims]
        number = {name: index for index, name in enumerate(self.engines)}
        self.colours = [
            NO_COLOUR if claim.engine is None else number[claim.engine]
            for claim in assignment.claims
        ]
        self.weights = [node_weight(node) for node in self.nodes]
        self.predecessors = dependencies(self.nodes)
        self.units = [[index] for index in range(len(self.nodes))]
        self.labels: list[int] = []
        self.dissolved: dict[ir.Node, str] = {}

    # --- quantization groups -------------------------------------------------------------------

    def join_quantization_groups(self) -> None:
        """Make a unit of each quantization group, or send it to the host if it would be split."""
        joins = DisjointSets(len(self.nodes))
        groups = quantization_groups(self.nodes, self.predecessors)
        for group in groups:
            if len({self.colours[index] for index in group}) > 1:
                self._to_host(group, "its quantization group stays together, and engines differ")
            elif self.colours[group[0]] != NO_COLOUR:
                for index in group:
                    joins.union(group[0], index)
        if groups:
            self._make_units(self._without_cycles(joins))

    def _without_cycles(self, joins: DisjointSets) -> list[int]:
        """Blocks of nodes like `joins`, but so that their quotient is acyclic.

        A cycle through a group means that a path leaves it and returns: the group needs all that is
        on the path. If that is of its engine, it joins; if not, the group cannot be one unit.
        """
        block = [joins.find(index) for index in range(len(self.nodes))]
        quotient = contract(self.predecessors, block)
        if len(stable_order(quotient)) == len(quotient):
            return block
        edges = nx.DiGraph((s, t) for t, sources in enumerate(quotient) for s in sources)
        members: dict[int, list[int]] = {}
        for index, number in enumerate(block):
            members.setdefault(number, []).append(index)
        for component in nx.strongly_connected_components(edges):
            if len(component) > 1:
                self._settle_cycle([members[number] for number in sorted(component)], block)
        return block

    def _settle_cycle(self, groups: Sequence[Sequence[int]], block: list[int]) -> None:
        inside = [index for group in groups for index in group]
        if len({self.colours[index] for index in inside}) == 1:
            for index in inside:
                block[index] = min(inside)
            return
        for group in groups:
            if len(group) > 1:
                self._to_host(
                    group,
                    "its quantization group stays together, and a node between its nodes "
                    "runs elsewhere",
                )
                for index in group:
                    block[index] = index

    def _make_units(self, block: Sequence[int]) -> None:
        numbers = compact(block)
        self.predecessors = contract(self.predecessors, numbers)
        self.units = [[] for _ in self.predecessors]
        for index, number in enumerate(numbers):
            self.units[number].append(index)
        self.colours = [self.colours[unit[0]] for unit in self.units]
        self.weights = [sum(self.weights[index] for index in unit) for unit in self.units]

    def _to_host(self, indices: Sequence[int], reason: str) -> None:
        """Before units are made: leave nodes to the host."""
        for index in indices:
            if self.colours[index] != NO_COLOUR:
                self.colours[index] = NO_COLOUR
                self.dissolved[self.nodes[index]] = reason

    # --- clusters ------------------------------------------------------------------------------

    def form(self, least: int) -> None:
        """Fuse, and send to the host what weighs less than `least`, until nothing does."""
        for _ in range(_MOST_ROUNDS):
            self.labels = fuse(self.predecessors, self.colours, range(len(self.engines)))
            if not self._dissolve_light(least):
                return
        # To leave a cluster never harms the others. Whole clusters last: they only get lighter.
        self._dissolve_light(least, islands=False)

    def _dissolve_light(self, least: int, *, islands: bool = True) -> bool:
        parts = [(part, True) for part in self.clusters()]
        if islands:
            parts += [(part, False) for part in find_islands(self.predecessors, self.labels)]
        meets_others = self._meets_others() if islands else []
        light = False
        for part, whole in parts:
            weight = sum(self.weights[unit] for unit in part)
            if weight >= least or self.colours[part[0]] == NO_COLOUR:
                continue
            if whole or any(meets_others[unit] for unit in part):
                reason = f"too small for a cluster: weight {weight}, min_cluster_weight {least}"
                self._dissolve(part, reason)
                light = True
        return light

    def clusters(self) -> list[list[int]]:
        """Units by cluster, in order of their first units."""
        result: dict[int, list[int]] = {}
        for unit, colour in enumerate(self.colours):
            if colour != NO_COLOUR:
                result.setdefault(self.labels[unit], []).append(unit)
        return list(result.values())

    def _meets_others(self) -> list[bool]:
        """By unit: whether it uses results from outside its cluster, or others use its results."""
        result = [False] * len(self.units)
        for unit, sources in enumerate(self.predecessors):
            for source in sources:
                if self.labels[source] != self.labels[unit]:
                    result[source] = result[unit] = True
        return result

    def _dissolve(self, units: Sequence[int], reason: str) -> None:
        for unit in units:
            self.colours[unit] = NO_COLOUR
            self.dissolved.update((self.nodes[index], reason) for index in self.units[unit])

    def keep_heaviest(self, most: int | None) -> None:
        """Dissolve all but the `most` heaviest clusters."""
        if most is None:
            return
        # Sorting is stable: of two that weigh the same the earlier stays.
        ranked = sorted(self.clusters(), key=lambda part: -sum(self.weights[u] for u in part))
        for part in ranked[most:]:
            weight = sum(self.weights[unit] for unit in part)
            self._dissolve(part, f"weight {weight} is not among the {most} heaviest (max_clusters)")

    def cut(self, most: int | None) -> None:
        """Cut clusters of more than `most` nodes into parts of about the same number of nodes.

        Parts are consecutive in a topological order, and a cluster is convex: so they are, too.
        Units stay whole.
        """
        if most is None:
            return
        place = {unit: at for at, unit in enumerate(stable_order(self.predecessors))}
        fresh = max(self.labels, default=0) + 1
        for part in self.clusters():
            total = sum(len(self.units[unit]) for unit in part)
            pieces = -(-total // most)
            nodes = 0  # in all units before
            for unit in sorted(part, key=place.__getitem__):
                self.labels[unit] = fresh + nodes * pieces // total
                nodes += len(self.units[unit])
            fresh += pieces

    def formation(self) -> Formation:
        """The result."""
        clusters = []
        for part in self.clusters():
            indices = sorted(index for unit in part for index in self.units[unit])
            clusters.append(
                NodeCluster(
                    self.engines[self.colours[part[0]]],
                    tuple(self.nodes[index] for index in indices),
                    sum(self.weights[unit] for unit in part),
                )
            )
        return Formation(tuple(clusters), self.dissolved)
