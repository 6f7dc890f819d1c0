"""Folds Pad into the padding of the convolution or pooling that follows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard, static_shape
from xrt.passes.rewrite import all_nodes, producer, rank, replace_node


class FoldPadPass(ir.passes.InPlacePass):
    """Conv(Pad(x, p), W, pads=q) => Conv(x, W, pads=p+q); so for AveragePool that counts its pads.

    Requires constant, non-negative pads of spatial axes only, and the value zero. An `auto_pad` of
    SAME_UPPER or SAME_LOWER becomes explicit first, which needs static shapes. AveragePool needs
    count_include_pad = 1, no ceil_mode, and windows larger than the pads. MaxPool pads with minus
    infinity, so it stays. Preserves the Pad for its other users.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the pads in all graphs of `model`."""
        modified = False
        for node in all_nodes(model):
            if is_standard(node, "Conv", "AveragePool"):
                modified |= _fold(node)
        return ir.passes.PassResult(model, modified=modified)


def _fold(node: ir.Node) -> bool:
    pad = producer(node.inputs[0], "Pad")
    if pad is None or (ranks := rank(node.inputs[0])) is None:
        return False
    outer = _zero_pads(pad, ranks)
    inner = None if outer is None else _explicit_pads(node, ranks - 2)
    if outer is None or inner is None:
        return False
    pads = [one + other for one, other in zip(outer, inner, strict=True)]
    if node.op_type == "AveragePool" and not _counts_pads(node, pads):
        return False
    attributes = {
        attribute.name: attribute
        for attribute in node.attributes.values()
        if attribute.name not in ("auto_pad", "pads")
    }
    replace_node(
        node, node.op_type, [pad.inputs[0], *node.inputs[1:]], {**attributes, "pads": pads}
    )
    return True


def _zero_pads(pad: ir.Node, ranks: int) -> list[int] | None:
    """Pads of the spatial axes, starts then ends, if `pad` only adds zeros there."""
    if pad.attributes.get_string("mode", "constant") != "constant":
        return None
    inputs = [*pad.inputs, None, None, None]
    amounts = constant(inputs[1])
    value, fill = inputs[2], constant(inputs[2])
    if amounts is None or (value is not None and (fill is None or fill.any())):
        return None
    axes = np.arange(ranks)
    if inputs[3] is not None:
        chosen = constant(inputs[3])
        if chosen is None:
            return None
        axes = chosen.astype(np.int64) % ranks
    full = np.zeros((2, ranks), dtype=np.int64)
    full[:, axes] = amounts.reshape(2, -1)
    if full.min() < 0 or full[:, :2].any():
        return None
    return [int(amount) for amount in full[:, 2:].reshape(-1)]


def _explicit_pads(node: ir.Node, spatial: int) -> list[int] | None:
    """The pads of a convolution or pooling in numbers, or None if its shapes are not known."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return [int(pad) for pad in node.attributes.get_ints("pads") or [0] * 2 * spatial]
    if mode == "VALID":
        return [0] * 2 * spatial
    shape, weight = static_shape(node.inputs[0]), node.inputs[1] if len(node.inputs) > 1 else None
    kernel = node.attributes.get_ints("kernel_shape") or (static_shape(weight) or ())[2:]
    if shape is None or len(kernel) != spatial:
        return None
    strides = node.attributes.get_ints("strides") or [1] * spatial
    dilations = node.attributes.get_ints("dilations") or [1] * spatial
    starts, ends = [], []
    for size, window, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        reach = (window - 1) * dilation + 1
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        less, more = total // 2, total - total // 2
        starts.append(less if mode == "SAME_UPPER" else more)
        ends.append(more if mode == "SAME_UPPER" else less)
    return starts + ends


def _counts_pads(pool: ir.Node, pads: list[int]) -> bool:
    """Whether an AveragePool with `pads` averages over them as over the zeros of a Pad."""
    if pool.attributes.get_int("ceil_mode", 0):
        return False
    window = list(pool.attributes["kernel_shape"].as_ints()) * 2
    counted = bool(pool.attributes.get_int("count_include_pad", 0))
    return counted and all(pad < size for pad, size in zip(pads, window, strict=True))
