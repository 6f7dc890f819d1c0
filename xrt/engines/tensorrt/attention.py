"""Attention: which nodes the parser reads whole, and rows that a mask forbids altogether."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.tensorrt.surgery import Surgeon

_MOST_INPUTS = 4  # Q, K, V and the mask: not the cache, nor the lengths of padded keys

_ASSUMED = {"softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
"""Attributes that the parser refuses or passes over, and the value that it takes for granted."""

_HEADS = 1
_KEYS = -2


def is_taken(node: ir.Node) -> bool:
    """Whether the parser reads an Attention as ONNX means it, but for rows without a key.

    Heads that share keys, keys and values of different sizes, a cache, a softcap, a window, a
    softmax of another type, and a causal mask over more keys than queries (whose corner TensorRT
    may choose differently) are written out instead.
    """
    inputs = list(node.inputs)
    if inputs[0] is None:
        return False
    if any(value is not None for value in inputs[_MOST_INPUTS:]) or _has_more_outputs(node):
        return False
    for name, assumed in _ASSUMED.items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != assumed:
            return False
    scale, precision = node.attributes.get("scale"), node.attributes.get("softmax_precision")
    if scale is not None and scale.as_float() <= 0:  # the parser takes its square root
        return False
    if precision is not None and precision.as_int() not in (0, inputs[0].dtype):
        return False
    return _heads_agree(node) and _mask_is_plain(node)


def _has_more_outputs(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs[1:])


def _heads_agree(node: ir.Node) -> bool:
    query, key, value = (_sizes(each) for each in node.inputs[:3])
    if query is None or key is None or len(query) != len(key) or key != value:
        return False
    if _is_causal(node) and query[_KEYS] != key[_KEYS]:
        return False
    if len(query) == 4:
        return query[_HEADS] == key[_HEADS]
    own, shared = node.attributes.get("q_num_heads"), node.attributes.get("kv_num_heads")
    return own is not None and shared is not None and own.as_int() == shared.as_int()


def _sizes(value: ir.Value | None) -> tuple[int | str, ...] | None:
    """The shape of a value, open dimensions by name; None if some have none, and may be any."""
    if value is None or value.shape is None or value.shape.has_unknown_dim():
        return None
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in value.shape)


def _mask_is_plain(node: ir.Node) -> bool:
    """Whether there is no mask, or one whose empty rows can be guarded."""
    mask = _mask(node)
    if mask is None:
        return True
    query, key, shape = _sizes(node.inputs[0]), _sizes(node.inputs[1]), _sizes(mask)
    if query is None or key is None or not shape or shape[-1] != key[_KEYS]:
        return False  # keys that the mask does not reach are forbidden
    if _is_causal(node):
        return False
    return _every_row_has_a_key(mask) or len(query) == 4


def _is_causal(node: ir.Node) -> bool:
    attribute = node.attributes.get("is_causal")
    return attribute is not None and bool(attribute.as_int())


def _mask(node: ir.Node) -> ir.Value | None:
    return node.inputs[3] if len(node.inputs) > 3 else None


def _every_row_has_a_key(mask: ir.Value) -> bool:
    """Whether that is certain, of a constant."""
    array = G.constant(mask)
    if array is None:
        return False
    allowed = array if array.dtype == np.bool_ else array.astype(np.float32) != -np.inf
    return bool(allowed.any(-1).all())


def guard_rows(surgeon: Surgeon) -> None:
    """A row that the mask forbids gives zeros in ONNX; what TensorRT gives there is not known.

    Attention(Q, K, V, mask) => Where(any key, Attention(Q, K, V, mask or no key at all), 0).
    """
    node = surgeon.node
    for name in (*_ASSUMED, "softmax_precision"):  # whose values are those that the parser assumes
        node.attributes.pop(name, None)
    if "TRT_decomposable" not in node.attributes:
        # Without it a build fails where TensorRT has no fused kernel, in float32 for one.
        node.attributes["TRT_decomposable"] = ir.AttrInt64("TRT_decomposable", 1)
    mask = _mask(node)
    result = node.outputs[0]
    if mask is None or mask.dtype is None or result.dtype is None or _every_row_has_a_key(mask):
        return
    axes = surgeon.ints(-1)
    if mask.dtype == ir.DataType.BOOL:
        number = surgeon.before("Cast", [mask], to=int(ir.DataType.INT32))
        most = surgeon.before("ReduceMax", [number, axes], keepdims=1)
        some = surgeon.before("Cast", [most], to=int(ir.DataType.BOOL))
        none = surgeon.before("Not", [some])
        guarded = surgeon.before("Or", [mask, none])
    else:
        dtype = mask.dtype.numpy()
        most = surgeon.before("ReduceMax", [mask, axes], keepdims=1)
        none = surgeon.before("Equal", [most, surgeon.constant(np.array(-np.inf, dtype))])
        some = surgeon.before("Not", [none])
        zero = surgeon.constant(np.zeros((), dtype))
        guarded = surgeon.before("Where", [none, zero, mask])
    node.replace_input_with(3, guarded)
    zero = surgeon.constant(np.zeros((), result.dtype.numpy()))
    surgeon.after("Where", [some, result, zero])
