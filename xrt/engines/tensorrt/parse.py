"""From an exported cluster to a TensorRT network, and what the parser says if it cannot."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.engines.tensorrt.library import Library, Messages, listening, logger, plain

_INLINE_BYTES = 1024
"""Constants up to this size go into the model's bytes; larger ones are handed over by address."""


class ParseError(Exception):
    """The parser refused a model.

    Attributes:
        reason: Why, in its words.
        node: The node of the model, where it named one.
    """

    def __init__(self, reason: str, node: ir.Node | None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


@dataclass(eq=False)
class Network:
    """A parsed network. The objects of the library die with it, in the order that they need.

    Attributes:
        builder: The builder that owns it.
        network: The library's network.
    """

    builder: Any
    network: Any
    _parser: Any = field(repr=False)
    _arrays: Any = field(repr=False)  # the library does not copy weights before it builds

    def __del__(self) -> None:
        self._parser = None  # before the network that it filled
        self.network = None
        self.builder = None


def parse(library: Library, model: ir.Model) -> Network:
    """Give `model`, as `export` made it, to the parser; its large tensors are not copied.

    Changes the model: its large initializers say afterwards that their data is elsewhere.

    Raises:
        ParseError: If the parser refuses.
    """
    trt, log = library.trt, logger(library)
    builder = trt.Builder(log)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, log)
    arrays = _detach_weights(model)
    made = Network(builder, network, parser, arrays)
    with listening() as messages:
        done = parser.load_model_proto(ir.to_proto(model).SerializeToString())
        for name, array in arrays.items():
            done = done and parser.load_initializer(name, array.ctypes.data, array.nbytes)
        if not (done and parser.parse_model_proto()):
            raise _error(parser, messages, model)
    return made


def _detach_weights(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Take the large tensors out of `model`, which then fits in a message of 2 GB."""
    arrays = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.nbytes > _INLINE_BYTES:
            arrays[name] = _packed(tensor)
            shape = ir.Shape([int(str(dim)) for dim in tensor.shape])
            value.const_value = ir.ExternalTensor(
                "by address", 0, tensor.nbytes, tensor.dtype, name=name, shape=shape
            )
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    return arrays


def _packed(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """The bytes of a tensor as ONNX stores them, in one piece."""
    if tensor.dtype.bitwidth < 8:
        return np.frombuffer(tensor.tobytes(), np.uint8)
    return np.ascontiguousarray(tensor.numpy())


def _error(parser: Any, messages: Messages, model: ir.Model) -> ParseError:
    if not parser.num_errors:
        return ParseError("; ".join(messages.errors) or "the parser gave no reason", None)
    first = parser.get_error(0)
    nodes = list(model.graph)
    index = int(first.node())
    node = nodes[index] if 0 <= index < len(nodes) else None
    operator = first.node_operator() or (node.op_type if node is not None else "")
    return ParseError(_reason(str(first.desc()), operator, messages), node)


_ASSERTION = re.compile(r"^Assertion failed: (?P<condition>.*?): (?P<text>[A-Z\"'].*)$", re.DOTALL)
_QUOTED = re.compile(r'^.*&& "(?P<text>.*)"$', re.DOTALL)
_UNKNOWN = re.compile(r"^false$|Plugin not found|was not found in plugin registry")
_NOISE = re.compile(r"^(ModelImporter\.cpp:|Node name:)")


def _reason(text: str, operator: str, messages: Messages) -> str:
    """The parser's words, without the C++ around them."""
    if _UNKNOWN.search(text):
        return f"TensorRT's parser has no operator {operator}"
    if text.startswith("Invalid Node"):  # the reason went to the log
        logged = [each for each in messages.errors if not _NOISE.match(each)]
        text = logged[0] if logged else text
    for pattern in (_ASSERTION, _QUOTED):
        found = pattern.match(text)
        if found:
            text = found["text"].replace('" "', "")  # adjacent literals of C++
    text = plain(text).removeprefix(f"{operator}: ")
    return f"{operator}: {text}" if operator else text
