"""Traces of nested graphs: what they capture, their constants, their random numbers."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import xrt
from tests.engines.xla.graph_support import check, inferred, normal, run
from tests.support import assert_close, model, run_reference
from xrt import graph as G
from xrt.engines.xla import XlaEngine, tune
from xrt.engines.xla import lowering as L
from xrt.engines.xla import trace as T
from xrt.errors import EngineBuildError
from xrt.options import CompileOptions

TRUE, FALSE = np.array(True), np.array(False)


def test_loops_and_branches_nest_and_capture() -> None:
    text = """
        g (float[4,2] x, bool c, float[2] d) => (float[2] y, float[4,2] z) <int64 trips, bool yes> {
            e = Neg (d)
            y, z = Scan <num_scan_inputs = 1, body = s (float[2] p, float[2] row)
                => (float[2] q, float[2] r) {
                f = Mul (row, e)
                q = Loop (trips, yes, p) <
                    body = b (int64 i, bool k, float[2] v) => (bool k, float[2] w) {
                        w = If (c) <
                            then_branch = t () => (float[2] g) { g = Add (v, f) },
                            else_branch = o () => (float[2] h) { h = Mul (v, d) }
                        >
                    }>
                r = Identity (q)
            }> (d, x)
        }"""

    def want(x: Any, c: Any, d: Any) -> Any:
        state, rows = d, []
        for row in x:
            for _ in range(3):
                state = state - row * d if c else state * d
            rows.append(state)
        return state, np.stack(rows)

    x, d = normal(4, 2), normal(2)
    check(text, (x, TRUE, d), (x, FALSE, d), want=want, trips=3, yes=True)


LAYERS = """
    g (float[2,16,6,6] x) => (float[2,16,6,6] y)
    <int64 trips, bool yes, float[16,16,3,3] w, float[16] bias> {
        a = Conv <pads = [1,1,1,1]> (x, w)
        y = Loop (trips, yes, a) <
            body = b (int64 i, bool c, float[2,16,6,6] s) => (bool c, float[2,16,6,6] t) {
                m = Conv <pads = [1,1,1,1]> (s, w, bias)
                n = Relu (m)
                t = Add (n, a)
            }>
    }"""


def test_convolutions_in_a_body_use_outer_weights() -> None:
    w, bias = normal(16, 16, 3, 3) / 12, normal(16)
    made = inferred(LAYERS, trips=3, yes=True, w=w, bias=bias)
    x = normal(2, 16, 6, 6)
    expected = run_reference(made, [x])
    assert_close(run(made, [x]), expected)
    assert sum(tune.algorithms(made.graph).values()) == 2


def test_weights_in_a_body_are_parameters_and_shared() -> None:
    made = inferred(LAYERS, trips=3, yes=True, w=normal(16, 16, 3, 3), bias=normal(16))
    parameters = T.plan(made.graph).parameters
    assert [tuple(p.tensor.shape) for p in parameters] == [(16, 16, 3, 3)]


def test_a_choice_of_tuning_reaches_a_body() -> None:
    made = inferred(LAYERS, trips=3, yes=True, w=normal(16, 16, 3, 3), bias=normal(16))
    loop = made.graph[1]
    (inner,) = (node for node in G.nested_nodes(loop) if node.op_type == "Conv")
    spec = tune._spec(inner)
    assert spec is not None
    tune.annotate(made.graph, {tune.key(spec): "im2col"})
    assert tune.choices(made.graph) == {tune.key(spec): "im2col"}
    assert tune.algorithms(made.graph)["im2col"] == 2


def test_a_program_with_control_flow_is_one_cluster() -> None:
    text = """
        g (float[8,4] x) => (float[4] y, float[8,4] z) {
            a = MatMul (x, w)
            first = Constant <value_ints = [0]> ()
            zero = ReduceSum <keepdims = 0> (a, first)
            y, z = Scan <num_scan_inputs = 1, body = s (float[4] p, float[4] e)
                => (float[4] q, float[4] r) {
                l = Constant <value_float = 0.5> ()
                u = Mul (p, l) q = Add (u, e)
                size = Size (q) half = Cast <to = 1> (size) r = Div (q, half) }> (zero, a)
        }"""
    made = model(text.replace("z) {", "z) <float[4,4] w> {", 1), w=normal(4, 4))
    options = CompileOptions(cache=False, min_cluster_weight=0)
    program = xrt.compile(made, engine="xla", options=options)
    x = normal(8, 4)
    assert_close(list(program(x)), run_reference(made, [x]))
    assert [placed["engine"] for placed in program.explain().placements] == ["xla"] * 3
    assert len(program.clusters) == 1


@pytest.mark.parametrize(
    "text",
    [
        """g (float[4,8] x) => (float[8] y, float[4,8] z) <int64 trips, bool yes, float[8] zero> {
            y, z = Loop (trips, yes, zero) <body = b (int64 i, bool c, float[8] s)
                => (bool c, float[8] t, float[8] u) {
                u = RandomUniformLike (s) t = Add (s, u) }>
        }""",
        """g (float[4,8] x) => (float[8] y, float[4,8] z) <int64 trips, bool yes, float[8] zero> {
            y, z = Scan <num_scan_inputs = 1, body = b (float[8] s, float[8] e)
                => (float[8] t, float[8] u) {
                u = If (yes) <then_branch = p () => (float[8] q) { q = RandomUniformLike (s) },
                              else_branch = n () => (float[8] m) { m = Neg (s) }>
                t = Add (s, u) }> (zero, x)
        }""",
    ],
)
def test_each_iteration_and_each_call_draws_anew(text: str) -> None:
    made = inferred(text, trips=4, yes=True, zero=np.zeros(8))
    cluster = G.Cluster("xla_test", "xla", made.graph, G.digest(made.graph))
    executable = XlaEngine().compile(cluster, CompileOptions(cache=False))
    draws = []
    for _ in range(2):
        total, each = map(np.asarray, executable.run([normal(4, 8)]))
        np.testing.assert_allclose(total, each.sum(0), rtol=1e-5)
        draws.append(each)
    numbers = np.concatenate(draws).ravel()
    assert len(np.unique(numbers)) > 0.9 * numbers.size
    assert 0 <= numbers.min() < 0.2 < 0.8 < numbers.max() < 1


def test_a_failure_in_a_body_names_the_node_and_the_outer_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(ctx: L.Context, x: Any) -> Any:
        return jnp.reshape(x, (7,))

    monkeypatch.setitem(L._LOWERINGS, ("test", "Odd"), L.Lowering(failing))
    text = """<ir_version: 13, opset_import: ["" : 28, "test" : 1]>
        g (float[2] x) => (float[2] y) <int64 trips, bool yes> {
            [outer] y = Loop (trips, yes, x) <
                body = b (int64 i, bool c, float[2] s) => (bool c, float[2] t) {
                    [inner] t = test.Odd (s) }>
        }"""
    made = inferred(text, trips=np.array(3), yes=np.array(True))
    with pytest.raises(EngineBuildError, match="at Odd 'inner' inside it: TypeError") as raised:
        run(made, [normal(2)])
    assert (raised.value.op, raised.value.place) == ("Loop", "outer")
