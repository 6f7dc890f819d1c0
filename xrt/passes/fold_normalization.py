"""Takes the normalization of an image into the weights of the convolution that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard
from xrt.passes.fold_batchnorm import Affine, fold_forward, pads
from xrt.passes.fuse_conv_bias import per_channel
from xrt.passes.rewrite import (
    Names,
    all_nodes,
    is_floating,
    operand_and_constant,
    prune,
    sole_producer,
)

Array = np.ndarray[Any, Any]


class FoldNormalizationPass(ir.passes.InPlacePass):
    """Conv((x - m) * s, W, b) => Conv(x, W*s, b - sum(W*s*m)); => Conv(x - m, W*s, b) if it pads.

    So for any chain of Add, Sub, Mul and Div with constants, each a number or one for each channel.
    A Conv that pads adds zeros to what is normalized: the mean, not zero, is the pixel to pad with,
    so the subtraction stays, and only the factor goes.

    Requires constant weights and bias, floating-point numbers, that the channels of x are known,
    and that nothing else uses what lies between. Preserves shared weights, as FoldBatchNormPass.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold what precedes the convolutions in all graphs of `model`."""
        names: Names | None = None
        modified = False
        for node in all_nodes(model):
            chain = _chain(node) if is_standard(node, "Conv") else None
            if chain is not None:
                names = names or Names(model)
                modified |= _fold(node, chain, names)
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True, eq=False)
class _Chain:
    """What a Conv reads is `affine` of `base`, by `length` nodes."""

    base: ir.Value
    affine: Affine
    length: int


def _chain(conv: ir.Node) -> _Chain | None:
    """The arithmetic before a convolution, back to what is no arithmetic with constants."""
    weight = constant(conv.inputs[1])
    value = conv.inputs[0]
    if weight is None or value is None or not is_floating(value):
        return None
    channels = weight.shape[1] * conv.attributes.get_int("group", 1)
    scale, shift, length, user = np.ones(channels), np.zeros(channels), 0, conv
    while (step := _step(value, user, channels, weight.ndim)) is not None:
        user, value, affine = step
        shift = shift + scale * affine.shift
        scale = scale * affine.scale
        length += 1
    return _Chain(value, Affine(scale, shift), length) if length else None


def _step(
    value: ir.Value, user: ir.Node, channels: int, rank: int
) -> tuple[ir.Node, ir.Value, Affine] | None:
    """The node that makes `value`, what it reads, and what it does to each channel of that."""
    node = sole_producer(value, user, "Add", "Sub", "Mul", "Div")
    operands = None if node is None else operand_and_constant(node)
    if node is None or operands is None:
        return None
    base, array = operands[0], constant(operands[1])
    shape = base.shape
    if array is None or shape is None or len(shape) != rank or shape[1] != channels:
        return None
    numbers = per_channel(array, channels, rank)
    if numbers is None:
        return None
    affine = _affine(node.op_type, numbers, swapped=base is not node.inputs[0])
    return None if affine is None else (node, base, affine)


def _affine(op_type: str, numbers: Array, *, swapped: bool) -> Affine | None:
    ones, zeros = np.ones_like(numbers), np.zeros_like(numbers)
    if op_type == "Add":
        return Affine(ones, numbers)
    if op_type == "Mul":
        return Affine(numbers, zeros)
    if op_type == "Sub":
        return Affine(-ones, numbers) if swapped else Affine(ones, -numbers)
    if swapped or not numbers.all():
        return None  # c / x is not linear
    return Affine(1.0 / numbers, zeros)


def _fold(conv: ir.Node, chain: _Chain, names: Names) -> bool:
    normalized, affine = conv.inputs[0], chain.affine
    assert normalized is not None
    if not (affine.shift.any() and pads(conv)):
        return fold_forward(normalized, chain.base, affine, names)
    if chain.length == 1 or not affine.scale.all():
        return False
    return _fold_scale(conv, normalized, chain, names)


def _fold_scale(conv: ir.Node, normalized: ir.Value, chain: _Chain, names: Names) -> bool:
    """Fold the factor only: s * x + t = s * (x - m)."""
    affine, base = chain.affine, chain.base
    assert base.dtype is not None
    assert base.shape is not None
    mean = -affine.shift / affine.scale
    array = mean.reshape(-1, *(1,) * (len(base.shape) - 2)).astype(base.dtype.numpy())
    graph = conv.graph
    assert graph is not None
    name = f"{base.name}_centred"
    output = ir.Value(name=names.fresh(name), type=base.type, shape=base.shape.copy())
    offset = names.constant(graph, f"{base.name}_mean", array)
    centre = ir.node("Sub", [base, offset], outputs=[output], name=output.name)
    graph.insert_before(conv, centre)
    scaled = Affine(affine.scale, np.zeros_like(affine.shift))
    conv.replace_input_with(0, output)
    if not fold_forward(output, output, scaled, names):
        conv.replace_input_with(0, normalized)
        prune(output)
        return False
    prune(normalized)
    return True
