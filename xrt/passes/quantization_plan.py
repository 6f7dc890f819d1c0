"""Which nodes run on int8, and which values that quantizes.

Three kinds of operators take part:

* *Products* compute in integers: Conv, ConvTranspose, Gemm, MatMul, Attention.
* *Carriers* hand on what they get, so their input and output share a scale: MaxPool, Reshape, ...
* *Blends* mix values of several scales in floating point, between bytes: Add, Concat, averages.

A product runs on int8 wherever its weights are constant. A carrier or a blend does where that keeps
a value in bytes all the way from one product to the next: all it takes comes from products, and
what it makes goes to one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from xrt.graph import constant, is_standard, static_shape
from xrt.passes.rewrite import is_constant

_PRODUCTS: dict[str, tuple[int, ...]] = {
    "Attention": (0, 1, 2),
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
}
"""Operator -> its factors."""

_WEIGHTED = frozenset({"Conv", "ConvTranspose"})  # whose second factor must be constant

_CARRIERS = frozenset(
    (
        *("DepthToSpace", "Expand", "Flatten", "GlobalMaxPool", "Identity", "MaxPool", "Reshape"),
        *("Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)

_BLENDS = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "ReduceMean", "Resize"})

_ACTIVATIONS = frozenset(
    (
        *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu"),
        *("Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu"),
    )
)
"""Operators that a product's result passes before it is rounded to bytes."""

_PREQUANTIZED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv"),
        *("QLinearMatMul", "ConvInteger", "MatMulInteger"),
    )
)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A node that runs on int8.

    Attributes:
        node: The node.
        activations: Positions of the inputs that are rounded to bytes as they are computed.
        weight: Position of the constant factor, if it has one.
        carries: Whether inputs and outputs share a scale.
    """

    node: ir.Node
    activations: tuple[int, ...]
    weight: int | None = None
    carries: bool = False

    @property
    def name(self) -> str:
        """The name of the group: that of the node's first output."""
        return str(self.node.outputs[0].name)

    @property
    def values(self) -> tuple[ir.Value, ...]:
        """The activations."""
        return tuple(v for i in self.activations if (v := self.node.inputs[i]) is not None)


def is_prequantized(graph: ir.Graph) -> bool:
    """Whether `graph` holds quantized operators already; such a graph runs as it is."""
    return any(is_standard(node, *_PREQUANTIZED) for node in graph.all_nodes())


def plan_quantization(
    graph: ir.Graph, exclude: Collection[str] = ()
) -> tuple[list[Quantized], dict[str, str]]:
    """The nodes of `graph` to run on int8, in order, and why other products do not, by name.

    Nodes of nested graphs are left alone: how often they run is not known.

    Args:
        graph: The graph, with inferred types.
        exclude: Names of groups to leave in floating point.
    """
    plan: dict[ir.Node, Quantized] = {}
    refused: dict[str, str] = {}
    for node in graph:
        if is_standard(node, *_PRODUCTS):
            found = _product(node)
            name = str(node.outputs[0].name)
            if isinstance(found, str):
                refused[name] = found
            elif name in exclude:
                refused[name] = "left in floating point to hold the bound on accuracy"
            else:
                plan[node] = found
    for node in _between(graph, plan):
        found_between = _mixer(node)
        if found_between.name not in exclude:
            plan[node] = found_between
    return [plan[node] for node in graph if node in plan], refused


def _product(node: ir.Node) -> Quantized | str:
    """How a product runs on int8, or why it cannot."""
    positions = _PRODUCTS[node.op_type]
    factors = [node.inputs[i] for i in positions]
    if any(value is None or value.dtype != ir.DataType.FLOAT for value in factors):
        return "its factors are not all float32"
    fixed = [i for i in positions if is_constant(node.inputs[i])]
    if node.op_type in _WEIGHTED and fixed != [1]:
        return "its weights are not constant"
    if len(fixed) == len(positions):
        return "all its factors are constant"
    if len(fixed) > 1 or (node.op_type == "Attention" and fixed):
        return "several of its factors are constant"
    moving = tuple(i for i in positions if i not in fixed)
    return Quantized(node, moving, fixed[0] if fixed else None)


def _mixer(node: ir.Node) -> Quantized:
    """How a carrier or blend runs on int8."""
    carries = node.op_type in _CARRIERS or node.op_type == "Concat" or _is_nearest(node)
    several = node.op_type in ("Add", "Concat")
    return Quantized(node, tuple(range(len(node.inputs))) if several else (0,), None, carries)


def _is_nearest(node: ir.Node) -> bool:
    mode = node.attributes.get("mode")
    return node.op_type == "Resize" and (mode is None or mode.as_string() == "nearest")


def _between(graph: ir.Graph, products: Collection[ir.Node]) -> Iterable[ir.Node]:
    """The carriers and blends that lie between products, with nothing else on the way."""
    candidates = {node for node in graph if _may_mix(node)}
    passing = {node for node in graph if is_standard(node, *_ACTIVATIONS)}
    while True:
        fed: set[ir.Value] = set()
        for node in graph:
            if node in products or (
                node in candidates | passing and all(value in fed for value in _inputs(node))
            ):
                fed.update(node.outputs)
        needed: set[ir.Value] = set()
        for node in reversed(graph):
            onward = node in candidates | passing and any(v in needed for v in node.outputs)
            if node in products or onward:
                needed.update(_inputs(node))
        kept = {
            node
            for node in candidates
            if all(value in fed for value in _inputs(node))
            and any(value in needed for value in node.outputs)
        }
        if kept == candidates:
            return [node for node in graph if node in kept]
        candidates = kept


def _inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that carry activations: of a carrier the first, of a product all that move."""
    if node.op_type in _CARRIERS or node.op_type in (*_ACTIVATIONS, *_BLENDS - {"Add", "Concat"}):
        return [value for value in node.inputs[:1] if value is not None]
    return [value for value in node.inputs if value is not None and not is_constant(value)]


def _may_mix(node: ir.Node) -> bool:
    if not is_standard(node, *_CARRIERS, *_BLENDS):
        return False
    if any(value is None or value.dtype != ir.DataType.FLOAT for value in _inputs(node)):
        return False
    if node.op_type == "Add":  # a residual, not a bias
        shapes = [static_shape(value) for value in node.inputs]
        return shapes[0] == shapes[1] and not any(map(is_constant, node.inputs))
    if node.op_type == "Concat":
        return not any(map(is_constant, node.inputs))
    if node.op_type == "MaxPool":
        return len(node.outputs) == 1 or not node.outputs[1].uses()
    return not (node.op_type == "ReduceMean" and _reduces_channels(node))


def _reduces_channels(node: ir.Node) -> bool:
    """Whether a mean goes over anything but the last two dimensions of four: no pooling then."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if axes is None or shape is None or len(shape) != 4:
        return True
    return sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]
