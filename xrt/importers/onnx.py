"""Import of ONNX models: files, bytes, protos and onnx_ir models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from xrt.errors import ModelImportError, ModelNotFoundError
from xrt.importers import checks
from xrt.importers.tensors import take_snapshots

OnnxSource: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model"


def load_onnx(source: OnnxSource) -> ir.Model:
    """Read and check a model; `source` is never edited, nor kept: weights in memory are copied.

    Args:
        source: A path, the bytes of a file, an `onnx.ModelProto` or an `onnx_ir.Model`. Weights in
            external files are looked up next to the file and stay memory-mapped.

    Returns:
        A new model at the opset of the source, its nodes in topological order. Initializers that
        were also inputs, as in IR version 3, are no longer inputs.

    Raises:
        ModelNotFoundError: The file, or one with its weights, does not exist.
        UnsupportedOpError: An operator, a domain or the opset is not known.
        ModelImportError: The model is damaged or not valid; the message says where and why.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        return _from_proto(_parse_file(path), str(path), path.absolute().parent)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_proto(_parse(bytes(source), "ONNX bytes"), "ONNX bytes", None)
    if isinstance(source, onnx.ModelProto):
        model = _from_proto(source, "onnx.ModelProto", None)
    elif isinstance(source, ir.Model):
        model = _from_ir(source, "onnx_ir.Model")
    else:
        kind = f"{type(source).__module__}.{type(source).__qualname__}"
        raise ModelImportError(
            f"A model of type {kind} is no ONNX model. Pass a path, bytes, an onnx.ModelProto or "
            "an onnx_ir.Model."
        )
    take_snapshots(model)
    return model


def _parse_file(path: Path) -> onnx.ModelProto:
    """The proto in the file at `path`; a known suffix (.json, .onnxtxt, ...) tells its format."""
    if path.is_dir():
        found = sorted(child.name for child in path.glob("*.onnx"))
        listed = f" It contains: {', '.join(found)}." if found else ""
        raise ModelImportError(f"{path} is a folder, not an ONNX file.{listed}")
    if not path.exists():
        raise ModelNotFoundError(f"There is no file {path}. Check the path of the ONNX model.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelImportError(
            f"{path} could not be read: {error.strerror}. Check its permissions."
        ) from error
    return _parse(content, str(path), path.suffix)


def _parse(content: bytes, who: str, suffix: str = "") -> onnx.ModelProto:
    if not content:
        raise ModelImportError(f"{who} is empty. Export or copy the ONNX model again.")
    registry = onnx.serialization.registry
    known = registry.get_format_from_file_extension(suffix) if suffix else None
    proto = onnx.ModelProto()
    try:
        proto = registry.get(known or "protobuf").deserialize_proto(content, proto)
    except (DecodeError, ValueError, onnx.parser.ParseError) as error:
        raise ModelImportError(
            f"{who} ({len(content)} bytes) is no ONNX model or was cut short: {error}. "
            "Export or copy it again."
        ) from error
    if not proto.HasField("graph"):
        raise ModelImportError(
            f"{who} ({len(content)} bytes) holds no graph, so it is no ONNX model or was cut "
            "short. Export or copy it again."
        )
    return proto


def _from_proto(proto: onnx.ModelProto, who: str, folder: Path | None) -> ir.Model:
    checks.check_proto(proto, who)
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # onnx_ir raises many kinds, all for a proto that breaks the rules
        reason = str(error.__cause__ or error).split("\n", maxsplit=1)[0]
        raise ModelImportError(f"{who} is no valid ONNX model: {reason}") from error
    for tensor in checks.tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            if folder is None:
                raise ModelImportError(
                    f"{who} keeps the tensor {tensor.name!r} in the external file "
                    f"{os.fspath(tensor.location)!r}, whose folder is not known. Pass the path of "
                    "the model instead."
                )
            tensor.base_dir = folder
    return _finish(model, who)


def _from_ir(source: ir.Model, who: str) -> ir.Model:
    checks.check_names(source, who)
    checks.check_edges(source, who)
    checks.check_order(source, who)
    try:
        return _finish(source.clone(), who)
    except RuntimeError as error:
        raise ModelImportError(
            f"{who} could not be copied. Sort it by model.graph.sort() and try again: "
            f"{error.__cause__ or error}"
        ) from error


def _finish(model: ir.Model, who: str) -> ir.Model:
    checks.check_opsets(model, who)
    checks.check_nodes(model, who)
    checks.check_edges(model, who)
    if not checks.check_order(model, who):
        for root in (model.graph, *(function.graph for function in model.functions.values())):
            root.sort()
    checks.check_tensors(model, who)
    RemoveInitializersFromInputsPass()(model)
    return model
