"""The tools with which a graph is changed for TensorRT's parser."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir

from xrt.passes.rewrite import Names

_PLACE, _OPERATOR = "xrt.place", "xrt.operator"


class RefusedError(Exception):
    """A node cannot be written for the parser; `node` is the one, the message says why."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def note_places(graph: ir.Graph) -> None:
    """Write into each node what it is in its cluster, before surgery; and give it a name."""
    for number, node in enumerate(graph):
        node.metadata_props[_PLACE] = node.name or ""
        node.metadata_props[_OPERATOR] = node.op_type
        node.name = node.name or f"{node.op_type}_{number}_of_{node.outputs[0].name}"


def place_of(node: ir.Node) -> tuple[str, str]:
    """Operator and name of the node that `node` was, or that it was made for."""
    return (
        node.metadata_props.get(_OPERATOR, node.op_type),
        node.metadata_props.get(_PLACE, node.name or ""),
    )


class Surgeon:
    """Builds beside the node that a rule is about, and changes it in place.

    Attributes:
        node: The node.
    """

    node: ir.Node

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._names = Names(model)

    def constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """A new initializer."""
        return self._names.constant(self._graph, self._hint("constant"), array)

    def ints(self, *values: int) -> ir.Value:
        """A new vector of int64."""
        return self.constant(np.array(values, np.int64))

    def before(
        self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any
    ) -> ir.Value:
        """The result of a new node in front of the node."""
        new = self._new(op_type, inputs, attributes)
        self.node.prepend(new)
        return new.outputs[0]

    def after(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> ir.Value:
        """The result of a new node behind the node, which takes over the node's users and name.

        `inputs` may hold the node's own first result.
        """
        old = self.node.outputs[0]
        new = self._new(op_type, inputs, attributes)
        result = new.outputs[0]
        users = [use for use in old.uses() if use.node is not new]
        self.node.append(new)
        for user, index in users:
            user.replace_input_with(index, result)
        self._hand_over(old, result)
        return result

    def become(self, op_type: str, inputs: Sequence[ir.Value | None], **attributes: Any) -> None:
        """Make the node another operator, without its attributes."""
        self.node.op_type = op_type
        self.node.attributes.clear()
        for name, value in attributes.items():
            self.node.attributes[name] = ir.convenience.convert_attribute(name, value)
        self.set_inputs(inputs)

    def set_inputs(self, inputs: Sequence[ir.Value | None]) -> None:
        """Replace the inputs of the node."""
        self.node.resize_inputs(len(inputs))
        for index, value in enumerate(inputs):
            self.node.replace_input_with(index, value)

    def replace_by(self, value: ir.Value) -> None:
        """Let `value` stand for the first result of the node, which goes."""
        old = self.node.outputs[0]
        for user, index in old.uses():
            user.replace_input_with(index, value)
        self._hand_over(old, value)
        self._graph.remove(self.node, safe=True)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error that names the node.

        Raises:
            RefusedError: Always.
        """
        raise RefusedError(self.node, reason)

    def _hand_over(self, old: ir.Value, new: ir.Value) -> None:
        """Give `new` the type of `old` and, where that is an output of the graph, its name."""
        new.type, new.shape = old.type, old.shape
        for index, output in enumerate(self._graph.outputs):
            if output is old:
                self._graph.outputs[index] = new
                name, old.name = old.name, self._names.fresh(f"{old.name}_before")
                self._rename(new, str(name))

    def _rename(self, value: ir.Value, name: str) -> None:
        registered = self._graph.initializers.pop(str(value.name), None)
        value.name = name
        if registered is not None:
            self._graph.register_initializer(value)

    def _new(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
    ) -> ir.Node:
        name = self._hint(op_type.lower())
        output = ir.val(self._names.fresh(name))
        new = ir.node(op_type, inputs, attributes=attributes, outputs=[output], name=name)
        new.metadata_props.update(self.node.metadata_props)
        return new

    def _hint(self, what: str) -> str:
        return f"{self.node.outputs[0].name}_{what}"
