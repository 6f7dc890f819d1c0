"""Random operators: distributions, seeds, fresh numbers, and dropout in training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import xrt
from tests.engines.xla.ops_support import Array, node_model, run_channels_last, run_node, support
from tests.support import model
from xrt import graph as G
from xrt.engines.xla import XlaEngine
from xrt.engines.xla import keys as K
from xrt.engines.xla import lowering as L
from xrt.graph import Cluster
from xrt.options import CompileOptions

F32 = np.float32
COUNT = 20_000


def executable(proto: onnx.ModelProto) -> Any:
    body = ir.from_proto(proto).graph
    cluster = Cluster("xla_random", "xla", body, G.digest(body))
    return XlaEngine().compile(cluster, CompileOptions(cache=False))


def from_text(text: str) -> Any:
    return executable(ir.to_proto(model(text)))


def outputs(built: Any, *inputs: Any) -> list[Array]:
    return [np.array(array) for array in built.run([np.asarray(x) for x in inputs])]


def distance(sample: Array, distribution: Any) -> float:
    """Kolmogorov's distance of a sample from a distribution function, times sqrt(n).

    Above 2.5 with a probability of 2 exp(-2 * 2.5^2) = 7e-6.
    """
    ordered = np.sort(sample.astype(np.float64).reshape(-1))
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    expected = distribution(ordered)
    gap = max(np.abs(expected - ranks[1:]).max(), np.abs(expected - ranks[:-1]).max())
    return float(gap * math.sqrt(len(ordered)))


def normal_distribution(mean: float, scale: float) -> Any:
    return np.vectorize(lambda x: 0.5 * (1 + math.erf((x - mean) / scale / math.sqrt(2))))


def test_unseeded_numbers_have_their_distributions_and_differ_by_call_and_node() -> None:
    built = from_text(f"""
        g () => (float[{COUNT}] u, float[{COUNT}] v, float[{COUNT}] n, double[{COUNT}] d) {{
            u = RandomUniform <shape = [{COUNT}], low = -2.0, high = 3.0> ()
            v = RandomUniform <shape = [{COUNT}], low = -2.0, high = 3.0> ()
            n = RandomNormal <shape = [{COUNT}], mean = 1.5, scale = 2.0> ()
            d = RandomNormal <shape = [{COUNT}], dtype = 11> ()
        }}
    """)
    first, second = outputs(built), outputs(built)
    for u, v, n, d in (first, second):
        for one in (u, v):
            assert -2 <= one.min() < -1.99
            assert 2.99 < one.max() < 3
            assert distance(one, lambda x: (x + 2) / 5) < 2.5
        assert distance(n, normal_distribution(1.5, 2)) < 2.5
        assert distance(d, normal_distribution(0, 1)) < 2.5
        assert (u.dtype, n.dtype, d.dtype) == (F32, F32, np.float64)
        assert abs(np.corrcoef(u, v)[0, 1]) < 5 / math.sqrt(COUNT)
        assert abs(np.corrcoef(n, d)[0, 1]) < 5 / math.sqrt(COUNT)
    for one, other in zip(first, second, strict=True):
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(COUNT)


def test_like_operators_take_shape_and_dtype_of_their_input() -> None:
    x = np.zeros((3, 4, 5), np.float16)
    (u,) = run_node("RandomUniformLike", [x], low=1.0, high=2.0)
    assert (u.shape, u.dtype) == (x.shape, np.float16)
    assert (u >= 1).all()
    assert (u < 2).all()
    assert len(np.unique(u)) > 40
    (n,) = run_node("RandomNormalLike", [x.astype(np.int32)], dtype=11)
    assert (n.shape, n.dtype) == (x.shape, np.float64)


def test_narrow_uniform_numbers_stay_below_their_bound() -> None:
    (u,) = run_node("RandomUniform", [], shape=[COUNT], dtype=16)  # rounding would reach 1
    assert u.dtype.name == "bfloat16"
    assert 0.99 < u.astype(F32).max() < 1


@pytest.mark.parametrize("op", ["RandomUniform", "RandomNormal"])
def test_a_seed_gives_the_numbers_of_the_reference_at_every_call(op: str) -> None:
    built = executable(node_model(op, [], shape=[50], seed=7.0))
    (one,), (two,) = outputs(built), outputs(built)
    np.testing.assert_array_equal(one, two)
    state = np.random.RandomState(7)
    want = state.random_sample(50) if op == "RandomUniform" else state.standard_normal(50)
    np.testing.assert_array_equal(one, want.astype(F32))
    (other,) = run_node(op, [], shape=[50], seed=8.0)
    assert (other != one).any()


def test_bernoulli_draws_ones_with_their_probability() -> None:
    p = np.tile(np.array([0, 0.25, 0.5, 1], F32), (COUNT, 1))
    built = executable(node_model("Bernoulli", [p], dtype=7))
    (one,), (two,) = outputs(built, p), outputs(built, p)
    assert one.dtype == np.int64
    assert set(np.unique(one)) == {0, 1}
    deviation = np.sqrt(p[0] * (1 - p[0]) / COUNT)
    assert (np.abs(one.mean(axis=0) - p[0]) <= 5 * deviation).all()
    assert (one != two).any()


def test_seeded_bernoulli_agrees_with_the_host() -> None:
    from xrt.kernels.host.random import bernoulli

    p = np.linspace(0, 1, 300, dtype=F32).reshape(10, 30)
    (got,) = run_node("Bernoulli", [p], seed=3.0)
    np.testing.assert_array_equal(got, bernoulli(p, seed=3.0))


def test_multinomial_draws_classes_with_their_probabilities() -> None:
    p = np.array([[0.1, 0.2, 0.0, 0.7, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    with np.errstate(divide="ignore"):
        logits = (np.log(p) + np.array([[100.0], [-50.0]])).astype(F32)
    built = executable(node_model("Multinomial", [logits], sample_size=COUNT, dtype=7))
    (one,), (two,) = outputs(built, logits), outputs(built, logits)
    assert (one.dtype, one.shape) == (np.int64, (2, COUNT))
    shares = np.stack([np.bincount(row, minlength=5) for row in one]) / COUNT
    assert (np.abs(shares - p) <= 5 * np.sqrt(p * (1 - p) / COUNT)).all()
    assert (one[0] != two[0]).any()
    (seeded,) = run_node("Multinomial", [logits], sample_size=9, seed=1.0)
    assert seeded.dtype == np.int32
    from xrt.kernels.host.random import multinomial

    np.testing.assert_array_equal(seeded, multinomial(logits, sample_size=9, seed=1.0))


@pytest.mark.parametrize("known", [(1, 2), ()])
def test_dropout_in_training_scales_what_it_keeps(known: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).uniform(1, 2, (4, 5, 1000)).astype(F32)
    inputs = [x, np.array(0.25, F32), np.array(True)]
    built = executable(node_model("Dropout", inputs, outputs=2, constants=known))
    moving = [array for i, array in enumerate(inputs) if i not in known]
    (y, mask), (again, _) = outputs(built, *moving), outputs(built, *moving)
    assert mask.dtype == np.bool_
    assert abs(mask.mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / x.size)
    np.testing.assert_allclose(y, np.where(mask, x / F32(0.75), 0), rtol=1e-6)
    assert (y != again).any()


def test_dropout_mode_and_ratio_may_come_at_run_time() -> None:
    x = np.random.default_rng(1).uniform(1, 2, (40, 50)).astype(F32)
    inputs = [x, np.array(0.5, F32), np.array(True)]
    built = executable(node_model("Dropout", inputs, outputs=2))
    y, mask = outputs(built, x, np.array(0.5, F32), np.array(False))
    np.testing.assert_array_equal(y, x)
    assert mask.all()
    y, mask = outputs(built, x, np.array(0.0, F32), np.array(True))
    np.testing.assert_array_equal(y, x)
    assert mask.all()
    y, mask = outputs(built, x, np.array(0.9, F32), np.array(True))
    assert 0.05 < mask.mean() < 0.15
    y, mask = outputs(built, x, np.array(1.0, F32), np.array(True))
    assert not y.any()
    assert not mask.any()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_seeded_dropout_drops_what_the_reference_does_in_any_layout(dtype: str) -> None:
    x = np.random.default_rng(2).uniform(1, 2, (2, 3, 5, 4)).astype(dtype)
    inputs = [x, np.array(0.5, F32), np.array(True)]
    want = np.random.RandomState(9).uniform(0, 1, x.shape) >= 0.5
    for run in (run_node, run_channels_last):
        y, mask = run("Dropout", inputs, outputs=2, constants=(1, 2), seed=9)
        np.testing.assert_array_equal(mask, want)
        np.testing.assert_array_equal(y, np.where(want, x * np.asarray(2, dtype), 0))


def test_dropout_at_inference_keeps_everything() -> None:
    x = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(F32)
    for mode in (np.array(False), None):
        y, mask = run_node("Dropout", [x, np.array(0.3, F32), mode], outputs=2, constants=(2,))
        np.testing.assert_array_equal(y, x)
        assert mask.all()


def test_many_seeded_numbers_are_left_to_the_host() -> None:
    inputs = [np.zeros((1025, 1024), F32)]
    assert "fixed seed" in support("RandomNormalLike", inputs, seed=1.0).reason
    assert support("RandomNormalLike", inputs)


def test_each_turn_of_a_loop_and_each_call_draws_anew() -> None:
    program = xrt.compile(
        model("""
            g (float[8] x) => (float[3,8] ys) <int64 n = {3}, bool go = {1}> {
                ys = Loop (n, go) <body = b (int64 i, bool c) => (bool o, float[8] y) {
                    o = Identity (c)
                    r = RandomNormalLike (x)
                    y = Add (x, r)
                }>
            }
        """),
        engine="xla",
        options=xrt.CompileOptions(min_cluster_weight=0, cache=False),
    )
    x = np.zeros(8, F32)
    one, two = np.asarray(program(x)), np.asarray(program(x))
    assert [cluster.engine for cluster in program.clusters] == ["xla"]
    assert len({row.tobytes() for row in (*one, *two)}) == 6


def test_a_cluster_that_draws_nothing_takes_no_key() -> None:
    x = np.ones((3,), F32)
    built = executable(node_model("Neg", [x]))
    assert built._keys is None
    assert not any(map(L.draws, ir.from_proto(node_model("Neg", [x])).graph))
    np.testing.assert_array_equal(outputs(built, x)[0], -x)


def test_a_key_source_never_repeats_itself_and_no_two_agree() -> None:
    sources = [K.KeySource() for _ in range(3)]
    given = {source().tobytes() for source in sources for _ in range(1000)}
    assert len(given) == 3000


def test_serialized_code_draws_fresh_numbers(tmp_path: Any) -> None:
    text = "g (float[64] x) => (float[64] y) { n = RandomNormalLike (x) y = Add (x, n) }"
    options = xrt.CompileOptions(cache_dir=tmp_path, min_cluster_weight=0)
    x = np.zeros(64, F32)
    program = xrt.compile(model(text), (x,), engine="xla", options=options)
    (cluster,) = program.clusters
    (built,) = program.prepare(x).executables.values()
    data = built.serialize()
    loaded = XlaEngine().deserialize(data, cluster, options)
    one, two = outputs(loaded, x), outputs(loaded, x)
    assert (one[0] != two[0]).all()
    assert 0.5 < one[0].std() < 1.5
    # The disk cache gives the same code to another program.
    other = xrt.compile(model(text), (x,), engine="xla", options=options)
    assert (other(x) != program(x)).all()


def test_the_gradient_of_dropout_is_zero_where_it_dropped() -> None:
    text = f"""
        <ir_version: 13, opset_import: ["": {G.OPSET}, "ai.onnx.preview.training": 1]>
        g (float[400] x) => (float[400] dx) <float r = {{0.75}}, bool t = {{1}}> {{
            d = Dropout (x, r, t)
            y = ReduceSum <keepdims = 0> (d)
            dx = ai.onnx.preview.training.Gradient <xs = ["x"], y = "y"> (x)
        }}
    """
    options = xrt.CompileOptions(min_cluster_weight=0, cache=False)
    x = np.ones(400, F32)
    for engine in ("xla", "host"):
        program = xrt.compile(model(text), (x,), engine=engine, options=options)
        one, two = np.asarray(program(x)), np.asarray(program(x))
        assert set(np.unique(one)) == {0, 4}
        assert abs((one > 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 400)
        assert (one != two).any()


@pytest.mark.parametrize(
    "op",
    [
        "Bernoulli (p)",
        "Multinomial <sample_size = 64> (p)",
        "RandomNormal <shape = [64]> ()",
        "RandomUniformLike (p)",
        "Dropout (p, r, t)",
    ],
)
def test_equal_nodes_on_constants_are_neither_folded_nor_merged(op: str) -> None:
    text = f"""
        g () => (a, b) <float[8,8] p, float r = {{0.5}}, bool t = {{1}}> {{
            a = {op}
            b = {op}
        }}
    """
    options = xrt.CompileOptions(min_cluster_weight=0, cache=False)
    program = xrt.compile(model(text, p=np.full((8, 8), 0.5)), (), engine="xla", options=options)
    drawn = [np.asarray(array) for _ in range(2) for array in program()]
    assert len({array.tobytes() for array in drawn}) == 4
    assert [cluster.engine for cluster in program.clusters] == ["xla"]
