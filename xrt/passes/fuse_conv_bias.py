"""Takes arithmetic with per-channel constants into the weights and bias of a convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard
from xrt.passes.fold_batchnorm import Affine, fold_affine
from xrt.passes.rewrite import Names, all_nodes, operand_and_constant, sole_producer

Array = np.ndarray[Any, Any]


class FuseConvBiasPass(ir.passes.InPlacePass):
    """Conv(x, W, b) + c => Conv(x, W, b + c); Conv(x, W, b) * c => Conv(x, W*c, b*c).

    So for ConvTranspose, for Sub and Div of a constant, and for a chain of these. c is a number, or
    one for each channel: [C, 1, 1] or [1, C, 1, 1] for an image.

    Requires constant weights and bias, that c does not broadcast the result to a larger shape, and
    that nothing else uses what lies between. Preserves shared weights: the new ones, computed in
    float64 and rounded to the weights' dtype, are new initializers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse what follows the convolutions in all graphs of `model`."""
        names: Names | None = None
        modified = False
        for node in all_nodes(model):
            found = _match(node)
            if found is not None:
                names = names or Names(model)
                modified |= fold_affine(node, *found, names)
        return ir.passes.PassResult(model, modified=modified)


def _match(node: ir.Node) -> tuple[ir.Node, Affine] | None:
    """The convolution before `node`, and what `node` does to each of its channels."""
    if not is_standard(node, "Add", "Sub", "Mul", "Div"):
        return None
    operands = operand_and_constant(node)
    if operands is None:
        return None
    if node.op_type in ("Sub", "Div") and operands[0] is not node.inputs[0]:
        return None  # c - x is not x - c
    conv = sole_producer(operands[0], node, "Conv", "ConvTranspose")
    weight = None if conv is None else constant(conv.inputs[1])
    if conv is None or weight is None:
        return None
    array = constant(operands[1])
    assert array is not None
    channels = weight.shape[0]
    if conv.op_type == "ConvTranspose":
        channels = weight.shape[1] * conv.attributes.get_int("group", 1)
    numbers = per_channel(array, channels, weight.ndim)
    if numbers is None or (node.op_type == "Div" and not numbers.all()):
        return None
    return conv, _affine(node.op_type, numbers)


def per_channel(array: Array, channels: int, rank: int) -> Array | None:
    """`array` as one number for each channel of an output of `rank`, or None if it is not that."""
    if array.ndim > rank:
        return None
    shape = (1,) * (rank - array.ndim) + array.shape
    if shape[1] not in (1, channels) or shape != (1, shape[1], *(1,) * (rank - 2)):
        return None
    return np.broadcast_to(array.astype(np.float64).reshape(-1), (channels,))


def _affine(op_type: str, numbers: Array) -> Affine:
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if op_type in ("Add", "Sub"):
        return Affine(ones, numbers if op_type == "Add" else -numbers)
    return Affine(numbers if op_type == "Mul" else 1.0 / numbers, zeros)
