"""Evens out the ranges of channels between two products, so that bytes serve them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard
from xrt.passes.rewrite import Names, only_user, prune

Array = np.ndarray[Any, Any]

_PRODUCTS = ("Conv", "Gemm")
_HOMOGENEOUS = ("LeakyRelu", "Relu")  # f(s * x) = s * f(x) for s > 0


class EqualizeWeightsPass(ir.passes.InPlacePass):
    """y = Conv(Relu(Conv(x, w, b)), v) => the same with w[i] / s[i], b[i] / s[i], v[:, i] * s[i].

    s[i] makes the largest magnitudes of w[i] and v[:, i] equal. A weight per output channel has a
    scale per channel already, but the activation between has one for all of them, and this makes
    its channels alike. After M. Nagel et al., "Data-Free Quantization Through Weight Equalization
    and Bias Correction", ICCV 2019, equation 11. Chains are evened out pair by pair, in order.

    Requires folded BatchNorm. Preserves all values but those between the two, up to rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Equalize the pairs in the main graph of `model`."""
        names = Names(model)
        modified = False
        for node in list(model.graph):
            pair = _pair(node)
            if pair is not None:
                modified |= _equalize(pair, names)
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True)
class _Pair:
    first: ir.Node
    second: ir.Node


def _pair(node: ir.Node) -> _Pair | None:
    """`node` and the product that alone takes its result, perhaps through an activation."""
    if not _is_dense(node):
        return None
    user = only_user(node.outputs[0])
    if user is not None and is_standard(user, *_HOMOGENEOUS):
        user = only_user(user.outputs[0])
    if user is None or not _is_dense(user) or user.op_type != node.op_type:
        return None
    source = user.inputs[0]
    through = source is not None and source.producer() is not None
    return _Pair(node, user) if through else None


def _is_dense(node: ir.Node) -> bool:
    """Whether `node` is a product of one group with constant weights and bias."""
    if not is_standard(node, *_PRODUCTS) or constant(node.inputs[1]) is None:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        if bias is None or bias.ndim != 1:
            return False
    return node.attributes.get_int("group", 1) == 1 and not node.attributes.get_int("transA", 0)


def _equalize(pair: _Pair, names: Names) -> bool:
    first, second = constant(pair.first.inputs[1]), constant(pair.second.inputs[1])
    assert first is not None
    assert second is not None
    out_axis, in_axis = _axis(pair.first, output=True), _axis(pair.second, output=False)
    made, taken = _largest(first, out_axis), _largest(second, in_axis)
    if made.shape != taken.shape or first.dtype != second.dtype:
        return False
    alive = (made > 0) & (taken > 0)
    scale = np.where(alive, np.sqrt(made / np.where(alive, taken, 1)), 1.0)
    if np.allclose(scale, 1.0, rtol=1e-3):
        return False
    _replace(pair.first, 1, first / _along(scale, out_axis, first.ndim), names)
    _replace(pair.second, 1, second * _along(scale, in_axis, second.ndim), names)
    bias = constant(pair.first.inputs[2]) if len(pair.first.inputs) > 2 else None
    if bias is not None:
        _replace(pair.first, 2, bias / scale, names)
    return True


def _axis(node: ir.Node, *, output: bool) -> int:
    """The axis of the weights that runs along the output, or input, channels."""
    if node.op_type == "Conv":
        return 0 if output else 1
    return int(output) ^ node.attributes.get_int("transB", 0)


def _largest(array: Array, axis: int) -> Array:
    others = tuple(i for i in range(array.ndim) if i != axis)
    largest: Array = np.abs(array).max(axis=others, initial=0.0).astype(np.float64)
    return largest


def _along(scale: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return scale.reshape(shape)


def _replace(node: ir.Node, position: int, array: Array, names: Names) -> None:
    value = node.inputs[position]
    assert value is not None
    assert value.dtype is not None
    fresh = names.constant(node.graph, f"{value.name}_equal", array.astype(value.dtype.numpy()))
    node.replace_input_with(position, fresh)
    prune(value)
