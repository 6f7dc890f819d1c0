from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.partition_models import ENGINES, ByOp, Spec, random_inputs, run_steps, specs
from tests.support import assert_close, model, run_reference
from xrt import graph as G
from xrt.errors import VerificationError
from xrt.options import CompileOptions
from xrt.passes.outline_clusters import cluster_of, inline_clusters, outline_clusters
from xrt.passes.partition import Cut, Partition, Placement, partition

FREE = CompileOptions(min_cluster_weight=0)

TEXT = """
    g (float[2] x, bool c) => (float[2] f, float[2] w) <float[2] w = {1, 2}, float[2] v = {3, 4}> {
        a = Add (x, w)
        b = Mul (a, v)
        h = Floor (b)
        d = Sub (h, a)
        y = If (c) <then_branch = t () => (float[2] p) { p = Abs (b) },
                    else_branch = e () => (float[2] q) { q = Mul (d, v) }>
        f = Neg (y)
    }
"""


@dataclass(frozen=True)
class Part:
    engine: str
    nodes: tuple[ir.Node, ...]


def cut(given_model: ir.Model, *names: str, engine: str = "xla") -> tuple[G.Cluster, ...]:
    """Outline clusters given by the names of their nodes' results, all of one letter."""
    by_name = {str(n.outputs[0].name): n for n in given_model.graph}
    parts = [Part(engine, tuple(by_name[letter] for letter in name)) for name in names]
    return outline_clusters(given_model, parts)


def uses_of_removed_nodes(graph: ir.Graph) -> list[str]:
    """Values with uses by nodes that are no longer in the graph."""
    present = set(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph for value in node.outputs]
    return [str(v.name) for v in values if any(use.node not in present for use in v.uses())]


def test_before_and_after() -> None:
    changed = model(TEXT)
    tensors = {name: value.const_value for name, value in changed.graph.initializers.items()}
    first, last = cut(changed, "ab", "fdy")
    nodes = list(changed.graph)
    assert [node.op_type for node in nodes] == ["Cluster", "Floor", "Cluster"]
    assert [node.name for node in nodes] == [first.name, nodes[1].name, last.name]
    assert (first.inputs, first.outputs) == (("x",), ("a", "b"))
    assert (last.inputs, last.outputs) == (("h", "a", "c", "b"), ("f",))
    assert [node.op_type for node in last.nodes] == ["Sub", "If", "Neg"]
    # Constants are in the bodies; w stays outside because it is an output, v does not.
    assert list(changed.graph.initializers) == ["w"]
    assert {n: v.const_value for n, v in first.body.initializers.items()} == tensors
    assert last.body.initializers["v"].const_value is tensors["v"]
    assert [value.name for value in changed.graph.outputs] == ["f", "w"]
    assert changed.graph.outputs[0].shape == ir.Shape([2])
    assert changed.opset_imports[G.DOMAIN] == 1
    assert G.DOMAIN not in first.body.opset_imports
    assert not uses_of_removed_nodes(changed.graph)


def test_a_cluster_node_says_all_about_its_cluster() -> None:
    changed = model(TEXT)
    (cluster,) = cut(changed, "ab")
    again = cluster_of(changed.graph[0])
    assert (again.name, again.engine, again.digest) == (cluster.name, "xla", cluster.digest)
    assert again.body is cluster.body
    assert cluster.name == f"xla_{cluster.digest[:12]}"
    assert cluster.digest == G.digest(cluster.body)


def test_no_cluster_changes_nothing() -> None:
    changed = model(TEXT)
    before = str(changed.graph)
    assert outline_clusters(changed, []) == ()
    assert str(changed.graph) == before
    assert G.DOMAIN not in changed.opset_imports


def test_identical_clusters_get_names_of_their_own() -> None:
    text = """
        g (float[2] x) => (float[2] f)
        <float[2] a, float[2] b, float[2] c, float[2] d, float[2] e, float[2] h, float[2] i> {
            a = Relu (x) b = Neg (a) h = Abs (b)
            c = Relu (h) d = Neg (c) i = Abs (d)
            e = Relu (i) f = Neg (e)
        }
    """
    clusters = cut(model(text), "ef", "cd", "ab")
    (content,) = {cluster.digest for cluster in clusters}
    stem = f"xla_{content[:12]}"
    assert [cluster.name for cluster in clusters] == [stem, f"{stem}_2", f"{stem}_3"]
    assert [cluster.outputs for cluster in clusters] == [("b",), ("d",), ("f",)]


def test_a_cluster_may_have_no_inputs_or_no_constants() -> None:
    text = """
        g (float[2] x) => (float[2] b, float[2] c) <float[2] w = {1, 2}> {
            a = Relu (w) b = Neg (a) c = Abs (x)
        }
    """
    changed = model(text)
    (cluster,) = cut(changed, "ab")
    assert (cluster.inputs, cluster.outputs) == ((), ("b",))
    assert not changed.graph.initializers
    got = run_steps(changed, {"x": np.array([1, -1], np.float32)})
    assert_close(got, run_reference(model(text), [np.array([1, -1], np.float32)]))


def test_the_graph_comes_out_sorted() -> None:
    # The cluster of a and d can only run after h, which comes between them.
    text = """
        g (float[2] x) => (float[2] d, float[2] e) {
            a = Relu (x) h = Abs (x) d = Add (a, h) e = Neg (a)
        }
    """
    changed = model(text)
    cut(changed, "ad")
    assert [node.op_type for node in changed.graph] == ["Abs", "Cluster", "Neg"]


@pytest.mark.parametrize(
    ("names", "words"), [(("abd",), "a path leaves"), (("ab", "bh"), "in two")]
)
def test_a_wrong_partition_is_refused_before_anything_changes(
    names: tuple[str, ...], words: str
) -> None:
    changed = model(TEXT)
    before = str(changed.graph)
    with pytest.raises(VerificationError, match=words):
        cut(changed, *names)
    assert str(changed.graph) == before


def test_a_node_of_another_graph_is_refused() -> None:
    with pytest.raises(VerificationError, match="not in the main graph"):
        outline_clusters(model(TEXT), [Part("xla", (model(TEXT).graph[0],))])


def test_an_outlined_model_survives_serialization() -> None:
    changed = model(TEXT)
    cut(changed, "ab", "dyf")
    again = ir.from_proto(ir.to_proto(changed))
    inputs = {"x": np.array([1, 2], np.float32), "c": np.array(False)}
    assert_close(run_steps(again, inputs), run_reference(model(TEXT), inputs))
    assert [cluster_of(n).digest for n in again.graph if G.is_cluster(n)] == [
        cluster_of(n).digest for n in changed.graph if G.is_cluster(n)
    ]


def test_inlining_copies_the_bodies() -> None:
    changed = model(TEXT)
    first, _ = cut(changed, "ab", "dyf")
    inline_clusters(changed)
    assert [node.op_type for node in first.body] == ["Add", "Mul"]
    assert G.structurally_equal(changed.graph, model(TEXT).graph)
    assert sorted(changed.graph.initializers) == ["v", "w"]
    assert not uses_of_removed_nodes(changed.graph)
    inline_clusters(changed)  # nothing is left to inline
    assert G.structurally_equal(changed.graph, model(TEXT).graph)


def test_partition_places_every_node() -> None:
    result = partition(model(TEXT), [ByOp(but=["Floor"])])
    first, last = result.clusters
    assert [(p.op, p.engine, p.cluster) for p in result.placements] == [
        ("Add", "xla", first.name),
        ("Mul", "xla", first.name),
        ("Floor", "host", ""),
        ("Sub", "xla", last.name),
        ("If", "xla", last.name),
        ("Neg", "xla", last.name),
    ]
    assert isinstance(result.placements[0], Placement)
    assert [p.reason for p in result.placements if p.engine == "host"] == ["xla: Floor is unknown"]
    assert result.cuts[0] == Cut("a", "", None, None, first.name, (last.name,))
    assert [(c.name, c.source, c.targets) for c in result.cuts[1:]] == [
        ("b", first.name, ("host", last.name)),
        ("h", "host", (last.name,)),
    ]
    steps = result.quotient()
    assert list(nx.topological_sort(steps)) == [first.name, "h", last.name]
    assert steps.nodes[first.name] == {"engine": "xla", "op": "Cluster", "nodes": 2}
    assert steps.edges[first.name, last.name]["values"] == ["a", "b"]


def test_cuts_know_their_size() -> None:
    text = """
        g (float[2,3] x, float[N] z) => (float[2,3] d) <float[2,3] b, int64[2,N] h> {
            a = Relu (x) b = Neg (a) h = NonZero (b) d = Cast <to = 1> (h) e = Neg (d)
        }
    """
    result = partition(model(text), [ByOp(but=["NonZero"])])
    sizes = [(c.name, c.dtype, c.shape, c.bytes) for c in result.cuts]
    assert sizes == [("b", "FLOAT", (2, 3), 24), ("h", "INT64", (2, "N"), None)]
    assert result.cut_bytes == 24


def test_partition_names_what_dissolved() -> None:
    text = "g (float[2] x) => (float[2] a) { a = Relu (x) }"
    result = partition(model(text), [ByOp()])
    assert result.clusters == result.cuts == ()
    (placement,) = result.placements
    assert placement.engine == "host"
    assert placement.reason == "too small for a cluster: weight 1, min_cluster_weight 2"


def test_partition_with_no_engine_changes_nothing() -> None:
    text = """
        g (int8[2] x, float s) => (float[2] b, float[2] c) {
            a = DequantizeLinear (x, s) b = Relu (a) c = Neg (a)
        }
    """
    for engines in ([], [ByOp("host")]):
        changed = model(text)
        before = str(changed.graph)
        assert partition(changed, engines).clusters == ()
        assert str(changed.graph) == before


def test_a_shared_dequantize_linear_does_not_drag_its_users_along() -> None:
    text = """
        g (int8[2] x, float s) => (float[2] c, int64[1,n] h) {
            a = DequantizeLinear (x, s) b = Relu (a) c = Neg (b) h = NonZero (a)
        }
    """
    result = partition(model(text), [ByOp(but=["NonZero"])])
    (cluster,) = result.clusters
    assert [node.op_type for node in cluster.nodes] == ["DequantizeLinear", "Relu", "Neg"]
    assert [p.engine for p in result.placements].count("host") == 2
    assert result.cuts == ()


def outlined(spec: Spec, **build: object) -> Partition:
    return partition(spec.build(**build), ENGINES, FREE)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(specs(most=16), st.integers(0, 1000))
def test_values_do_not_change(spec: Spec, seed: int) -> None:
    inputs = random_inputs(seed)
    want = run_reference(spec.build(), inputs)
    result = outlined(spec)
    assert_close(run_steps(result.model, inputs), want)
    assert not uses_of_removed_nodes(result.model.graph)
    inline_clusters(result.model)
    assert_close(run_reference(result.model, inputs), want)


@settings(max_examples=60, deadline=None)
@given(specs())
def test_inlining_undoes_outlining(spec: Spec) -> None:
    original = spec.build()
    back = outlined(spec).model
    inline_clusters(back)
    position = {node.name: index for index, node in enumerate(original.graph)}
    back.graph.extend(sorted(back.graph, key=lambda node: position[node.name]))
    assert G.digest(back.graph) == G.digest(original.graph)
    assert [n.name for n in back.graph] == [n.name for n in original.graph]
    assert {v.name for n in back.graph for v in n.outputs} == {
        v.name for n in original.graph for v in n.outputs
    }


@settings(max_examples=60, deadline=None)
@given(specs())
def test_names_of_clusters_do_not_come_from_names_of_values(spec: Spec) -> None:
    first = [(c.name, c.digest) for c in outlined(spec).clusters]
    assert [(c.name, c.digest) for c in outlined(spec).clusters] == first
    renamed = outlined(spec, rename=lambda name: f"z{name[::-1]}")
    assert [(c.name, c.digest) for c in renamed.clusters] == first


@settings(max_examples=60, deadline=None)
@given(specs())
def test_steps_are_in_topological_order(spec: Spec) -> None:
    result = outlined(spec)
    done: set[ir.Value] = {*result.model.graph.inputs, *result.model.graph.initializers.values()}
    for node in result.model.graph:
        assert done.issuperset(G.used_values(node))
        done.update(node.outputs)
    scheduled = [cluster_of(n).name for n in result.model.graph if G.is_cluster(n)]
    assert scheduled == [cluster.name for cluster in result.clusters]
    assert nx.is_directed_acyclic_graph(result.quotient())
