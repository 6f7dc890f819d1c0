"""Running one operator through `find` and through `onnx.reference`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from xrt.graph import OPSET
from xrt.kernels.host import find

TOLERANCES = {
    # Attributes are float32 in ONNX, and onnx.reference rounds some constants to it.
    "float64": (1e-7, 1e-7),
    "float32": (2e-5, 2e-5),
    "float16": (4e-3, 2e-3),
    "bfloat16": (3e-2, 2e-2),
}


def node(op_type: str, inputs: Sequence[Any], output_count: int = 1, **attributes: Any) -> ir.Node:
    """A node on as many inputs, absent where one is None."""
    values = [None if x is None else ir.val(f"i{i}") for i, x in enumerate(inputs)]
    converted = [ir.convenience.convert_attribute(n, v) for n, v in attributes.items()]
    return ir.Node("", op_type, values, converted, num_outputs=output_count, name="under_test")


def run(op_type: str, *inputs: Any, output_count: int = 1, **attributes: Any) -> tuple[Any, ...]:
    """The outputs that xrt computes."""
    kernel = find(node(op_type, inputs, output_count, **attributes))
    assert kernel.native
    return kernel(inputs)


def expected(op_type: str, *inputs: Any, output_count: int = 1, **attributes: Any) -> list[Any]:
    """The outputs that onnx.reference computes."""
    names = ["" if x is None else f"i{i}" for i, x in enumerate(inputs)]
    outputs = [f"o{i}" for i in range(output_count)]
    proto = onnx.helper.make_node(op_type, names, outputs, **attributes)
    given = {n: x for n, x in zip(names, inputs, strict=True) if n}
    infos = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(x.dtype), x.shape
        )
        for n, x in given.items()
    ]
    outs = [onnx.ValueInfoProto(name=o) for o in outputs]
    graph = onnx.helper.make_graph([proto], "g", infos, outs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(model).run(None, given))


def compare(op_type: str, *inputs: Any, output_count: int = 1, **attributes: Any) -> None:
    """Assert that both agree, in values, shapes and dtypes."""
    got = run(op_type, *inputs, output_count=output_count, **attributes)
    want = expected(op_type, *inputs, output_count=output_count, **attributes)
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert_close(g, w)


def assert_close(got: Any, want: Any) -> None:
    """Equal shape and dtype, and values within the tolerance of the dtype."""
    assert isinstance(got, np.ndarray)
    want = np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    rtol, atol = TOLERANCES.get(got.dtype.name, (0, 0))
    if got.dtype.kind == "V":
        got, want = got.astype(np.float32), want.astype(np.float32)
    scale = 1.0
    if rtol and want.size:
        finite = np.abs(want[np.isfinite(want)])
        scale = max(1.0, float(finite.max(initial=0)))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * scale)
