"""If, Loop and Scan, whose attributes are graphs, by JAX's structured control flow.

A nested graph sees plain arrays in ONNX's layout and the values around its node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, lowering, supports_node
from xrt.graph import Support
from xrt.passes.control_flow import trip_count

_BODIES = {"then_branch": "then-branch", "else_branch": "else-branch", "body": "body"}


def _supports_bodies(node: ir.Node) -> Support:
    """Whether XLA takes every node of the nested graphs of `node`."""
    for name, label in _BODIES.items():
        for inner in node.attributes[name].as_graph() if name in node.attributes else ():
            answer = supports_node(inner)
            if not answer:
                reason = f"{node.op_type}: {G.describe(inner)} in its {label}: {answer.reason}"
                return Support.no(reason, answer.remedy)
    return Support.yes()


def _supports_if(node: ir.Node) -> Support:
    answer = _supports_bodies(node)
    branches = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for value, *results in zip(node.outputs, *(b.outputs for b in branches), strict=True):
        shapes = [G.static_shape(result) for result in results]
        if answer and None not in shapes and shapes[0] != shapes[1]:
            return Support.no(
                f"If: the shape of {value.name!r}, {list(shapes[0] or ())} or "
                f"{list(shapes[1] or ())}, depends on the data"
            )
    return answer


def _supports_loop(node: ir.Node) -> Support:
    body = node.attributes["body"].as_graph()
    states = len(node.inputs) - 2
    scanned = node.outputs[states:]
    if scanned and trip_count(node) is None:
        return Support.no(
            "Loop: the number of iterations, and with it the size of an output "
            f"({scanned[0].name!r}), depends on the data"
        )
    steady = _steady(node, node.inputs[2:], body.inputs[2:])
    return steady and _supports_bodies(node)


def _supports_scan(node: ir.Node) -> Support:
    body = node.attributes["body"].as_graph()
    states = len(node.inputs) - node.attributes["num_scan_inputs"].as_int()
    steady = _steady(node, node.inputs[:states], body.inputs[:states])
    return steady and _supports_bodies(node)


def _steady(
    node: ir.Node, initial: Sequence[ir.Value | None], entering: Sequence[ir.Value]
) -> Support:
    """Whether the states that enter an iteration have the shapes they had on entry."""
    for outer, inner in zip(initial, entering, strict=True):
        shape = G.static_shape(outer)
        if shape is not None and G.static_shape(inner) != shape:
            return Support.no(
                f"{node.op_type}: the shape of {inner.name!r}, {list(shape)} on entry, "
                "changes from one iteration to the next"
            )
    return Support.yes()


def _results(ctx: Context, graph: ir.Graph, *arrays: Any, turn: Any = None) -> tuple[Any, ...]:
    """The outputs of `graph` in the very types that inference found, as JAX's loops demand."""
    results = ctx.trace(graph, *arrays, turn=turn)
    dtypes = [value.dtype for value in graph.outputs]
    return tuple(
        lax.convert_element_type(result, dtype.numpy())
        for result, dtype in zip(results, dtypes, strict=True)
        if dtype is not None  # supports() admits typed values only
    )


@lowering("If", supports=_supports_if, nested=True)
def if_(
    ctx: Context, condition: Any, *, then_branch: ir.Graph, else_branch: ir.Graph
) -> tuple[Any, ...]:
    """The results of one of two graphs; the other does not run."""
    results: tuple[Any, ...] = lax.cond(
        jnp.reshape(condition, ()),
        lambda: _results(ctx, then_branch),
        lambda: _results(ctx, else_branch),
    )
    return results


@lowering("Loop", supports=_supports_loop, nested=True)
def loop(
    ctx: Context, limit: Any = None, condition: Any = None, *initial: Any, body: ir.Graph
) -> tuple[Any, ...]:
    """A graph run a number of times (scan outputs are stacked then), or while it says so."""
    states = tuple(map(jnp.asarray, initial))
    trips = trip_count(ctx.node)
    if trips is None:
        return _while(ctx, limit, condition, states, body)
    going = jnp.ones((), jnp.bool_)

    def step(state: tuple[Any, ...], _: None) -> tuple[Any, Any]:
        number, states = state
        _, *results = _results(ctx, body, number, going, *states, turn=number)
        return (number + 1, tuple(results[: len(states)])), tuple(results[len(states) :])

    start = jnp.zeros((), jnp.int64)
    (_, states), stacked = lax.scan(step, (start, states), length=trips)
    return (*states, *stacked)


def _while(
    ctx: Context, limit: Any, condition: Any, states: tuple[Any, ...], body: ir.Graph
) -> tuple[Any, ...]:
    """Iterate while the condition holds and the number of iterations is below `limit`."""
    going = jnp.ones((), jnp.bool_) if condition is None else jnp.reshape(condition, ())
    number = jnp.zeros((), jnp.int64)
    most = None if limit is None else jnp.reshape(limit, ())

    def goes_on(state: tuple[Any, ...]) -> Any:
        going, number, _ = state
        return going if most is None else going & (number < most)

    def step(state: tuple[Any, ...]) -> tuple[Any, ...]:
        going, number, states = state
        going, *results = _results(ctx, body, number, going, *states, turn=number)
        return jnp.reshape(going, ()), number + 1, tuple(results)

    result: tuple[Any, ...] = lax.while_loop(goes_on, step, (going, number, states))[2]
    return result


@lowering("Scan", supports=_supports_scan, nested=True)
def scan(
    ctx: Context,
    *inputs: Any,
    body: ir.Graph,
    num_scan_inputs: int,
    scan_input_axes: Sequence[int] = (),
    scan_input_directions: Sequence[int] = (),
    scan_output_axes: Sequence[int] = (),
    scan_output_directions: Sequence[int] = (),
) -> tuple[Any, ...]:
    """A graph run over the slices of its last inputs; states are handed on, results stacked."""
    count = len(inputs) - num_scan_inputs
    scanned = len(body.outputs) - count
    slices = [
        _flipped(jnp.moveaxis(array, axis, 0), backward)
        for array, axis, backward in zip(
            map(jnp.asarray, inputs[count:]),
            scan_input_axes or (0,) * num_scan_inputs,
            scan_input_directions or (0,) * num_scan_inputs,
            strict=True,
        )
    ]

    def step(states: tuple[Any, ...], element: Any) -> tuple[Any, Any]:
        number, elements = element
        results = _results(ctx, body, *states, *elements, turn=number)
        return results[:count], results[count:]

    numbers = jnp.arange(slices[0].shape[0])
    initial = tuple(map(jnp.asarray, inputs[:count]))
    states, stacked = lax.scan(step, initial, (numbers, tuple(slices)))
    collected = [
        jnp.moveaxis(_flipped(array, backward), 0, axis)
        for array, axis, backward in zip(
            stacked,
            scan_output_axes or (0,) * scanned,
            scan_output_directions or (0,) * scanned,
            strict=True,
        )
    ]
    return (*states, *collected)


def _flipped(array: Any, backward: int) -> Any:
    return jnp.flip(array, 0) if backward else array
