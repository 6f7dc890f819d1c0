"""Graphs as ONNX bytes whose weights lie in files beside them, each content once.

The bytes are plain ONNX with external data, so a saved program that is unpacked by any zip tool
holds models that any ONNX tool reads. Read back, weights are views of the mapped file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt import graph as G
from xrt.importers.tensors import MappedTensor
from xrt.runtime import arrays
from xrt.runtime.archive import ALIGNMENT, Chunk, Member

LEAST_BYTES = 1024
"""Smaller tensors stay in the graph."""

MEMBER_BYTES = 1 << 26
"""A member that has so much takes no further array: several are checked at the same time."""

Array = np.ndarray[Any, Any]
Place = tuple[str, int, int]
"""Name of the member, offset in it, and length."""


class Weights:
    """Collects arrays for the members that hold them; equal ones are there once."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}
        self._places: dict[str, Place] = {}
        self._members: list[list[tuple[int, Callable[[], Chunk]]]] = []
        self._sizes: list[int] = []

    def pack(self, model: ir.Model) -> bytes:
        """`model`, which stays as it is, as ONNX; its weights join the others."""
        model = model.clone()
        for graph in _graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None:
                    large = _is_large(tensor)
                    value.const_value = self._external(tensor) if large else _inline(tensor)
            for node in graph:
                for attribute in list(node.attributes.values()):
                    if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
                        tensor = _inline(attribute.as_tensor())
                        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, tensor)
        content: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return content

    def add(self, key: str, array: Array) -> dict[str, Any]:
        """Where an array is, in a form fit for JSON; `key` names its content."""
        place = self._place(key, array.nbytes, partial(_bytes_of, array))
        return {"place": place, "dtype": array.dtype.name, "shape": list(array.shape)}

    def members(self) -> list[Member]:
        """The members, once all is there."""
        return [
            Member(_name(number), size, partial(_chunks, parts, size))
            for number, (parts, size) in enumerate(zip(self._members, self._sizes, strict=True))
        ]

    def _external(self, tensor: ir.TensorProtocol) -> ir.ExternalTensor:
        key = G.tensor_digest(tensor)
        name, start, length = self._place(key, tensor.nbytes, partial(_content, tensor))
        self.digests[f"{name}:{start}"] = key
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(name, start, length, tensor.dtype, shape=shape, name="")

    def _place(self, key: str, size: int, content: Callable[[], Chunk]) -> Place:
        found = self._places.get(key)
        if found is None:
            if not self._sizes or self._sizes[-1] >= MEMBER_BYTES:
                self._sizes.append(0)
                self._members.append([])
            start = self._sizes[-1] + -self._sizes[-1] % ALIGNMENT
            self._members[-1].append((start, content))
            self._sizes[-1] = start + size
            found = self._places[key] = _name(len(self._sizes) - 1), start, size
        return found


def _name(number: int) -> str:
    return f"weights-{number}.bin"


def _tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    return attribute.as_tensors() if attribute.type == ir.AttributeType.TENSORS else ()


def _graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield model.graph
    yield from model.graph.subgraphs()


def _is_large(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes >= LEAST_BYTES


def _inline(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor` in memory, wherever the file of the model has it."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _content(tensor: ir.TensorProtocol) -> Chunk:
    # Numbers of less than a byte are packed, as ONNX wants them.
    return tensor.tobytes() if tensor.dtype.bitwidth < 8 else _bytes_of(tensor.numpy())


def _bytes_of(array: Array) -> Chunk:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _chunks(parts: Sequence[tuple[int, Callable[[], Chunk]]], size: int) -> Iterator[Chunk]:
    written = 0
    for start, content in parts:
        yield bytes(start - written)
        chunk = content()
        yield chunk
        written = start + len(chunk)
    assert written == size, "an array changed while it was saved"


class MappedWeights:
    """Reads what `Weights` collected.

    Args:
        view: Gives the content of a member.
        digests: What `Weights.digests` was.
        fail: Raises the error for a file that is damaged.
    """

    def __init__(
        self,
        view: Callable[[str], memoryview],
        digests: Mapping[str, str],
        fail: Callable[[str], Any],
    ) -> None:
        self._view, self._digests, self._fail = view, digests, fail
        self._tensors: dict[tuple[Any, ...], ir.TensorProtocol] = {}

    def unpack(self, content: memoryview) -> ir.Model:
        """The model in ONNX bytes that `Weights.pack` gave; its weights stay in the file."""
        try:
            model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(bytes(content)))
        except Exception as error:  # protobuf and onnx_ir raise many kinds
            self._fail(f"one of its graphs cannot be read ({error})")
        imports = {d: v for d, v in model.graph.opset_imports.items() if d != G.DOMAIN}
        self._refuse_files(model)
        for graph in _graphs(model):
            if graph is not model.graph:  # ONNX keeps the imports of the whole model only
                graph.opset_imports.update(imports)
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = self._tensor(value.const_value)
        return model

    def _refuse_files(self, model: ir.Model) -> None:
        """Only initializers lie outside of the graph, in members of the file."""
        nodes = [*model.graph.all_nodes()]
        for function in model.functions.values():
            nodes += function.all_nodes()
        for node in nodes:
            for attribute in node.attributes.values():
                if any(isinstance(each, ir.ExternalTensor) for each in _tensors(attribute)):
                    self._fail(f"{G.describe(node)} names a file for its {attribute.name!r}")

    def array(self, entry: Mapping[str, Any]) -> Array:
        """The array that `Weights.add` told the place of."""
        return self._array(entry["place"], arrays.numpy_dtype(entry["dtype"]), entry["shape"])

    def _tensor(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor if tensor.dtype == ir.DataType.STRING else G.snapshot(tensor)
        place = (str(tensor.location), tensor.offset or 0, tensor.length)
        shape, dtype = tensor.shape.numpy(), tensor.dtype
        found = self._tensors.get((place, dtype, shape))
        if found is None:
            if dtype.bitwidth < 8:
                raw = self._array(place, np.dtype(np.uint8), [tensor.nbytes])
                found = ir.PackedTensor(raw, dtype, shape=shape)
            else:
                array = self._array(place, dtype.numpy(), shape)
                digest = self._digests.get(f"{place[0]}:{place[1]}")
                found = MappedTensor(array, dtype, digest)
            self._tensors[place, dtype, shape] = found
        return found

    def _array(self, place: Sequence[Any], dtype: np.dtype[Any], shape: Sequence[int]) -> Array:
        name, start, length = place
        view = self._view(name)
        size = prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not 0 <= start <= len(view) - size or length != size:
            self._fail(f"an array of {size} bytes does not fit into {name!r}")
        return np.frombuffer(view[start : start + size], dtype).reshape(shape)
