"""Corrects what ONNX's own rules infer wrongly, or leave out though it is known."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from xrt.graph import constant
from xrt.passes.value_types import Dims, ValueType, type_of

DEFAULTS: dict[str, tuple[onnx.AttributeProto, ...]] = {
    # The rule takes an absent attribute for 0; the operator says that it is 1.
    "STFT": (onnx.helper.make_attribute("onesided", 1),),
}
"""Operator -> attributes that its rule must be given where the node leaves them out."""


def attention(node: ir.Node, found: list[ValueType]) -> list[ValueType]:
    """On four dimensions: the keys and values at present, where there are none of the past, and the
    scores (batch, heads, queries, keys)."""
    query, key, value = (type_of(each) for each in node.inputs[:3])
    has_past = len(node.inputs) > 4 and node.inputs[4] is not None
    if has_past or any(dims is None or len(dims) != 4 for _, dims in (query, key, value)):
        return found
    assert query[1] is not None
    assert key[1] is not None
    scores = (query[0], (*query[1][:3], key[1][2]))
    known = (*found[:1], key, value, scores)
    return [new if old[1] is None else old for old, new in zip(found, known, strict=False)]


def conv_transpose(node: ir.Node, found: list[ValueType]) -> list[ValueType]:
    """With padding for the same size, the size is that of the input times the stride, whatever the
    kernel: the rule adds the taps that reach beyond, and none are left out."""
    mode = node.attributes.get("auto_pad")
    if mode is None or not mode.as_string().startswith("SAME") or "output_shape" in node.attributes:
        return found
    element, dims = found[0]
    source = type_of(node.inputs[0])[1]
    if dims is None or source is None:
        return found
    strides = node.attributes.get_ints("strides") or [1] * (len(source) - 2)
    sizes: Dims = tuple(
        size * stride if isinstance(size, int) else None
        for size, stride in zip(source[2:], strides, strict=True)
    )
    return [(element, (*dims[:2], *sizes))]


def max_unpool(node: ir.Node, found: list[ValueType]) -> list[ValueType]:
    """The shape that the node is given, where it is constant."""
    shape = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if shape is None or (found[0][1] is not None and all(isinstance(d, int) for d in found[0][1])):
        return found
    return [(type_of(node.inputs[0])[0], tuple(int(size) for size in shape.reshape(-1)))]


CORRECTIONS: dict[str, Callable[[ir.Node, list[ValueType]], list[ValueType]]] = {
    "Attention": attention,
    "ConvTranspose": conv_transpose,
    "MaxUnpool": max_unpool,
}
"""Operator of ONNX's own domain -> takes a node and the types that the rule finds for its outputs,
and returns the right ones."""
