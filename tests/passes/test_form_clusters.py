from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.partition_models import (
    ENGINES,
    ByMark,
    ByOp,
    Spec,
    has_acyclic_quotient,
    index_of,
    indices,
    is_convex,
    specs,
)
from tests.support import model
from xrt.options import CompileOptions
from xrt.passes.assign_engines import Claimant, assign_engines
from xrt.passes.form_clusters import Formation, form_clusters, node_weight
from xrt.passes.typed_fusion import NO_COLOUR, fuse

FREE = CompileOptions(min_cluster_weight=0)


def form(
    given_model: ir.Model,
    engines: Sequence[Claimant] | None = None,
    options: CompileOptions | None = None,
) -> Formation:
    engines = [ByOp(but=["NonZero"])] if engines is None else engines
    return form_clusters(assign_engines(given_model.graph, engines, options), options)


def outputs(formation: Formation) -> list[str]:
    """Each cluster by the names of its nodes' results."""
    return ["".join(str(node.outputs[0].name) for node in cluster.nodes) for cluster in formation]


def test_all_is_one_cluster_if_all_is_supported() -> None:
    formation = form(
        model("""
            g (float[2] x, float[2] y) => (float[2] c, float[2] d, float[2] e)
            <float[2] w = {1, 2}> {
                a = Relu (x)
                b = Neg (y)
                c = Add (a, b)
                d = Abs (a)
                e = Identity (w)
            }
        """)
    )
    assert outputs(formation) == ["abcde"]
    assert formation.clusters[0].engine == "xla"
    assert formation.clusters[0].weight == 4
    assert not formation.dissolved


def test_a_host_node_splits_what_comes_after_it_from_what_comes_before() -> None:
    # The path a, h, d leaves and returns; b is free to stay with a, and e to come with d.
    text = """
        g (float[2] x) => (float[2] b, float[2] e) {
            a = Relu (x) p = Neg (a) b = Abs (a)
            h = NonZero (p)
            d = Sub (h, a) e = Sub (d, b)
        }
    """
    assert outputs(form(model(text))) == ["apb", "de"]


def test_branches_join_across_a_host_node_beside_them() -> None:
    text = """
        g (float[2] x) => (float[2] c, int64[1,n] h) {
            a = Relu (x) h = NonZero (x) b = Neg (a) c = Abs (b)
        }
    """
    assert outputs(form(model(text))) == ["abc"]


def test_an_island_moves_to_the_cluster_that_uses_it() -> None:
    # e, f could run with a and b, but then f would cross to d for nothing.
    text = """
        g (float[2] x, float[2] y) => (float[2] d) {
            a = Relu (x) b = Neg (a) e = Relu (y) f = Neg (e)
            h = NonZero (b)
            c = Cast <to = 1> (h) d = Add (c, f)
        }
    """
    assert outputs(form(model(text))) == ["ab", "efcd"]


def test_captured_values_are_edges() -> None:
    # The If captures b behind the host: a must not come into the cluster of the If.
    text = """
        g (float[2] x, bool c) => (float[2] z) {
            p = Relu (x) a = Neg (p)
            b = NonZero (a)
            y = If (c) <then_branch = t () => (float[2] u) { u = Abs (b) },
                        else_branch = f () => (float[2] v) { v = Neg (b) }>
            z = Add (y, a)
        }
    """
    assert outputs(form(model(text))) == ["pa", "yz"]


@pytest.mark.parametrize(
    ("text", "least", "kept"),
    [
        ("g (float[2] x) => (float[2] a) { a = Relu (x) }", 2, []),
        ("g (float[2] x) => (float[2] a) { a = Relu (x) }", 1, ["a"]),
        ("g (float[2] x) => (float[2] a) { a = Identity (x) }", 0, ["a"]),
        ("g (float[2] x) => (float[2] b) { a = Relu (x) b = Identity (a) }", 2, []),
        ("g (float[2] x) => (float[2] b) { a = Relu (x) b = Abs (a) }", 2, ["ab"]),
        ("g (float[2,2] x) => (float[2,2] a) { a = MatMul (x, x) }", 10, ["a"]),
        ("g (float[2,2] x) => (float[2,2] a) { a = MatMul (x, x) }", 11, []),
    ],
)
def test_a_cluster_must_weigh_enough(text: str, least: int, kept: list[str]) -> None:
    formation = form(model(text), options=CompileOptions(min_cluster_weight=least))
    assert outputs(formation) == kept
    if not kept:
        assert "min_cluster_weight" in set(formation.dissolved.values()).pop()
        assert len(formation.dissolved) == text.count("=") - text.count("=>")


def test_nested_graphs_weigh() -> None:
    graph = model("""
        g (float[2,2] x, bool c) => (float[2,2] y) {
            y = If (c) <then_branch = t () => (float[2,2] u) { u = MatMul (x, x) },
                        else_branch = f () => (float[2,2] v) { v = Neg (x) }>
        }
    """).graph
    assert node_weight(graph[0]) == 12


def test_a_light_island_beside_a_heavy_one_leaves_if_it_meets_the_host() -> None:
    # c would cost two crossings; e meets only inputs and outputs, so it rides along.
    text = """
        g (float[2] x, float[2] y, float[2] z) => (int64[1,n] d, float[2] b, float[2] e) {
            a = Relu (x) b = Neg (a)
            h = NonZero (y) c = Abs (h) d = NonZero (c)
            e = Relu (z)
        }
    """
    formation = form(model(text))
    assert outputs(formation) == ["abe"]
    assert [node.op_type for node in formation.dissolved] == ["Abs"]


def test_clusters_join_once_a_light_one_between_them_left() -> None:
    # While b and c are one cluster of "one", a must run before it and d after it.
    text = """
        g (float[2,2] x, float[2,2] y) => (float[2,2] b, float[2,2] d) {
            a = MatMul (x, x) b = Abs (a)
            c = Abs (y) d = MatMul (c, c)
        }
    """
    engines = [ByOp("one", only=["Abs"]), ByOp("two")]
    assert outputs(form(model(text), engines, FREE)) == ["a", "bc", "d"]
    assert outputs(form(model(text), engines, CompileOptions(min_cluster_weight=3))) == ["ad"]


def test_the_heaviest_clusters_stay() -> None:
    text = """
        g (float[2,2] x) => (float[2,2] f) {
            a = Relu (x) b = Neg (a)
            h = NonZero (b)
            c = MatMul (h, h)
            i = NonZero (c)
            e = Relu (i) f = Neg (e)
        }
    """
    kept = {None: ["ab", "c", "ef"], 3: ["ab", "c", "ef"], 2: ["ab", "c"], 1: ["c"], 0: []}
    for most, expected in kept.items():
        formation = form(model(text), options=CompileOptions(max_clusters=most))
        assert outputs(formation) == expected
    reasons = set(form(model(text), options=CompileOptions(max_clusters=1)).dissolved.values())
    assert reasons == {"weight 2 is not among the 1 heaviest (max_clusters)"}


def test_large_clusters_are_cut_into_parts_of_about_one_size() -> None:
    chain = "g (float[2] x) => (float[2] g) { a = Relu (x) b = Neg (a) c = Abs (b) d = Neg (c) "
    chain += "e = Relu (d) f = Neg (e) g = Abs (f) }"
    expected = {None: ["abcdefg"], 7: ["abcdefg"], 6: ["abcd", "efg"], 3: ["abc", "de", "fg"]}
    for most, parts in expected.items():
        options = CompileOptions(min_cluster_weight=0, max_cluster_nodes=most)
        assert outputs(form(model(chain), options=options)) == parts
    one_each = form(model(chain), options=CompileOptions(max_cluster_nodes=1))
    assert outputs(one_each) == list("abcdefg")


def test_a_cut_never_splits_a_quantization_group() -> None:
    options = CompileOptions(min_cluster_weight=0, max_cluster_nodes=2)
    assert outputs(form(model(QDQ % "x"), options=options)) == ["ab", "cq", "r"]


QDQ = """
    g (int8[2] x, float s) => (int8[2] q, float[2] r) {
        a = DequantizeLinear (x, s)
        b = Relu (a)
        h = NonZero (b)
        c = Sub (h, %s)
        q = QuantizeLinear (c, s)
        r = Neg (c)
    }
"""


def test_a_quantization_group_that_convexity_would_split_goes_to_the_host() -> None:
    # a is used before and after the host node h, so {a, b, c, q} cannot be one cluster.
    split = form(model(QDQ % "a"), options=FREE)
    assert outputs(split) == ["r"]
    assert all("quantization group" in reason for reason in split.dissolved.values())
    assert len(split.dissolved) == 4


def test_quantization_groups_stay_whole_without_that() -> None:
    whole = form(model(QDQ % "x"), options=FREE)
    assert outputs(whole) == ["ab", "cqr"]


def test_a_cycle_of_quantization_groups_within_one_engine_becomes_one() -> None:
    # d goes to both a and (past the group of c) to e: the groups {d, a, e} and {c} form a cycle.
    text = """
        g (int8[2] x, float s) => (float[2] e) {
            d = DequantizeLinear (x, s)
            a = Relu (d)
            c = Neg (a)
            q = QuantizeLinear (c, s)
            p = DequantizeLinear (q, s)
            e = Add (p, d)
        }
    """
    assert outputs(form(model(text))) == ["dacqpe"]


def test_no_claim_no_cluster() -> None:
    text = "g (float[2] x) => (float[2] b) { a = Relu (x) b = Neg (a) }"
    for engines in ([], [ByOp(only=[])], [ByOp("host")]):
        formation = form(model(text), engines)
        assert len(formation) == 0
        assert not formation.dissolved
    assert len(form(model("g (float[2] x) => (float[2] x) { }"))) == 0


@settings(max_examples=60, deadline=None)
@given(
    specs(),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(0, 3)),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_clusters_cover_are_disjoint_convex_and_acyclic(
    spec: Spec, least: int, most: int | None, nodes: int | None
) -> None:
    options = CompileOptions(min_cluster_weight=least, max_clusters=most, max_cluster_nodes=nodes)
    graph = spec.build().graph
    assignment = assign_engines(graph, ENGINES, options)
    formation = form_clusters(assignment, options)
    edges, parts = spec.edges(), indices(formation)
    inside = [index_of(node) for cluster in formation for node in cluster.nodes]
    assert len(inside) == len(set(inside))
    dissolved = {index_of(node) for node in formation.dissolved}
    claimed = {index_of(c.node): c.engine for c in assignment.claims if c.engine}
    assert set(inside) | dissolved == set(claimed)
    assert not set(inside) & dissolved
    assert all(is_convex(edges, part) for part in parts)
    assert has_acyclic_quotient(edges, parts)
    assert most is None or nodes is not None or len(formation) <= most
    for cluster in formation:
        assert {claimed[index_of(node)] for node in cluster.nodes} == {cluster.engine}
        assert cluster.weight == sum(map(node_weight, cluster.nodes))
        assert cluster.weight >= least or nodes is not None
        assert nodes is None or len(cluster.nodes) <= nodes


@settings(max_examples=60, deadline=None)
@given(specs())
def test_no_two_clusters_can_be_merged(spec: Spec) -> None:
    formation = form(spec.build(), ENGINES, FREE)
    edges, parts = spec.edges(), indices(formation)
    for left, right in combinations(formation, 2):
        if left.engine == right.engine:
            (one,), (two,) = indices([left]), indices([right])
            assert not has_acyclic_quotient(edges, (parts - {one, two}) | {one | two})


@settings(max_examples=60, deadline=None)
@given(st.data(), specs(), st.integers(0, 4))
def test_names_and_order_do_not_count(data: st.DataObject, spec: Spec, least: int) -> None:
    options = CompileOptions(min_cluster_weight=least)
    first = indices(form(spec.build(), ENGINES, options))
    assert indices(form(spec.build(), ENGINES, options)) == first
    order = data.draw(spec.orders())
    shuffled = spec.build(order, rename=lambda name: f"other_{name[::-1]}")
    assert indices(form(shuffled, ENGINES, options)) == first


@settings(max_examples=60, deadline=None)
@given(specs(engines=("a", ""), most=10))
def test_one_engine_gets_the_fewest_clusters(spec: Spec) -> None:
    """As many as one path has runs of the engine: fewer cannot be convex."""
    edges = spec.edges()
    marked = {index for index, node in enumerate(spec.nodes) if node[2]}
    runs = dict.fromkeys(edges, 0)
    for node in range(len(spec.nodes)):  # indices are topological
        before = [
            (runs[p] + (node in marked and p not in marked)) for p in edges.predecessors(node)
        ]
        runs[node] = max(before, default=0) or int(node in marked)
    formation = form(spec.build(), [ByMark("a")], FREE)
    assert len(formation) == max(runs.values())


def test_fusing_nothing() -> None:
    assert fuse([], [], [0]) == []
    assert fuse([[], [0], [1]], [NO_COLOUR] * 3, [0]) == [0, 1, 2]


def test_growth_is_deep_without_recursion() -> None:
    count = 20_000
    chain = [[index - 1] if index else [] for index in range(count)]
    assert fuse(chain, [0] * count, [0]) == [0] * count
    assert len(set(fuse(chain, [index % 2 for index in range(count)], [0, 1]))) == count
