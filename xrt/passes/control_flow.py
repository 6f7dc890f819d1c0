"""Types of If, Loop, Scan and xrt::Gradient, from those of their bodies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from xrt.graph import constant
from xrt.passes.rewrite import forget, producer
from xrt.passes.value_types import Dims, ValueType, join, set_type, type_of

if TYPE_CHECKING:
    from xrt.passes.infer_shapes import InferShapesPass


def infer_if(sweep: InferShapesPass, node: ir.Node) -> list[ValueType]:
    """An output of If is what holds of it in both branches."""
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for branch in branches:
        sweep.sweep(branch)
    return [
        join(type_of(left), type_of(right))
        for left, right in zip(branches[0].outputs, branches[1].outputs, strict=True)
    ]


def infer_loop(sweep: InferShapesPass, node: ir.Node) -> list[ValueType]:
    """Carried values keep the type that survives an iteration; scanned ones gain the trip count."""
    body = node.attributes["body"].as_graph()
    fixed: list[ValueType] = [
        (ir.TensorType(ir.DataType.INT64), ()),
        (ir.TensorType(ir.DataType.BOOL), ()),
    ]
    carried = _settle(sweep, body, fixed, [type_of(value) for value in node.inputs[2:]], first=1)
    trips = trip_count(node)
    scanned = [
        (value_type, None if dims is None else (trips, *_numbers(dims)))
        for value_type, dims in map(type_of, body.outputs[1 + len(carried) :])
    ]
    return [*carried, *scanned]


def infer_scan(sweep: InferShapesPass, node: ir.Node) -> list[ValueType]:
    """A scan input loses its axis inside the body; a scan output gains one."""
    body = node.attributes["body"].as_graph()
    count = node.attributes["num_scan_inputs"].as_int()
    states = len(node.inputs) - count
    axes = node.attributes.get_ints("scan_input_axes") or [0] * count
    length: int | str | None = None
    elements: list[ValueType] = []
    for value, axis in zip(node.inputs[states:], axes, strict=True):
        value_type, dims = type_of(value)
        if dims is not None:
            axis %= len(dims)
            length = dims[axis] if length is None else length
            dims = dims[:axis] + dims[axis + 1 :]
        elements.append((value_type, dims))
    carried = _settle(sweep, body, [], [type_of(v) for v in node.inputs[:states]], elements)
    outputs = body.outputs[states:]
    axes = node.attributes.get_ints("scan_output_axes") or [0] * len(outputs)
    scanned: list[ValueType] = []
    for value, axis in zip(outputs, axes, strict=True):
        value_type, dims = type_of(value)
        if dims is not None:
            axis %= len(dims) + 1
            known = _numbers(dims)
            dims = (*known[:axis], length, *known[axis:])
        scanned.append((value_type, dims))
    return [*carried, *scanned]


def infer_gradient(sweep: InferShapesPass, node: ir.Node) -> list[ValueType]:
    """A gradient is like the input that it is by."""
    body = node.attributes["body"].as_graph()
    known = [type_of(value) for value in node.inputs]
    for value, kind in zip(body.inputs, known, strict=True):
        if type_of(value) != kind:
            sweep.modified = True
            set_type(value, kind)
    sweep.sweep(body)
    return known[: len(node.outputs)]


RULES: dict[str, Callable[[InferShapesPass, ir.Node], list[ValueType]]] = {
    "If": infer_if,
    "Loop": infer_loop,
    "Scan": infer_scan,
    "xrt::Gradient": infer_gradient,
}


def _numbers(dims: Dims) -> Dims:
    """`dims` without symbols: one that a body declares means nothing outside of it."""
    return tuple(dim if isinstance(dim, int) else None for dim in dims)


def _settle(
    sweep: InferShapesPass,
    body: ir.Graph,
    leading: Sequence[ValueType],
    carried: list[ValueType],
    trailing: Sequence[ValueType] = (),
    *,
    first: int = 0,
) -> list[ValueType]:
    """Sweep `body` with types of the carried values that one more iteration does not change.

    The sweep may fold what follows from a shape, so a shape must be known to last before the body
    itself is touched: copies of the body are tried until the types hold.

    Args:
        sweep: The sweep to apply.
        body: The body of a Loop or Scan.
        leading: Types of the body's inputs before the carried ones.
        carried: Types of the carried values on entry.
        trailing: Types of the body's inputs after the carried ones.
        first: Position of the first carried value among the body's outputs.
    """
    problems, modified = sweep.problems, sweep.modified
    while True:
        copy = body.clone(allow_outer_scope_values=True)
        for value, known in zip(copy.inputs, [*leading, *carried, *trailing], strict=True):
            set_type(value, known)
        sweep.problems = []
        sweep.sweep(copy)
        produced = [type_of(value) for value in copy.outputs[first : first + len(carried)]]
        forget([copy])
        settled = [join(*pair) for pair in zip(carried, produced, strict=True)]
        if settled == carried:
            break
        carried = settled
    sweep.problems, sweep.modified = problems, modified
    for value, known in zip(body.inputs, [*leading, *carried, *trailing], strict=True):
        if type_of(value) != known:
            sweep.modified = True
            set_type(value, known)
    sweep.sweep(body)
    return carried


def trip_count(node: ir.Node) -> int | None:
    """The number of iterations of a Loop whose condition stays true, if it is constant."""
    body = node.attributes["body"].as_graph()
    limit, condition = constant(node.inputs[0]), node.inputs[1]
    if limit is None or limit.size != 1:
        return None
    if condition is not None:
        entry = constant(condition)
        if entry is None or not bool(entry.all()):
            return None
    going_on = body.outputs[0]
    while (node_ := producer(going_on, "Identity")) is not None:
        going_on = node_.inputs[0]  # type: ignore[assignment]
    always = constant(going_on)
    if going_on is body.inputs[1] or (always is not None and bool(always.all())):
        return max(int(limit.reshape(())), 0)
    return None
