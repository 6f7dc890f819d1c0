"""Folds BatchNormalization into the weights of the linear operator beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard
from xrt.passes.rewrite import (
    Names,
    all_nodes,
    only_user,
    operand_and_constant,
    prune,
    rank,
    replace_node,
    sole_producer,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Affine:
    """y[:, c] = scale[c] * x[:, c] + shift[c], in float64."""

    scale: Array
    shift: Array


class FoldBatchNormPass(ir.passes.InPlacePass):
    """BatchNorm(Conv(x, W, b)) => Conv(x, s*W, s*b + t), with s and t from the four statistics.

    So for ConvTranspose, Gemm, and MatMul of rank 2 with or without an Add of a constant (which
    gains an Add if it has none). Conv(BatchNorm(x), W, b) => Conv(x, W*s, b + sum(W*t)) where Conv
    does not pad, or t = 0: the padding is zero after the normalization, not before.

    Requires constant weights and statistics, training_mode = 0, and that nothing else uses what
    lies between the two, be it a node, a nested graph or a graph output. Preserves shared weights:
    the folded ones, computed in float64 and rounded to the weights' dtype, are new initializers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the batch normalizations in all graphs of `model`."""
        names: Names | None = None
        modified = False
        for node in all_nodes(model):
            affine = _affine(node)
            if affine is not None:
                names = names or Names(model)
                modified |= _fold_backward(node, affine, names) or fold_forward(
                    node.outputs[0], node.inputs[0], affine, names
                )
        return ir.passes.PassResult(model, modified=modified)


def _affine(node: ir.Node) -> Affine | None:
    """What a BatchNormalization in inference computes, if its statistics are constant."""
    if not is_standard(node, "BatchNormalization"):
        return None
    training = node.attributes.get_int("training_mode", 0) != 0
    if training or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    arrays = [constant(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return None
    gamma, beta, mean, variance = (np.asarray(array, dtype=np.float64) for array in arrays)
    scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _fold_backward(norm: ir.Node, affine: Affine, names: Names) -> bool:
    for op_type, fold in _BACKWARD.items():
        before = sole_producer(norm.inputs[0], norm, op_type)
        if before is not None:
            return fold(norm, before, affine, names)
    return False


def fold_affine(last: ir.Node, conv: ir.Node, affine: Affine, names: Names) -> bool:
    """Put a `conv` that applies `affine` itself in the place of `last`, which applies it so far.

    Returns False where the weights or the bias of `conv` are not constant.
    """
    weight = constant(conv.inputs[1])
    bias = _bias(conv, len(affine.scale))
    if weight is None or bias is None:
        return False
    groups = conv.attributes.get_int("group", 1) if conv.op_type == "ConvTranspose" else None
    scaled = scale_outputs(weight, affine.scale, groups)
    shifted = bias * affine.scale + affine.shift
    return _replace_linear(last, conv, (scaled, shifted), weight.dtype, names)


def scale_outputs(weight: Array, scale: Array, groups: int | None) -> Array:
    """Weights of a convolution whose output channel c is `scale[c]` times as large, in float64.

    Args:
        weight: [out, in/groups, ...] of Conv, or [in, out/groups, ...] of ConvTranspose.
        scale: A factor for each output channel.
        groups: Number of groups of a ConvTranspose; None for Conv.
    """
    wide = weight.astype(np.float64)
    spatial = (1,) * (weight.ndim - 2)
    if groups is None:
        return np.asarray(wide * scale.reshape(-1, 1, *spatial))
    grouped = wide.reshape(groups, -1, *weight.shape[1:])
    return np.asarray(grouped * scale.reshape(groups, 1, -1, *spatial)).reshape(weight.shape)


def _fold_gemm(norm: ir.Node, gemm: ir.Node, affine: Affine, names: Names) -> bool:
    weight = constant(gemm.inputs[1])
    addend = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    bias = np.zeros(1) if addend is None else constant(addend)
    if weight is None or bias is None:
        return False
    transposed = gemm.attributes.get_int("transB", 0)
    scale = affine.scale[:, None] if transposed else affine.scale[None, :]
    beta = gemm.attributes.get_float("beta", 1.0)
    shifted = beta * bias.astype(np.float64) * affine.scale + affine.shift
    scaled = weight.astype(np.float64) * scale
    return _replace_linear(norm, gemm, (scaled, shifted), weight.dtype, names, beta=1.0)


def _fold_matmul(norm: ir.Node, matmul: ir.Node, affine: Affine, names: Names) -> bool:
    weight = constant(matmul.inputs[1])
    # The channels of rank 2 are the columns of the product; of a higher rank, its rows.
    if weight is None or weight.ndim != 2 or rank(matmul.outputs[0]) != 2:
        return False
    return _replace_matmul(norm, matmul, weight, np.zeros(1), affine, names)


def _fold_add(norm: ir.Node, add: ir.Node, affine: Affine, names: Names) -> bool:
    operands = operand_and_constant(add)
    if operands is None:
        return False
    matmul = sole_producer(operands[0], add, "MatMul")
    bias = constant(operands[1])
    if matmul is None or bias is None or rank(matmul.outputs[0]) != 2:
        return False
    weight = constant(matmul.inputs[1])
    columns = len(affine.scale)
    if weight is None or weight.ndim != 2 or bias.shape not in ((), (1,), (columns,), (1, columns)):
        return False
    return _replace_matmul(norm, matmul, weight, bias, affine, names)


_BACKWARD: dict[str, Callable[[ir.Node, ir.Node, Affine, Names], bool]] = {
    "Conv": fold_affine,
    "ConvTranspose": fold_affine,
    "Gemm": _fold_gemm,
    "MatMul": _fold_matmul,
    "Add": _fold_add,
}


def _replace_matmul(
    norm: ir.Node, matmul: ir.Node, weight: Array, bias: Array, affine: Affine, names: Names
) -> bool:
    name, graph = str(matmul.outputs[0].name), norm.graph
    shifted = bias.astype(np.float64).reshape(-1) * affine.scale + affine.shift
    rounded = _round((weight.astype(np.float64) * affine.scale, shifted), weight.dtype)
    if rounded is None:
        return False
    scaled, shifted = rounded
    columns = names.constant(graph, f"{name}_weight", scaled)
    product = replace_node(matmul, "MatMul", [matmul.inputs[0], columns]).outputs[0]
    offset = names.constant(graph, f"{name}_bias", shifted)
    replace_node(norm, "Add", [product, offset])
    return True


def _replace_linear(
    last: ir.Node,
    linear: ir.Node,
    folded: tuple[Array, Array],
    dtype: np.dtype[Any],
    names: Names,
    **attributes: float,
) -> bool:
    """Put `linear` with other weights and bias in the place of `last`, which follows it.

    Returns False where the weights or the bias overflow their dtype.
    """
    rounded = _round(folded, dtype)
    if rounded is None:
        return False
    name = str(linear.outputs[0].name)
    weight = names.constant(last.graph, f"{name}_weight", rounded[0])
    bias = names.constant(last.graph, f"{name}_bias", rounded[1])
    kept = {a.name: a for a in linear.attributes.values() if a.name not in attributes}
    replace_node(last, linear.op_type, [linear.inputs[0], weight, bias], {**kept, **attributes})
    return True


def _round(arrays: tuple[Array, Array], dtype: np.dtype[Any]) -> tuple[Array, Array] | None:
    """Both arrays in `dtype`, or None where one of them does not fit."""
    with np.errstate(all="ignore"):
        first, second = (array.astype(dtype) for array in arrays)
    fits = all(np.isfinite(array.astype(np.float64)).all() for array in (first, second))
    return (first, second) if fits else None


def _bias(conv: ir.Node, channels: int) -> Array | None:
    """The bias of a convolution in float64, zeros where it has none; None if it is computed."""
    value = conv.inputs[2] if len(conv.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    array = constant(value)
    return None if array is None else array.astype(np.float64)


def fold_forward(normalized: ir.Value, base: ir.Value | None, affine: Affine, names: Names) -> bool:
    """Take `normalized`, which is `affine` of `base`, into the Conv that alone uses it.

    Returns False where there is no such Conv, it pads what `affine` shifts, or it is not constant.
    """
    conv = only_user(normalized)
    if conv is None or not is_standard(conv, "Conv") or conv.inputs[0] is not normalized:
        return False
    weight = constant(conv.inputs[1])
    if weight is None or (affine.shift.any() and pads(conv)):
        return False
    bias = _bias(conv, weight.shape[0])
    if bias is None:
        return False
    groups = conv.attributes.get_int("group", 1)
    # Output channel o of group g reads the input channels of g: [groups, in/groups] by o.
    rows = np.repeat(np.arange(groups), weight.shape[0] // groups)
    spatial = (1,) * (weight.ndim - 2)
    wide = weight.astype(np.float64)
    scaled = wide * affine.scale.reshape(groups, -1)[rows].reshape(*weight.shape[:2], *spatial)
    shift = affine.shift.reshape(groups, -1)[rows].reshape(*weight.shape[:2], *spatial)
    shifted = bias + (wide * shift).reshape(weight.shape[0], -1).sum(axis=1)
    conv.replace_input_with(0, base)
    if not _replace_linear(conv, conv, (scaled, shifted), weight.dtype, names):
        conv.replace_input_with(0, normalized)
        return False
    prune(normalized)
    return True


def pads(conv: ir.Node) -> bool:
    """Whether a convolution pads."""
    mode = conv.attributes.get_string("auto_pad", "NOTSET")
    return mode not in ("NOTSET", "VALID") or any(conv.attributes.get_ints("pads") or ())
