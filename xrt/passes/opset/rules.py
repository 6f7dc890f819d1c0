"""The table of opset upgrades, and the tools its rules are written with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from xrt.errors import UnsupportedOpError
from xrt.graph import add_constant, describe

Rule = Callable[["Site"], None]

RULES: defaultdict[int, defaultdict[str, list[Rule]]] = defaultdict(lambda: defaultdict(list))
"""Opset -> operator -> what turns a node of the opset before into one of this opset.

Only changes of meaning are listed; a new version that only takes more types needs no rule.
"""

RETIRED = ("Scatter", "Upsample")
"""Operators that are deprecated but have a replacement, which may stand in a model of any opset."""

RETIRED_TO = 11
"""The opset at which the rules of all `RETIRED` operators are listed."""


def upgrade(*op_types: str, to: int) -> Callable[[Rule], Rule]:
    """Register a rule that brings nodes of `op_types` from opset ``to - 1`` to `to`."""

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES[to][op_type].append(rule)
        return rule

    return register


@dataclass
class Names:
    """Fresh names for new values, unique in the whole model so that no scope hides another."""

    taken: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: ir.Model) -> Names:
        """The names of all values of `model`, those in nested graphs included."""
        taken: set[str] = set()
        for graph in model.graphs():
            taken.update(str(value.name) for value in graph.inputs)
            taken.update(graph.initializers)
            for node in graph:
                taken.update(str(value.name) for value in node.outputs)
        return cls(taken)

    def fresh(self, hint: str) -> str:
        """A name that starts with `hint` and that no value has yet."""
        name, count = hint, 0
        while name in self.taken:
            count += 1
            name = f"{hint}_{count}"
        self.taken.add(name)
        return name


@dataclass
class Site:
    """One node under upgrade, and what a rule builds with beside it.

    The node itself is edited in place and stays the producer of its outputs, so nothing after it
    changes; helper nodes go in front of it.

    Attributes:
        node: The node.
        start: The opset of the model before any upgrade.
        names: Source of fresh names.
        added: The nodes that rules added, which the rules of later opsets apply to as well.
    """

    node: ir.Node
    start: int
    names: Names
    added: list[ir.Node]

    def input(self, index: int) -> ir.Value | None:
        """The input at `index`, or None if it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    @property
    def data(self) -> ir.Value:
        """The first input, which every operator with a rule that reads it requires."""
        value = self.input(0)
        if value is None:
            self.refuse("its first input is missing")
        return value

    def pop(self, name: str, default: Any = None) -> Any:
        """Remove an attribute and return its value, or `default` if the node has it not."""
        attribute = self.node.attributes.pop(name, None)
        return default if attribute is None else attribute.value

    def put(self, **attributes: Any) -> None:
        """Set attributes of the node."""
        for name, value in attributes.items():
            self.node.attributes[name] = ir.convenience.convert_attribute(name, value)

    def constant(self, hint: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """A new initializer of the node's graph."""
        return add_constant(self._graph, self._fresh(hint), array)

    def ints(self, hint: str, *values: int) -> ir.Value:
        """A new one-dimensional int64 initializer."""
        return self.constant(hint, np.array(values, np.int64))

    def scalar_like(self, hint: str, value: float, like: ir.Value) -> ir.Value:
        """`value` as a scalar of the element type of `like`, which need not be known yet."""
        if like.dtype is not None:
            return self.constant(hint, np.array(value, like.dtype.numpy()))
        return self.op("CastLike", [self.constant(hint, np.array(value, np.float32)), like])

    def op(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """Insert a node with one output in front of the node, and return the output."""
        output = ir.val(self._fresh(op_type.lower()))
        name = f"{self.node.name}_{op_type}" if self.node.name else None
        node = ir.node(op_type, inputs, attributes=attributes, outputs=[output], name=name)
        self.node.prepend(node)
        self.added.append(node)
        return output

    def become(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> None:
        """Turn the node into another operator, without its attributes."""
        self.node.op_type = op_type
        self.node.attributes.clear()
        self.put(**attributes)
        self.set_inputs(*inputs)

    def set_inputs(self, *inputs: ir.Value | None) -> None:
        """Replace the inputs; absent ones at the end are dropped."""
        kept = list(inputs)
        while kept and kept[-1] is None:
            kept.pop()
        self.node.resize_inputs(len(kept))
        for index, value in enumerate(kept):
            self.node.replace_input_with(index, value)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error that names operator, node and opset."""
        raise UnsupportedOpError(
            f"{describe(self.node)} of opset {self.start} has no equivalent in the opset that xrt "
            f"compiles: {reason}. Export the model again with a newer opset."
        )

    def _fresh(self, hint: str) -> str:
        owner = next((value.name for value in self.node.outputs if value.name), self.node.op_type)
        return self.names.fresh(f"{owner}_{hint}")

    @property
    def _graph(self) -> ir.Graph:
        graph = self.node.graph
        assert isinstance(graph, ir.Graph), "functions are inlined before the opset is converted"
        return graph


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions of `value`, if known."""
    if value is None:
        return None
    if value.shape is not None:
        return len(value.shape)
    return None if value.const_value is None else len(value.const_value.shape)


def known(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The array behind an initializer or the output of a Constant node."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def in_use(value: ir.Value) -> bool:
    """Whether anything reads `value`."""
    return bool(value.uses()) or value.is_graph_output()
