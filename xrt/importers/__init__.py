"""Models of other libraries, to the graph IR: one function, whatever the model is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from xrt.errors import ModelImportError
from xrt.importers.interface import Imported, Interface, OnnxInterface
from xrt.importers.torch import (
    is_exported_program,
    is_torch_module,
    load_exported_program,
    load_module,
)
from xrt.importers.training import TrainingModel, with_trainable_initializers

__all__ = [
    "Imported",
    "Interface",
    "import_for_training",
    "import_model",
    "is_torch_module",
    "split_example",
]


def split_example(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as (args, kwargs): a tuple is positional, a dict by name, else one input."""
    if example is None:
        return (), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    return (example,), {}


def import_model(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any = None
) -> Imported:
    """Import whatever `xrt.compile` takes.

    Args:
        model: torch.nn.Module, torch.export.ExportedProgram, path, bytes, onnx.ModelProto,
            onnx_ir.Model or onnx_graphsurgeon.Graph.
        args: Example positional inputs; only a torch.nn.Module needs them.
        kwargs: Example inputs by name.
        dynamic_shapes: As torch.export.export takes them; for a torch.nn.Module only.

    Raises:
        ModelImportError: If the model is not understood.
    """
    if is_torch_module(model):
        return load_module(model, args, kwargs, dynamic_shapes)
    if is_exported_program(model):
        return load_exported_program(model)
    from xrt.importers.graphsurgeon import is_graphsurgeon, load_graphsurgeon
    from xrt.importers.onnx import load_onnx

    if is_graphsurgeon(model):
        loaded = load_graphsurgeon(model)
    elif _is_onnx(model):
        loaded = load_onnx(model)
    else:
        raise ModelImportError(
            f"Cannot import a {type(model).__module__}.{type(model).__qualname__}. Known models: "
            "torch.nn.Module, torch.export.ExportedProgram, a path or bytes of ONNX, "
            "onnx.ModelProto, onnx_ir.Model, onnx_graphsurgeon.Graph."
        )
    return Imported(loaded, OnnxInterface(loaded))


def import_for_training(
    model: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trainable: Sequence[str] | None = None,
) -> TrainingModel:
    """Import what `xrt.compile_training` takes, with its weights as inputs of the graph.

    Args:
        model: torch.nn.Module, or an ONNX model in any form that `import_model` takes.
        args: Example positional inputs.
        kwargs: Example inputs by name.
        trainable: Patterns of the names of an ONNX model's initializers that are trained.

    Raises:
        ModelImportError: If the model is not understood, or an ONNX model has nothing to train.
    """
    if is_torch_module(model):
        from xrt.importers.torch_training import load_training_module

        return load_training_module(model, args, kwargs)
    if is_exported_program(model):
        raise ModelImportError(
            "An ExportedProgram has lost what training needs. Pass the torch module itself."
        )
    imported = import_model(model, args, kwargs)
    return with_trainable_initializers(imported.model, imported.interface, trainable)


def _is_onnx(model: object) -> bool:
    if isinstance(model, (str, os.PathLike, bytes, bytearray, memoryview)):
        return True
    return type(model).__name__ in ("Model", "ModelProto") and (
        type(model).__module__.split(".")[0] in ("onnx", "onnx_ir", "google")
    )
