"""Clusters in the bodies of If, Loop, Scan and SequenceMap that the host drives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.partition_models import ByOp
from tests.support import assert_close, model, run_reference
from xrt import graph as G
from xrt.engines.xla import XlaEngine
from xrt.errors import EngineBuildError, EngineFallbackWarning
from xrt.options import CompileOptions
from xrt.passes import InferShapesPass
from xrt.passes.outline_clusters import inline_clusters
from xrt.passes.partition import partition
from xrt.runtime.build import build_clusters
from xrt.runtime.schedule import build_schedule

RNG = np.random.default_rng(0)

# The body keeps a sequence, so no engine takes the Loop.
LOOP = """
    g (float[4,8] x) => (float[4,8] y, seq(float[4,8]) all)
    <int64 trips, bool yes, float[8,8] w, float[8] b> {
        h = MatMul (x, w)
        h2 = Tanh (h)
        none = SequenceEmpty ()
        y, all = Loop (trips, yes, x, none) <
            body = body (int64 i, bool c, float[4,8] s, seq(float[4,8]) q)
                => (bool c, float[4,8] t, seq(float[4,8]) r) {
                m = MatMul (s, w)
                n = Add (m, b)
                o = Add (n, h2)
                t = Tanh (o)
                r = SequenceInsert (q, t)
            }>
    }"""

WHILE = """
    g (float[4,8] x) => (float[4,8] y, float[k,4,8] all, float[4,8] z)
    <int64 most, bool yes, float[8,8] w, float limit> {
        y, all = Loop (most, yes, x) <
            body = body (int64 i, bool c, float[4,8] s) => (bool d, float[4,8] t, float[4,8] u) {
                m = MatMul (s, w)
                t = Add (m, s)
                u = Neg (t)
                a = Abs (t)
                top = ReduceMax <keepdims = 0> (a)
                d = Less (top, limit)
            }>
        z = MatMul (y, w)
    }"""

BRANCH = """
    g (float[4,8] x, bool c) => (float[n] y) <float[8,8] w, int64[1] flat> {
        h = MatMul (x, w)
        h2 = Tanh (h)
        y = If (c) <
            then_branch = t () => (float[p] r) { m = MatMul (h2, w) n = Neg (m)
                r = Reshape (n, flat) },
            else_branch = e () => (float[q] s) { o = MatMul (h2, w) i = NonZero (o)
                f = Cast <to = 1> (i) s = Reshape (f, flat) }
        >
    }"""

# Text is the host's: it stands between two clusters.
SCAN = """
    g (float[3,4,8] x, float[4,8] s) => (float[4,8] y, float[3,4] z) <float[8,8] w, int64[1] axes> {
        y, z = Scan <num_scan_inputs = 1, body = body (float[4,8] p, float[4,8] e)
            => (float[4,8] q, float[4] r) {
            m = MatMul (e, w)
            q = Add (m, p)
            a = Cast <to = 8> (q)
            f = Cast <to = 1> (a)
            u = MatMul (f, w)
            r = ReduceSum <keepdims = 0> (u, axes)
        }> (s, x)
    }"""

MAP = """
    g (float[4,8] x) => (seq(float[4,8]) y) <float[8,8] w> {
        n = Neg (x)
        s = SequenceConstruct (x, n)
        y = SequenceMap (s) <body = body (float[4,8] e) => (float[4,8] r) {
            m = MatMul (e, w) r = Tanh (m) }>
    }"""


def normal(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / 3).astype(np.float32)


W, B, X = normal(8, 8), normal(8), normal(4, 8)


def nested_operators(made: ir.Model) -> list[list[str]]:
    """The operators of the clusters that stand in nested graphs."""
    bodies = [
        node.attributes["body"].as_graph()
        for node in made.graph.all_nodes()
        if G.is_cluster(node) and node.graph is not made.graph
    ]
    return [[node.op_type for node in body] for body in bodies]


def compiled(made: ir.Model, **options: Any) -> Any:
    return xrt.compile(made, engine="xla", options=CompileOptions(cache=False, **options))


def test_a_loop_over_a_sequence_runs_its_layers_as_a_cluster() -> None:
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    program = compiled(made)
    got = program(X)
    assert_close(list(got), run_reference(made, [X]))
    assert nested_operators(program.specialization.partition.model) == [
        ["MatMul", "Add", "Add", "Tanh"]
    ]
    assert [len(cluster.nodes) for cluster in program.clusters] == [2, 4]
    (loop,) = (p for p in program.explain().placements if p["op"] == "Loop")
    assert loop["engine"] == "host"
    assert "SequenceInsert" in loop["reason"]
    assert loop["reason"].endswith("; 1 cluster inside it")
    assert_close(list(program(2 * X)), run_reference(made, [2 * X]))


def test_a_loop_whose_count_depends_on_the_data() -> None:
    made = model(WHILE, most=20, yes=True, w=W, limit=5)
    program = compiled(made)
    got, y = list(program(X)), X
    steps: list[Any] = []
    while not steps or np.abs(y).max() < 5:
        y = y @ W + y
        steps.append(-y)
    assert 1 < len(steps) < 20
    assert_close(got, [y, np.stack(steps), y @ W])
    assert len(nested_operators(program.specialization.partition.model)) == 1
    # What the body hands out is copied: it belongs to the caller.
    assert all(array.flags.writeable for array in got)


@pytest.mark.parametrize("condition", [True, False])
def test_branches_of_different_shapes(condition: bool) -> None:
    made = model(BRANCH, w=W, flat=[-1])
    program = compiled(made)
    inputs = X, np.array(condition)
    assert_close([program(*inputs)], run_reference(made, inputs))
    found = nested_operators(program.specialization.partition.model)
    assert found == [["MatMul", "Neg", "Reshape"], ["MatMul"]]


def test_a_scan_with_two_clusters_around_host_nodes() -> None:
    program = compiled(model(SCAN, w=W, axes=[1]))
    x, s = normal(3, 4, 8), X
    states = s + np.cumsum(x @ W, 0)
    assert_close(list(program(x, s)), [states[-1], (states @ W).sum(-1)])
    found = nested_operators(program.specialization.partition.model)
    assert found == [["MatMul", "Add"], ["MatMul", "ReduceSum"]]


def test_a_sequence_map() -> None:
    made = model(MAP, w=W)
    program = compiled(made)
    assert_close(list(program(X)), [np.tanh(X @ W), np.tanh(-X @ W)])
    assert nested_operators(program.specialization.partition.model) == [["MatMul", "Tanh"]]


def test_verify_compares_nested_clusters() -> None:
    program = compiled(model(LOOP, trips=3, yes=True, w=W, b=B))
    result = xrt.verify(program, (X,))
    assert result, str(result)
    assert sorted(result.errors) == sorted(cluster.name for cluster in program.clusters)


def test_verify_names_what_diverges_in_a_body() -> None:
    program = compiled(model(LOOP, trips=3, yes=True, w=W, b=B))
    (cluster,) = (c for c in program.clusters if len(c.nodes) == 4)
    # The body's Tanh becomes a Sin after the engine has built it.
    cluster.nodes[-1].op_type = "Sin"
    result = xrt.verify(program, (X,))
    assert result.divergence is not None
    assert result.divergence.cluster == cluster.name


class Failing(XlaEngine):
    """XLA, unable to build what holds a Tanh and an Add."""

    def compile(self, cluster: G.Cluster, options: CompileOptions) -> Any:
        if {"Tanh", "Add"} <= {node.op_type for node in cluster.nodes}:
            raise EngineBuildError("xla", "it is too hot")
        return super().compile(cluster, options)


def test_what_fails_to_build_in_a_body_goes_to_the_host() -> None:
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    InferShapesPass()(made)
    with pytest.warns(EngineFallbackWarning, match="it is too hot"):
        parts, executables = build_clusters(made, [Failing()], CompileOptions(cache=False))
    assert [[node.op_type for node in c.nodes] for c in parts.clusters] == [["MatMul", "Tanh"]]
    schedule = build_schedule(parts.model, executables)
    assert_close(schedule.run([X]), run_reference(made, [X]))


def test_outer_weights_move_into_the_clusters() -> None:
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    result = partition(made, [ByOp(but=["Loop", "SequenceInsert", "SequenceEmpty"])])
    assert sorted(result.model.graph.initializers) == ["trips", "yes"]
    inner = result.clusters[-1]
    assert sorted(inner.body.initializers) == ["b", "w"]
    assert sorted(inner.inputs) == ["h2", "s"]
    assert list(result.model.graph.opset_imports) == ["", G.DOMAIN]


def test_inlining_restores_nested_graphs() -> None:
    engine = ByOp(but=["Loop", "SequenceInsert", "SequenceEmpty"])
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    before = G.digest(made.graph)
    changed = partition(made.clone(), [engine]).model
    assert G.digest(changed.graph) != before
    inline_clusters(changed)
    assert G.digest(changed.graph) == before


def test_bounds_count_nested_clusters() -> None:
    engine = ByOp(but=["Loop", "SequenceInsert", "SequenceEmpty"])
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    for most in range(3):
        options = CompileOptions(max_clusters=most)
        assert len(partition(made.clone(), [engine], options).clusters) == most
    for fuel, nodes in ((0, 0), (2, 2), (4, 4), (9, 6)):
        options = CompileOptions(fuel=fuel, min_cluster_weight=0)
        clusters = partition(made.clone(), [engine], options).clusters
        assert sum(len(cluster.nodes) for cluster in clusters) == nodes


def test_a_body_too_light_for_a_cluster_stays_whole() -> None:
    made = model(LOOP, trips=3, yes=True, w=W, b=B)
    program = compiled(made, min_cluster_weight=100)
    assert program.clusters == []
    assert_close(list(program(X)), run_reference(made, [X]))
