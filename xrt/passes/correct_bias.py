"""Takes the mean error that rounding weights makes out of the biases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant
from xrt.passes.quantization_plan import Quantized, plan_quantization
from xrt.passes.quantize import channel_axis, round_weight
from xrt.passes.rewrite import Names, prune

Array = np.ndarray[Any, Any]


class CorrectBiasPass(ir.passes.InPlacePass):
    """y = Conv(x, w, b) => y = Conv(x, w, b + (w - w_int8) * mean(x)), before it is quantized.

    Rounding a weight moves the mean of each output channel by the rounding error times the mean of
    the inputs; the bias moves it back. After M. Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with means of calibration.
    Padding is taken for data.

    Requires what `QuantizePass` requires. Applies to Conv, and to Gemm that scales nothing.
    """

    def __init__(
        self,
        means: Mapping[str, Array],
        *,
        exclude: Collection[str] = (),
        weight_bits: int = 8,
    ) -> None:
        """Create the pass.

        Args:
            means: The mean of each channel of activations, by name of value.
            exclude: Names of groups that stay in floating point.
            weight_bits: As for `QuantizePass`.
        """
        super().__init__()
        self.means, self.exclude = dict(means), frozenset(exclude)
        self.largest = (1 << (weight_bits - 1)) - 1

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Correct the biases in the main graph of `model`."""
        names = Names(model)
        modified = False
        plan = plan_quantization(model.graph, self.exclude)[0] if self.means else []
        for each in plan:
            if _is_corrected(each) and str(each.values[0].name) in self.means:
                modified |= self._correct(each.node, self.means[str(each.values[0].name)], names)
        return ir.passes.PassResult(model, modified=modified)

    def _correct(self, node: ir.Node, mean: Array, names: Names) -> bool:
        weight = constant(node.inputs[1])
        assert weight is not None
        axis = channel_axis(node, 1, weight.ndim)
        assert axis is not None
        levels, scale = round_weight(weight, axis, self.largest)
        shape = [1] * weight.ndim
        shape[axis] = -1
        error = np.moveaxis(weight - levels * scale.reshape(shape), axis, 0)
        shift = _products(error, mean, node.attributes.get_int("group", 1))
        old = node.inputs[2] if len(node.inputs) > 2 else None
        bias = constant(old)
        if not np.any(shift) or (old is not None and (bias is None or bias.ndim != 1)):
            return False
        corrected = shift if bias is None else bias + shift
        name = f"{node.outputs[0].name}_bias" if old is None else f"{old.name}_corrected"
        node.resize_inputs(3)
        node.replace_input_with(2, names.constant(node.graph, name, corrected.astype(np.float32)))
        if old is not None:
            prune(old)
        return True


def _products(error: Array, mean: Array, groups: int) -> Array:
    """Of each output channel: the error of its weights (O, I / groups, ...) times the means (I)."""
    summed = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)
    parts = mean.reshape(groups, -1)
    channels = np.repeat(np.arange(groups), error.shape[0] // groups)
    product: Array = np.einsum("oi,oi->o", summed, parts[channels])
    return product


def corrected_values(graph: ir.Graph) -> dict[str, int]:
    """The activations whose means the pass wants, by name, with the axis of their channels."""
    plan, _ = plan_quantization(graph)
    return {str(each.values[0].name): 1 for each in plan if _is_corrected(each)}


def _is_corrected(each: Quantized) -> bool:
    node = each.node
    if each.weight != 1 or node.op_type not in ("Conv", "Gemm"):
        return False
    if node.op_type == "Conv":
        return True
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    return factors == (1.0, 1.0) and not node.attributes.get_int("transA", 0)
