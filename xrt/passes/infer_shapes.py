"""Types and shapes of every value, in one topological sweep."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt import custom
from xrt.errors import ModelImportError
from xrt.graph import captured_values, nested_graphs, op_name, static_shape
from xrt.passes import classical_types, control_flow
from xrt.passes.rewrite import attributes_key, has_graphs, is_constant
from xrt.passes.type_corrections import CORRECTIONS, DEFAULTS
from xrt.passes.value_types import (
    UNKNOWN,
    Dims,
    ValueType,
    contradicts,
    dims_of,
    set_type,
    type_of,
)

logger = logging.getLogger(__name__)

# Schemas of these carry no inference function; each output is like the first input.
_LIKE_INPUT = frozenset({"GroupNormalization", "MeanVarianceNormalization"})

# Operators whose shape depends on the contents of floating-point inputs too.
_READS_NUMBERS = frozenset({"Resize", "Upsample", "Range"})

_INFERENCE_ERRORS = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)

_MAX_DATA = 256  # elements of a constant that is handed to inference: shapes, axes, repeats


@dataclass(frozen=True)
class Problem:
    """What inference found wrong at a node.

    Attributes:
        op: Operator of the node.
        place: Name of the node.
        reason: What is wrong.
    """

    op: str
    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} {self.place!r}: {self.reason}"


class InferenceFailedError(Exception):
    """The types of a node's outputs cannot be inferred."""


class TypeInference:
    """Infers the types of single nodes with ONNX's own rules, once for nodes that are alike."""

    def __init__(self, opset_imports: Mapping[str, int]) -> None:
        self._opsets = dict(opset_imports)
        self._schemas: dict[tuple[str, str], onnx.defs.OpSchema | None] = {}
        self._known: dict[object, list[ValueType]] = {}
        self._protos: dict[ValueType, bytes] = {}

    def __call__(self, node: ir.Node) -> list[ValueType]:
        """Types of the outputs of `node` from those of its inputs, or InferenceFailedError."""
        attributes = attributes_key(node)
        if attributes is None:
            return self._infer(node)
        reads_numbers = node.op_type in _READS_NUMBERS
        key = (
            node.domain,
            node.op_type,
            attributes,
            tuple(bool(output.name) for output in node.outputs),
            tuple(
                value and (type_of(value), self._data_key(value, reads_numbers))
                for value in node.inputs
            ),
        )
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._infer(node)
        return found

    def _data_key(self, value: ir.Value, reads_numbers: bool) -> bytes | None:
        data = _small_data(value, reads_numbers)
        return None if data is None else data.tobytes()

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema:
        key = (node.domain, node.op_type)
        if key not in self._schemas:
            domain = "" if node.domain == "ai.onnx" else node.domain
            version = self._opsets.get(domain, 1)
            try:
                self._schemas[key] = onnx.defs.get_schema(node.op_type, version, domain)
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        schema = self._schemas[key]
        if schema is None:
            raise InferenceFailedError(f"the operator {node.domain}::{node.op_type} is not known")
        return schema

    def _infer(self, node: ir.Node) -> list[ValueType]:
        schema = self._schema(node)
        if node.op_type in _LIKE_INPUT:
            return [type_of(node.inputs[0])] * len(node.outputs)
        if not schema.has_type_and_shape_inference_function:
            raise InferenceFailedError("ONNX has no rule for the shapes of this operator")
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        types: dict[str, bytes] = {}
        data: dict[str, bytes] = {}
        reads_numbers = node.op_type in _READS_NUMBERS
        for index, value in enumerate(node.inputs):
            name = "" if value is None else f"input_{index}"
            proto.input.append(name)
            if value is None:
                continue
            types[name] = self._proto(type_of(value))
            array = _small_data(value, reads_numbers)
            if array is not None:
                data[name] = onnx.numpy_helper.from_array(array).SerializeToString()
        proto.output.extend(
            f"output_{index}" if output.name else "" for index, output in enumerate(node.outputs)
        )
        proto.attribute.extend(map(ir.serde.serialize_attribute, node.attributes.values()))
        given = node.attributes
        proto.attribute.extend(a for a in DEFAULTS.get(op_name(node), ()) if a.name not in given)
        for value in _captured(node):
            types[str(value.name)] = self._proto(type_of(value))
        try:
            inferred = schema._infer_node_outputs(
                proto.SerializeToString(), types, data, {}, self._opsets, onnx.IR_VERSION
            )
        except _INFERENCE_ERRORS as error:
            raise InferenceFailedError(str(error).strip()) from error
        found = [_parse(inferred.get(f"output_{i}", b"")) for i in range(len(node.outputs))]
        correct = CORRECTIONS.get(op_name(node))
        return found if correct is None else correct(node, found)

    def _proto(self, key: ValueType) -> bytes:
        known = self._protos.get(key)
        if known is None:
            proto = onnx.TypeProto()
            value_type, dims = key
            if value_type is not None:
                ir.serde.serialize_type_into(proto, value_type)
                if dims is not None:
                    ir.serde.serialize_shape_into(proto, ir.Shape(dims))
            known = self._protos[key] = proto.SerializeToString()
        return known


def _custom_types(op: custom.CustomOp, node: ir.Node) -> list[ValueType]:
    """What an operator of the user's says of its outputs, once its inputs are known."""
    inputs = [_array_type(value) for value in node.inputs]
    present = [value is not None for value in node.inputs]
    types = None
    if present == [each is not None for each in inputs]:
        types = custom.output_types(op, inputs, custom.attributes_of(node), len(node.outputs))
    if types is None:
        return [UNKNOWN] * len(node.outputs)
    return [(ir.TensorType(ir.DataType.from_numpy(t.dtype)), t.shape) for t in types]


def _array_type(value: ir.Value | None) -> custom.ArrayType | None:
    """Shape and dtype of `value`, if both are known."""
    shape = static_shape(value)
    if value is None or shape is None or value.dtype is None:
        return None
    return custom.ArrayType(shape, value.dtype.numpy())


def _captured(node: ir.Node) -> Iterable[ir.Value]:
    return captured_values(node) if has_graphs(node) else ()


def _small_data(value: ir.Value, reads_numbers: bool) -> np.ndarray[Any, Any] | None:
    """The contents of a constant that inference may need: vectors and scalars of integers."""
    tensor = value.const_value
    if tensor is None or not is_constant(value) or tensor.size > _MAX_DATA:
        return None
    if len(tensor.shape) > 1:
        return None
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32):
        return tensor.numpy()
    if reads_numbers and tensor.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return tensor.numpy()
    return None


def _parse(serialized: bytes) -> ValueType:
    proto = onnx.TypeProto.FromString(serialized)
    if proto.WhichOneof("value") is None or proto.HasField("map_type"):
        return UNKNOWN
    if proto.HasField("tensor_type") and not proto.tensor_type.elem_type:
        return UNKNOWN
    value_type = ir.serde.deserialize_type_proto_for_type(proto)
    shape = ir.serde.deserialize_type_proto_for_shape(proto)
    return value_type, dims_of(shape)


class InferShapesPass(ir.passes.InPlacePass):
    """Values => the same values with the type and shape that ONNX's rules give them.

    What inference finds takes the place of what the model declares; a declared dimension stays
    where inference finds none. Bodies of If, Loop and Scan are inferred from the inputs of their
    node; a dimension that changes from one iteration to the next becomes unknown.

    Requires nodes in topological order and functions inlined. Preserves the graph.

    Attributes:
        modified: Whether the last call changed anything.
        problems: What the last call found wrong: rules that failed, where the declared type stays,
            and declarations that contradict their inputs.
    """

    def __init__(self, *, strict: bool = False) -> None:
        """Create the pass.

        Args:
            strict: Raise ModelImportError where the default is to log a warning.
        """
        super().__init__()
        self.strict = strict
        self.problems: list[Problem] = []
        self.modified = False
        self._bound = True
        self._types: TypeInference | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Infer the types of all values of `model`."""
        self.problems = []
        self.modified = False
        self._types = TypeInference(model.opset_imports)
        # While an input is symbolic, an exporter's numbers may be of one example: see `_assign`.
        self._bound = all(
            value.shape is not None and all(isinstance(dim, int) for dim in value.shape)
            for value in model.graph.inputs
        )
        self.sweep(model.graph)
        self._report()
        return ir.passes.PassResult(model, modified=self.modified)

    def _report(self) -> None:
        if self.strict and self.problems:
            raise ModelImportError(f"Shape inference failed at {self.problems[0]}")
        for problem in self.problems:
            logger.warning("Shape inference: %s", problem)

    def sweep(self, graph: ir.Graph) -> None:
        """Visit the nodes of `graph` in order; its inputs have their types."""
        for value in graph.initializers.values():
            if value.const_value is not None and (value.type is None or value.shape is None):
                value.type = ir.TensorType(value.const_value.dtype)
                value.shape = ir.Shape(tuple(value.const_value.shape))  # type: ignore[arg-type]
        for node in list(graph):
            self.visit(node)

    def visit(self, node: ir.Node) -> None:
        """Infer the types of the outputs of one node, and of its nested graphs first."""
        rule = control_flow.RULES.get(op_name(node))
        if rule is not None:
            self.assign(node, rule(self, node))
            return
        classical = classical_types.RULES.get(op_name(node))
        if classical is not None:
            self.assign(node, classical(node))
            return
        own = custom.find(node)
        if own is not None:
            self.assign(node, _custom_types(own, node))
            return
        for graph in nested_graphs(node):
            self.sweep(graph)
        assert self._types is not None
        try:
            types = self._types(node)
        except InferenceFailedError as failure:
            self.problem(node, str(failure))
            return
        self.assign(node, types)

    def problem(self, node: ir.Node, reason: str) -> None:
        """Record what is wrong at `node`."""
        self.problems.append(Problem(node.op_type, str(node.name), reason))

    def assign(self, node: ir.Node, types: Sequence[ValueType]) -> None:
        """Give the outputs of `node` their inferred types, completed by the declared ones."""
        for value, inferred in zip(node.outputs, types, strict=True):
            before = type_of(value)
            after = self._merge(node, value, before, inferred)
            if after != before:
                self.modified = True
                set_type(value, after)

    def _merge(
        self, node: ir.Node, value: ir.Value, declared: ValueType, inferred: ValueType
    ) -> ValueType:
        value_type, dims = inferred
        declared_type, declared_dims = declared
        if value_type is None:
            return declared_type, declared_dims if dims is None else dims
        if declared_type is not None and declared_type != value_type:
            self.problem(
                node, f"output {value.name!r} is declared {declared_type}, but is {value_type}"
            )
        if dims is None:
            # A declared rank helps; numbers are only believed once the inputs are bound.
            return value_type, declared_dims and self._believed(declared_dims)
        if declared_dims is None:
            return value_type, dims
        if contradicts(declared_dims, dims):
            self.problem(
                node,
                f"output {value.name!r} is declared {list(declared_dims)}, "
                f"but its inputs make it {list(dims)}",
            )
        if len(declared_dims) != len(dims):
            return value_type, dims
        believed = self._believed(declared_dims)
        merged = tuple(old if new is None else new for old, new in zip(believed, dims, strict=True))
        return value_type, merged

    def _believed(self, declared: Dims) -> Dims:
        if self._bound:
            return declared
        return tuple(None if isinstance(dim, int) else dim for dim in declared)
