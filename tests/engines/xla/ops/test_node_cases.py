"""The node cases of ONNX's backend suite for the families that compute.

Inputs that a lowering needs at compile time are made initializers, and models of older opsets are
read at xrt's wherever that has the same version of the operator.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from tests.engines.xla.ops_support import engine_support, run_model
from xrt import graph as G
from xrt.engines.xla import lowering as L

FAMILIES = {
    f"xrt.engines.xla.ops.{name}"
    for name in (
        "activation",
        "attention",
        "cast",
        "elementwise",
        "matmul",
        "normalization",
        "random",
        "reduction",
    )
}

RANDOM = "test_bernoulli"
"""Expected outputs that a generator drew without a seed; nothing can reproduce them."""

# What the engine says about the cases that it leaves to the host.
REFUSED = {
    "test_equal_string": "STRING",
    "test_equal_string_broadcast": "STRING",
    "test_identity_sequence": "not a tensor",
}


@functools.cache
def cases() -> dict[str, Any]:
    """The cases of these families whose operator means the same at xrt's opset, by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    return {
        case.name: case
        for case in found
        if _is_ours(case.model) and not case.name.startswith(RANDOM)
    }


def _is_ours(model: onnx.ModelProto) -> bool:
    if len(model.graph.node) != 1 or model.graph.node[0].domain:
        return False
    op_type = model.graph.node[0].op_type
    rule = L._LOWERINGS.get(("", op_type))
    if rule is None or rule.function.__module__ not in FAMILIES:
        return False
    version = next(one.version for one in model.opset_import if not one.domain)
    then, now = (onnx.defs.get_schema(op_type, v) for v in (version, G.OPSET))
    return bool(then.since_version == now.since_version)


def _array(value: Any) -> Any:
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _specialized(model: onnx.ModelProto, inputs: list[Any]) -> tuple[onnx.ModelProto, list[Any]]:
    """The model with the inputs that must be constants as initializers, and the other inputs."""
    node = model.graph.node[0]
    rule = L._LOWERINGS["", node.op_type]
    static = {node.input[i] for i in rule.static if i < len(node.input)}
    changed, feeds = onnx.ModelProto(), []
    changed.CopyFrom(model)
    del changed.graph.input[:]
    for info, array in zip(model.graph.input, inputs, strict=True):
        if info.name in static:
            changed.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
        else:
            changed.graph.input.append(info)
            feeds.append(array)
    changed.opset_import[0].version = G.OPSET
    return onnx.shape_inference.infer_shapes(changed, data_prop=True), feeds


def _run(name: str) -> None:
    case = cases()[name]
    for inputs, outputs in case.data_sets:
        arrays, wanted = list(map(_array, inputs)), list(map(_array, outputs))
        model, feeds = _specialized(case.model, arrays)
        answer = engine_support(model)
        reason = REFUSED.get(name, "")
        assert answer.ok == (not reason), answer.reason
        if not answer:
            assert reason in answer.reason
            return
        for got, want in zip(run_model(model, feeds), wanted, strict=True):
            _assert_matches(got, np.asarray(want), case.rtol, case.atol)


def _assert_matches(got: Any, want: Any, rtol: float, atol: float) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    if want.dtype.kind in "biu":
        np.testing.assert_array_equal(got, want)
    else:
        wide = np.float64
        np.testing.assert_allclose(got.astype(wide), want.astype(wide), rtol=rtol, atol=atol)


# Loading the suite takes seconds: one test for all, so that collecting the tests stays quick.
@pytest.mark.slow
def test_node_cases() -> None:
    failures = {}
    for name in cases():
        try:
            _run(name)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {str(error)[:300]}"
    assert not failures, "\n".join(f"{name}: {reason}" for name, reason in failures.items())
    assert len(cases()) - len(REFUSED) >= 660
