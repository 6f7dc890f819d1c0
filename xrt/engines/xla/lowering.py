"""How the XLA engine declares operators: one declaration says "I can" and "like this".

A lowering is a function ``(ctx, *inputs, **attributes)`` that is traced by JAX. It gets the inputs
by position, None for an absent optional one, and the attributes under ONNX's names; its defaults
are ONNX's. It returns one value, or a tuple for several outputs.

Values travel as `Operand`s: an array and its layout. Most lowerings do not care about layout and
see plain arrays in ONNX's order; those declared `elementwise` see arrays in one common layout,
whichever it is; those declared `layouts=True` see the `Operand`s themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla.operand import Operand as Operand
from xrt.engines.xla.operand import Quantized as Quantized
from xrt.engines.xla.operand import broadcast_last as broadcast_last
from xrt.engines.xla.operand import common_layout as common_layout
from xrt.engines.xla.operand import is_float, same_quantization
from xrt.engines.xla.refusals import REASONS
from xrt.graph import Support

Lower = Callable[..., Any]
Predicate = Callable[[ir.Node], Support]
TraceGraph = Callable[[ir.Graph, Sequence[Any], Any], tuple[Any, ...]]
"""Traces a nested graph on plain arrays, with the values around its node at hand; the last argument
is the number of the iteration, or None."""


@dataclass(frozen=True)
class Prepared:
    """How a lowering wants a constant input: transformed once, before it goes to the device.

    Attributes:
        key: Names the transformation; equal keys on equal constants share one device array.
        function: The transformation, NumPy array to NumPy array.
    """

    key: str
    function: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Lowering:
    """An operator's declaration; see `lowering`."""

    function: Lower
    supports: Predicate | None = None
    static: tuple[int, ...] = ()
    layouts: bool = False
    elementwise: bool = False
    prepare: Mapping[int, Callable[[ir.Node], Prepared | None]] | None = None
    nested: bool = False
    draws: Callable[[ir.Node], bool] | None = None
    levels: Mapping[int, Callable[[ir.Node], Prepared | None]] | None = None
    carries: bool = False


class Context:
    """What a lowering may ask about the node it lowers."""

    def __init__(
        self,
        node: ir.Node,
        rule: Lowering,
        trace: TraceGraph | None = None,
        key: Any = None,
    ) -> None:
        self.node, self._rule, self._trace, self._key = node, rule, trace, key

    @property
    def key(self) -> Any:
        """The JAX key of this node in this call; only for a node that `draws`."""
        assert self._key is not None, f"{self.node.op_type} is not declared to draw numbers"
        return self._key

    def trace(self, graph: ir.Graph, *arrays: Any, turn: Any = None) -> tuple[Any, ...]:
        """The outputs of a nested graph of the node (declared `nested`) for `arrays`, all plain.

        Random operators in it draw anew for each `turn`, the number of the iteration.
        """
        assert self._trace is not None, "a nested graph is traced within its cluster only"
        return self._trace(graph, arrays, turn)

    def prepared(self, position: int) -> bool:
        """Whether the array at input `position` went through the declaration's `prepare`."""
        return preparation(self._rule, self.node, position) is not None

    def levels(self, position: int) -> bool:
        """Whether input `position` holds what the declaration's `levels` made of the integers."""
        return level_preparation(self._rule, self.node, position) is not None

    def output_shape(self, index: int = 0) -> tuple[int, ...]:
        """The inferred shape of output `index`."""
        shape = G.static_shape(self.node.outputs[index])
        assert shape is not None, "supports() admits static shapes only"
        return shape

    def output_dtype(self, index: int = 0) -> np.dtype[Any]:
        """The inferred dtype of output `index`."""
        dtype = self.node.outputs[index].dtype
        assert dtype is not None, "supports() admits typed values only"
        return dtype.numpy()

    @property
    def output_count(self) -> int:
        """Number of outputs that the node declares."""
        return len(self.node.outputs)

    def has_output(self, index: int) -> bool:
        """Whether somebody uses output `index`."""
        if index >= len(self.node.outputs):
            return False
        value = self.node.outputs[index]
        return bool(value.uses()) or value.is_graph_output()


_LOWERINGS: dict[tuple[str, str], Lowering] = {}


def lowering(
    *op_types: str,
    domain: str = "",
    supports: Predicate | None = None,
    static: Sequence[int] = (),
    layouts: bool = False,
    elementwise: bool = False,
    prepare: Mapping[int, Callable[[ir.Node], Prepared | None]] | None = None,
    nested: bool = False,
    draws: Callable[[ir.Node], bool] | None = None,
    levels: Mapping[int, Callable[[ir.Node], Prepared | None]] | None = None,
    carries: bool = False,
) -> Callable[[Lower], Lower]:
    """Declare how XLA runs operators.

    Args:
        op_types: The operators.
        domain: Their domain.
        supports: Refuses nodes, with a reason; called on nodes whose types, static shapes and
            `static` inputs have been checked.
        static: Positions of inputs that must be constants; the lowering gets NumPy arrays there.
        layouts: The lowering takes and returns `Operand`s.
        elementwise: The result's element i depends on element i of the (broadcast) inputs alone.
        prepare: Input position -> what is done to a constant there before it goes to the device.
        nested: The lowering traces the graphs in its attributes by `ctx.trace`. `supports` is then
            called before types are checked: the bodies tell best why a type is not known.
        draws: Whether a node draws random numbers, new ones at each call, with `ctx.key`.
        levels: Input position -> what is done to the integers of a constant that reaches it through
            DequantizeLinear. The lowering then gets those instead of the dequantized values.
        carries: Values are moved, or compared, but not computed with: on quantized operands the
            same lowering is traced on their bytes as well.
    """

    def register(function: Lower) -> Lower:
        for op_type in op_types:
            key = (domain, op_type)
            assert key not in _LOWERINGS, f"two lowerings for {key}"
            _LOWERINGS[key] = Lowering(
                function,
                supports,
                tuple(static),
                layouts,
                elementwise,
                prepare,
                nested,
                draws,
                levels,
                carries,
            )
        return function

    return register


def find(node: ir.Node) -> Lowering | None:
    """The declaration for `node`'s operator, or None."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _LOWERINGS.get((domain, node.op_type))


def preparation(rule: Lowering, node: ir.Node, position: int) -> Prepared | None:
    """What is done to the constant at input `position`; None for nothing, or for no constant."""
    hook = (rule.prepare or {}).get(position)
    value = node.inputs[position]
    return hook(node) if hook and value is not None and value.const_value is not None else None


def level_preparation(rule: Lowering, node: ir.Node, position: int) -> Prepared | None:
    """What is done to the integers that reach input `position` dequantized; None for nothing."""
    hook = (rule.levels or {}).get(position)
    return hook(node) if hook and dequantized_constant(node.inputs[position]) else None


def dequantized_constant(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear node that makes `value` of constants alone, or None."""
    node = value.producer() if value is not None else None
    if node is None or not G.is_standard(node, "DequantizeLinear"):
        return None
    constants = all(each is None or each.const_value is not None for each in node.inputs)
    return node if constants else None


def lowered_ops() -> list[tuple[str, str]]:
    """(domain, operator) of every declared operator, sorted."""
    return sorted(_LOWERINGS)


def draws(node: ir.Node) -> bool:
    """Whether `node`, or a node of a graph traced with it, draws numbers anew at each call."""
    rule = find(node)
    if rule is None:
        return False
    if rule.nested:
        return any(draws(inner) for graph in G.nested_graphs(node) for inner in graph)
    return rule.draws is not None and rule.draws(node)


def supports_node(node: ir.Node) -> Support:
    """Whether a lowering exists for `node`, its types fit XLA and its shapes are static."""
    rule = find(node)
    if rule is None:
        name = G.op_name(node)
        why = REASONS.get(name)
        return Support.no(f"{name}: {why}" if why else f"XLA has no lowering for {name}")
    own = rule.supports or (lambda _: Support.yes())
    checks: tuple[Predicate, ...] = (_supports_types, lambda each: _supports_inputs(each, rule))
    for check in (own, *checks) if rule.nested else (*checks, own):
        answer = check(node)
        if not answer:
            return answer
    return Support.yes()


def _supports_types(node: ir.Node) -> Support:
    for value in (*node.inputs, *node.outputs):
        if value is None or (value.const_value is None and not value.name):
            continue
        label = f"{G.op_name(node)}: value {value.name!r}"
        if not isinstance(value.type, ir.TensorType):
            if value.type is None and value in node.outputs and not value.uses():
                continue
            return Support.no(f"{label} is not a tensor of known type")
        if not _representable(value.dtype):
            return Support.no(f"{label} has type {value.dtype}, which XLA lacks")
        if G.static_shape(value) is None:
            return Support.no(f"{label} has no static shape: {value.shape}")
    return Support.yes()


def _representable(dtype: ir.DataType | None) -> bool:
    if dtype is None or dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return False
    try:
        # XLA has byte-sized types and the packed four-bit ones; JAX knows them by NumPy's names.
        return jax.dtypes.canonicalize_dtype(dtype.numpy()) is not None
    except TypeError:
        return False


def _supports_inputs(node: ir.Node, rule: Lowering) -> Support:
    for position in rule.static:
        if position < len(node.inputs):
            value = node.inputs[position]
            if value is not None and G.constant(value) is None:
                return Support.no(
                    f"{G.op_name(node)}: input {value.name!r} is not known at compile time"
                )
    return Support.yes()


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as Python and NumPy values."""
    result: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = attribute.as_tensor().numpy()
        result[name] = value
    return result


def apply(
    rule: Lowering,
    node: ir.Node,
    operands: Sequence[Operand | None],
    trace: TraceGraph | None = None,
    key: Any = None,
) -> tuple[Operand, ...]:
    """Trace `node` on `operands` by `rule`; an operand an output.

    Args:
        rule: The declaration for the node.
        node: The node.
        operands: Its inputs, None for an absent one.
        trace: Traces its nested graphs.
        key: The JAX key that it draws with, if it draws.
    """
    context = Context(node, rule, trace, key)
    results = _run(rule, context, operands)
    return _carry(rule, context, operands, results) if rule.carries else results


def _run(
    rule: Lowering, context: Context, operands: Sequence[Operand | None]
) -> tuple[Operand, ...]:
    arrays, channels_last = _inputs(rule, operands)
    results = _tuple(rule.function(context, *arrays, **attributes(context.node)))
    return results if rule.layouts else tuple(Operand(a, channels_last) for a in results)


def _carry(
    rule: Lowering,
    context: Context,
    operands: Sequence[Operand | None],
    results: tuple[Operand, ...],
) -> tuple[Operand, ...]:
    """`results` with the bytes behind them, if those of all that is carried are of one kind."""
    carried = [o for o in operands if o is not None and is_float(o)]
    behind = [o.quantized for o in carried if o.quantized is not None]
    if len(behind) < len(carried) or not behind:
        return results
    first = behind[0]
    if first.axis is not None or not all(same_quantization(first, each) for each in behind[1:]):
        return results
    moved = [
        o if o is None or not is_float(o) or o.quantized is None
        else Operand(o.quantized.array, o.channels_last)
        for o in operands
    ]  # fmt: skip
    return tuple(
        replace(result, quantized=replace(first, array=byte.array)) if is_float(result) else result
        for result, byte in zip(results, _run(rule, context, moved), strict=True)
    )


def _inputs(rule: Lowering, operands: Sequence[Operand | None]) -> tuple[list[Any], bool]:
    """What the function of `rule` takes for `operands`, and whether that is channels-last."""
    static = {i: o.array for i, o in enumerate(operands) if o is not None and i in rule.static}
    moving = [None if i in static else operand for i, operand in enumerate(operands)]
    arrays: list[Any] = moving
    channels_last = False
    if rule.elementwise:
        arrays, channels_last = common_layout(moving)
    elif not rule.layouts:
        arrays = [None if operand is None else operand.plain() for operand in moving]
    return [static.get(i, array) for i, array in enumerate(arrays)], channels_last


def _tuple(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)
