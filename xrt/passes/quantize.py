"""Static quantization to int8, written into the graph as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import constant
from xrt.passes.quantization_plan import Quantized, is_prequantized, plan_quantization
from xrt.passes.rewrite import Names, new_node, prune
from xrt.passes.typed_fusion import DisjointSets

Array = np.ndarray[Any, Any]

SWITCHES = "quantized"
"""Name of the input that switches groups."""

_LARGEST = 127
_LARGEST_BIAS = 1 << 30  # well inside int32, which the products are added to

_WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Axis of the output channels in the weights."""


@dataclass(frozen=True)
class Group:
    """A node that was quantized, with the rounding around it: what is reverted as one.

    Attributes:
        name: Name of the node's first output.
        op: Its operator.
        inputs: Names of the activations that it takes as bytes.
    """

    name: str
    op: str
    inputs: tuple[str, ...]


class QuantizePass(ir.passes.InPlacePass):
    """y = Conv(x, w, b) => y = Conv(DQ(Q(x)), DQ(w_int8), DQ(b_int32)), with scales of data.

    Activations are rounded per tensor and weights per output channel, both symmetric (zero point
    0), biases to int32 in the product of the two scales. What lies between products stays in bytes
    too (see `quantization_plan`): a value has one scale for all that take it as bytes, and so have
    the input and output of an operator that only carries values. Everything else computes in
    floating point as before.

    Requires folded BatchNorm and inferred types. Preserves inputs, outputs and their types. A graph
    with quantized operators is left as it is.

    With `switches` the model gets a further input `quantized`: bool[number of groups], and each
    group computes in bytes or in floating point as its element says: to measure what each costs.

    Attributes:
        groups: What the last call quantized, in order.
        refused: Products that it left, by name of their first output, with the reason.
        unseen: Activations without a threshold, whose users were left, too.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float],
        *,
        exclude: Collection[str] = (),
        weight_bits: int = 8,
        switches: bool = False,
    ) -> None:
        """Create the pass.

        Args:
            thresholds: For each activation the magnitude that 127 stands for, by name of value.
            exclude: Names of groups to leave in floating point.
            weight_bits: 8, or 7 where the CPU adds pairs of products in 16 bits.
            switches: Make every group one that can be switched off.
        """
        super().__init__()
        self.thresholds = dict(thresholds)
        self.exclude = frozenset(exclude)
        self.largest_weight = (1 << (weight_bits - 1)) - 1
        self.switches = switches
        self.groups: tuple[Group, ...] = ()
        self.refused: dict[str, str] = {}
        self.unseen: tuple[str, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize the main graph of `model`."""
        self.groups, self.refused, self.unseen = (), {}, ()
        if is_prequantized(model.graph):
            return ir.passes.PassResult(model, modified=False)
        plan = self._observed(model.graph)
        writer = _Writer(model, _scales(plan, self.thresholds), self.largest_weight)
        if self.switches:
            writer.add_switches(len(plan))
        for quantized in plan:
            writer.write(quantized)
        self.groups = tuple(
            Group(each.name, each.node.op_type, names)
            for each, names in zip(plan, writer.inputs, strict=True)
        )
        return ir.passes.PassResult(model, modified=bool(plan))

    def _observed(self, graph: ir.Graph) -> list[Quantized]:
        """The plan without what has no threshold, and without what that leaves between nothing."""
        exclude = set(self.exclude)
        missing: dict[str, str] = {}
        while True:
            plan, refused = plan_quantization(graph, exclude)
            blind = {
                each.name: f"calibration never saw its input {value.name!r}"
                for each in plan
                for value in each.values
                if value.name not in self.thresholds
            }
            if not blind:
                self.refused = {**refused, **missing}
                return plan
            missing.update(blind)
            names = (str(v.name) for each in plan for v in each.values)
            self.unseen += tuple(n for n in dict.fromkeys(names) if n not in self.thresholds)
            exclude |= blind.keys()


def watched_values(graph: ir.Graph) -> list[str]:
    """Names of the activations whose thresholds `QuantizePass` wants, in order of first use."""
    if is_prequantized(graph):
        return []
    plan, _ = plan_quantization(graph)
    return list(dict.fromkeys(str(value.name) for each in plan for value in each.values))


def _scales(plan: list[Quantized], thresholds: Mapping[str, float]) -> dict[str, np.float32]:
    """The scale of each activation; what a carrier connects gets one, wide enough for all."""
    values = {str(v.name): None for each in plan for v in (*each.values, *each.node.outputs)}
    index = {name: number for number, name in enumerate(values)}
    sets = DisjointSets(len(index))
    for each in plan:
        if each.carries:
            names = [str(value.name) for value in (*each.values, *each.node.outputs)]
            for name in names[1:]:
                sets.union(index[names[0]], index[name])
    widest: dict[int, float] = {}
    for name, number in index.items():
        root = sets.find(number)
        widest[root] = max(widest.get(root, 0.0), thresholds.get(name, 0.0))
    return {name: _scale(widest[sets.find(number)], _LARGEST) for name, number in index.items()}


def _scale(threshold: float, largest: int) -> np.float32:
    """The scale by which `largest` stands for `threshold`; 1 for a tensor of zeros."""
    scale = np.float32(threshold / largest)
    return scale if scale >= np.finfo(np.float32).tiny else np.float32(1)


class _Writer:
    """Puts the rounding around nodes; every value and every constant is rounded once."""

    def __init__(self, model: ir.Model, scales: dict[str, np.float32], largest_weight: int) -> None:
        self.inputs: list[tuple[str, ...]] = []
        self._graph, self._names = model.graph, Names(model)
        self._scales, self._largest = scales, largest_weight
        self._rounded: dict[ir.Value, ir.Value] = {}
        self._weights: dict[object, tuple[ir.Value, Array]] = {}
        self._zero: ir.Value | None = None
        self._switches: ir.Value | None = None

    def add_switches(self, count: int) -> None:
        """Give the model the input that switches groups."""
        self._switches = ir.Value(
            name=self._names.fresh(SWITCHES),
            type=ir.TensorType(ir.DataType.BOOL),
            shape=ir.Shape((count,)),
        )
        self._graph.inputs.append(self._switches)

    def write(self, quantized: Quantized) -> None:
        """Let a node take its factors, and its bias, through bytes."""
        node, number = quantized.node, len(self.inputs)
        before = list(node.inputs)
        self.inputs.append(tuple(str(value.name) for value in quantized.values))
        scale = [self._scales[name] for name in self.inputs[-1]]
        for position in quantized.activations:
            value = node.inputs[position]
            assert value is not None
            node.replace_input_with(position, self._round(value))
        if quantized.weight is not None:
            self._write_weight(node, quantized.weight, scale[0])
        if self._switches is not None:
            self._switch(node, before, number)
        for value in before:
            if value is not None:
                prune(value)

    def _switch(self, node: ir.Node, before: Sequence[ir.Value | None], number: int) -> None:
        """Let `node` take its inputs as they were where its switch is off."""
        index = self._constant("group", np.asarray(number))
        flag = self._add("Gather", [self._switches, index], node, ir.DataType.BOOL, ())
        for position, (old, new) in enumerate(zip(before, node.inputs, strict=True)):
            if old is not None and new is not None and old is not new:
                shape = old.shape if old.const_value is None else old.const_value.shape
                chosen = self._add("Where", [flag, new, old], node, ir.DataType.FLOAT, shape)
                node.replace_input_with(position, chosen)

    def _add(
        self, op: str, inputs: list[ir.Value | None], node: ir.Node, dtype: ir.DataType, shape: Any
    ) -> ir.Value:
        name = self._names.fresh(f"{node.outputs[0].name}_{op.lower()}")
        return new_node(op, inputs, before=node, name=name, dtype=dtype, shape=shape)

    def _round(self, value: ir.Value) -> ir.Value:
        """DequantizeLinear(QuantizeLinear(value)), right after the node that makes it."""
        if value in self._rounded:
            return self._rounded[value]
        name, source = str(value.name), value.producer()
        scale = self._constant(f"{name}_scale", np.asarray(self._scales[name]))
        after = next(iter(self._graph)) if source is None else None
        q = ir.node("QuantizeLinear", [value, scale, self._zero_point()])
        d = ir.node("DequantizeLinear", [q.outputs[0], scale, self._zero_point()])
        for node, suffix, dtype in (
            (q, "quantized", ir.DataType.INT8),
            (d, "dequantized", ir.DataType.FLOAT),
        ):
            node.outputs[0].name = node.name = self._names.fresh(f"{name}_{suffix}")
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), value.shape
        if after is not None:
            self._graph.insert_before(after, [q, d])
        else:
            assert source is not None
            self._graph.insert_after(source, [q, d])
        self._rounded[value] = d.outputs[0]
        return d.outputs[0]

    def _zero_point(self) -> ir.Value:
        if self._zero is None:
            self._zero = self._constant("zero_point", np.zeros((), np.int8))
        return self._zero

    def _constant(self, name: str, array: Array) -> ir.Value:
        return self._names.constant(self._graph, name, array)

    def _write_weight(self, node: ir.Node, position: int, input_scale: np.float32) -> None:
        value = node.inputs[position]
        array = constant(value)
        assert value is not None
        assert array is not None
        axis = channel_axis(node, position, array.ndim)
        bias = _bias(node)
        least = np.zeros(1) if bias is None else np.abs(bias) / (input_scale * _LARGEST_BIAS)
        key = (value, axis, least.max() > 0 and least.tobytes())
        if key not in self._weights:
            self._weights[key] = self._quantized_weight(node, value, array, axis, least)
        dequantized, scale = self._weights[key]
        node.replace_input_with(position, dequantized)
        if bias is not None:
            self._write_bias(node, bias, input_scale * scale)

    def _quantized_weight(
        self, node: ir.Node, value: ir.Value, array: Array, axis: int | None, least: Array
    ) -> tuple[ir.Value, Array]:
        """DequantizeLinear of the weight in bytes, and its scale.

        `least` is the least scale of each channel by which its bias fits into int32.
        """
        levels, scale = round_weight(array, axis, self._largest, least)
        name = str(value.name)
        return self._dequantized(node, name, levels, scale, axis), scale

    def _write_bias(self, node: ir.Node, bias: Array, scale: Array) -> None:
        value = node.inputs[2]
        assert value is not None
        wide = np.broadcast_to(scale, bias.shape).astype(np.float32)
        levels = np.round(bias.astype(np.float64) / wide).astype(np.int32)
        name = str(value.name)
        node.replace_input_with(2, self._dequantized(node, name, levels, wide, 0))

    def _dequantized(
        self, node: ir.Node, name: str, levels: Array, scale: Array, axis: int | None
    ) -> ir.Value:
        inputs = [
            self._constant(f"{name}_quantized", levels),
            self._constant(f"{name}_scale", np.asarray(scale)),
        ]
        return new_node(
            "DequantizeLinear",
            inputs,
            None if axis is None else {"axis": axis},
            before=node,
            name=self._names.fresh(f"{name}_dequantized"),
            dtype=ir.DataType.FLOAT,
            shape=levels.shape,
        )


def round_weight(
    array: Array, axis: int | None, largest: int, least: Array | float = 0.0
) -> tuple[Array, Array]:
    """A weight as int8 up to `largest`, and its scale: one for each index of `axis`, or one in all.

    `least` is the least scale, of each channel or of all.
    """
    others = tuple(i for i in range(array.ndim) if i != axis)
    bound = np.max(np.abs(array), axis=None if axis is None else others, initial=0.0)
    floor = np.asarray(least)
    floor = floor if axis is not None and floor.size == np.size(bound) else floor.max(initial=0.0)
    scale = np.maximum(bound / largest, floor).astype(np.float32)
    scale = np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    steps = np.round(array / scale.reshape(shape if axis is not None else ()))
    return np.clip(steps, -largest, largest).astype(np.int8), scale


def channel_axis(node: ir.Node, position: int, rank: int) -> int | None:
    """The axis of a constant factor that the output's channels run along; None for per tensor."""
    if node.op_type in _WEIGHT_AXIS:
        return _WEIGHT_AXIS[node.op_type]
    if position != 1:
        return None
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1 if rank > 1 else None


def _bias(node: ir.Node) -> Array | None:
    """The bias of a product, a constant vector over its channels that is added as it is."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.inputs) < 3:
        return None
    bias = constant(node.inputs[2])
    factors = (node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0))
    if bias is None or bias.ndim != 1 or (node.op_type == "Gemm" and factors != (1.0, 1.0)):
        return None
    grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1
    return None if grouped else bias
