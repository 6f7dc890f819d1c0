"""Import of onnx_graphsurgeon graphs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.support import assert_close, run_reference
from xrt.errors import MissingDependencyError, ModelImportError
from xrt.graph import structurally_equal
from xrt.importers.graphsurgeon import is_graphsurgeon, load_graphsurgeon
from xrt.importers.onnx import load_onnx

gs = pytest.importorskip("onnx_graphsurgeon")

WEIGHT = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def linear() -> object:
    x = gs.Variable("x", np.float32, (2, 3))
    y = gs.Variable("y", np.float32, (2, 4))
    node = gs.Node("MatMul", "linear", inputs=[x, gs.Constant("w", WEIGHT)], outputs=[y])
    return gs.Graph([node], inputs=[x], outputs=[y], opset=18, name="g")


def test_graph_loads():
    graph = linear()
    model = load_graphsurgeon(graph)
    assert isinstance(model, ir.Model)
    assert structurally_equal(model.graph, load_onnx(gs.export_onnx(graph)).graph)
    x = np.ones((2, 3), np.float32)
    assert_close(run_reference(model, {"x": x})[0], x @ WEIGHT)


def test_graph_is_not_edited():
    graph = linear()
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    model = load_graphsurgeon(graph)
    model.graph[0].op_type = "Add"
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before


def test_is_graphsurgeon():
    class Graph:
        pass

    class Mine(gs.Graph):
        pass

    assert is_graphsurgeon(linear())
    assert is_graphsurgeon(Mine())
    for other in (None, 3, "x", Graph(), onnx.GraphProto(), gs.Node("Relu")):
        assert not is_graphsurgeon(other)


def test_is_graphsurgeon_does_not_import_the_package():
    code = (
        "import sys; from xrt.importers.graphsurgeon import is_graphsurgeon;"
        "assert not is_graphsurgeon(3); assert 'onnx_graphsurgeon' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    with pytest.raises(MissingDependencyError, match=r"xrt\[graphsurgeon\]"):
        load_graphsurgeon(object())


def test_something_else():
    with pytest.raises(ModelImportError, match="got int"):
        load_graphsurgeon(3)


def test_bad_graph():
    graph = linear()
    graph.nodes[0].op = "Affine"
    with pytest.raises(ModelImportError, match=r"Affine 'linear'.*no operator"):
        load_graphsurgeon(graph)
    graph.outputs[0].dtype = None
    with pytest.raises(ModelImportError, match="'g'"):
        load_graphsurgeon(graph)
