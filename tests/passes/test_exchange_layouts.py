"""Values that cross between clusters which compute channels-last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.partition_models import ByOp
from tests.support import assert_close, model, run_reference, skeleton
from xrt.options import CompileOptions
from xrt.passes import InferShapesPass
from xrt.passes.partition import Partition, partition

FREE = CompileOptions(min_cluster_weight=0)


@dataclass
class Last(ByOp):
    """An engine that computes channels-last."""

    channels_last: bool = True


def cut(text: str, *engines: ByOp, **options: int) -> tuple[ir.Model, Partition]:
    """A model as it was, and partitioned."""
    made = model(text)
    InferShapesPass()(made)
    chosen = CompileOptions(min_cluster_weight=0, **options)
    return made, partition(made.clone(), list(engines) or [Last(but=["Ceil"])], chosen)


def crossing(parts: Partition) -> list[tuple[str, tuple[int | str, ...] | None]]:
    return [(each.name, each.shape) for each in parts.cuts]


# c is used by the host, r and m cross from one cluster to the other.
TEXT = """
g (float[1,2,4,6] x, float[3,2,1,1] w) => (float[1,3,4,6] y, float[1,3,4,6] z) {
  c = Conv (x, w)
  r = Relu (c)
  m = MaxPool <kernel_shape = [1, 1]> (r)
  h = Ceil (c)
  a = Add (h, r)
  y = Add (a, r)
  s = Sub (h, m)
  z = Add (s, y)
}
"""


def test_values_between_clusters_cross_channels_last() -> None:
    made, parts = cut(TEXT)
    assert [cluster.engine for cluster in parts.clusters] == ["xla", "xla"]
    assert crossing(parts) == [
        ("c", (1, 3, 4, 6)),
        ("r/channels_last", (1, 4, 6, 3)),
        ("m/channels_last", (1, 4, 6, 3)),
        ("h", (1, 3, 4, 6)),
    ]
    first, second = parts.clusters
    assert [node.op_type for node in first.nodes] == [
        *("Conv", "Relu", "Transpose", "MaxPool", "Transpose"),
    ]
    assert [node.op_type for node in second.nodes].count("Transpose") == 2
    placed = [(each.op, each.cluster) for each in parts.placements]
    assert placed.count(("Transpose", first.name)) == placed.count(("Transpose", second.name)) == 2
    assert sum(len(cluster.nodes) for cluster in parts.clusters) + 1 == len(placed)
    assert [value.name for value in parts.model.graph.outputs] == ["y", "z"]
    assert [node.op_type for node in made.graph].count("Transpose") == 0


@pytest.mark.parametrize(
    ("engines", "why"),
    [
        ([ByOp(but=["Ceil"])], "the engine computes as ONNX says"),
        ([Last("a", only=["Conv", "Relu", "MaxPool"]), Last("b", but=["Ceil"])], "engines differ"),
        ([Last()], "there is one cluster"),
        ([Last(only=[])], "there is no cluster"),
    ],
    ids=lambda case: case if isinstance(case, str) else "",
)
def test_nothing_changes_where(engines: list[ByOp], why: str) -> None:
    _, parts = cut(TEXT, *engines)
    assert not any("channels" in name for name, _ in crossing(parts)), why
    assert not any(each.op == "Transpose" for each in parts.placements)


def test_what_the_host_or_the_caller_sees_stays_as_it_is() -> None:
    _, parts = cut("""
        g (float[1,2,4,6] x, float[3,2,1,1] w) => (float[1,3,4,6] c, float[1,3,4,6] y) {
          c = Conv (x, w)
          r = Relu (c)
          h = Ceil (r)
          y = Add (h, c)
        }
    """)
    assert [name for name, _ in crossing(parts)] == ["c", "r", "h"]


def test_values_that_no_convolution_laid_out_stay_as_they_are() -> None:
    text = """
        g (float[1,2,4,6] x, float[6,6] w) => (float[1,2,4,6] y) {
          m = MatMul (x, w)
          r = Relu (m)
          h = Ceil (m)
          y = Add (h, r)
        }
    """
    _, parts = cut(text)
    assert [name for name, _ in crossing(parts)] == ["m", "r", "h"]


def test_a_cut_cluster_is_cut_there_and_each_user_gets_one_transpose() -> None:
    _, parts = cut(TEXT.replace("Ceil", "Floor"), max_cluster_nodes=2)
    assert len(parts.clusters) == 4
    crosses = [name for name, _ in crossing(parts)]
    assert crosses == [*(f"{name}/channels_last" for name in "crmh"), "y"]  # y is an output, too
    for cluster in parts.clusters:
        assert len(cluster.inputs) == len(set(cluster.inputs))


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_a_program_of_many_clusters_gives_the_same_numbers(most: int, rank: int) -> None:
    size, ones = ",".join(["5", "4", "3"][: rank - 2]), ",".join(["1"] * (rank - 2))
    text = f"""
        g (float[2,3,{size}] x) => (float[2,4,{size}] y)
        <float[4,3,{ones}] v, float[4,4,{ones}] w> {{
          a = Conv (x, v)
          b = Relu (a)
          c = Conv (b, w)
          d = Add (c, b)
          e = Sigmoid (d)
          f = Conv (e, w)
          y = Mul (f, d)
        }}
    """
    rng = np.random.default_rng(0)
    shape = [int(each) for each in size.split(",")]
    made = model(
        text,
        v=rng.normal(size=(4, 3, *[1] * (rank - 2))),
        w=rng.normal(size=(4, 4, *[1] * (rank - 2))),
    )
    options = CompileOptions(max_cluster_nodes=most, cache=False)
    program = xrt.compile(made.clone(), engine="xla", options=options)
    assert len(program.clusters) > 2
    assert any("channels_last" in each["name"] for each in program.explain().to_dict()["cuts"])
    x = rng.normal(size=(2, 3, *shape)).astype(np.float32)
    assert_close(program(x), run_reference(made, [x])[0])
    assert xrt.verify(program, (x,))


def test_the_same_model_gives_the_same_clusters() -> None:
    one, other = cut(TEXT)[1], cut(TEXT)[1]
    assert [cluster.name for cluster in one.clusters] == [
        cluster.name for cluster in other.clusters
    ]
    assert skeleton(one.model.graph) == skeleton(other.model.graph)
