"""The node cases of ONNX's own backend suite, as (node, inputs, expected outputs)."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt.kernels.host import find
from xrt.kernels.host.control import Body


@dataclass
class NodeCase:
    """One case.

    Attributes:
        name: Its name in the suite.
        graph: The graph of the model.
        current: Whether every operator has, at the model's opset, the definition it has now.
        rtol: Relative tolerance; atol likewise.
        data: Pairs of inputs and expected outputs.
    """

    name: str
    graph: ir.Graph
    current: bool
    rtol: float
    atol: float
    data: list[tuple[list[Any], list[Any]]]


def load() -> Iterator[NodeCase]:
    """All node cases."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    for case in cases:
        model = case.model
        if model is None:
            model = onnx.load(os.path.join(case.model_dir, "model.onnx"))
        yield NodeCase(
            case.name,
            ir.from_proto(model).graph,
            is_current(model),
            case.rtol,
            case.atol,
            [([_array(v) for v in i], [_array(v) for v in o]) for i, o in case.data_sets or ()],
        )


def _array(value: Any) -> Any:
    """A value of the suite as kernels take it."""
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return [_array(v) for v in value]
    return value if value is None else np.asarray(value)


def is_current(model: onnx.ModelProto) -> bool:
    """Whether the model's operators are defined at its opset as they are at the newest."""
    versions = {o.domain: o.version for o in model.opset_import}
    newest = _newest()
    return all(
        onnx.defs.get_schema(n.op_type, versions[n.domain], n.domain).since_version
        == newest[n.domain, n.op_type]
        for n in model.graph.node
    )


@functools.cache
def _newest() -> dict[tuple[str, str], int]:
    return {(s.domain, s.name): s.since_version for s in onnx.defs.get_all_schemas()}


def check(case: NodeCase) -> bool:
    """Run a case; raises what goes wrong, and tells whether a kernel of xrt ran it."""
    nodes = list(case.graph)
    if len(nodes) != 1 or case.graph.initializers:
        body = Body(case.graph, find)
        for inputs, outputs in case.data:
            for got, wanted in zip(body({}, inputs), outputs, strict=True):
                assert_close(got, wanted, case.rtol, case.atol)
        return False
    run = find(nodes[0])
    for inputs, outputs in case.data:
        given = dict(zip(case.graph.inputs, inputs, strict=True))
        results = run([None if v is None else given[v] for v in nodes[0].inputs])
        made = dict(zip(nodes[0].outputs, results, strict=False))
        for value, wanted in zip(case.graph.outputs, outputs, strict=True):
            assert_close(made[value], wanted, case.rtol, case.atol)
    return run.native


def assert_close(got: Any, wanted: Any, rtol: float, atol: float) -> None:
    """As the suite's own runner compares: sequences by element, strings and dtypes exactly."""
    if wanted is None:
        assert got is None
    elif isinstance(wanted, list):
        assert isinstance(got, list)
        assert len(got) == len(wanted)
        for g, w in zip(got, wanted, strict=True):
            assert_close(g, w, rtol, atol)
    else:
        wanted = np.asarray(wanted)
        assert isinstance(got, np.ndarray), type(got)
        assert got.shape == wanted.shape, (got.shape, wanted.shape)
        if wanted.dtype.kind in "OUS":
            assert [_text(g) for g in got.ravel()] == [_text(w) for w in wanted.ravel()]
            return
        assert got.dtype == wanted.dtype, (got.dtype, wanted.dtype)
        if wanted.dtype.kind not in "biufc":
            got, wanted = got.astype(np.float32), wanted.astype(np.float32)
        np.testing.assert_allclose(got, wanted, rtol=rtol, atol=atol)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
