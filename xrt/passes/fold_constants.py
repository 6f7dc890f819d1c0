"""Shape inference and constant folding in one sweep, so that shape arithmetic vanishes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard, static_shape
from xrt.passes.evaluate import Array, Evaluate, evaluate
from xrt.passes.infer_shapes import InferShapesPass
from xrt.passes.rewrite import (
    Names,
    detach,
    forget,
    has_graphs,
    is_constant,
    is_pure,
    new_node,
    producer,
    splice,
)

SIZE_LIMIT = 1 << 20
"""Bytes of a result that is folded however much bigger than its inputs it is."""

_GROWTH = 8  # a larger result is folded up to this many times the bytes of the inputs

# Folding the dequantization of a weight would throw its quantization away.
_KEPT = frozenset({"DequantizeLinear"})

_UNKNOWN_DIM = np.iinfo(np.int64).min  # stands for a dimension that is not known


class FoldConstantsPass(InferShapesPass):
    """y = f(constants) => constant y; Shape(x: static) => constant; If(constant) => its branch.

    All types are inferred on the way, as by `InferShapesPass`, so that a shape computed from
    another shape is known before the next node needs it.

    Requires nodes in topological order and functions inlined. Preserves the values and names of
    graph outputs: one that becomes constant is the Identity of an initializer. Not evaluated are
    random operators, dropout in training, operators outside ONNX, DequantizeLinear (of a quantized
    weight), Loop, Scan, and nodes whose result has more than `size_limit` bytes and more than eight
    times those of the inputs.
    """

    def __init__(
        self, evaluate: Evaluate = evaluate, *, size_limit: int = SIZE_LIMIT, strict: bool = False
    ) -> None:
        """Create the pass.

        Args:
            evaluate: Runs a node on arrays; the default is the reference implementation.
            size_limit: Bytes of a result that is folded even if its inputs are small.
            strict: Raise ModelImportError where the default is to log a warning.
        """
        super().__init__(strict=strict)
        self.evaluate = evaluate
        self.size_limit = size_limit
        self._names: Names | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer all types of `model` and fold what is constant."""
        self._names = Names(model)
        return super().call(model)

    def visit(self, node: ir.Node) -> None:
        """Infer one node, then fold it if it is constant."""
        if is_standard(node, "If") and (condition := constant(node.inputs[0])) is not None:
            self._inline(node, bool(condition.all()))
            return
        if is_standard(node, "CastLike"):
            _name_the_type(node)
        super().visit(node)
        if node.domain == "" and not _is_folded_output(node):
            results = _from_shape(node) or self._from_constants(node)
            if results is not None:
                self._replace(node, results)

    def _from_constants(self, node: ir.Node) -> Sequence[Array] | None:
        if node.op_type in _KEPT or has_graphs(node):
            return None
        arrays = [_contents(value, node) for value in node.inputs]
        if any(array is None and value for array, value in zip(arrays, node.inputs, strict=True)):
            return None
        if not is_pure(node) or sum(map(_nbytes, node.outputs)) > self._most_bytes(node):
            return None
        try:
            results = self.evaluate(node, arrays)
        except Exception as error:
            # A node that fails may never run (in a branch not taken), so the model may be right.
            self.problem(node, f"could not be evaluated on its constant inputs: {error}")
            return None
        if not all(isinstance(result, np.ndarray) for result in results):
            return None  # a sequence or an optional, which no initializer can hold
        if node.inputs and not is_constant(node.inputs[0]) and _UNKNOWN_DIM in results[0]:
            return None  # it chose a dimension that is not known
        return self._checked(node, results)

    def _most_bytes(self, node: ir.Node) -> int:
        """Bytes of results of `node` that are worth keeping instead of the node."""
        return max(self.size_limit, _GROWTH * sum(map(_nbytes, node.inputs)))

    def _checked(self, node: ir.Node, results: Sequence[Array]) -> Sequence[Array] | None:
        """The results in the types that inference gives them, or None if they are too big."""
        if sum(array.nbytes for array in results) > self._most_bytes(node):
            return None
        checked = []
        for value, array in zip(node.outputs, results, strict=False):
            if value.dtype is not None and value.dtype != ir.DataType.from_numpy(array.dtype):
                self.problem(node, f"evaluates to {array.dtype}, but is of type {value.dtype}")
                return None
            checked.append(array)
        return checked

    def _replace(self, node: ir.Node, results: Sequence[Array]) -> None:
        graph, names = node.graph, self._names
        assert graph is not None
        assert names is not None
        self.modified = True
        for value, array in zip(node.outputs, results, strict=False):
            if not value.name or not (value.uses() or value.is_graph_output()):
                continue
            folded = names.constant(graph, f"{value.name}_folded", array)
            if value.is_graph_output():
                name, value.name = str(value.name), names.fresh(str(value.name))
                copy = new_node(
                    "Identity", [folded], before=node, name=name, dtype=folded.dtype,
                    shape=folded.shape,
                )  # fmt: skip
                value.replace_all_uses_with(copy, replace_graph_outputs=True)
            else:
                value.replace_all_uses_with(folded)
        detach(node)

    def _inline(self, node: ir.Node, condition: bool) -> None:
        """If(constant) => the nodes of the branch that it takes, in the graph of the If."""
        assert self._names is not None
        self.modified = True
        taken, other = "then_branch", "else_branch"
        if not condition:
            taken, other = other, taken
        forget([node.attributes[other].as_graph()])
        branch = node.attributes[taken].as_graph()
        node.resize_inputs(0)  # the condition is no input of the branch
        for inner in splice(node, branch, self._names):
            self.visit(inner)


def _is_folded_output(node: ir.Node) -> bool:
    """Whether `node` is what folding leaves of a constant graph output."""
    return (
        node.op_type == "Identity"
        and node.outputs[0].is_graph_output()
        and is_constant(node.inputs[0])
    )


def _from_shape(node: ir.Node) -> Sequence[Array] | None:
    """The result of Shape or Size, where the shape is known."""
    if node.op_type == "Size" and (shape := static_shape(node.inputs[0])) is not None:
        return [np.asarray(int(np.prod(shape, dtype=np.int64)), dtype=np.int64)]
    if node.op_type == "Shape":
        array = _shape_array(node)
        if array is not None and _UNKNOWN_DIM not in array:
            return [array]
    return None


def _shape_array(node: ir.Node) -> Array | None:
    """What a Shape node gives, with `_UNKNOWN_DIM` for dimensions that are not known."""
    value = node.inputs[0]
    if value is None or value.shape is None:
        return None
    dims = [dim if isinstance(dim, int) else _UNKNOWN_DIM for dim in value.shape]
    start = node.attributes.get_int("start", 0)
    return np.asarray(dims[start : node.attributes.get_int("end")], dtype=np.int64)


def _contents(value: ir.Value | None, node: ir.Node) -> Array | None:
    """The array of a constant; for Gather and Slice also a shape that is known in part.

    These two only choose among the dimensions, so a result without `_UNKNOWN_DIM` is right.
    """
    array = constant(value)
    if array is None and node.op_type in ("Gather", "Slice") and value is node.inputs[0]:
        shape = producer(value, "Shape")
        return None if shape is None else _shape_array(shape)
    return array


def _nbytes(value: ir.Value | None) -> int:
    """Bytes of `value` as far as they are known; 0 otherwise."""
    shape = static_shape(value)
    if shape is None or value is None or value.dtype is None or value.dtype.is_string():
        return 0
    return int(np.prod(shape, dtype=np.float64) * value.dtype.itemsize)


def _name_the_type(node: ir.Node) -> None:
    """CastLike(x, y) => Cast(x), to the type of y: then x alone decides whether it is constant."""
    like = node.inputs[1]
    if like is not None and like.dtype is not None:
        node.attributes["to"] = ir.AttrInt64("to", like.dtype.value)
        node.op_type = "Cast"
        node.resize_inputs(1)
