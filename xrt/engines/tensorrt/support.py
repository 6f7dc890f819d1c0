"""Whether TensorRT takes a node: its parser is asked, with a model of that node alone."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import onnx_ir as ir

from xrt import graph as G
from xrt.engines.tensorrt.export import export, narrowed
from xrt.engines.tensorrt.library import Library
from xrt.engines.tensorrt.parse import Network, ParseError, parse
from xrt.engines.tensorrt.surgery import RefusedError
from xrt.graph import Support
from xrt.passes.annotate_profiles import Profile
from xrt.passes.rewrite import RANDOM_OPS, has_graphs

MOST_DIMENSIONS = 8

OPEN = -1
"""What TensorRT says in place of a dimension that it does not know."""

DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose results have as many elements as their inputs' values decide."""

DTYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "FLOAT": "float32",
    "FP4": "float4_e2m1fn",
    "FP8": "float8_e4m3fn",
    "HALF": "float16",
    "INT32": "int32",
    "INT4": "int4",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
}
"""Types of TensorRT by NumPy's names."""

_MOST_BYTES = 1 << 16  # of a constant whose contents may decide what the parser says
_MOST_ANSWERS = 1 << 16

_ANSWERS: OrderedDict[Hashable, Support] = OrderedDict()
_FAILED: dict[Hashable, Support] = {}
_LOCK = threading.Lock()


def supports(library: Library, node: ir.Node, target: str | None = None) -> Support:
    """Whether the library runs `node`, whose types and shapes are inferred, or why not.

    The answer is the parser's, given once for an operator, attributes, types, shapes and small
    constants. A dimension may be open where the value has a `Profile`. A network whose results have
    other types or shapes than ONNX says is a no as well, and so is a node like one at which a build
    for `target` failed.
    """
    answer = _supports_kind(node)
    if not answer:
        return answer
    key = (library.name, library.version, *signature(node))
    with _LOCK:
        failed = _FAILED.get((target, key))
        if failed is not None:
            return failed
        known = _ANSWERS.get(key)
        if known is not None:
            _ANSWERS.move_to_end(key)
            return known
    found = _ask(library, node)
    with _LOCK:
        _ANSWERS[key] = found
        while len(_ANSWERS) > _MOST_ANSWERS:
            _ANSWERS.popitem(last=False)
    return found


def remember_failure(library: Library, node: ir.Node, target: str | None, reason: str) -> None:
    """From now on, nodes like `node` are none that the library runs on `target`.

    What the parser takes may have no kernel on a GPU, which only a build tells. A network has many
    nodes alike, and each would cost another build.
    """
    key = (library.name, library.version, *signature(node))
    with _LOCK:
        _FAILED[target, key] = Support.no(f"a build failed at a node like it: {reason}")


def signature(node: ir.Node) -> tuple[Hashable, ...]:
    """What the answer about a node may depend on."""
    attributes = tuple(
        (name, _attribute_key(attribute)) for name, attribute in sorted(node.attributes.items())
    )
    first: dict[ir.Value, int] = {}
    inputs = tuple(
        None if value is None else (first.setdefault(value, len(first)), *_value_key(value))
        for value in node.inputs
    )
    outputs = tuple((_is_used(value), value.dtype, _shape_key(value)) for value in node.outputs)
    return G.op_name(node), attributes, inputs, outputs


def _attribute_key(attribute: ir.Attr) -> Hashable:
    if attribute.type == ir.AttributeType.TENSOR:
        return G.tensor_digest(attribute.as_tensor())
    value = attribute.value
    return (attribute.type, tuple(value) if isinstance(value, list | tuple) else value)


def _value_key(value: ir.Value) -> tuple[Hashable, ...]:
    tensor = value.const_value if G.constant(value) is not None else None
    content = None
    if tensor is not None:
        content = G.tensor_digest(tensor) if tensor.nbytes <= _MOST_BYTES else "large"
    return value.dtype, _shape_key(value), content


def _shape_key(value: ir.Value) -> Hashable:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _supports_kind(node: ir.Node) -> Support:
    """What needs no parser to refuse."""
    name = G.op_name(node)
    if node.domain not in ("", "ai.onnx"):
        return Support.no(f"TensorRT's parser has no operator {name}")
    if has_graphs(node):
        return Support.no(f"{name}: the host drives it, with clusters inside it")
    if node.op_type in RANDOM_OPS:
        return Support.no(f"{name}: TensorRT does not promise new random numbers at each call")
    if node.op_type in DATA_DEPENDENT:
        return Support.no(f"{name}: the size of its result depends on values, not on shapes")
    taken = [None if narrowed(node, i) is not None else v for i, v in enumerate(node.inputs)]
    for value in (*taken, *(each for each in node.outputs if _is_used(each))):
        if value is not None:
            answer = _supports_value(name, value)
            if not answer:
                return answer
    return Support.yes()


def _supports_value(name: str, value: ir.Value) -> Support:
    label = f"{name}: value {value.name!r}"
    if not isinstance(value.type, ir.TensorType) or value.dtype is None:
        return Support.no(f"{label} is not a tensor of known type")
    if value.dtype == ir.DataType.STRING or value.dtype.numpy().name not in DTYPES.values():
        return Support.no(f"{label} has type {value.dtype}, which TensorRT lacks")
    shape = _least_shape(value)
    if shape is None:
        return Support.no(
            f"{label} has no static shape, and none that follows from the ranges of the inputs': "
            f"{value.shape}"
        )
    if len(shape) > MOST_DIMENSIONS:
        return Support.no(f"{label} has {len(shape)} dimensions; TensorRT has {MOST_DIMENSIONS}")
    if 0 in shape and G.constant(value) is None:
        return Support.no(f"{label} has no elements: {list(shape)}")
    return Support.yes()


def _least_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of a value, or the least that it takes; None if that depends on more than shapes.

    The profile of a value whose rank is unknown tells its rank, but not the parser.
    """
    shape = G.static_shape(value)
    if shape is not None or value.shape is None:
        return shape
    limits = bounds(value)
    return None if limits is None else limits[0]


def bounds(value: ir.Value) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The least, the usual and the largest size of each dimension of a value, if they are known.

    What becomes smaller while its input grows has its least size where that has its largest.
    """
    profile = Profile.of(value)
    if profile is None:
        return None
    corners = list(zip(profile.least, profile.usual, profile.most, strict=True))
    return tuple(map(min, corners)), profile.usual, tuple(map(max, corners))


def _ask(library: Library, node: ir.Node) -> Support:
    body = alone(node)
    try:
        model = export(body)
        if not len(model.graph):
            return Support.yes()  # it is a constant
        wanted = [(value.dtype, _dims(value)) for value in body.outputs]
        return _check_outputs(node, parse(library, model), wanted)
    except RefusedError as error:
        return Support.no(f"{G.op_name(node)}: {error}")
    except ParseError as error:
        return Support.no(error.reason)


def _dims(value: ir.Value) -> tuple[int | None, ...]:
    """The shape of a value; None stands for a dimension that is open."""
    assert value.shape is not None, "admitted with a rank only"
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def alone(node: ir.Node) -> ir.Graph:
    """A graph of `node` alone: its constants are initializers, its used results are outputs."""
    values: dict[ir.Value, ir.Value] = {}
    inputs, constants = [], []
    for number, value in enumerate(node.inputs):
        if value is None or value in values:
            continue
        copy = values[value] = ir.Value(name=f"input_{number}", type=value.type, shape=value.shape)
        if G.constant(value) is not None:
            copy.const_value = value.const_value
            constants.append(copy)
        else:
            inputs.append(copy)
    outputs = [
        ir.Value(name=f"output_{number}", type=value.type, shape=value.shape)
        for number, value in enumerate(node.outputs)
    ]
    twin = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else values[value] for value in node.inputs],
        list(node.attributes.values()),
        outputs=outputs,
        name=node.name or node.op_type,
    )
    used = [new for new, old in zip(outputs, node.outputs, strict=True) if _is_used(old)]
    for value in outputs:
        if value not in used and value is not outputs[0]:
            value.name = ""  # which is how ONNX leaves an output out
    return ir.Graph(
        inputs,
        used or outputs[:1],
        nodes=[twin],
        initializers=constants,
        opset_imports={"": G.OPSET},
        name="alone",
    )


def _check_outputs(
    node: ir.Node,
    parsed: Network,
    wanted: list[tuple[ir.DataType | None, tuple[int | None, ...]]],
) -> Support:
    """Whether the network gives what ONNX says the node gives."""
    name = G.op_name(node)
    # What leads to open dimensions may be known to one of the two only.
    agrees = _fits if _is_open(node) else operator.eq
    for index, (dtype, shape) in enumerate(wanted):
        tensor = parsed.network.get_output(index)
        got = DTYPES.get(_dtype_name(tensor), _dtype_name(tensor))
        if dtype is not None and got != dtype.numpy().name:
            return Support.no(f"{name}: TensorRT gives {got} where ONNX gives {dtype.numpy().name}")
        if not agrees(tuple(tensor.shape), shape):
            known = ["?" if dim is None else dim for dim in shape]
            return Support.no(
                f"{name}: TensorRT gives shape {list(tensor.shape)} where ONNX gives {known}"
            )
    return Support.yes()


def _is_open(node: ir.Node) -> bool:
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(G.static_shape(value) is None for value in values if value.name)


def _fits(got: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether a shape of TensorRT's, `OPEN` where that does not know, may be `shape`."""
    return len(got) == len(shape) and all(
        have == OPEN or want in (None, have) for have, want in zip(got, shape, strict=True)
    )


def _dtype_name(tensor: Any) -> str:
    return str(tensor.dtype.name)
