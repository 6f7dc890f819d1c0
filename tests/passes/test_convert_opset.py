"""Opset conversion: by structure and by value, against old implementations and shipped results."""

from __future__ import annotations

import glob
import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test.loader
import onnx.reference
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import InlinePass

from tests.support import assert_close, ops, run_reference
from xrt.errors import UnsupportedOpError
from xrt.graph import OPSET, structurally_equal
from xrt.importers.onnx import load_onnx
from xrt.passes import convert_opset
from xrt.passes.convert_opset import ConvertOpsetPass
from xrt.passes.opset import RULES

rng = np.random.default_rng(0)


def text(opset: int, body: str) -> ir.Model:
    version = 3 if opset < 9 else 8
    return ir.from_onnx_text(f'<ir_version: {version}, opset_import: ["": {opset}]>\ng {body}')


def convert(model: ir.Model) -> ir.Model:
    """A converted copy, which onnx's checker accepts."""
    converted = model.clone()
    result = ConvertOpsetPass()(converted)
    assert result.modified
    assert converted.opset_imports[""] == OPSET
    onnx.checker.check_model(ir.to_proto(converted))
    return converted


def floats(*shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


# Opset before -> body before, body after. What onnxruntime computes before, the reference
# computes after.
STRUCTURE = {
    "softmax of several axes": (
        11,
        "(float[2,3,4] x) => (float[2,3,4] y) { y = Softmax (x) }",
        """(float[2,3,4] x) => (float[2,3,4] y)
        { a = Flatten <axis = 1> (x) b = Softmax <axis = -1> (a) c = Shape (x)
          y = Reshape <allowzero = 1> (b, c) }""",
    ),
    "softmax of the last axis": (
        11,
        "(float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax <axis = 2> (x) }",
        "(float[2,3,4] x) => (float[2,3,4] y) { y = LogSoftmax <axis = -1> (x) }",
    ),
    "softmax of one wide axis": (
        9,
        "(float[2,3,1,1] x) => (float[2,3,1,1] y) { y = Softmax (x) }",
        "(float[2,3,1,1] x) => (float[2,3,1,1] y) { y = Softmax <axis = 1> (x) }",
    ),
    "softmax of inferred rank": (
        9,
        "(float[N,4] x) => (float[N,4] y) { r = Relu (x) y = Softmax (r) }",
        """(float[N,4] x) => (float[N,4] y) <float[N,4] r>
        { r = Relu (x) y = Softmax <axis = -1> (r) }""",
    ),
    "hardmax": (
        11,
        "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax (x) }",
        """(float[2,3,4] x) => (float[2,3,4] y)
        { a = Flatten <axis = 1> (x) b = Hardmax <axis = -1> (a) c = Shape (x)
          y = Reshape <allowzero = 1> (b, c) }""",
    ),
    "squeeze": (
        11,
        "(float[2,1,4] x) => (float[2,4] y) { y = Squeeze <axes = [1]> (x) }",
        "(float[2,1,4] x) => (float[2,4] y) <int64[1] a = {1}> { y = Squeeze (x, a) }",
    ),
    "squeeze everything": (
        11,
        "(float[1,4,1] x) => (float[4] y) { y = Squeeze (x) }",
        "(float[1,4,1] x) => (float[4] y) { y = Squeeze (x) }",
    ),
    "unsqueeze": (
        11,
        "(float[2,4] x) => (float[1,2,4,1] y) { y = Unsqueeze <axes = [0, 3]> (x) }",
        "(float[2,4] x) => (float[1,2,4,1] y) <int64[2] a = {0, 3}> { y = Unsqueeze (x, a) }",
    ),
    "reduce sum": (
        11,
        "(float[2,4] x) => (float[2] y) { y = ReduceSum <axes = [-1], keepdims = 0> (x) }",
        """(float[2,4] x) => (float[2] y) <int64[1] a = {-1}>
        { y = ReduceSum <keepdims = 0> (x, a) }""",
    ),
    "reduce mean": (
        17,
        "(float[2,4] x) => (float[2,1] y) { y = ReduceMean <axes = [1]> (x) }",
        "(float[2,4] x) => (float[2,1] y) <int64[1] a = {1}> { y = ReduceMean (x, a) }",
    ),
    "reduce all": (
        11,
        "(float[2,4] x) => (float[1,1] y) { y = ReduceMax (x) }",
        "(float[2,4] x) => (float[1,1] y) { y = ReduceMax (x) }",
    ),
    "slice": (
        9,
        "(float[5,6] x) => (float[2,6] y) { y = Slice <axes = [0], starts = [1], ends = [3]> (x) }",
        """(float[5,6] x) => (float[2,6] y)
        <int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {0}> { y = Slice (x, s, e, a) }""",
    ),
    "split by lengths": (
        11,
        "(float[4] x) => (float[1] y, float[3] z) { y, z = Split <split = [1, 3]> (x) }",
        "(float[4] x) => (float[1] y, float[3] z) <int64[2] s = {1, 3}> { y, z = Split (x, s) }",
    ),
    "split evenly": (
        13,
        "(float[4] x) => (float[2] y, float[2] z) { y, z = Split (x) }",
        "(float[4] x) => (float[2] y, float[2] z) { y, z = Split <num_outputs = 2> (x) }",
    ),
    "clip": (
        7,
        "(float[4] x) => (float[4] y) { y = Clip <min = -0.5, max = 0.5> (x) }",
        """(float[4] x) => (float[4] y)
        <float a = {-0.5}, float b = {0.5}> { y = Clip (x, a, b) }""",
    ),
    "clip from below": (
        10,
        "(float[4] x) => (float[4] y) { y = Clip <min = 0.0> (x) }",
        "(float[4] x) => (float[4] y) <float a = {0}> { y = Clip (x, a) }",
    ),
    "pad with a value": (
        10,
        "(float[2] x) => (float[4] y) { y = Pad <pads = [1, 1], value = 2.0> (x) }",
        """(float[2] x) => (float[4] y)
        <int64[2] p = {1, 1}, float v = {2}> { y = Pad (x, p, v) }""",
    ),
    "top k": (
        9,
        "(float[2,6] x) => (float[2,3] y, int64[2,3] i) { y, i = TopK <k = 3> (x) }",
        "(float[2,6] x) => (float[2,3] y, int64[2,3] i) <int64[1] k = {3}> { y, i = TopK (x, k) }",
    ),
    "upsample of opset 7": (
        7,
        """(float[1,2,3,3] x) => (float[1,2,6,6] y)
        { y = Upsample <mode = "linear", scales = [1.0, 1.0, 2.0, 2.0]> (x) }""",
        """(float[1,2,3,3] x) => (float[1,2,6,6] y) <float[4] s = {1, 1, 2, 2}>
        { y = Resize <coordinate_transformation_mode = "asymmetric", mode = "linear"> (x, , s) }""",
    ),
    "resize of opset 10, down": (
        10,
        """(float[1,1,5,5] x) => (float[1,1,3,3] y) <float[4] s = {1, 1, 0.6, 0.6}>
        { y = Resize (x, s) }""",
        """(float[1,1,5,5] x) => (float[1,1,3,3] y) <float[4] s = {1, 1, 0.6, 0.6}>
        { y = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest",
                      nearest_mode = "ceil"> (x, , s) }""",
    ),
    "resize of opset 10, up and down": (
        10,
        """(float[1,1,3,6] x) => (float[1,1,5,4] y) <float[4] s = {1, 1, 1.75, 0.7}>
        { y = Resize (x, s) }""",
        """(float[1,1,3,6] x) => (float[1,1,5,4] y)
        <float[4] u = {1, 1, 1.75, 1}, float[4] d = {1, 1, 1, 0.7}>
        { a = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest",
                      nearest_mode = "floor"> (x, , u)
          y = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest",
                      nearest_mode = "ceil"> (a, , d) }""",
    ),
    "resize of opset 11": (
        11,
        """(float[1,1,3,3] x) => (float[1,1,7,7] y)
        <float[0] none = {}, int64[4] s = {1, 1, 7, 7}>
        { y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn", mode = "nearest",
                      nearest_mode = "floor"> (x, none, none, s) }""",
        """(float[1,1,3,3] x) => (float[1,1,7,7] y) <int64[4] s = {1, 1, 7, 7}>
        { y = Resize <coordinate_transformation_mode = "half_pixel", mode = "nearest",
                      nearest_mode = "round_prefer_ceil"> (x, , , s) }""",
    ),
    "dropout": (
        7,
        "(float[4] x) => (float[4] y) { y, mask = Dropout <ratio = 0.25> (x) }",
        "(float[4] x) => (float[4] y) <float r = {0.25}> { y = Dropout (x, r) }",
    ),
    "batch normalization": (
        7,
        """(float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3,4] y)
        { y = BatchNormalization <spatial = 1> (x, s, b, m, v) }""",
        """(float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3,4] y)
        { y = BatchNormalization (x, s, b, m, v) }""",
    ),
    "roi align": (
        10,
        """(float[1,1,6,6] x, float[1,4] r, int64[1] i) => (float[1,1,2,2] y)
        { y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2> (x, r, i) }""",
        """(float[1,1,6,6] x, float[1,4] r, int64[1] i) => (float[1,1,2,2] y)
        { y = RoiAlign <output_height = 2, output_width = 2, sampling_ratio = 2,
                        coordinate_transformation_mode = "output_half_pixel"> (x, r, i) }""",
    ),
    "grid sample": (
        16,
        "(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y) { y = GridSample (x, g) }",
        """(float[1,1,4,4] x, float[1,2,2,2] g) => (float[1,1,2,2] y)
        { y = GridSample <mode = "linear"> (x, g) }""",
    ),
    "dft": (
        17,
        "(float[1,8,3,1] x) => (float[1,8,3,2] y) { y = DFT (x) }",
        "(float[1,8,3,1] x) => (float[1,8,3,2] y) <int64 a = {1}> { y = DFT (x, , a) }",
    ),
    "scatter": (
        10,
        """(float[3] x, int64[2] i, float[2] u) => (float[3] y) { y = Scatter (x, i, u) }""",
        """(float[3] x, int64[2] i, float[2] u) => (float[3] y)
        { y = ScatterElements (x, i, u) }""",
    ),
    "a retired operator at a later opset": (
        13,
        """(float[3] x, int64[2] i, float[2] u) => (float[3] y) { y = Scatter (x, i, u) }""",
        """(float[3] x, int64[2] i, float[2] u) => (float[3] y)
        { y = ScatterElements (x, i, u) }""",
    ),
    "nested graphs": (
        11,
        """(bool c, float[2,1,4] x) => (float[2,4] y) { y = If (c) <
            then_branch = t () => (float[2,4] a) { a = Squeeze <axes = [1]> (x) },
            else_branch = e () => (float[2,4] b) { n = Neg (x) b = Squeeze <axes = [1]> (n) }
        > }""",
        """(bool c, float[2,1,4] x) => (float[2,4] y) { y = If (c) <
            then_branch = t () => (float[2,4] a) <int64[1] p = {1}> { a = Squeeze (x, p) },
            else_branch = e () => (float[2,4] b) <int64[1] q = {1}>
                { n = Neg (x) b = Squeeze (n, q) }
        > }""",
    ),
}

SPECIAL_INPUTS = {"i": np.array([2, 0]), "c": np.array(True), "v": np.ones(3, np.float32)}


def inputs_of(model: ir.Model) -> dict[str, np.ndarray]:
    feeds = {}
    for value in model.graph.inputs:
        shape = tuple(d if isinstance(d, int) else 3 for d in value.shape)
        feeds[value.name] = SPECIAL_INPUTS.get(value.name, floats(*shape))
        if value.dtype == ir.DataType.INT64:
            feeds[value.name] = feeds[value.name][: shape[0]] if shape[0] > 1 else np.array([0])
    return feeds


@pytest.mark.parametrize("name", STRUCTURE)
def test_structure_and_values(name):
    opset, before, after = STRUCTURE[name]
    model = text(opset, before)
    converted = convert(model)
    expected = text(OPSET, after)
    assert structurally_equal(converted.graph, expected.graph), str(converted.graph)
    feeds = inputs_of(model)
    if name != "a retired operator at a later opset":
        assert_close(run_reference(converted, feeds), run_onnxruntime(model, feeds))


def run_onnxruntime(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


X = floats(2, 3, 4)
C = floats(3)


@pytest.mark.parametrize(
    ("opset", "body", "feeds", "expected"),
    [
        pytest.param(
            6,
            "(float[2,3,4] x, float[3] b) => (float[2,3,4] y) "
            "{ y = Add <broadcast = 1, axis = 1> (x, b) }",
            {"x": X, "b": C},
            X + C[:, None],
            id="Add along an axis",
        ),
        pytest.param(
            1,
            "(float[2,3,4] x, float[3,4] b) => (float[2,3,4] y) "
            "{ y = Mul <broadcast = 1, consumed_inputs = [0, 0]> (x, b) }",
            {"x": X, "b": X[0]},
            X * X[0],
            id="Mul along the last axes",
        ),
        pytest.param(
            6,
            "(float[2,3,4] x, float[3] b) => (float y) "
            "{ y = Sub <broadcast = 1, axis = -2> (x, b) }",
            {"x": X, "b": C},
            X - C[:, None],
            id="Sub along a negative axis",
        ),
        pytest.param(
            6,
            "(float[2,3,4] x, float[3] s) => (float[2,3,4] y) { y = PRelu (x, s) }",
            {"x": X, "s": C},
            np.where(X < 0, X * C[:, None], X),
            id="PRelu per channel",
        ),
        pytest.param(
            6,
            "(float[2,3] x, float[3,4] b, float[4] c) => (float[2,4] y) "
            "{ y = Gemm <broadcast = 1> (x, b, c) }",
            {"x": X[:, :, 0], "b": X[0], "c": X[0, 0]},
            X[:, :, 0] @ X[0] + X[0, 0],
            id="Gemm",
        ),
        pytest.param(
            4,
            "(float[2,3,4] x) => (float[6,4] y) { y = Reshape <shape = [-1, 4]> (x) }",
            {"x": X},
            X.reshape(6, 4),
            id="Reshape",
        ),
        pytest.param(
            5,
            "(float[2,3,4] x, float t, float a) => (float[2,9,4] y) { y = Tile (x, t, a) }",
            {"x": X, "t": np.float32(3), "a": np.float32(1)},
            np.tile(X, (1, 3, 1)),
            id="Tile",
        ),
        pytest.param(
            3,
            "(float[2,3,4] x) => (float[2,6,4] y) { y = Concat (x, x) }",
            {"x": X},
            np.concatenate([X, X], 1),
            id="Concat",
        ),
        pytest.param(
            5,
            '(float[2,3,4] x) => (int32[2,3,4] y) { y = Cast <to = "INT32"> (x) }',
            {"x": X},
            X.astype(np.int32),
            id="Cast",
        ),
        pytest.param(
            5,
            "(float[2,3,4] x) => (float[2,3,4] y) { y = Selu (x) }",
            {"x": X},
            (1.0507 * np.where(X > 0, X, 1.6732 * (np.exp(X) - 1))).astype(np.float32),
            id="Selu",
        ),
        pytest.param(
            1,
            "(float[2,3,4] x) => (float[2,3,6] y) { y = Pad <paddings = [0,0,1,0,0,1]> (x) }",
            {"x": X},
            np.pad(X, ((0, 0), (0, 0), (1, 1))),
            id="Pad",
        ),
        pytest.param(
            1,
            "(float[2,3,4] x) => (float[2,3,1] y) { y = LpPool <kernel_shape = [4], p = 2.0> (x) }",
            {"x": X},
            np.sqrt((X**2).sum(2, keepdims=True)),
            id="LpPool",
        ),
        pytest.param(
            1,
            "(float[1,2,3,4] x) => (float[1,2,6,4] y) "
            "{ y = Upsample <height_scale = 2.0, width_scale = 1.0> (x) }",
            {"x": X[None]},
            X[None].repeat(2, 2),
            id="Upsample",
        ),
        pytest.param(
            1,
            "(float[2,3,4] x) => (float[1,3,4] y, float[1,3,4] z) { y, z = Split <axis = 0> (x) }",
            {"x": X},
            X[:1],
            id="Split",
        ),
        pytest.param(
            6,
            "(float[2,3,4] x) => (float[2,3,4] y) { y = Dropout <is_test = 1> (x) }",
            {"x": X},
            X,
            id="Dropout under test",
        ),
        pytest.param(
            9,
            "(float[2,3,4] x) => (float[2,3,4] m) { y, m0 = Dropout (x) m = Neg (m0) }",
            {"x": X},
            -np.ones_like(X),
            id="Dropout with a mask that is read",
        ),
        pytest.param(
            8,
            "(float[2,3,4] x) => (float[2,3,4] m) { y, m = Dropout (x) }",
            {"x": X},
            np.ones_like(X),
            id="Dropout with a mask that is an output",
        ),
        pytest.param(
            5,
            "(float[2,3,4] x, float[3] s, float[3] z) => (float[2,3,4] y) "
            "{ o = Exp (z) y = BatchNormalization <is_test = 1, epsilon = 0.0, "
            "consumed_inputs = [0, 0, 0, 1, 1]> (x, s, z, z, o) }",
            {"x": X, "s": C, "z": np.zeros(3, np.float32)},
            X * C[:, None],
            id="BatchNormalization under test",
        ),
        pytest.param(
            8,
            "(float[2,3,4] x, float[3,4] s, float[3,4] b, float[3,4] m, float[3,4] v) "
            "=> (float[2,3,4] y) "
            "{ y = BatchNormalization <spatial = 0, epsilon = 0.5> (x, s, b, m, v) }",
            {"x": X, "s": X[0], "b": X[1], "m": X[1], "v": X[0] ** 2},
            (X - X[1]) / np.sqrt(X[0] ** 2 + np.float32(0.5)) * X[0] + X[1],
            id="BatchNormalization per element",
        ),
        pytest.param(
            9,
            "(float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[3] r) "
            "{ y, r, w, sm, sv = BatchNormalization (x, s, b, m, v) }",
            {"x": X, "s": C, "b": C, "m": C, "v": C**2},
            C * np.float32(0.9) + X.mean((0, 2)) * np.float32(0.1),
            id="BatchNormalization in training",
        ),
        pytest.param(
            18,
            "(float[2,4,3] x, float[2] s, float[2] b) => (float[2,4,3] y) "
            "{ y = GroupNormalization <num_groups = 2, epsilon = 0.0> (x, s, b) }",
            {"x": np.tile(np.float32([-1, 0, 1]), (2, 4, 1)), "s": C[:2], "b": C[1:]},
            np.tile(np.float32([-1, 0, 1]), (2, 4, 1))
            * np.float32(1.5**0.5)
            * C[:2].repeat(2)[:, None]
            + C[1:].repeat(2)[:, None],
            id="GroupNormalization",
        ),
        pytest.param(
            18,
            "(float[N,K,3] x, float[2] s, float[2] b) => (float[N,K,3] y) "
            "{ y = GroupNormalization <num_groups = 2, epsilon = 0.0> (x, s, b) }",
            {"x": np.tile(np.float32([-1, 0, 1]), (2, 4, 1)), "s": C[:2], "b": C[1:]},
            np.tile(np.float32([-1, 0, 1]), (2, 4, 1))
            * np.float32(1.5**0.5)
            * C[:2].repeat(2)[:, None]
            + C[1:].repeat(2)[:, None],
            id="GroupNormalization of unknown channels",
        ),
        pytest.param(
            8,
            """(float[2,3] h, float[2,4,3] x) => (float[2,3] y, float[2,4,3] z) {
                y, z = Scan <num_scan_inputs = 1, body = b (float[3] s, float[3] e)
                    => (float[3] t, float[3] o) { t = Add (s, e) o = Identity (t) }> ( , h, x) }""",
            {"h": X[:, 0, :3], "x": X.transpose(0, 2, 1)},
            X[:, 0, :3] + X.transpose(0, 2, 1).sum(1),
            id="Scan over a batch",
        ),
        pytest.param(
            6,
            "(float[2,3,4] x, float[2,3] h, float[1,5,3] w, float[1,5,5] r) => (float[1,2,5] y) "
            "{ t = Transpose <perm = [2, 0, 1]> (x) "
            " , y = RNN <hidden_size = 5, output_sequence = 1> (t, w, r) }",
            None,
            None,
            id="RNN",
        ),
    ],
)
def test_values_that_only_numpy_knows(opset, body, feeds, expected):
    converted = convert(text(opset, body))
    if feeds is None:
        assert "output_sequence" not in converted.graph[-1].attributes
        return
    assert_close(run_reference(converted, feeds)[0], expected, scale=10)


def test_axis_broadcast_of_unknown_rank():
    body = "(float[2,3,4] x, float[3] b) => (float y) { y = Add <broadcast = 1, axis = 1> (x, b) }"
    converted = text(6, body)
    for value in converted.graph.inputs:
        value.shape = None
    ConvertOpsetPass()(converted)
    assert "Unsqueeze" not in ops(converted)
    assert_close(run_reference(converted, {"x": X, "b": C})[0], X + C[:, None])
    assert_close(run_reference(converted, {"x": X[0], "b": C[:1]})[0], X[0] + C[:1])


CLIP = "(float16[4] x) => (float16[4] y) { t = Exp (x) y = Clip <max = 1.0> (t) }"


def test_clip_of_inferred_type():
    converted = convert(text(10, CLIP))
    assert ops(converted) == ["Exp", "Clip"]
    assert converted.graph[-1].inputs[2].const_value.dtype == ir.DataType.FLOAT16


def test_clip_of_unknown_type(monkeypatch):
    monkeypatch.setattr(convert_opset, "_infer_types", lambda model, start: None)
    converted = convert(text(10, CLIP))
    assert ops(converted) == ["Exp", "CastLike", "Clip"]
    x = floats(4).astype(np.float16)
    assert_close(run_reference(converted, {"x": x})[0], np.minimum(np.exp(x), np.float16(1)))


def test_dropout_that_trains_keeps_training():
    model = text(6, "(float[4] x) => (float[4] y) { y = Dropout <ratio = 0.5> (x) }")
    node = convert(model).graph[-1]
    assert node.inputs[2].const_value.numpy()


def test_names_do_not_collide():
    model = text(
        11,
        """(float[2,1,4] y_axes) => (float[2,4] z)
        { y = Squeeze <axes = [1]> (y_axes) y_axes_1 = Neg (y) z = Neg (y_axes_1) }""",
    )
    converted = convert(model)
    x = floats(2, 1, 4)
    assert_close(run_reference(converted, {"y_axes": x})[0], x[:, 0])


def test_current_opset_is_unchanged():
    body = "(float[2,3] x) => (float[2,3] y) { y = Softmax (x) }"
    model = ir.from_onnx_text(f'<ir_version: 13, opset_import: ["": {OPSET}]>\ng {body}')
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert not ConvertOpsetPass()(model).modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_widened_types_change_no_node():
    body = "(float[1,3,8,8] x, float[4,3,3,3] w) => (float y) { a = Conv (x, w) y = Relu (a) }"
    converted = convert(text(11, body))
    assert structurally_equal(converted.graph, text(OPSET, body).graph)


def test_alias_of_the_standard_domain():
    model = text(13, "(float[4] x) => (float[4] y) { y = Relu (x) }")
    model.opset_imports["ai.onnx"] = model.opset_imports.pop("")
    model.opset_imports["ai.onnx.ml"] = 3
    assert convert(model).opset_imports == {"": OPSET, "ai.onnx.ml": 3}


def test_weights_are_shared():
    model = text(
        11, "(float[2,1,4] x) => (float y) { s = Squeeze <axes = [1]> (x) y = MatMul (s, w) }"
    )
    tensor = ir.tensor(floats(4, 4), name="w")
    weight = next(v for v in model.graph[-1].inputs if v.name == "w")
    weight.const_value = tensor
    model.graph.register_initializer(weight)
    assert convert(model).graph.initializers["w"].const_value is tensor


@pytest.mark.parametrize(
    ("opset", "body", "match"),
    [
        (OPSET + 1, "(float[4] x) => (float[4] y) { y = Relu (x) }", f"Known opsets: 1 to {OPSET}"),
        (13, "(float[4] x) => (float[4] y) { y = Affine (x) }", "Affine .*does not exist in opset"),
        (
            9,
            "(float[2,3] x, float[3] s) => (float[3] n) "
            "{ y, m, v, n, o = BatchNormalization (x, s, s, s, s) }",
            "BatchNormalization .*opset 9 .*output 'n' is gone",
        ),
        (1, "(float[1,2,3] x) => (float y) { y = GlobalLpPool <p = 1.5> (x) }", "p = 1.5"),
        (
            8,
            """(int64[2] l, float[2,3] h, float[2,4,3] x) => (float y, float z) {
            y, z = Scan <num_scan_inputs = 1, body = b (float[3] s, float[3] e)
                => (float[3] t, float[3] o) { t = Add (s, e) o = Neg (t) }> (l, h, x) }""",
            "Scan .*sequence lengths",
        ),
        (
            11,
            """(float[1,1,3,3] x, float[0] n, int64[4] s) => (float y)
            { y = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn",
                          nearest_mode = "ceil"> (x, n, n, s) }""",
            "tf_half_pixel_for_nn",
        ),
    ],
)
def test_refused(opset, body, match):
    with pytest.raises(UnsupportedOpError, match=match):
        ConvertOpsetPass()(text(opset, body))


def test_functions_must_be_inlined_before():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 11, "local": 1]>
        g (float[4] x) => (float[4] y) { y = local.twice (x) }
        <domain: "local", opset_import: ["": 11]> twice (x) => (y) { y = Add (x, x) }"""
    )
    with pytest.raises(ir.passes.PreconditionError, match="twice"):
        ConvertOpsetPass()(model)
    InlinePass()(model)
    assert ConvertOpsetPass()(model).modified


# Attributes that went or got another default, without a rule because values stay the same.
HARMLESS = {
    ("Dropout", 7),  # the rule of opset 12 looks at it
    ("Clip", 6),  # the defaults are the limits of the type
    ("GRU", 3),  # a misspelled "forward"
    ("Split", 2),  # no axis was axis 0
    ("Resize", 13),
}


def test_every_change_of_attributes_has_a_rule():
    """A removed attribute, or another default, means something else: there must be a rule."""
    versions = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            versions[schema.name].append(schema)
    missing = []
    for name, schemas in versions.items():
        schemas.sort(key=lambda schema: schema.since_version)
        for old, new in itertools.pairwise(schemas):
            key = (name, new.since_version)
            changed = [
                attribute
                for attribute, definition in old.attributes.items()
                if attribute not in new.attributes
                or definition.default_value != new.attributes[attribute].default_value
            ]
            if changed and key not in HARMLESS and name not in RULES.get(new.since_version, {}):
                missing.append((*key, changed))
    replaced_whole = [("Upsample", 10)]  # by the rule of opset 11
    assert [entry for entry in missing if entry[:2] not in replaced_whole] == []


def _shipped(kind: str) -> list[object]:
    cases = onnx.backend.test.loader.load_model_tests(kind=kind)
    return [pytest.param(case, id=case.name) for case in cases if "gradient" not in case.name]


def _read(path: str, value: onnx.ValueInfoProto) -> object:
    content = Path(path).read_bytes()
    if value.type.HasField("sequence_type"):
        return onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(content))
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))


def check_shipped(case) -> None:
    """Converted, a shipped model still computes the shipped outputs."""
    path = Path(case.model_dir) / "model.onnx"
    proto = onnx.load(path)
    model = load_onnx(path)
    InlinePass()(model)
    converted = convert(model)
    evaluator = onnx.reference.ReferenceEvaluator(ir.to_proto(converted))
    for folder in sorted(glob.glob(f"{case.model_dir}/test_data_set_*")):
        feeds = {
            value.name: _read(f"{folder}/input_{index}.pb", proto.graph.input[index])
            for index, value in enumerate(model.graph.inputs)
        }
        for index, got in enumerate(evaluator.run(None, feeds)):
            want = _read(f"{folder}/output_{index}.pb", proto.graph.output[index])
            if isinstance(want, np.ndarray) and want.dtype.kind in "OU":
                assert np.asarray(got).tolist() == want.tolist()
            else:
                assert_close(got, want, scale=10)


@pytest.mark.parametrize("case", _shipped("pytorch-operator"))
def test_shipped_operators(case):
    check_shipped(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", _shipped("simple") + _shipped("pytorch-converted"))
def test_shipped_models(case):
    check_shipped(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_shipped_nodes():
    """Every shipped node model of an older opset computes what it did, if the reference can."""
    worse, checked = [], 0
    for case in onnx.backend.test.loader.load_model_tests(kind="node"):
        opset = next((o.version for o in case.model.opset_import if o.domain == ""), OPSET)
        if opset == OPSET:
            continue
        model = load_onnx(case.model)
        InlinePass()(model)
        converted = ir.to_proto(convert(model))
        checked += 1
        if not _computes(converted, case) and _computes(case.model, case):
            worse.append(case.name)
    assert worse == []
    assert checked > 1600


def _computes(proto: onnx.ModelProto, case) -> bool:
    names = [value.name for value in case.model.graph.input]
    try:
        evaluator = onnx.reference.ReferenceEvaluator(proto)
        for given, wanted in case.data_sets:
            feeds = dict(zip(names, map(_array, given), strict=False))
            for got, want in zip(evaluator.run(None, feeds), map(_array, wanted), strict=True):
                if isinstance(want, np.ndarray) and want.dtype.kind in "OU":
                    assert np.asarray(got).tolist() == want.tolist()
                elif want is not None:
                    assert_close(got, want, scale=10)
    except Exception:  # the reference fails in many ways; none of them is of interest here
        return False
    return True


def _array(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return onnx.numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return onnx.numpy_helper.to_optional(value)
    return value
