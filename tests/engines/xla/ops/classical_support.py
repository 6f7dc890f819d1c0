"""Running one operator of ai.onnx.ml by the host's kernel and by the XLA engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.engines.xla.ops_support import engine_support, run_model
from tests.support import assert_close
from xrt.graph import Support
from xrt.kernels.host import find

DOMAIN = "ai.onnx.ml"


def classical_model(
    op: str, inputs: Sequence[Any], outputs: Sequence[Any], **attributes: Any
) -> Any:
    """A model of one node whose outputs are declared as `outputs` are: ONNX infers few of them."""
    kept = {name: value for name, value in attributes.items() if value is not None}
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(len(outputs))]
    node = onnx.helper.make_node(op, names, results, domain=DOMAIN, **kept)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [_info(name, array) for name, array in zip(names, inputs, strict=True)],
        [_info(name, array) for name, array in zip(results, outputs, strict=True)],
    )
    version = 3 if op in ("TreeEnsembleClassifier", "TreeEnsembleRegressor") else 5
    imports = [onnx.helper.make_opsetid("", 28), onnx.helper.make_opsetid(DOMAIN, version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=13)


def _info(name: str, array: Any) -> onnx.ValueInfoProto:
    if array.dtype.kind in "OUS":
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.STRING, array.shape)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, code, array.shape)


def on_host(op: str, inputs: Sequence[Any], outputs: int = 1, **attributes: Any) -> list[Any]:
    """The outputs by the host's kernel."""
    made = classical_model(op, inputs, [np.zeros(())] * outputs, **attributes)
    kernel = find(ir.from_proto(made).graph[0])
    assert kernel.native
    return list(kernel(inputs))


def check(op: str, inputs: Sequence[Any], *want: Any, slack: float = 1, **attributes: Any) -> None:
    """Fail unless the host's kernel and the XLA engine both give `want`, within `slack` times the
    usual tolerances."""
    assert_close(on_host(op, inputs, len(want), **attributes), list(want), scale=slack)
    made = classical_model(op, inputs, want, **attributes)
    assert engine_support(made)
    assert_close(run_model(made, inputs), list(want), scale=slack)


def answer(op: str, inputs: Sequence[Any], *outputs: Any, **attributes: Any) -> Support:
    """What the engine says about the node."""
    return engine_support(classical_model(op, inputs, outputs, **attributes))
