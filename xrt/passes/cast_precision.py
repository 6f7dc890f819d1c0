"""Mixed precision as graph rewriting: Casts between nodes in half precision and in float32."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from xrt.errors import OptionError
from xrt.graph import OPSET, is_standard
from xrt.passes.compute_types import Kept, Plan, Port, plan
from xrt.passes.precision_rules import LOW_TYPES, is_float, largest, low_constant
from xrt.passes.rewrite import Names, is_constant

__all__ = ["MARGIN", "CastPrecisionPass", "Kept", "overflowing", "watched_values"]

MARGIN = 2.0
"""How many times the largest magnitude seen the low type must hold."""


class CastPrecisionPass(ir.passes.InPlacePass):
    """float32 graph => the same graph, computing in float16 (bfloat16) where that is safe.

    For example ``y = Relu(Conv(x, w))`` =>
    ``h = Cast(x, to=FLOAT16); c = Conv(h, w16); r = Relu(c); y = Cast(r, to=FLOAT)``, where w16 is
    w as a new constant. `compute_types` says which nodes stay in float32, and why. A value is cast
    once to each type that its users need. Attention computes its softmax in float32.

    Requires nodes in topological order and inferred types. Preserves the types and names of graph
    inputs and outputs, nested graphs and what they capture, and all types other than float32.
    Idempotent only in effect: run it once, and the clean-up passes after it.

    Attributes:
        kept: After the call, every node that still computes in float32, with the reason.
    """

    def __init__(self, dtype: ir.DataType, *, keep: Mapping[str, str] | None = None) -> None:
        """Create the pass.

        Args:
            dtype: FLOAT16 or BFLOAT16.
            keep: Name of a node's output or of a graph input -> why it does not fit into `dtype`.
                The node computes in float32, and so does whoever reads the value.

        Raises:
            OptionError: If `dtype` is another type.
        """
        super().__init__()
        if dtype not in LOW_TYPES:
            raise OptionError(
                f"CastPrecisionPass computes in FLOAT16 or BFLOAT16; got {ir.DataType(dtype).name}."
            )
        self.dtype = dtype
        self.keep = dict(keep or {})
        self.kept: tuple[Kept, ...] = ()

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the main graph of `model`."""
        graph = model.graph
        decided = plan(graph, self.dtype, _opset(graph), self.keep)
        self.kept = tuple(decided.kept)
        modified = _Rewriter(model, decided, self.dtype).rewrite()
        return ir.passes.PassResult(model, modified=modified)


class _Rewriter:
    """Carries out a plan: new types, then Casts where types differ."""

    def __init__(self, model: ir.Model, decided: Plan, dtype: ir.DataType) -> None:
        self.graph = model.graph
        self.plan = decided
        self.dtype = dtype
        self.names = Names(model)

    def rewrite(self) -> bool:
        """Rewrite the graph; returns whether anything changed."""
        made = [value for node in self.graph for value in node.outputs if is_float(value)]
        entered = [value for value in self.graph.inputs if is_float(value)]
        constants = [
            value
            for value in self.graph.initializers.values()
            if is_float(value) and is_constant(value)
        ]
        for value in self.plan.low:
            value.type = ir.TensorType(self.dtype)
            _set_attributes(value.producer(), self.dtype)
        changed = [self._serve(value) for value in (*entered, *made, *constants)]
        return bool(self.plan.low) or any(changed)

    def _serve(self, value: ir.Value) -> bool:
        """Give every user of `value` the type it takes."""
        other = Port.FLOAT if value in self.plan.low else Port.LOW
        users = [use for use in value.uses() if self.plan.wants(use.node, use.idx) is other]
        given = value.is_graph_output() and other is Port.FLOAT
        if not users and not given:
            return False
        if is_constant(value):
            converted = self._low_constant(value)
        else:
            converted = self._cast(value, self.dtype if other is Port.LOW else ir.DataType.FLOAT)
        for use in users:
            use.node.replace_input_with(use.idx, converted)
        if given:
            self._give(value, converted)
        elif is_constant(value) and not value.uses() and not value.is_graph_output():
            del self.graph.initializers[str(value.name)]
        return True

    def _give(self, value: ir.Value, converted: ir.Value) -> None:
        """Make `converted` the graph output that `value` was, with its name."""
        name, converted.name = str(value.name), None
        value.name = self._fresh(name, self.dtype)
        converted.name = name
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                self.graph.outputs[index] = converted

    def _low_constant(self, value: ir.Value) -> ir.Value:
        name = self._fresh(str(value.name), self.dtype)
        array = low_constant(value, self.dtype).array
        converted = ir.val(name, const_value=ir.Tensor(array, dtype=self.dtype, name=name))
        self.graph.register_initializer(converted)
        return converted

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """A Cast of `value`, right behind the node that makes it."""
        converted = ir.Value(
            name=self._fresh(str(value.name), dtype),
            type=ir.TensorType(dtype),
            shape=None if value.shape is None else value.shape.copy(),
        )
        node = ir.node(
            "Cast", [value], {"to": dtype.value}, outputs=[converted], name=converted.name
        )
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return converted

    def _fresh(self, name: str, dtype: ir.DataType) -> str:
        return self.names.fresh(f"{name}_{dtype.numpy().name}")


def _set_attributes(node: ir.Node | None, dtype: ir.DataType) -> None:
    """Name the types that a node in the low type gives, and those it computes in."""
    assert node is not None
    if is_standard(node, "Cast"):
        node.attributes["to"] = ir.AttrInt64("to", dtype.value)
    elif is_standard(node, "Attention"):
        precision = node.attributes.get_int("softmax_precision")
        if precision is None or precision in LOW_TYPES:
            node.attributes["softmax_precision"] = ir.AttrInt64(
                "softmax_precision", ir.DataType.FLOAT.value
            )


def _opset(graph: ir.Graph) -> int:
    return graph.opset_imports.get("", OPSET)


def watched_values(graph: ir.Graph) -> list[str]:
    """Names of the float32 values whose magnitudes decide what float16 can hold, in order.

    These are the graph's inputs and every result that would be computed in the low type or cast
    to it. See `overflowing`.
    """
    decided = plan(graph, ir.DataType.FLOAT16, _opset(graph))
    made = [value for node in graph for value in node.outputs]
    return [
        str(value.name)
        for value in (*graph.inputs, *made)
        if is_float(value)
        and (
            value.is_graph_input()
            or value in decided.low
            or any(decided.wants(use.node, use.idx) is Port.LOW for use in value.uses())
        )
    ]


def overflowing(
    magnitudes: Mapping[str, float], graph: ir.Graph, dtype: ir.DataType
) -> dict[str, str]:
    """What `dtype` cannot hold with a margin of two: name of a value -> reason, for `keep`.

    Args:
        magnitudes: Name of a value -> the largest magnitude seen among its finite elements. One
            that is NaN or infinite counts as too large.
        graph: The graph that computes the values; other names are left out.
        dtype: FLOAT16 or BFLOAT16.
    """
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    known = {str(value.name) for value in values if is_float(value)}
    limit = largest(dtype)
    return {
        name: f"its largest magnitude seen is {seen:.4g}; {dtype.numpy().name} holds {limit:.4g}"
        for name, seen in magnitudes.items()
        if name in known and not seen * MARGIN <= limit
    }
