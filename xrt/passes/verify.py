"""The verifier: what must hold of a graph between any two passes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from xrt.errors import VerificationError
from xrt.graph import OPSET


def verify(model: ir.Model) -> None:
    """Raise VerificationError unless `model` is a well-formed graph.

    The rules: every value has one producer and one name, unique among the values that are visible
    together; every use comes after the production, in the same graph or one around it; graph
    outputs exist, are made or declared in their own graph, and are listed once; links between
    nodes and values agree in both directions; constants have a tensor whose type is the value's.
    """
    _Verifier(model).check()


class VerifyPass(ir.passes.InPlacePass):
    """Model => the same model, or VerificationError if it breaks a rule of `verify`.

    Requires nothing; preserves everything.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Check the model and leave it as it is."""
        verify(model)
        return ir.passes.PassResult(model, modified=False)


class _Verifier:
    """One walk over a model, with the values and names visible at the current point."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.visible: set[ir.Value] = set()
        self.names: dict[str, ir.Value] = {}
        self.uses: dict[ir.Value, set[tuple[ir.Node, int]]] = {}

    def check(self) -> None:
        if "" not in self.model.opset_imports:
            self.fail("the model", "imports no opset of ONNX", f"import opset {OPSET}")
        self.check_graph(self.model.graph, "the main graph")

    def fail(self, where: str, rule: str, detail: str = "") -> None:
        raise VerificationError(f"{where}: {rule}{f' ({detail})' if detail else ''}.")

    def check_graph(self, graph: ir.Graph, where: str) -> None:
        entered = [*graph.inputs]
        if len(set(graph.inputs)) != len(graph.inputs):
            self.fail(where, "an input is listed twice")
        for value in graph.inputs:
            if value.producer() is not None:
                self.fail(where, "a node produces an input", str(value.name))
            self.declare(value, where)
        for name, value in graph.initializers.items():
            self.check_initializer(name, value, graph, where)
            if value not in self.visible:
                self.declare(value, where)
                entered.append(value)
        for node in graph:
            self.check_node(node, graph)
            entered.extend(value for value in node.outputs if value.name)
        self.check_outputs(graph, where)
        for value in entered:
            self.visible.discard(value)
            self.names.pop(str(value.name), None)

    def declare(self, value: ir.Value, where: str) -> None:
        if not value.name:
            self.fail(where, "a value has no name", repr(value))
        other = self.names.setdefault(str(value.name), value)
        if other is not value:
            self.fail(where, "two values that are visible together share a name", str(value.name))
        if value in self.visible:
            self.fail(where, "a value is produced twice", str(value.name))
        self.visible.add(value)

    def check_initializer(self, name: str, value: ir.Value, graph: ir.Graph, where: str) -> None:
        if name != value.name:
            self.fail(where, "an initializer is registered under another name", name)
        if value.producer() is not None:
            self.fail(where, "a node produces an initializer", name)
        if value.graph is not graph:
            self.fail(where, "an initializer belongs to another graph", name)
        tensor = value.const_value
        if tensor is None:
            self.fail(where, "an initializer has no tensor", name)
        elif value.dtype is not None and value.dtype != tensor.dtype:
            self.fail(where, "an initializer's dtype is not its tensor's", f"{name}: {value.dtype}")
        elif value.shape is not None and not _shapes_agree(value.shape, tensor.shape):
            self.fail(where, "an initializer's shape is not its tensor's", f"{name}: {value.shape}")

    def check_node(self, node: ir.Node, graph: ir.Graph) -> None:
        where = f"Node {node.op_type} {node.name!r}"
        if node.graph is not graph:
            self.fail(where, "the node believes itself in another graph")
        for index, value in enumerate(node.inputs):
            if value is None:
                continue
            if value not in self.visible:
                self.fail(where, "an input is not produced before its use", str(value.name))
            if (node, index) not in self.uses_of(value):
                self.fail(where, "an input does not list the node among its uses", str(value.name))
        for name, body in _bodies(node):
            self.check_graph(body, f"{where}, graph {name!r}")
        self.check_node_outputs(node, where)

    def check_node_outputs(self, node: ir.Node, where: str) -> None:
        for index, value in enumerate(node.outputs):
            if value.producer() is not node or value.index() != index:
                self.fail(where, "an output names another producer", str(value.name))
            if value.name:
                self.declare(value, where)
            elif value.uses():
                self.fail(where, "an output without a name is used", str(index))

    def uses_of(self, value: ir.Value) -> set[tuple[ir.Node, int]]:
        """Uses of `value`, kept: `Value.uses` copies them, and a weight may have thousands."""
        uses = self.uses.get(value)
        if uses is None:
            uses = self.uses[value] = {(use.node, use.idx) for use in value.uses()}
        return uses

    def check_outputs(self, graph: ir.Graph, where: str) -> None:
        if len(set(graph.outputs)) != len(graph.outputs):
            self.fail(where, "an output is listed twice")
        for value in graph.outputs:
            if value not in self.visible:
                self.fail(where, "an output is not produced", str(value.name))
            node = value.producer()
            if (value.graph if node is None else node.graph) is not graph:
                self.fail(where, "an output belongs to another graph", str(value.name))
            if not value.is_graph_output():
                self.fail(where, "an output does not know that it is one", str(value.name))


def _bodies(node: ir.Node) -> Iterator[tuple[str, ir.Graph]]:
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from ((name, graph) for graph in attribute.as_graphs())


def _shapes_agree(declared: ir.Shape, actual: object) -> bool:
    dims = list(actual)  # type: ignore[call-overload]
    return len(declared) == len(dims) and all(
        not isinstance(want, int) or want == got for want, got in zip(declared, dims, strict=True)
    )
