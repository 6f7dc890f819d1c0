"""What tests of partitioning share: engines that claim by mark, random models, an interpreter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import onnx.reference
import onnx_ir as ir
from hypothesis import strategies as st

from xrt.graph import OPSET, Support, extract, is_cluster

FLOATS = ir.TensorType(ir.DataType.FLOAT)


@dataclass
class ByOp:
    """An engine that takes all operators, or some, or all but some; it counts what it is asked."""

    name: str = "xla"
    only: Sequence[str] | None = None
    but: Sequence[str] = ()
    asked: int = 0

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        self.asked += 1
        if node.op_type in self.but or (self.only is not None and node.op_type not in self.only):
            return Support.no(f"{node.op_type} is unknown")
        return Support.yes()


@dataclass
class ByMark:
    """An engine that takes the nodes whose mark holds its name."""

    name: str

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        marks = node.metadata_props["engines"].split()
        return Support.yes() if self.name in marks else Support.no("not marked")


ENGINES = (ByMark("a"), ByMark("b"))


@dataclass(frozen=True)
class Spec:
    """A random model: value i is input i for i < 3, constant 3, or result of node i - 4.

    An If gives its condition's choice between functions of the two values that it captures.
    """

    nodes: tuple[tuple[str, tuple[int, ...], str], ...]  # operator, values used, engines
    outputs: tuple[int, ...]

    FIRST = 4

    def edges(self) -> nx.DiGraph:
        graph = nx.DiGraph()
        graph.add_nodes_from(range(len(self.nodes)))
        for index, (_, used, _) in enumerate(self.nodes):
            graph.add_edges_from(
                (value - self.FIRST, index) for value in used if value >= self.FIRST
            )
        return graph

    def build(
        self,
        order: Sequence[int] | None = None,
        rename: Callable[[str], str] = str,
    ) -> ir.Model:
        """The model, with nodes in `order` and names changed by `rename`."""
        inputs = [_value(rename(f"x{index}")) for index in range(3)]
        condition = ir.Value(
            name=rename("c"), type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
        )
        array = np.array([0.5, -1.0, 2.0], np.float32)
        constant = _value(rename("w"))
        constant.const_value = ir.tensor(array, name=constant.name)
        values: dict[int, ir.Value] = {**dict(enumerate(inputs)), 3: constant}
        made: list[ir.Node] = []
        for index in order if order is not None else range(len(self.nodes)):
            op, used, engines = self.nodes[index]
            arguments = [values[value] for value in used]
            name = rename(f"v{index}")
            node = _if(condition, arguments, name) if op == "If" else ir.Node("", op, arguments)
            node.name = rename(f"n{index}")
            node.metadata_props.update(engines=engines, index=str(index))
            result = node.outputs[0]
            result.name, result.type, result.shape = name, FLOATS, ir.Shape([3])
            values[index + self.FIRST] = result
            made.append(node)
        graph = ir.Graph(
            [*inputs, condition],
            [values[output] for output in self.outputs],
            nodes=made,
            initializers=[constant],
            opset_imports={"": OPSET},
            name="g",
        )
        return ir.Model(graph, ir_version=13)

    def orders(self) -> st.SearchStrategy[list[int]]:
        """Topological orders of the nodes."""
        return st.permutations(range(len(self.nodes))).map(
            lambda rank: list(
                nx.lexicographical_topological_sort(self.edges(), key=lambda node: rank[node])
            )
        )


def _value(name: str) -> ir.Value:
    return ir.Value(name=name, type=FLOATS, shape=ir.Shape([3]))


def _if(condition: ir.Value, captured: Sequence[ir.Value], name: str) -> ir.Node:
    branches = []
    for key, op in (("then_branch", "Neg"), ("else_branch", "Relu")):
        first = ir.Node("", op, captured[:1], name=f"{name}/{key}/1")
        last = ir.Node("", "Sub", [first.outputs[0], captured[-1]], name=f"{name}/{key}/2")
        first.outputs[0].name = f"{name}/{key}/a"
        result = last.outputs[0]
        result.name, result.type, result.shape = f"{name}/{key}/b", FLOATS, ir.Shape([3])
        branches.append(ir.AttrGraph(key, ir.Graph([], [result], nodes=[first, last], name=key)))
    return ir.Node("", "If", [condition], branches)


@st.composite
def specs(draw: st.DrawFn, engines: Sequence[str] = ("a", "b", "a b", ""), most: int = 24) -> Spec:
    """Random models with random marks."""
    nodes = []
    for index in range(draw(st.integers(1, most))):
        op = draw(st.sampled_from(("Relu", "Neg", "Abs", "Add", "Sub", "Max", "If")))
        arity = 1 if op in ("Relu", "Neg", "Abs") else 2
        # Mostly recent values, so that graphs are deep as well as wide.
        known = index + Spec.FIRST
        pick = st.one_of(st.integers(max(0, known - 4), known - 1), st.integers(0, known - 1))
        used = tuple(draw(st.tuples(*[pick] * arity)))
        nodes.append((op, used, draw(st.sampled_from(engines))))
    results = st.integers(Spec.FIRST, Spec.FIRST + len(nodes) - 1)
    outputs = draw(st.lists(results, min_size=1, max_size=4, unique=True))
    return Spec(tuple(nodes), tuple(outputs))


def index_of(node: ir.Node) -> int:
    """Which node of a spec `node` is."""
    return int(node.metadata_props["index"])


def indices(clusters: Iterable[Any]) -> set[frozenset[int]]:
    """What clusters hold, without order."""
    return {frozenset(index_of(node) for node in cluster.nodes) for cluster in clusters}


def is_convex(edges: nx.DiGraph, members: Iterable[int]) -> bool:
    """Whether no path leaves `members` and comes back."""
    inside = set(members)
    after = set().union(*(nx.descendants(edges, node) for node in inside))
    before = set().union(*(nx.ancestors(edges, node) for node in inside))
    return not (after & before) - inside


def has_acyclic_quotient(edges: nx.DiGraph, parts: Iterable[Iterable[int]]) -> bool:
    """Whether `edges` has no cycle once each of `parts` is one vertex."""
    owner: dict[int, Any] = {node: ("node", node) for node in edges}
    for number, part in enumerate(parts):
        owner.update(dict.fromkeys(part, ("part", number)))
    quotient = nx.DiGraph((owner[s], owner[t]) for s, t in edges.edges if owner[s] != owner[t])
    return bool(nx.is_directed_acyclic_graph(quotient))


def run_steps(model: ir.Model, inputs: Mapping[str, Any]) -> list[Any]:
    """The outputs of `model`, a node at a time; a cluster node runs its body so."""
    return _run_graph(model.graph, [inputs[str(value.name)] for value in model.graph.inputs])


def _run_graph(graph: ir.Graph, arguments: Sequence[Any]) -> list[Any]:
    values: dict[ir.Value, Any] = dict(zip(graph.inputs, arguments, strict=True))
    for name in graph.initializers:
        value = graph.initializers[name]
        assert value.const_value is not None
        values[value] = value.const_value.numpy()
    for node in graph:
        if is_cluster(node):
            used = [values[value] for value in node.inputs if value is not None]
            results = _run_graph(node.attributes["body"].as_graph(), used)
            values.update(zip(node.outputs, results, strict=True))
        else:
            values.update(_run_node(node, values))
    return [values[value] for value in graph.outputs]


def _run_node(node: ir.Node, values: Mapping[ir.Value, Any]) -> dict[ir.Value, Any]:
    alone = extract([node])
    known = {str(value.name): array for value, array in values.items()}
    wanted = {str(value.name) for value in alone.outputs}
    proto = ir.to_proto(ir.Model(alone, ir_version=13))
    evaluator = onnx.reference.ReferenceEvaluator(proto)
    results = evaluator.run(
        None, {str(value.name): known[str(value.name)] for value in alone.inputs}
    )
    found = [value for value in node.outputs if str(value.name) in wanted]
    return dict(zip(found, results, strict=True))


def random_inputs(seed: int) -> dict[str, Any]:
    """Inputs for a `Spec`."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {f"x{i}": rng.normal(size=3).astype(np.float32) for i in range(3)}
    return {**arrays, "c": np.array(bool(rng.integers(2)))}
