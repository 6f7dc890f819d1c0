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
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.graph import Support

Lower = Callable[..., Any]
Predicate = Callable[[ir.Node], Support]


@dataclass(frozen=True)
class Operand:
    """A value while a cluster is traced.

    Attributes:
        array: The data: a JAX array or tracer, or a NumPy array for a small constant.
        channels_last: Whether axis 1 of the ONNX value is the last axis of `array`
            (N, spatial..., C). Rank 3 or more.
    """

    array: Any
    channels_last: bool = False

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return int(np.ndim(self.array))

    def plain(self) -> Any:
        """The array in ONNX's axis order."""
        if not self.channels_last:
            return self.array
        return jnp.moveaxis(self.array, -1, 1)

    def last(self) -> Any:
        """The array in channels-last order; its rank is 3 or more."""
        if self.channels_last:
            return self.array
        return jnp.moveaxis(self.array, 1, -1)

    def axis(self, axis: int) -> int:
        """Where ONNX's `axis` (may be negative) lies in `array`."""
        axis %= self.rank
        if not self.channels_last or axis == 0:
            return axis
        return self.rank - 1 if axis == 1 else axis - 1


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


class Context:
    """What a lowering may ask about the node it lowers."""

    def __init__(self, node: ir.Node, rule: Lowering) -> None:
        self.node, self._rule = node, rule

    def prepared(self, position: int) -> bool:
        """Whether the array at input `position` went through the declaration's `prepare`."""
        return preparation(self._rule, self.node, position) is not None

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
    """

    def register(function: Lower) -> Lower:
        for op_type in op_types:
            key = (domain, op_type)
            assert key not in _LOWERINGS, f"two lowerings for {key}"
            _LOWERINGS[key] = Lowering(
                function, supports, tuple(static), layouts, elementwise, prepare
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


def lowered_ops() -> list[tuple[str, str]]:
    """(domain, operator) of every declared operator, sorted."""
    return sorted(_LOWERINGS)


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node` as Python and NumPy values."""
    result: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type == ir.AttributeType.TENSOR:
            value = attribute.as_tensor().numpy()
        result[name] = value
    return result


def apply(rule: Lowering, node: ir.Node, operands: Sequence[Operand | None]) -> tuple[Operand, ...]:
    """Trace `node` on `operands` by `rule`; one operand for each output."""
    arrays, channels_last = _inputs(rule, operands)
    results = _tuple(rule.function(Context(node, rule), *arrays, **attributes(node)))
    return results if rule.layouts else tuple(Operand(a, channels_last) for a in results)


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


def common_layout(operands: Sequence[Operand | None]) -> tuple[list[Any], bool]:
    """The arrays of `operands` in one layout that broadcasts like ONNX's, and whether that is
    channels-last.

    Channels-last wins if an operand of the result's rank has it.
    """
    rank = max((operand.rank for operand in operands if operand is not None), default=0)
    if not any(o is not None and o.channels_last and o.rank == rank for o in operands):
        return [None if o is None else o.plain() for o in operands], False
    return [None if o is None else broadcast_last(o, rank) for o in operands], True


def broadcast_last(operand: Operand, rank: int) -> Any:
    """`operand` aligned, for broadcasting, with channels-last arrays of `rank`."""
    if operand.rank == 0 or (operand.channels_last and operand.rank == rank):
        return operand.array
    array = operand.plain()
    array = jnp.reshape(array, (1,) * (rank - operand.rank) + np.shape(array))
    return jnp.moveaxis(array, 1, -1)
