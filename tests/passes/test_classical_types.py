"""Types of operators of ai.onnx.ml; what they say is what the kernels give."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import xrt
from xrt.graph import static_shape
from xrt.kernels.host import find
from xrt.passes import InferShapesPass

DOMAIN = "ai.onnx.ml"
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def _model(*nodes: onnx.NodeProto, outputs: Any = ("y",), dtype: int = 1) -> ir.Model:
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", dtype, X.shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    imports = [onnx.helper.make_opsetid("", 28), onnx.helper.make_opsetid(DOMAIN, 3)]
    proto = onnx.helper.make_model(graph, opset_imports=imports, ir_version=13)
    made: ir.Model = ir.from_proto(proto)
    return made


ONES = [1.0] * 12
VECTORS = {"kernel_params": [0.5, 0.0, 0.0], "kernel_type": "RBF"}
TWO = {"coefficients": ONES[:4], "support_vectors": ONES, "vectors_per_class": [2, 2], **VECTORS}
THREE = {"coefficients": ONES[:8], "support_vectors": ONES, "vectors_per_class": [2, 1, 1]}
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("FeatureVectorizer", 1, {"inputdimensions": [2]}),
    ("FeatureVectorizer", 1, {}),
    ("Imputer", 1, {"imputed_value_floats": [1.0]}),
    ("LinearClassifier", 2, {"coefficients": ONES[:9], "classlabels_ints": [1, 2, 3]}),
    ("LinearClassifier", 2, {"coefficients": ONES[:3], "classlabels_strings": ["a", "b"]}),
    ("LinearClassifier", 2, {"coefficients": ONES[:3], "classlabels_ints": [1]}),
    ("LinearRegressor", 1, {"coefficients": ONES[:6], "targets": 2}),
    ("Normalizer", 1, {"norm": "L1"}),
    ("SVMClassifier", 2, {"rho": [0.0], "classlabels_ints": [1, 2], **TWO}),
    ("SVMClassifier", 2, {"rho": [0.0] * 3, "classlabels_ints": [1, 2, 3], **THREE, **VECTORS}),
    ("SVMClassifier", 2, {"rho": [0.0], "classlabels_ints": [1, 2], **TWO, "prob_a": [-1.0],
                          "prob_b": [0.0]}),
    ("SVMClassifier", 2, {"rho": [0.0, 0.0], "classlabels_ints": [1, 2, 3],
                          "coefficients": ONES[:9]}),
    ("SVMRegressor", 1, {"rho": [0.0], "coefficients": ONES[:3]}),
    ("Scaler", 1, {"scale": [2.0]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "count", "attributes"), CASES)
def test_types_are_those_of_the_results(op: str, count: int, attributes: dict[str, Any]) -> None:
    names = ["y", "z"][:count]
    node = onnx.helper.make_node(op, ["x"], names, domain=DOMAIN, **attributes)
    made = _model(node, outputs=names)
    InferShapesPass(strict=True)(made)
    results = find(made.graph[0])([X])
    for value, array in zip(made.graph.outputs, results, strict=True):
        assert static_shape(value) == array.shape
        string = array.dtype.kind == "O"
        want = ir.DataType.STRING if string else ir.DataType.from_numpy(array.dtype)
        assert value.dtype == want


def test_a_pipeline_of_scikit_learns_kind_is_one_cluster() -> None:
    scaler = onnx.helper.make_node("Scaler", ["x"], ["s"], domain=DOMAIN, offset=[0.5], scale=[2.0])
    norm = onnx.helper.make_node("Normalizer", ["s"], ["n"], domain=DOMAIN, norm="L2")
    linear = onnx.helper.make_node(
        "LinearRegressor", ["n"], ["y"], domain=DOMAIN, coefficients=[1.0, 2.0, -1.0]
    )
    program = xrt.compile(
        _model(scaler, norm, linear), options=xrt.CompileOptions(min_cluster_weight=0, cache=False)
    )
    (cluster,) = program.clusters
    assert [node.op_type for node in cluster.nodes] == ["Scaler", "Normalizer", "LinearRegressor"]
    scaled = (X.astype(np.float64) - 0.5) * 2
    want = scaled / np.sqrt((scaled**2).sum(axis=1, keepdims=True)) @ [[1.0], [2.0], [-1.0]]
    np.testing.assert_allclose(np.asarray(program(X)), want, rtol=1e-5, atol=1e-6)
