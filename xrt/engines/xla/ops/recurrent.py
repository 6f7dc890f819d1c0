"""RNN, GRU and LSTM: one product for the inputs of all time steps, then a scan over the steps.

Everything is computed in float32 or wider, the states included, and rounded at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt.engines.xla.lowering import Context, Prepared, attributes, lowering
from xrt.engines.xla.ops.matmul import product
from xrt.engines.xla.ops.numerics import single, wide
from xrt.graph import Support
from xrt.kernels.jax import elementwise

Activation = Callable[[Any], Any]
States = tuple[Any, ...]
Cell = Callable[..., States]
"""Projected inputs of a step and the states -> the next states, the first of which is given out."""

# Function of x, alpha and beta, with the defaults of those that it has; None demands a value.
_ACTIVATIONS: dict[str, tuple[Callable[..., Any], tuple[float | None, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (None, None)),
    "elu": (lambda x, alpha: jnp.where(x < 0, alpha * jnp.expm1(jnp.minimum(x, 0)), x), (1.0,)),
    "hardsigmoid": (
        lambda x, alpha, beta: jnp.clip(alpha * x + beta, 0, 1),
        (single(0.2), single(0.5)),
    ),
    "leakyrelu": (lambda x, alpha: jnp.where(x < 0, alpha * x, x), (single(0.01),)),
    "relu": (lambda x: jnp.maximum(x, 0), ()),
    "scaledtanh": (lambda x, alpha, beta: alpha * jnp.tanh(beta * x), (None, None)),
    "sigmoid": (elementwise.sigmoid, ()),
    "softplus": (elementwise.softplus, ()),
    "softsign": (lambda x: x / (1 + jnp.abs(x)), ()),
    "tanh": (jnp.tanh, ()),
    "thresholdedrelu": (lambda x, alpha: jnp.where(x < alpha, 0, x), (1.0,)),
}

_DEFAULTS = {
    "RNN": ("Tanh",),
    "GRU": ("Sigmoid", "Tanh"),
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
}
_BACKWARD = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _activations(
    op_type: str,
    *,
    direction: str = "forward",
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
    **_: Any,
) -> list[list[Activation]]:
    """The activations of each direction; `alpha` and `beta` go, in order, to those that have them.

    Raises:
        ValueError: An activation or direction is unknown, or one is missing or lacks a number.
    """
    if direction not in _BACKWARD:
        raise ValueError(f"direction {direction!r} is not one of {', '.join(_BACKWARD)}")
    defaults = _DEFAULTS[op_type]
    names = activations or defaults * len(_BACKWARD[direction])
    if len(names) != len(defaults) * len(_BACKWARD[direction]):
        raise ValueError(
            f"it has {len(names)} activations, and {direction} takes "
            f"{len(defaults) * len(_BACKWARD[direction])}"
        )
    given = iter(activation_alpha), iter(activation_beta)
    functions = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ValueError(f"the activation {name!r} is unknown")
        function, parameters = _ACTIVATIONS[name.lower()]
        numbers = [next(it, known) for it, known in zip(given, parameters, strict=False)]
        if None in numbers:
            raise ValueError(f"the activation {name!r} needs activation_alpha and _beta")
        functions.append(_activation(function, numbers, clip))
    step = len(defaults)
    return [functions[i : i + step] for i in range(0, len(functions), step)]


def _activation(
    function: Callable[..., Any], numbers: Sequence[float | None], clip: float | None
) -> Activation:
    def activate(x: Any) -> Any:
        return function(x if clip is None else jnp.clip(x, -clip, clip), *numbers)

    return activate


def _supports(node: ir.Node) -> Support:
    try:
        _activations(node.op_type, **attributes(node))
    except ValueError as error:
        return Support.no(f"{node.op_type}: {error}")
    return Support.yes()


def _transposed(node: ir.Node) -> Prepared:
    # XLA's CPU runs a product with few rows 2.5 times slower when it must read B by columns.
    return Prepared("transpose last", lambda w: np.ascontiguousarray(np.swapaxes(w, -1, -2)))


_PREPARE = {1: _transposed, 2: _transposed}


@dataclass(frozen=True)
class _Inputs:
    """The inputs of an operator, batch second, in the dtype to compute in.

    Attributes:
        x: (time, batch, features).
        w: (directions, features, gates * hidden).
        r: (directions, hidden, gates * hidden).
        bias: (directions, 2, gates * hidden): of the input, of the recurrence.
        present: (time, batch, 1), whether a sequence goes on; None if all are of full length.
        initial: The initial states, each (directions, batch, hidden).
    """

    x: Any
    w: Any
    r: Any
    bias: Any
    present: Any
    initial: States


def _inputs(
    ctx: Context, x: Any, w: Any, r: Any, b: Any, lengths: Any, initial: States, layout: int
) -> _Inputs:
    w, r = (
        wide(array) if ctx.prepared(position) else jnp.swapaxes(wide(array), -1, -2)
        for position, array in ((1, w), (2, r))
    )
    directions, hidden, width = r.shape
    if layout:
        x = jnp.swapaxes(x, 0, 1)
        initial = tuple(None if state is None else jnp.swapaxes(state, 0, 1) for state in initial)
    time, batch = x.shape[:2]
    bias = jnp.zeros((directions, 2 * width), w.dtype) if b is None else wide(b)
    empty = jnp.zeros((directions, batch, hidden), w.dtype)
    present = None
    if lengths is not None:
        present = jnp.arange(time)[:, None, None] < jnp.asarray(lengths)[:, None]
    return _Inputs(
        x=wide(x),
        w=w,
        r=r,
        bias=jnp.reshape(bias, (directions, 2, width)),
        present=present,
        initial=tuple(empty if state is None else wide(state) for state in initial),
    )


def _run(
    inputs: _Inputs,
    cells: Sequence[Cell],
    direction: str,
    layout: int,
    dtype: Any,
    *,
    inside: int = 0,
) -> States:
    """All outputs and the last states, in the shapes of ONNX.

    A scan backward in time passes the padding of a sequence first, where the states stay what
    they were: so each sequence starts at its own end.

    Args:
        inputs: The inputs.
        cells: The cell of each direction.
        direction: As in ONNX.
        layout: As in ONNX.
        dtype: Of the results.
        inside: How many of the last recurrence biases the cell itself adds.
    """
    results = []
    for number, (cell, backward) in enumerate(zip(cells, _BACKWARD[direction], strict=True)):
        outer, recurrent = inputs.bias[number]
        bias = outer + recurrent.at[recurrent.size - inside :].set(0)
        projected = product(inputs.x, inputs.w[number]) + bias
        states = tuple(state[number] for state in inputs.initial)
        results.append(_scan(cell, projected, inputs.present, states, backward))
    outputs = jnp.stack([output for _, output in results], 1)
    last = [jnp.stack(states) for states in zip(*(states for states, _ in results), strict=True)]
    if layout:
        outputs = jnp.transpose(outputs, (2, 0, 1, 3))
        last = [jnp.swapaxes(state, 0, 1) for state in last]
    return tuple(array.astype(dtype) for array in (outputs, *last))


def _scan(
    cell: Cell, projected: Any, present: Any, states: States, backward: bool
) -> tuple[States, Any]:
    """The last states, and the first state after each step, zero where the sequence is over."""

    def step(states: States, element: Any) -> tuple[States, Any]:
        x, here = element
        new = cell(x, *states)
        if here is None:
            return new, new[0]
        kept = tuple(jnp.where(here, *pair) for pair in zip(new, states, strict=True))
        return kept, jnp.where(here, new[0], 0)

    return lax.scan(step, states, (projected, present), reverse=backward)


@lowering("RNN", supports=_supports, prepare=_PREPARE)
def rnn(
    ctx: Context,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    **options: Any,
) -> States:
    """The simple recurrent network: h' = f(x W + h R + b)."""
    inputs = _inputs(ctx, x, w, r, b, sequence_lens, (initial_h,), layout)
    functions = _activations("RNN", direction=direction, **options)
    cells = [_rnn_cell(r, *known) for r, known in zip(inputs.r, functions, strict=True)]
    return _run(inputs, cells, direction, layout, x.dtype)


def _rnn_cell(r: Any, f: Activation) -> Cell:
    return lambda x, h: (f(x + product(h, r)),)


@lowering("GRU", supports=_supports, prepare=_PREPARE)
def gru(
    ctx: Context,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    **options: Any,
) -> States:
    """The gated recurrent unit."""
    inputs = _inputs(ctx, x, w, r, b, sequence_lens, (initial_h,), layout)
    functions = _activations("GRU", direction=direction, **options)
    cells = [
        _gru_cell_linear_first(r, bias[1], *known) if linear_before_reset else _gru_cell(r, *known)
        for r, bias, known in zip(inputs.r, inputs.bias, functions, strict=True)
    ]
    inside = inputs.r.shape[1] if linear_before_reset else 0
    return _run(inputs, cells, direction, layout, x.dtype, inside=inside)


def _gru_cell(r: Any, f: Activation, g: Activation) -> Cell:
    size = r.shape[0]
    gates, candidate = r[:, : 2 * size], r[:, 2 * size :]

    def cell(x: Any, h: Any) -> States:
        update, reset = jnp.split(f(x[:, : 2 * size] + product(h, gates)), 2, -1)
        new = g(x[:, 2 * size :] + product(reset * h, candidate))
        return ((1 - update) * new + update * h,)

    return cell


def _gru_cell_linear_first(r: Any, bias: Any, f: Activation, g: Activation) -> Cell:
    """The form of cuDNN and PyTorch: the reset gate comes after the product and its bias."""
    size = r.shape[0]

    def cell(x: Any, h: Any) -> States:
        recurrent = product(h, r)
        update, reset = jnp.split(f(x[:, : 2 * size] + recurrent[:, : 2 * size]), 2, -1)
        new = g(x[:, 2 * size :] + reset * (recurrent[:, 2 * size :] + bias[2 * size :]))
        return ((1 - update) * new + update * h,)

    return cell


@lowering("LSTM", supports=_supports, prepare=_PREPARE)
def lstm(
    ctx: Context,
    x: Any,
    w: Any,
    r: Any,
    b: Any = None,
    sequence_lens: Any = None,
    initial_h: Any = None,
    initial_c: Any = None,
    p: Any = None,
    *,
    direction: str = "forward",
    layout: int = 0,
    input_forget: int = 0,
    **options: Any,
) -> States:
    """The long short-term memory, with peepholes `p` and coupled gates where they are given."""
    inputs = _inputs(ctx, x, w, r, b, sequence_lens, (initial_h, initial_c), layout)
    functions = _activations("LSTM", direction=direction, **options)
    peepholes = [None] * len(functions) if p is None else list(wide(p))
    cells = [
        _lstm_cell(r, peephole, bool(input_forget), *known)
        for r, peephole, known in zip(inputs.r, peepholes, functions, strict=True)
    ]
    return _run(inputs, cells, direction, layout, x.dtype)


def _lstm_cell(r: Any, p: Any, coupled: bool, f: Activation, g: Activation, h: Activation) -> Cell:
    p_in, p_out, p_forget = (None, None, None) if p is None else jnp.split(p, 3)

    def peep(gate: Any, weight: Any, memory: Any) -> Any:
        return gate if weight is None else gate + weight * memory

    def cell(x: Any, hidden: Any, memory: Any) -> States:
        i, o, forget, candidate = jnp.split(x + product(hidden, r), 4, -1)
        i = f(peep(i, p_in, memory))
        forget = 1 - i if coupled else f(peep(forget, p_forget, memory))
        memory = forget * memory + i * g(candidate)
        return f(peep(o, p_out, memory)) * h(memory), memory

    return cell
