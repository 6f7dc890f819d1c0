"""Running one operator through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import pytest


def ort(
    op_type: str,
    *inputs: Any,
    outputs: Sequence[int] = (onnx.TensorProto.FLOAT,),
    **attributes: Any,
) -> list[Any]:
    """The outputs that ONNX Runtime computes at opset 22, given their types; skips without it."""
    runtime = pytest.importorskip("onnxruntime")
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    results = [f"o{i}" for i in range(len(outputs))]
    infos = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for name, x in zip(names, inputs, strict=True)
        if x is not None
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, names, results, **attributes)],
        "g",
        infos,
        [
            onnx.helper.make_tensor_value_info(n, t, None)
            for n, t in zip(results, outputs, strict=True)
        ],
    )
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10
    )
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    return list(session.run(None, feeds))
