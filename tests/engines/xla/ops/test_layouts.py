"""A cluster stays channels-last: transposes appear at its edges only."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import onnx.reference
import onnx_ir as ir
import pytest

from tests.engines.xla.ops_support import run_model
from tests.support import assert_close, model
from xrt.engines.xla import device as D
from xrt.engines.xla import trace as T

RNG = np.random.default_rng(0)


def _w(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(np.float32)


def _transposes(body: ir.Graph, *inputs: np.ndarray[Any, Any]) -> int:
    with D.isolated():
        chosen = T.plan(body)
        arguments = [*inputs, *(p.array() for p in chosen.parameters)]
        text = jax.jit(T.function(body, chosen)).lower(*arguments).as_text()
    return text.count("stablehlo.transpose")


# ResNet's stem and head, patch embedding as in ViT, permute / permute as in ConvNeXt.
STEM = """
    g (float[1,3,16,16] x) => (float[1,8] y)
    <float[8,3,3,3] w, float[8,8,3,3] v, float[8] b, int64[2] s = {1, 8}> {
        a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
        r = Relu (a)
        p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (r)
        c = Conv <pads = [1, 1, 1, 1]> (p, v)
        d = Add (c, p)
        e = Concat <axis = 1> (d, p)
        f, h = Split <axis = 1, num_outputs = 2> (e)
        m = Mul (f, h)
        q = GlobalAveragePool (m)
        y = Reshape (q, s)
    }
"""
PATCHES = """
    g (float[1,3,16,16] x) => (float[1,4,8] y) <float[8,3,8,8] w, int64[3] s = {1, 8, -1}> {
        a = Conv <strides = [8, 8]> (x, w)
        r = Reshape (a, s)
        y = Transpose <perm = [0, 2, 1]> (r)
    }
"""
PERMUTES = """
    g (float[1,16,16,8] t) => (float[1,16,16,8] y) <float[8,1,3,3] w, float[8] k> {
        x = Transpose <perm = [0, 3, 1, 2]> (t)
        a = Conv <group = 8, pads = [1, 1, 1, 1]> (x, w)
        b = Transpose <perm = [0, 2, 3, 1]> (a)
        c = Mul (b, k)
        d = Transpose <perm = [0, 3, 1, 2]> (c)
        e = Add (d, x)
        y = Transpose <perm = [0, 2, 3, 1]> (e)
    }
"""


@pytest.mark.parametrize(
    ("text", "weights", "shape", "most"),
    [
        (STEM, {"w": (8, 3, 3, 3), "v": (8, 8, 3, 3), "b": (8,)}, (1, 3, 16, 16), 2),
        # One is the patches' own order, inside the convolution.
        (PATCHES, {"w": (8, 3, 8, 8)}, (1, 3, 16, 16), 2),
        (PERMUTES, {"w": (8, 1, 3, 3), "k": (8,)}, (1, 16, 16, 8), 0),
    ],
)
def test_transposes_at_the_edges_only(text: str, weights: Any, shape: Any, most: int) -> None:
    net = model(text, **{name: _w(*size) for name, size in weights.items()})
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(net), data_prop=True)
    x = _w(*shape)
    assert _transposes(ir.from_proto(proto).graph, x) <= most
    name = proto.graph.input[0].name
    want = onnx.reference.ReferenceEvaluator(proto).run(None, {name: x})
    assert_close(run_model(proto, [x]), want)
