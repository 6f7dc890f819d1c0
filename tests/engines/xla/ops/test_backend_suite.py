"""The node cases of ONNX's backend suite for the data-movement, window and sampling families.

Inputs that a lowering needs at compile time are made initializers, and models of older opsets are
read at xrt's, which is the same operator for the cases chosen (opset 18 and later).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.backend.test.loader import load_model_tests

from tests.engines.xla.ops_support import engine_support, run_model
from xrt import graph as G
from xrt.engines.xla import lowering as L

OPS = frozenset(
    (
        "Conv",
        "ConvTranspose",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "GlobalLpPool",
        "Reshape",
        "Flatten",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Concat",
        "Split",
        "Slice",
        "Pad",
        "Expand",
        "Tile",
        "Shape",
        "Size",
        "ConstantOfShape",
        "Constant",
        "Range",
        "EyeLike",
        "Trilu",
        "DepthToSpace",
        "SpaceToDepth",
        "Gather",
        "GatherElements",
        "GatherND",
        "ScatterElements",
        "ScatterND",
        "OneHot",
        "TopK",
        "ReverseSequence",
        "Resize",
        "GridSample",
        "AffineGrid",
    )
)

# Their inputs decide the shape of the output, so inference must see them.
_SHAPED = frozenset({"Reshape", "Expand", "Unsqueeze", "Squeeze"})
_SHAPED_BY_ALL = frozenset({"ConstantOfShape", "Range"})


@functools.cache
def cases() -> dict[str, Any]:
    """The cases whose model is one node of `OPS`, by name."""
    return {
        case.name: case
        for case in load_model_tests(kind="node")
        if len(case.model.graph.node) == 1
        and case.model.graph.node[0].op_type in OPS
        and case.model.graph.node[0].domain == ""
        and case.model.opset_import[0].version >= 18
    }


def specialized(case: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """The case's model with compile-time inputs as initializers, and its other inputs."""
    inputs, outputs = case.data_sets[0]
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    node = model.graph.node[0]
    rule = L.find(ir.Node("", node.op_type, []))
    assert rule is not None
    fixed = {node.input[i] for i in rule.static if i < len(node.input)}
    fixed |= {name for name in node.input[1:] if node.op_type in _SHAPED}
    if node.op_type in _SHAPED_BY_ALL:
        fixed |= set(node.input)
    moving = []
    values = dict(zip([i.name for i in model.graph.input], inputs, strict=False))
    kept = [i for i in model.graph.input if i.name not in fixed]
    for name in sorted(fixed & set(values)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(values[name], name))
    del model.graph.input[:]
    for info in kept:
        array = np.asarray(values[info.name])
        moving.append(array)
        dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        model.graph.input.append(onnx.helper.make_tensor_value_info(info.name, dtype, array.shape))
    for info, array in zip(model.graph.output, outputs, strict=False):
        dtype = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, dtype, np.shape(array)))
    del model.opset_import[:]
    model.opset_import.append(onnx.helper.make_opsetid("", G.OPSET))
    return model, moving


@pytest.mark.slow
def test_cases_pass() -> None:
    failed, passed = {}, 0
    for name, case in cases().items():
        model, moving = specialized(case)
        answer = engine_support(model)
        if not answer:
            failed[name] = answer.reason
            continue
        try:
            results = run_model(model, moving)
            for got, want in zip(results, case.data_sets[0][1], strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
                assert got.dtype == np.asarray(want).dtype
            passed += 1
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {str(error)[:300]}"
    print(f"{passed} of {len(cases())} cases pass")
    assert not failed, "\n".join(f"{name}: {reason}" for name, reason in failed.items())
    assert passed >= 239
