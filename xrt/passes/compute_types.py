"""In which type each node computes under mixed precision: one sweep over a graph.

An operator of ONNX's own domain computes in the low type unless a rule keeps it:

* Operator: it loses too much, whatever feeds it (`KEPT`), or adds up more than `MANY` numbers.
* Moves: it only moves or selects numbers, so it follows what feeds it. The low type wins where
  inputs differ; the graph's inputs count as float32, constants take either type.
* Light: cheap arithmetic, which stays in float32 between nodes that are kept.
* Compares: it decides something, in float32 unless all its inputs are in the low type.
* Schema: ONNX does not define the operator for the low type.
* Constants: one that exceeds the low type, or loses more than `LOSS` of its norm to rounding and
  underflow, keeps float32 with its user.
* Unsafe values: what does not fit is never cast down, so its users compute in float32 as well.

The tables are in `precision_rules`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

import onnx_ir as ir

from xrt.graph import is_standard, op_name, used_values
from xrt.passes import precision_rules as rules
from xrt.passes.precision_rules import (
    ANY_INPUTS,
    COMPARES,
    LIGHT,
    MOVES,
    OPEN_BOUNDS,
    holds_floats,
    is_float,
    low_constant,
)
from xrt.passes.rewrite import is_constant


class Port(Enum):
    """What type a node takes or gives at one input or output."""

    LOW = "low"
    FLOAT = "float32"
    ANY = "any"


class _State(Enum):
    """Where the type of a value comes from."""

    LOW = "low"
    KEPT = "kept"  # float32, by a rule
    GIVEN = "given"  # float32, since the graph's inputs are


@dataclass(frozen=True)
class Kept:
    """A node that computes in float32.

    Attributes:
        node: Its name, or that of its first output.
        op: Its operator.
        reason: Why.
    """

    node: str
    op: str
    reason: str


@dataclass
class Plan:
    """What a sweep decides.

    Attributes:
        ports: What nodes take at each input; one that is missing takes float32 at each.
        low: The outputs of type float32 that become the low type.
        kept: The nodes left in float32.
    """

    ports: dict[ir.Node, tuple[Port, ...]] = field(default_factory=dict)
    low: dict[ir.Value, None] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)

    def wants(self, node: ir.Node, index: int) -> Port:
        """What `node` takes at input `index`."""
        ports = self.ports.get(node)
        return Port.FLOAT if ports is None else ports[index]


def plan(
    graph: ir.Graph, dtype: ir.DataType, opset: int, keep: Mapping[str, str] | None = None
) -> Plan:
    """Decide for every node of `graph` whether it computes in `dtype`; nested graphs do not.

    Args:
        graph: The graph, in topological order, with inferred types.
        dtype: FLOAT16 or BFLOAT16.
        opset: Version of ONNX's own domain.
        keep: Name of a value -> why it must neither be computed in nor cast to `dtype`.
    """
    sweep = _Sweep(dtype, opset, dict(keep or {}))
    for value in graph.inputs:
        if is_float(value):
            sweep.enter(value, _State.GIVEN)
    for node in graph:
        sweep.visit(node)
    return sweep.plan


class _Sweep:
    """One walk over a graph in order, with what is known of the values so far."""

    def __init__(self, dtype: ir.DataType, opset: int, keep: dict[str, str]) -> None:
        self.dtype = dtype
        self.opset = opset
        self.keep = keep
        self.plan = Plan()
        self.states: dict[ir.Value, _State] = {}
        self.unsafe: dict[ir.Value, str] = {}  # must not be cast down
        self.extreme: set[ir.Value] = set()  # holds a constant beyond the low type, like a mask

    def enter(self, value: ir.Value, state: _State) -> None:
        """Note where `value` comes from, and whether a range check forbids to cast it."""
        self.states[value] = state
        if str(value.name) in self.keep:
            self.unsafe[value] = self.keep[str(value.name)]

    def visit(self, node: ir.Node) -> None:
        """Decide about one node."""
        values = [*used_values(node), *node.outputs]
        if not any(map(holds_floats, values)):
            return
        if is_standard(node, *ANY_INPUTS):
            self.plan.ports[node] = (Port.ANY,) * len(node.inputs)
            if not any(map(is_float, node.outputs)):
                return
        found = self._why_kept(node)
        if found is None:
            self._lower(node)
            return
        reason, state = found
        self.plan.kept.append(Kept(node.name or str(node.outputs[0].name), op_name(node), reason))
        for value in node.outputs:
            if is_float(value):
                self.enter(value, state)
        self._spread(node)

    def _lower(self, node: ir.Node) -> None:
        if node not in self.plan.ports:
            self.plan.ports[node] = tuple(self._port(node, i) for i in range(len(node.inputs)))
        for index, value in enumerate(node.outputs):
            if is_float(value):
                movable = self._movable(node, self._variable(node, index, outputs=True))
                self.enter(value, _State.LOW if movable else _State.KEPT)
                if movable:
                    self.plan.low[value] = None

    def _spread(self, node: ir.Node) -> None:
        """What a kept node moves stays unsafe; arithmetic on extreme values gives extreme ones."""
        moves = is_standard(node, *MOVES)
        if not moves and not is_standard(node, *LIGHT):
            return
        self._bad_constant(node)
        sources = [value for value in self._low_inputs(node) if value in self.unsafe]
        extreme = any(value in self.extreme for value in sources)
        if not sources or not (moves or extreme):
            return
        for value in filter(is_float, node.outputs):
            self.unsafe.setdefault(value, self.unsafe[sources[0]])
            if extreme:
                self.extreme.add(value)

    def _why_kept(self, node: ir.Node) -> tuple[str, _State] | None:
        """Why `node` computes in float32, or None if it does not."""
        for rule in (
            rules.foreign,
            self._by_name,
            rules.by_operator,
            self._by_schema,
            self._by_unsafe,
        ):
            reason = rule(node)
            if reason is not None:
                return reason, _State.KEPT
        followed = self._by_feed(node)
        if followed is not None:
            return followed
        reason = self._by_constants(node)
        return None if reason is None else (reason, _State.KEPT)

    def _by_name(self, node: ir.Node) -> str | None:
        names = [str(v.name) for v in node.outputs if is_float(v) and str(v.name) in self.keep]
        return self.keep[names[0]] if names else None

    def _by_schema(self, node: ir.Node) -> str | None:
        if node.op_type == "Cast":
            source = node.inputs[0]
            small = source is not None and source.dtype in (*rules.SMALL, self.dtype)
            return None if small else "gives numbers of a wider type"
        floats = [index for index, value in enumerate(node.inputs) if is_float(value)]
        for variable in {self._variable(node, index) for index in floats}:
            free = self._stays(node, variable) or variable in rules.FREE.get(node.op_type, ())
            if not free and not self._movable(node, variable):
                return f"ONNX does not define it for {self.dtype.numpy().name}"
        if all(self._port(node, index) is not Port.LOW for index in floats):
            return "takes no input in half precision"
        return None

    def _by_unsafe(self, node: ir.Node) -> str | None:
        for value in self._low_inputs(node):
            if value in self.unsafe and not is_constant(value):
                return f"reads {value.name!r}: {self.unsafe[value]}"
        return None

    def _by_feed(self, node: ir.Node) -> tuple[str, _State] | None:
        states = {self.states[v] for v in self._low_inputs(node) if v in self.states}
        if not states or not is_standard(node, *MOVES, *LIGHT, *COMPARES):
            return None
        if _State.LOW in states and (node.op_type not in COMPARES or states == {_State.LOW}):
            return None
        if node.op_type in LIGHT and _State.KEPT not in states:
            return None
        state = _State.KEPT if _State.KEPT in states else _State.GIVEN
        return "follows what feeds it, which is float32", state

    def _by_constants(self, node: ir.Node) -> str | None:
        value = self._bad_constant(node)
        return None if value is None else f"its constant {value.name!r} {self.unsafe[value]}"

    def _bad_constant(self, node: ir.Node) -> ir.Value | None:
        """The first constant of `node` that must stay in float32; all of them become unsafe."""
        bad = None
        for value in filter(is_constant, self._low_inputs(node)):
            found = low_constant(value, self.dtype)
            if found.reason is None:
                continue
            self.unsafe[value] = found.reason
            if found.exceeds:
                self.extreme.add(value)
            bad = bad or value
        return bad

    def _low_inputs(self, node: ir.Node) -> Iterator[ir.Value]:
        """The inputs that `node` would take in the low type."""
        open_bounds = OPEN_BOUNDS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            bound = index in open_bounds and is_constant(value)
            if value is not None and not bound and self._port(node, index) is Port.LOW:
                yield value

    def _port(self, node: ir.Node, index: int) -> Port:
        """What `node` takes at an input if it computes in the low type."""
        if not is_float(node.inputs[index]):
            return Port.ANY
        variable = self._variable(node, index)
        if is_standard(node, *ANY_INPUTS) or variable in rules.FREE.get(node.op_type, ()):
            return Port.ANY
        return Port.LOW if self._movable(node, variable) else Port.FLOAT

    def _movable(self, node: ir.Node, variable: str) -> bool:
        """Whether what has this type variable changes to the low type with `node`."""
        if self._stays(node, variable):
            return False
        return variable in rules.variables_for(node.op_type, self.opset, self.dtype)

    def _stays(self, node: ir.Node, variable: str) -> bool:
        return variable == "tensor(float)" or variable in rules.MIXED.get(node.op_type, ())

    def _variable(self, node: ir.Node, index: int, *, outputs: bool = False) -> str:
        """The type variable, or fixed type, in the schema of an input or output."""
        variables = rules.type_variables(node.op_type, self.opset, outputs=outputs)
        return variables[min(index, len(variables) - 1)] if variables else ""
