"""Dimensions that stay open: which nodes are taken, and what the parser gets for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.engines.tensorrt.trt_support import OPTIONS, RNG, RTX, annotated, numbers, run_exported
from tests.support import assert_close, model
from xrt.engines.tensorrt import support as S
from xrt.engines.tensorrt.build import build
from xrt.engines.tensorrt.export import export
from xrt.passes.annotate_profiles import KEY


def answer(text: str, *corners: dict[str, tuple[int, ...]]) -> Any:
    """What is said of the last node of a model."""
    return S.supports(RTX, annotated(text, *corners).nodes[-1])


def test_open_dimensions_need_a_profile():
    text = "g (float[n,3] x) => (float[n,3] y) { y = Exp (x) }"
    assert "ranges" in answer(text).reason
    assert answer(text, {"x": (1, 3)}, {"x": (2, 3)}, {"x": (4, 3)})


def test_shapes_that_depend_on_values_stay_outside():
    text = """g (float[n] x) => (float y) <float one = {1.0}>
        { i = NonZero (x)  t = Cast <to = 1> (i)  y = Mul (t, one) }"""
    assert not answer(text, {"x": (1,)}, {"x": (2,)}, {"x": (4,)})


def test_what_may_be_empty_is_refused():
    found = answer(
        "g (float[n,3] x) => (float[n,3] y) { y = Exp (x) }",
        *({"x": (rows, 3)} for rows in (0, 2, 4)),
    )
    assert "has no elements" in found.reason


def test_what_shrinks_as_its_input_grows_has_ordered_bounds():
    made = model("g (float[n] x, float[8] w) => (float[m] y) { y = Exp (x) }")
    made.graph.inputs[0].metadata_props[KEY] = "[[7, 1], [5, 3], [2, 6]]"
    assert S.bounds(made.graph.inputs[0]) == ((2, 1), (5, 3), (7, 6))


# --- rewriting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        (
            "g (float[3,n] x) => (float[3] y) <int64 i = {-1}> { y = Gather <axis=1> (x, i) }",
            [(3, 1), (3, 4), (3, 9)],
        ),
        (
            "g (float[n,m] x) => (float[2] y) <int64[2,2] i = {-1,0,0,-1}> { y = GatherND (x, i) }",
            [(1, 2), (4, 2), (9, 5)],
        ),
        (
            "g (float[n,2,7,7] x) => (float[n,2,4,4] y) "
            "{ y = MaxPool <kernel_shape=[2,2], strides=[2,2], ceil_mode=1> (x) }",
            [(1, 2, 7, 7), (2, 2, 7, 7), (3, 2, 7, 7)],
        ),
        (
            "g (float[n,2,4,6] x) => (float[n,8,2,3] y) "
            '{ y = SpaceToDepth <blocksize=2, mode="CRD"> (x) }',
            [(1, 2, 4, 6), (2, 2, 4, 6), (3, 2, 4, 6)],
        ),
    ],
)
def test_rewritten_operators_take_open_sizes(text, shapes):
    cluster = annotated(text, *({"x": shape} for shape in shapes))
    for node in cluster.nodes:
        assert S.supports(RTX, node), S.supports(RTX, node).reason
    host = xrt.compile(ir.to_proto(model(text)), engine="host")
    for shape in shapes:
        x = numbers(*shape)
        (got,) = run_exported(export(cluster.body), [x])
        assert_close(np.asarray(got), np.asarray(host(x)))
    assert build(RTX, cluster, OPTIONS, "sm_89").profiles == ({"x": tuple(shapes)},)


@pytest.mark.parametrize(
    "mask", ["", ", float[1,1,s,s] m", ", bool[n,1,s,s] m", ", bool[n,1,s,t] m"]
)
def test_attention_takes_open_sizes(mask):
    text = (
        f"g (float[n,2,s,4] q, float[n,2,s,4] k, float[n,2,s,4] v{mask}) => (float[n,2,s,4] y) "
        f"{{ y = Attention (q, k, v{', m' if mask else ''}) }}"
    )
    corners = [(1, 2), (2, 5), (3, 9)]

    def shapes(n: int, s: int) -> dict[str, tuple[int, ...]]:
        each = dict.fromkeys("qkv", (n, 2, s, 4))
        return {**each, "m": (1 if "[1,1" in mask else n, 1, s, s)} if mask else each

    cluster = annotated(text, *(shapes(*corner) for corner in corners))
    found = S.supports(RTX, cluster.nodes[0])
    assert found, found.reason
    host = xrt.compile(ir.to_proto(model(text)), engine="host")
    for corner in corners:
        arrays = [
            RNG.random(shape) < 0.6 if name == "m" and "bool" in mask else numbers(*shape)
            for name, shape in shapes(*corner).items()
        ]
        (got,) = run_exported(export(cluster.body), arrays)
        assert_close(np.asarray(got), np.asarray(host(*arrays)))
    assert len(build(RTX, cluster, OPTIONS, "sm_89").profiles) == 1
