"""Recognizes scaled dot-product attention written out in matrix products."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, static_shape
from xrt.passes.attention_pattern import (
    Attention,
    Mask,
    RefusalError,
    match,
    require,
    softmax_before,
)
from xrt.passes.infer_shapes import Problem
from xrt.passes.rewrite import (
    Names,
    all_nodes,
    is_floating,
    is_numeric,
    new_node,
    producer,
    rank,
    replace_node,
    scalar,
)
from xrt.passes.value_types import dims_of

logger = logging.getLogger(__name__)

_ATTENTION_OPSET = 25
"""Since this opset a row that a mask forbids altogether gives zeros, as the exported guard does."""


class FuseAttentionPass(ir.passes.InPlacePass):
    """softmax(Q K^T * scale + mask) V => Attention(Q, K, V, mask, scale=scale).

    Also where the scale is split over Q and K or is a division, where K^T is a Transpose of K (also
    inside reshapes that fold and unfold the heads) or any other value (which is then transposed
    back), where Where(IsNaN(p), 0, p) guards the probabilities, and where the mask is a sum of
    masks, Where(allowed, 0, -inf) or Where(allowed, scores, -inf). A constant mask of zeros is left
    out. Three-dimensional products [heads, queries, size] gain a batch of one.

    Requires static shapes of Q, K and V with equal batch and heads, a mask whose last dimension is
    the number of keys, opset 25, and that nothing else uses the scores or the probabilities. What
    has a softmax before a product and is not fused is in `refusals`. Preserves values up to
    rounding, but for rows of NaN: where -inf forbids every key of a row, the result is zero, and
    where an input is NaN, it is NaN, whatever guard there was.

    Attributes:
        refusals: Of the last call: why an attention was not fused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.refusals: list[Problem] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse the attentions in all graphs of `model`."""
        self.refusals = []
        modified = False
        names: Names | None = None
        for node in all_nodes(model):
            softmax = softmax_before(node)
            if softmax is None:
                continue
            try:
                require(
                    model.opset_imports.get("", 0) >= _ATTENTION_OPSET,
                    f"Attention needs opset {_ATTENTION_OPSET}",
                )
                found = _check(match(node, softmax))
            except RefusalError as refusal:
                self.refusals.append(Problem(node.op_type, str(node.name), str(refusal)))
                logger.debug("Attention not fused: %s", self.refusals[-1])
                continue
            names = names or Names(model)
            _rewrite(node, found, names)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _check(found: Attention) -> Attention:
    """Refuse what Attention does not compute; leave out masks that do nothing."""
    require(found.scale > 0 and bool(np.isfinite(found.scale)), "the scale is not positive")
    require(
        all(is_floating(value) for value in (found.query, found.key, found.value)),
        "the factors are not floating-point",
    )
    shapes = [static_shape(value) for value in (found.query, found.key, found.value)]
    query, key, value = (shape or () for shape in shapes)
    require(all(len(shape) > 2 for shape in (query, key, value)), "the shapes are not static")
    if found.key_axes is not None:
        key = tuple(key[axis] for axis in found.key_axes)
    require(len(query) == len(key) == len(value), "the factors differ in rank")
    # A product would broadcast these; Attention shares heads of K and V in another way.
    require(
        query[:-2] == key[:-2] == value[:-2], "the factors broadcast over the batch or the heads"
    )
    require(query[-1] == key[-1] and key[-2] == value[-2], "the shapes do not fit")
    full = (*query[:-1], key[-2])
    masks = tuple(mask for mask in found.masks if not _is_zero(mask.value))
    for mask in masks:
        _check_mask(mask, full, found.query)
    return replace(found, masks=masks)


def _is_zero(mask: ir.Value) -> bool:
    if mask.dtype == ir.DataType.BOOL or not is_numeric(mask):
        return False
    array = constant(mask)
    return array is not None and not array.any()


def _check_mask(mask: Mask, full: Sequence[int], query: ir.Value) -> None:
    shape = mask.shape
    require(shape is not None, "the shape of the mask is not static")
    assert shape is not None
    require(
        mask.value.dtype in (ir.DataType.BOOL, query.dtype),
        "the mask is of another type than the scores",
    )
    require(1 <= len(shape) <= len(full), "the mask has another rank than the scores")
    # Attention pads a shorter mask with -inf, where a sum would broadcast it.
    require(shape[-1] == full[-1], "the mask is broadcast over the keys")
    aligned = (1,) * (len(full) - len(shape)) + tuple(shape)
    require(
        all(size in (1, whole) for size, whole in zip(aligned, full, strict=True)),
        "the mask broadcasts the scores",
    )


def _rewrite(product: ir.Node, found: Attention, names: Names) -> None:
    """Put an Attention in the place of `product`."""
    name = str(product.outputs[0].name)
    flat = rank(found.query) == 3

    def lift(value: ir.Value, role: str) -> ir.Value:
        """[heads, ...] => [1, heads, ...]"""
        if not flat:
            return value
        axes = names.constant(product.graph, f"{name}_{role}_axes", np.array([0], dtype=np.int64))
        dims = dims_of(value.shape) or ()
        return new_node(
            "Unsqueeze", [value, axes], before=product, name=names.fresh(f"{name}_{role}"),
            dtype=value.dtype, shape=ir.Shape((1, *dims)),
        )  # fmt: skip

    key = found.key
    if found.key_axes is not None:
        shape = static_shape(key) or ()
        key = new_node(
            "Transpose", [key], {"perm": list(found.key_axes)}, before=product,
            name=names.fresh(f"{name}_key"), dtype=key.dtype,
            shape=[shape[axis] for axis in found.key_axes],
        )  # fmt: skip
    inputs = [lift(found.query, "q"), lift(key, "k"), lift(found.value, "v")]
    mask = _mask(product, found, names)
    if mask is not None:
        # A mask of rank 3 is aligned to [heads, queries, keys] in both.
        inputs.append(mask)
    attributes: dict[str, Any] = {"scale": float(found.scale)}
    if not flat:
        replace_node(product, "Attention", inputs, attributes)
        return
    value = product.outputs[0]
    lifted = new_node(
        "Attention", inputs, attributes, before=product, name=names.fresh(f"{name}_attention"),
        dtype=value.dtype, shape=ir.Shape((1, *(dims_of(value.shape) or ()))),
    )  # fmt: skip
    axes = names.constant(product.graph, f"{name}_axes", np.array([0], dtype=np.int64))
    replace_node(product, "Squeeze", [lifted, axes])


def _mask(product: ir.Node, found: Attention, names: Names) -> ir.Value | None:
    """One mask for all: boolean if all are, else their sum."""
    name = str(product.outputs[0].name)
    values = [_folded(mask, product, names) for mask in found.masks]
    masks = [_as_boolean(value) or value for value in values]
    op_type = "And"
    if any(mask.dtype != ir.DataType.BOOL for mask in masks):
        op_type = "Add"
        masks = [_as_additive(value, product, found.query, names) for value in values]
    total: ir.Value | None = None
    for mask in masks:
        if total is None:
            total = mask
            continue
        shape = np.broadcast_shapes(static_shape(total) or (), static_shape(mask) or ())
        total = new_node(
            op_type, [total, mask], before=product, name=names.fresh(f"{name}_mask"),
            dtype=mask.dtype, shape=shape,
        )  # fmt: skip
    return total


def _folded(mask: Mask, before: ir.Node, names: Names) -> ir.Value:
    """A mask of scores [b, w, h, q, k] as one of [b*w, h, q, k]; any other as it is."""
    value, unfolded = mask.value, mask.unfolded
    if unfolded is None:
        return value
    shape = mask.shape or ()
    wide = (*unfolded[:2], *shape[1:])
    name = str(value.name)
    for op_type, target in (("Expand", wide), ("Reshape", shape)):
        if static_shape(value) == target:
            continue
        array = names.constant(before.graph, f"{name}_shape", np.array(target, dtype=np.int64))
        value = new_node(
            op_type,
            [value, array],
            before=before,
            name=names.fresh(f"{name}_folded"),
            dtype=value.dtype,
            shape=target,
        )
    return value


def _as_boolean(mask: ir.Value) -> ir.Value | None:
    """The condition of Where(allowed, 0, -inf) if it has the shape of the mask."""
    where = producer(mask, "Where")
    if where is None or scalar(where.inputs[1]) != 0.0 or scalar(where.inputs[2]) != -np.inf:
        return None
    allowed = where.inputs[0]
    same = allowed is not None and static_shape(allowed) == static_shape(mask)
    return allowed if same else None


def _as_additive(mask: ir.Value, before: ir.Node, query: ir.Value, names: Names) -> ir.Value:
    """Where(mask, 0, -inf) of a boolean mask; any other as it is."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    assert query.dtype is not None
    name, dtype = str(mask.name), query.dtype.numpy()
    zero = names.constant(before.graph, f"{name}_zero", np.array(0, dtype=dtype))
    never = names.constant(before.graph, f"{name}_never", np.array(-np.inf, dtype=dtype))
    return new_node(
        "Where", [mask, zero, never], before=before, name=names.fresh(f"{name}_additive"),
        dtype=query.dtype, shape=mask.shape,
    )  # fmt: skip
