"""Runs one node on arrays, with the reference implementation that ONNX ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt.graph import OPSET
from xrt.passes.rewrite import attributes_key

Array = np.ndarray[Any, Any]

Evaluate = Callable[[ir.Node, Sequence[Array | None]], Sequence[Array]]
"""Runs a node: arrays of its inputs, None for those left out -> arrays of its outputs."""

_Kernel = Callable[[Sequence[Array | None]], Sequence[Any]]
_KERNELS: dict[object, _Kernel] = {}


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> Sequence[Array]:
    """Run `node` by onnx.reference; nodes that are alike share one instance of the operator."""
    attributes = attributes_key(node)
    if attributes is None:
        raise NotImplementedError(f"{node.op_type} has nested graphs")
    present = tuple(array is not None for array in inputs)
    dtypes = tuple(None if array is None else (array.dtype, array.ndim) for array in inputs)
    key = (node.domain, node.op_type, node.version, len(node.outputs), attributes, present, dtypes)
    kernel = _KERNELS.get(key)
    if kernel is None:
        if len(_KERNELS) >= 4096:
            _KERNELS.clear()
        kernel = _KERNELS[key] = _build(node, inputs)
    with np.errstate(all="ignore"):
        return [_as_array(result) for result in kernel(inputs)]


def _as_array(result: Any) -> Array:
    if not isinstance(result, (np.ndarray, np.generic)):
        raise NotImplementedError(f"the result is a {type(result).__name__}, not a tensor")
    return np.asarray(result)


def _build(node: ir.Node, inputs: Sequence[Array | None]) -> _Kernel:
    from onnx.reference.op_run import RuntimeContextError  # onnx.reference takes long to import

    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
    proto.input.extend("" if a is None else f"input_{i}" for i, a in enumerate(inputs))
    proto.output.extend(f"output_{index}" for index in range(len(node.outputs)))
    proto.attribute.extend(map(ir.serde.serialize_attribute, node.attributes.values()))
    version = OPSET if node.graph is None else node.graph.opset_imports.get(node.domain, OPSET)
    if node.domain == "":
        try:
            return _operator(proto, version)
        except RuntimeContextError:
            pass  # its function body depends on the types of the inputs, which a model declares
    return _one_node_model(proto, version, inputs)


def _operator(proto: onnx.NodeProto, version: int) -> _Kernel:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.ops._op_list import load_op

    parameters = {
        "log": lambda *_: None,
        "opsets": {"": version},
        "verbose": 0,
        "new_ops": None,
        "existing_functions": {},
        "evaluator_cls": ReferenceEvaluator,
    }
    operator = load_op("", proto.op_type, version, evaluator_cls=ReferenceEvaluator)(
        proto, parameters
    )
    return lambda arrays: operator.run(*arrays)


def _one_node_model(proto: onnx.NodeProto, version: int, inputs: Sequence[Array | None]) -> _Kernel:
    from onnx.reference import ReferenceEvaluator

    declared = [
        onnx.helper.make_tensor_value_info(
            f"input_{index}",
            onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
            [None] * array.ndim,
        )
        for index, array in enumerate(inputs)
        if array is not None
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
    graph = onnx.helper.make_graph([proto], "one_node", declared, outputs)
    opset = onnx.helper.make_opsetid(proto.domain, version)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    evaluator = ReferenceEvaluator(model)

    def run(arrays: Sequence[Array | None]) -> Sequence[Any]:
        feeds = {f"input_{i}": array for i, array in enumerate(arrays) if array is not None}
        results: Sequence[Any] = evaluator.run(None, feeds)
        return results

    return run
