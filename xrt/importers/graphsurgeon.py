"""Import of graphs of NVIDIA's onnx_graphsurgeon."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from xrt.errors import MissingDependencyError, ModelImportError
from xrt.importers.onnx import load_onnx

_PACKAGE = "onnx_graphsurgeon"


def is_graphsurgeon(model: object) -> bool:
    """Whether `model` is an `onnx_graphsurgeon.Graph`; does not import the package."""
    return any(
        cls.__name__ == "Graph" and cls.__module__.partition(".")[0] == _PACKAGE
        for cls in type(model).__mro__
    )


def load_graphsurgeon(graph: Any) -> ir.Model:
    """Import an `onnx_graphsurgeon.Graph`, which is not edited.

    Raises:
        MissingDependencyError: onnx_graphsurgeon is not installed.
        ModelImportError: `graph` is no graph, or no valid one; see `load_onnx`.
    """
    try:
        import onnx_graphsurgeon as gs
    except ImportError as error:
        raise MissingDependencyError(
            _PACKAGE, "graphsurgeon", "Importing an onnx_graphsurgeon graph"
        ) from error
    if not isinstance(graph, gs.Graph):
        raise ModelImportError(
            f"load_graphsurgeon takes an onnx_graphsurgeon.Graph; got {type(graph).__qualname__}."
        )
    try:
        proto = gs.export_onnx(graph)
    except Exception as error:  # graphsurgeon checks little, so anything may surface here
        raise ModelImportError(
            f"onnx_graphsurgeon could not export the graph {graph.name!r}: {error}. "
            "Run graph.cleanup().toposort() and look for tensors without dtype."
        ) from error
    return load_onnx(proto)
