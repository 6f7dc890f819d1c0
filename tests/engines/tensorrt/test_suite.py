"""The node cases of ONNX's own suite: what TensorRT's parser takes is built, and what the parser
gets gives the results that the suite wants, by ONNX Runtime.

Inputs that decide shapes are made constants, as a specialization of a program has them.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnx.backend.test.loader import load_model_tests

from tests.engines.tensorrt.trt_support import OPTIONS, RTX, run_exported
from xrt import graph as G
from xrt.engines.tensorrt import support as S
from xrt.engines.tensorrt.build import build
from xrt.engines.tensorrt.export import RULES, export
from xrt.graph import Cluster, digest
from xrt.passes import InferShapesPass
from xrt.passes.convert_opset import ConvertOpsetPass

_DATA = frozenset(
    {"Add", "Div", "Gather", "GatherElements", "GatherND", "Mod", "OneHot", "ScatterElements"}
    | {"ScatterND", "Where"}
)
"""Operators whose vectors of int64 are data."""

_ERRORS = onnxruntime.capi.onnxruntime_pybind11_state
_LACKS = (_ERRORS.NotImplemented, _ERRORS.InvalidGraph)

_RELATIVE = {"float16": 1e-2, "bfloat16": 5e-2}
"""Type -> the relative tolerance; that of the case, where it is larger."""


@functools.cache
def cases() -> dict[str, list[Any]]:
    """The cases of one node on tensors, by operator."""
    result = defaultdict(list)
    for case in load_model_tests(kind="node"):
        nodes = case.model.graph.node
        tensors = [array for data in case.data_sets or () for part in data for array in part]
        if len(nodes) == 1 and all(isinstance(array, np.ndarray) for array in tensors):
            result[nodes[0].op_type].append(case)
    return dict(result)


def _body(case: Any) -> tuple[ir.Graph, dict[str, Any]]:
    """The case as a graph at xrt's opset with static shapes, and what it is fed."""
    model = ir.from_proto(case.model)
    graph = model.graph
    node = graph.node(0)
    feeds = {}
    for value, array in zip(list(graph.inputs), case.data_sets[0][0], strict=True):
        value.shape = ir.Shape(array.shape)
        decides = array.dtype == np.int64 and array.ndim <= 1 and node.op_type not in _DATA
        scale = node.op_type in ("QuantizeLinear", "DequantizeLinear") and value != node.inputs[0]
        if (decides or scale) and node.op_type not in S.DATA_DEPENDENT:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            graph.register_initializer(value)
        else:
            feeds[str(value.name)] = array
    ConvertOpsetPass()(model)
    InferShapesPass()(model)
    for value, array in zip(graph.outputs, case.data_sets[0][1], strict=True):
        if G.static_shape(value) is None:
            value.shape = ir.Shape(array.shape)
    return graph, feeds


def _taken(case: Any) -> tuple[ir.Graph, dict[str, Any]] | None:
    """The case, if the parser takes it."""
    graph, feeds = _body(case)
    if len(graph) != 1 or not S.supports(RTX, graph.node(0)):
        return None
    return graph, feeds


_UINT8 = {"DequantizeLinear", "QuantizeLinear", "Range"}
"""The suite has these of types only that TensorRT refuses."""


@pytest.mark.parametrize("op", sorted((set(RULES) & set(cases())) - _UINT8))
def test_rewritten_operators_give_the_results_of_the_suite(op):
    assert sum(map(_agrees, cases()[op][:: 1 + len(cases()[op]) // 16]))


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(cases()))
def test_all_operators_give_the_results_of_the_suite(op):
    for case in cases()[op]:
        _agrees(case)


def _agrees(case: Any) -> bool:
    """Compare with the suite; whether the parser takes it, and ONNX Runtime has kernels for it."""
    found = _taken(case)
    if found is None:
        return False
    graph, feeds = found
    changed = export(graph)
    arrays = [feeds[str(value.name)] for value in changed.graph.inputs]
    try:
        results = run_exported(changed, arrays)
    except _LACKS as error:
        if "bfloat16" in str(error) or "NOT_IMPLEMENTED" in str(error):
            return False  # TensorRT's parser takes what newer opsets added for bfloat16
        raise
    for got, want in zip(results, case.data_sets[0][1], strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        wide = np.float64 if want.dtype.kind in "fV" else want.dtype
        given, wanted = np.asarray(got).astype(wide), want.astype(wide)
        finite = np.abs(wanted[np.isfinite(wanted)].astype(np.float64))
        relative = max(case.rtol, _RELATIVE.get(want.dtype.name, 0.0))
        absolute = max(case.atol, 1e-6 * finite.max(initial=0.0))  # what float32 rounds of sums
        np.testing.assert_allclose(given, wanted, rtol=relative, atol=absolute)
    return True


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(cases()))
def test_what_the_parser_takes_is_built(op):
    for case in cases()[op]:
        found = _taken(case)
        if found is not None:
            graph, _ = found
            cluster = Cluster("suite", "tensorrt", graph, digest(graph))
            assert build(RTX, cluster, OPTIONS, "sm_86").data
