"""Checks of the tensors of an imported model: complete, and made of numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import ModelImportError, ModelNotFoundError
from xrt.graph import is_standard, snapshot

_WEIGHTED = (
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "GroupNormalization"),
    *("InstanceNormalization", "LayerNormalization", "RMSNormalization"),
)
"""Operators whose inputs from the second on are weights, in which Inf has no use."""


class MappedTensor(ir.Tensor[Any]):
    """A tensor in a file that is mapped into memory and never changes: it may be shared for good.

    Attributes:
        content_digest: What `graph.tensor_digest` gives for it; None if that is not known.
    """

    def __init__(
        self, array: np.ndarray[Any, Any], dtype: ir.DataType, content_digest: str | None
    ) -> None:
        super().__init__(array, dtype)
        self.content_digest = content_digest


def check_external(tensor: ir.ExternalTensor, who: str) -> None:
    """The file with the data exists inside the folder of the model, and is long enough."""
    place = f"{who} keeps the tensor {tensor.name!r} in the external file"
    location, folder = os.fspath(tensor.location), os.path.realpath(tensor.base_dir)
    path = os.path.realpath(tensor.path)
    if os.path.isabs(location) or os.path.commonpath([folder, path]) != folder:
        raise ModelImportError(
            f"{place} {location!r}, which lies outside the folder of the model. Files there are "
            "not read; store or copy the file itself, not a link, next to the model."
        )
    if not os.path.isfile(path):
        raise ModelNotFoundError(
            f"{place} {location!r}, which does not exist. Put it next to the model, into "
            f"{os.path.abspath(tensor.base_dir)}."
        )
    status = os.stat(path)
    if status.st_nlink > 1:  # onnx_ir does not read it either: it may be any file of the disk
        raise ModelImportError(
            f"{place} {location!r}, which is a hard link. Copy the file itself next to the model."
        )
    start, have = tensor.offset or 0, status.st_size
    if tensor.length is not None and tensor.length < tensor.nbytes:
        raise ModelImportError(
            f"{place} {location!r} with a length of {tensor.length} bytes, but its shape and type "
            f"need {tensor.nbytes}. Export the model again."
        )
    if start + tensor.nbytes > have:
        raise ModelImportError(
            f"{place} {location!r}, which ends too early: {start + tensor.nbytes} bytes are "
            f"needed, {have} are there. Copy or export the file again."
        )


def take_snapshots(model: ir.Model) -> None:
    """Give `model` weights of its own, where they are in memory: the caller's may go on changing.

    Files stay memory-mapped, and strings, which no engine reads, stay as they are.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or isinstance(tensor, ir.ExternalTensor):
                continue
            value.metadata_props.update(tensor.metadata_props)  # the snapshot has none
            if tensor.dtype != ir.DataType.STRING:
                value.const_value = snapshot(tensor)


def check_values(graphs: Iterable[ir.Graph], who: str) -> None:
    """Initializers and Constant nodes can be read, have no NaN, and weights have no Inf."""
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                _check(f"initializer {value.name!r}", value.const_value, [value], who)
        for node in graph:
            if is_standard(node, "Constant"):
                for tensor in _constants(node):
                    _check(f"Constant {node.outputs[0].name!r}", tensor, node.outputs, who)


def _constants(node: ir.Node) -> Iterator[ir.TensorProtocol]:
    for name in ("value", "value_float", "value_floats"):
        attribute = node.attributes.get(name)
        if attribute is None or attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield attribute.as_tensor()
        else:
            yield ir.tensor(np.array(attribute.value, np.float32))


def _check(what: str, tensor: ir.TensorProtocol, values: Iterable[ir.Value], who: str) -> None:
    if tensor.dtype == ir.DataType.STRING:
        return
    try:
        array = tensor.numpy()
    except MemoryError:
        raise  # which says how much was asked for
    except Exception as error:  # by kind of tensor: ValueError, TypeError, OSError, ...
        raise ModelImportError(
            f"{who}: the data of {what} do not fit its type {tensor.dtype.name} and shape "
            f"{list(tensor.shape.numpy())}: {error}"
        ) from error
    if not tensor.dtype.is_floating_point() or _is_finite(array):
        return
    nans = int(np.isnan(array).sum())
    if nans:
        raise ModelImportError(
            f"{who}: {nans} of {array.size} numbers of {what} are NaN. "
            "Check the checkpoint that the model was exported from."
        )
    reader = next((node for value in values for node in _weighted_readers(value)), None)
    if reader is not None:
        count = int(np.isinf(array).sum())
        raise ModelImportError(
            f"{who}: {count} of {array.size} numbers of {what}, a weight of {reader.op_type}"
            f"{f' {reader.name!r}' if reader.name else ''}, are infinite. "
            "Check the checkpoint that the model was exported from."
        )


def _weighted_readers(value: ir.Value) -> Iterator[ir.Node]:
    for node, index in value.uses():
        if index > 0 and is_standard(node, *_WEIGHTED):
            yield node


def _is_finite(array: np.ndarray[Any, Any]) -> bool:
    """Whether there is neither NaN nor Inf, fast for the usual types."""
    if array.dtype in (np.float32, np.float64):
        # The sum of finite numbers is finite unless it overflows, and takes no extra memory.
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(array.sum()):
                return True
    elif array.dtype.itemsize == 2:  # float16 and bfloat16: all ones in the exponent
        mask = np.uint16(0x7C00 if array.dtype == np.float16 else 0x7F80)
        bits = np.ascontiguousarray(array).view(np.uint16)
        return not bool(((bits & mask) == mask).any())
    return bool(np.isfinite(array).all())
