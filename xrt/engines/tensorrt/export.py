"""A cluster as an ONNX model that TensorRT's parser takes: the graph surgery before parsing.

xrt's graphs are at a newer opset than the parser knows, and the parser neither checks the opset nor
refuses attributes that it does not read. So every operator that changed since `OPSET`, and every
attribute that the parser passes over, has a rule here that writes the same values in another way,
or a reason why that cannot be done.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.tensorrt.attention import guard_rows, is_taken
from xrt.engines.tensorrt.surgery import RefusedError, Surgeon, note_places
from xrt.kernels import host
from xrt.passes import EliminateDeadCodePass, FoldConstantsPass, InferShapesPass
from xrt.passes.inline_functions import expand
from xrt.passes.outline_clusters import drop_unused_initializers
from xrt.passes.rewrite import Names, splice

OPSET = 25
"""The newest opset that the parsers of TensorRT 11 and TensorRT-RTX 1 are documented to take."""

_IR_VERSION = 11  # of the ONNX release in which opset 25 appeared; older readers accept it

Rule = Callable[[Surgeon], None]


def export(body: ir.Graph) -> ir.Model:
    """`body` at opset `OPSET`, for the parser; tensors are shared, nodes and values are new.

    Its inputs and outputs keep names, types and order.

    Raises:
        RefusedError: If a node has no equivalent; the error names it.
    """
    graph = body.clone()
    _name_dimensions(graph)
    graph.opset_imports[""] = G.OPSET
    model = ir.Model(graph, ir_version=_IR_VERSION)
    note_places(graph)
    _decompose(model)
    surgeon = Surgeon(model)
    for node in list(graph):
        surgeon.node = node
        _refuse_unread(surgeon)
        for rule in RULES.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            rule(surgeon)
            if node.graph is None:
                break
    _name_outputs(model)
    _name_results(model)
    _name_nodes(graph)
    drop_unused_initializers(graph)
    graph.opset_imports[""] = OPSET
    return model


def _name_dimensions(graph: ir.Graph) -> None:
    """Name the open dimensions of inputs that have no name: the parser reads those as 0."""
    taken = {str(dim) for value in graph.inputs for dim in value.shape or ()}
    numbers = itertools.count()
    for value in graph.inputs:
        if value.shape is None or not value.shape.has_unknown_dim():
            continue
        value.shape = ir.Shape(
            [
                dim
                if isinstance(dim, int) or dim.value is not None
                else next(name for n in numbers if (name := f"open_{n}") not in taken)
                for dim in value.shape
            ]
        )


def _decompose(model: ir.Model) -> None:
    """Write attentions out that the parser does not read whole, as ONNX defines them."""
    names = Names(model)
    replaced = False
    for node in list(model.graph):
        if not G.is_standard(node, "Attention") or is_taken(node):
            continue
        expanded = expand(node)
        if expanded is None:
            raise RefusedError(node, "ONNX defines no function for it")
        FoldConstantsPass(host.evaluate)(expanded)
        for inner in expanded.graph:
            inner.metadata_props.update(node.metadata_props)
        splice(node, expanded.graph, names)
        replaced = True
    if replaced:
        InferShapesPass()(model)
        EliminateDeadCodePass()(model)


def _name_results(model: ir.Model) -> None:
    """Name results that nobody uses, but optional ones: the parser counts those with names."""
    names = Names(model)
    for node in model.graph:
        unnamed = [index for index, value in enumerate(node.outputs) if not value.name]
        formal = onnx.defs.get_schema(node.op_type, G.OPSET).outputs if unnamed else ()
        for index in unnamed:
            if formal[min(index, len(formal) - 1)].option != _OPTIONAL:
                node.outputs[index].name = names.fresh(f"{node.name or node.op_type}_{index}")


_OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional


def _name_nodes(graph: ir.Graph) -> None:
    """Make names of nodes unique: the library names layers after them."""
    taken: set[str] = set()
    for number, node in enumerate(graph):
        if not node.name or node.name in taken:
            node.name = f"{node.name or node.op_type}/{number}"
        taken.add(node.name)


def _name_outputs(model: ir.Model) -> None:
    """Make every output the result of a node of its own: the parser marks results, not weights."""
    graph = model.graph
    for index, value in enumerate(graph.outputs):
        if value.producer() is None:
            copy = ir.node("Identity", [value])
            copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
            name, value.name = value.name, f"{value.name}_constant"
            copy.outputs[0].name = name
            graph.append(copy)
            graph.outputs[index] = copy.outputs[0]


_UNREAD: dict[str, dict[str, Any]] = {
    "Cast": {"saturate": 1},
    "CastLike": {"saturate": 1},
    "GRU": {"layout": 0},
    "LSTM": {"layout": 0},
    "QuantizeLinear": {"saturate": 1},
    "RNN": {"layout": 0},
    "Resize": {"extrapolation_value": 0.0},
}
"""Operator -> attributes that the parser passes over -> the value that it silently assumes."""


def _refuse_unread(surgeon: Surgeon) -> None:
    node = surgeon.node
    for name, assumed in _UNREAD.get(node.op_type, {}).items():
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.value != assumed:
            surgeon.refuse(f"TensorRT's parser does not read its attribute {name!r}")


def _range(surgeon: Surgeon) -> None:
    """`stash_type` (opset 27) speaks of float16 and bfloat16, which Range of opset 25 lacks."""
    surgeon.node.attributes.pop("stash_type", None)


def narrowed(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """A constant input of a type that TensorRT lacks, in one that it has, if that is exact.

    Only where ONNX lets the input have a type of its own: the exponent of Pow.
    """
    if index not in _FREE_INPUTS.get(node.op_type, ()):
        return None
    array, base = G.constant(node.inputs[index]), node.inputs[0]
    if array is None or base is None or base.dtype is None:
        return None
    for dtype in (base.dtype.numpy(), np.dtype(np.int64)):
        with np.errstate(all="ignore"):
            narrow = array.astype(dtype)
        if np.array_equal(narrow.astype(array.dtype), array):
            return narrow
    return None


_FREE_INPUTS = {"Pow": (1,)}


def _exponent(surgeon: Surgeon) -> None:
    """An exponent in float64, as exporters write them, becomes one of the type of the base."""
    exponent = surgeon.node.inputs[1]
    if exponent is None or exponent.dtype in _EXPONENTS:
        return
    array = narrowed(surgeon.node, 1)
    if array is None:
        surgeon.refuse(f"its exponent has type {exponent.dtype}, which TensorRT lacks")
    surgeon.node.replace_input_with(1, surgeon.constant(array))


_EXPONENTS = (
    *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    *(ir.DataType.INT32, ir.DataType.INT64),
)


def _space_to_depth(surgeon: Surgeon) -> None:
    """The attribute `mode` (opset 28): "CRD" is a Reshape, a Transpose and a Reshape."""
    node = surgeon.node
    mode = node.attributes.pop("mode", None)
    if mode is None or mode.as_string() == "DCR":
        return
    dims = _dims(node.inputs[0])
    if dims is None or None in dims[1:]:
        surgeon.refuse("SpaceToDepth of mode 'CRD' needs static shapes, but for the batch")
    size = node.attributes["blocksize"].as_int()
    n, c, h, w = (dim or 0 for dim in dims)  # Reshape keeps the dimension where it is told 0
    split = surgeon.ints(n, c, h // size, size, w // size, size)
    blocks = surgeon.before("Reshape", [node.inputs[0], split])
    moved = surgeon.before("Transpose", [blocks], perm=[0, 1, 3, 5, 2, 4])
    whole = surgeon.ints(n, c * size * size, h // size, w // size)
    surgeon.become("Reshape", [moved, whole])


def _zero_point(surgeon: Surgeon) -> None:
    """The type of the result is said by a zero point, in place of `output_dtype`."""
    node = surgeon.node
    node.attributes.pop("precision", None)
    wanted = node.attributes.pop("output_dtype", None)
    scale = node.inputs[1]
    if wanted is None or not wanted.as_int() or _input(node, 2) is not None or scale is None:
        return
    array = G.constant(scale)
    if array is None:
        surgeon.refuse("its scale is not a constant")
    dtype = ir.DataType(wanted.as_int()).numpy()
    zero = surgeon.constant(np.zeros(array.shape, dtype))
    surgeon.set_inputs([node.inputs[0], scale, zero])


def _dequantize(surgeon: Surgeon) -> None:
    """A dequantized int32 constant, as biases are, becomes a constant: TensorRT has only int8."""
    node = surgeon.node
    wanted = node.attributes.pop("output_dtype", None)
    scale = node.inputs[1]
    if wanted is not None and scale is not None and wanted.as_int() not in (0, scale.dtype):
        surgeon.refuse("its result has another type than its scale")
    if node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.INT32:
        return
    arrays = [G.constant(value) for value in node.inputs]
    if any(array is None for array in arrays):
        surgeon.refuse("TensorRT dequantizes int32 constants only")
    result = host.evaluate(node, arrays)[0]
    surgeon.replace_by(surgeon.constant(np.asarray(result)))


def _pool(surgeon: Surgeon) -> None:
    """Windows that `ceil_mode` adds become padding at the end, where that counts for nothing."""
    node = surgeon.node
    node.attributes.pop("storage_order", None)  # of the indices, which no engine of ours gives
    ceil = node.attributes.pop("ceil_mode", None)
    if ceil is None or not ceil.as_int():
        return
    extra = _overhang(node)
    if extra is None:
        surgeon.refuse(
            "ceil_mode needs explicit padding, and static shapes but for batch and channels"
        )
    if not any(extra):
        return
    if node.op_type == "LpPool" or _attribute(node, "count_include_pad", 0):
        surgeon.refuse("TensorRT counts what lies beyond the padding, where ceil_mode reaches")
    rank = len(extra)
    pads = _attribute(node, "pads", [0] * (2 * rank))
    ends = [pad + more for pad, more in zip(pads[rank:], extra, strict=True)]
    node.attributes["pads"] = ir.AttrInt64s("pads", [*pads[:rank], *ends])


def _overhang(node: ir.Node) -> list[int] | None:
    """How far the last windows of a pooling in ceil_mode reach beyond the padded input."""
    dims, results = _dims(node.inputs[0]), _dims(node.outputs[0])
    if dims is None or results is None or _attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return None
    shape, result = ([dim for dim in each if dim is not None] for each in (dims[2:], results[2:]))
    if len(shape) < len(dims) - 2 or len(result) < len(shape):
        return None  # where the windows move is open
    kernel = _attribute(node, "kernel_shape", [])
    rank = len(kernel)
    strides, dilations = _attribute(node, "strides", [1] * rank), [1] * rank
    dilations = _attribute(node, "dilations", dilations)
    pads = _attribute(node, "pads", [0] * (2 * rank))
    return [
        max(0, (result[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
            - (shape[i] + pads[i] + pads[rank + i]))
        for i in range(rank)
    ]  # fmt: skip


def _wrap_indices(*, axis_of: Callable[[ir.Node, int], Sequence[int] | None]) -> Rule:
    """Negative indices count from the end in ONNX; the parser passes them on as they are."""

    def rule(surgeon: Surgeon) -> None:
        node = surgeon.node
        indices = node.inputs[1]
        if indices is None or indices.dtype is None:
            return
        array = G.constant(indices)
        if array is not None and (array.size == 0 or array.min() >= 0):
            return
        dims = _dims(node.inputs[0])
        axes = None if dims is None else axis_of(node, len(dims))
        if dims is None or axes is None:
            surgeon.refuse("negative indices need a static shape")
        sizes = [dims[axis] for axis in axes]
        dtype = indices.dtype.numpy()
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            wrapped = _shifted(surgeon, indices, _sizes_of(surgeon, axes, indices.dtype))
        else:
            fixed = np.array(known, dtype) if len(known) > 1 else np.array(known[0], dtype)
            if array is None:
                wrapped = _shifted(surgeon, indices, surgeon.constant(fixed))
            else:
                wrapped = surgeon.constant(np.where(array < 0, array + fixed, array))
        node.replace_input_with(1, wrapped)

    return rule


def _sizes_of(surgeon: Surgeon, axes: Sequence[int], dtype: ir.DataType) -> ir.Value:
    """The sizes of axes of the node's first input, when it runs; of a single one, as a scalar."""
    shape = surgeon.before("Shape", [surgeon.node.inputs[0]])
    places = np.array(axes if len(axes) > 1 else axes[0], np.int64)
    sizes = surgeon.before("Gather", [shape, surgeon.constant(places)], axis=0)
    return surgeon.before("Cast", [sizes], to=int(dtype))


def _shifted(surgeon: Surgeon, indices: ir.Value, sizes: ir.Value) -> ir.Value:
    """Indices, plus `sizes` where they are negative."""
    assert indices.dtype is not None
    zero = surgeon.constant(np.zeros((), indices.dtype.numpy()))
    negative = surgeon.before("Less", [indices, zero])
    shifted = surgeon.before("Add", [indices, sizes])
    return surgeon.before("Where", [negative, shifted, indices])


def _dims(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """The shape of a value, None for what is open in it; None if its rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def _one_axis(node: ir.Node, rank: int) -> Sequence[int] | None:
    return [_attribute(node, "axis", 0) % rank]


def _leading_axes(node: ir.Node, rank: int) -> Sequence[int] | None:
    dims = _dims(node.inputs[1])
    first = _attribute(node, "batch_dims", 0)
    return None if not dims or dims[-1] is None else list(range(first, first + dims[-1]))


def _attribute(node: ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    if attribute is None:
        return default
    return attribute.as_string() if isinstance(default, str) else attribute.value


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


RULES: dict[str, tuple[Rule, ...]] = {
    "Attention": (guard_rows,),
    "AveragePool": (_pool,),
    "DequantizeLinear": (_dequantize,),
    "Gather": (_wrap_indices(axis_of=_one_axis),),
    "GatherElements": (_wrap_indices(axis_of=_one_axis),),
    "GatherND": (_wrap_indices(axis_of=_leading_axes),),
    "LpPool": (_pool,),
    "MaxPool": (_pool,),
    "Pow": (_exponent,),
    "QuantizeLinear": (_zero_point,),
    "Range": (_range,),
    "ScatterElements": (_wrap_indices(axis_of=_one_axis),),
    "ScatterND": (_wrap_indices(axis_of=_leading_axes),),
    "SpaceToDepth": (_space_to_depth,),
}
"""Operator -> what makes a node of xrt's opset one that the parser reads as it is meant."""

__all__ = ["OPSET", "RULES", "RefusedError", "export"]
