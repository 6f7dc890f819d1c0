"""Recurrent layers: RNN, GRU, LSTM.

The product of all inputs and the input weights is taken at once; what a step must wait for is the
product of the last state and the recurrent weights.
"""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_float32
from xrt.kernels.host.registry import kernel

Activation: TypeAlias = Callable[[Array], Array]
States: TypeAlias = tuple[Array, ...]
Cell: TypeAlias = Callable[[Array, States], States]
"""(projected input of a step, states) to new states, of which the first is the output."""

Layer: TypeAlias = Callable[[int, Sequence[Activation]], tuple[Array, Cell]]
"""(direction, its activations) to the bias of the projection and the cell."""


@kernel("RNN")
@in_float32
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = ("Tanh", "Tanh"),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> States:
    """h = f(W x + R h + biases), one after the other along a sequence.

    With `layout` 0, x is (length, batch, size), the outputs are (length, directions, batch, hidden)
    and (directions, batch, hidden); with 1 the batch comes first.
    """
    ways = _directions(direction, w, r, hidden_size)
    # The default names both directions, whether there is a second or not.
    names = activations[: len(ways)]
    chosen = _activations(names, 1, activation_alpha, activation_beta, clip, len(ways))

    def layer(way: int, functions: Sequence[Activation]) -> tuple[Array, Cell]:
        (f,), recurrent = functions, np.ascontiguousarray(r[way].T)

        def cell(projected: Array, states: States) -> States:
            return (f(projected + states[0] @ recurrent),)

        return _bias(b, way, w), cell

    return _run(x, w, r, layer, chosen, sequence_lens, (initial_h,), ways, layout)


@kernel("GRU")
@in_float32
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> States:
    """Gated recurrent unit; shapes as for RNN, gates in the order update, reset, hidden."""
    ways = _directions(direction, w, r, hidden_size)
    names = tuple(activations) or ("Sigmoid", "Tanh") * len(ways)
    chosen = _activations(names, 2, activation_alpha, activation_beta, clip, len(ways))
    size = r.shape[2]

    def layer(way: int, functions: Sequence[Activation]) -> tuple[Array, Cell]:
        f, g = functions
        recurrent = np.ascontiguousarray(r[way].T)
        bias, inner = _bias(b, way, w), np.zeros(size, w.dtype)
        if linear_before_reset and b is not None:
            # The bias of the state's product is within the reset then.
            inner = b[way, 5 * size :]
            bias[2 * size :] = b[way, 2 * size : 3 * size]

        def cell(projected: Array, states: States) -> States:
            (h,) = states
            if linear_before_reset:
                product = h @ recurrent
                gates = f(projected[:, : 2 * size] + product[:, : 2 * size])
                reset = gates[:, size:] * (product[:, 2 * size :] + inner)
            else:
                gates = f(projected[:, : 2 * size] + h @ recurrent[:, : 2 * size])
                reset = (gates[:, size:] * h) @ recurrent[:, 2 * size :]
            update = gates[:, :size]
            new = g(projected[:, 2 * size :] + reset)
            return ((1 - update) * new + update * h,)

        return bias, cell

    return _run(x, w, r, layer, chosen, sequence_lens, (initial_h,), ways, layout)


@kernel("LSTM")
@in_float32
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    sequence_lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
    *,
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    activations: Sequence[str] = (),
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> States:
    """Long short-term memory; shapes as for RNN, gates in the order input, output, forget, cell.

    With `input_forget` the forget gate is one minus the input gate.
    """
    ways = _directions(direction, w, r, hidden_size)
    names = tuple(activations) or ("Sigmoid", "Tanh", "Tanh") * len(ways)
    chosen = _activations(names, 3, activation_alpha, activation_beta, clip, len(ways))
    size = r.shape[2]

    def layer(way: int, functions: Sequence[Activation]) -> tuple[Array, Cell]:
        f, g, h = functions
        recurrent = np.ascontiguousarray(r[way].T)
        holes = None if p is None else p[way].reshape(3, size)

        def cell(projected: Array, states: States) -> States:
            hidden, memory = states
            gates = projected + hidden @ recurrent
            i, o, z = gates[:, :size], gates[:, size : 2 * size], gates[:, 2 * size : 3 * size]
            if holes is not None:
                i, z = i + holes[0] * memory, z + holes[2] * memory
            i = f(i)
            forget = 1 - i if input_forget else f(z)
            memory = forget * memory + i * g(gates[:, 3 * size :])
            o = f(o if holes is None else o + holes[1] * memory)
            return o * h(memory), memory

        return _bias(b, way, w), cell

    states = (initial_h, initial_c)
    return _run(x, w, r, layer, chosen, sequence_lens, states, ways, layout)


# ------------------------------------------------------------------ the walk along a sequence


def _directions(direction: str, w: Array, r: Array, hidden_size: int | None) -> tuple[bool, ...]:
    """For each direction whether it goes backward, checked against the weights."""
    known = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    if direction not in known:
        raise ValueError(f"direction {direction!r} is unknown; known: {', '.join(known)}")
    ways = known[direction]
    if not len(w) == len(r) == len(ways):
        raise ValueError(
            f"direction {direction!r} needs weights of {len(ways)} directions; "
            f"W has shape {w.shape}, R {r.shape}"
        )
    if hidden_size is not None and hidden_size != r.shape[2]:
        raise ValueError(f"hidden_size is {hidden_size}, but R has shape {r.shape}")
    return ways


def _bias(b: Array | None, way: int, w: Array) -> Array:
    """The sum of the biases of input and state, which most cells see only as a sum."""
    rows = w.shape[1]
    return np.zeros(rows, w.dtype) if b is None else b[way, :rows] + b[way, rows:]


def _run(
    x: Array,
    w: Array,
    r: Array,
    layer: Layer,
    activations: Sequence[Sequence[Activation]],
    lengths: Array | None,
    initial: Sequence[Array | None],
    ways: Sequence[bool],
    layout: int,
) -> States:
    """All outputs of the operator: those of every step, then the last states."""
    if layout:
        x = x.swapaxes(0, 1)
        initial = [None if s is None else s.swapaxes(0, 1) for s in initial]
    if lengths is not None and (lengths.shape != x.shape[1:2] or np.any(lengths > len(x))):
        raise ValueError(f"sequence_lens {lengths.tolist()} do not fit X of shape {x.shape}")
    outputs, lasts = [], []
    zeros = np.zeros((x.shape[1], r.shape[2]), x.dtype)
    for way, backward in enumerate(ways):
        bias, cell = layer(way, activations[way])
        states = tuple(zeros if s is None else s[way] for s in initial)
        steps = _reversed(x, lengths) if backward else x
        projected = steps.reshape(len(x) * x.shape[1], x.shape[2]) @ w[way].T + bias
        y, states = _walk(projected.reshape(*x.shape[:2], w.shape[1]), cell, states, lengths)
        outputs.append(_reversed(y, lengths) if backward else y)
        lasts.append(states)
    y = np.stack(outputs, axis=1)
    final = [np.stack(parts) for parts in zip(*lasts, strict=True)]
    if layout:
        return contiguous(y.transpose(2, 0, 1, 3)), *(contiguous(s.swapaxes(0, 1)) for s in final)
    return y, *final


def _walk(
    projected: Array, cell: Cell, states: States, lengths: Array | None
) -> tuple[Array, States]:
    """The outputs of all steps and the last states; past the end of a sequence outputs are 0."""
    y = np.zeros((*projected.shape[:2], states[0].shape[1]), projected.dtype)
    shortest = len(projected) if lengths is None else int(lengths.min(initial=len(projected)))
    for step, part in enumerate(projected):
        new = cell(part, states)
        if lengths is None or step < shortest:
            states, y[step] = new, new[0]
        else:
            going = (step < lengths)[:, None]
            states = tuple(np.where(going, n, s) for n, s in zip(new, states, strict=True))
            y[step] = np.where(going, new[0], 0)
    return y, states


def _reversed(x: Array, lengths: Array | None) -> Array:
    """The steps of each sequence from its last to its first; padding stays behind."""
    if lengths is None:
        return x[::-1]
    steps = np.arange(len(x))[:, None]
    order = np.where(steps < lengths, lengths - 1 - steps, steps)
    return x[order, np.arange(x.shape[1])]


# ------------------------------------------------------------------ activations


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


_PLAIN: dict[str, Activation] = {
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}

_ALPHA: dict[str, tuple[Callable[[Array, float], Array], float]] = {
    "leakyrelu": (lambda x, a: np.where(x >= 0, x, a * x), 0.01),
    "thresholdedrelu": (lambda x, a: np.where(x >= a, x, 0), 1.0),
    "elu": (lambda x, a: np.where(x >= 0, x, a * np.expm1(x)), 1.0),
}
"""Functions of alpha, with its default: that of the operator of the same name."""

_ALPHA_BETA: dict[str, tuple[Callable[[Array, float, float], Array], float, float]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "scaledtanh": (lambda x, a, b: a * np.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), 0.2, 0.5),
}
"""Functions of alpha and beta, with their defaults."""


def _activations(
    names: Sequence[str],
    each: int,
    alphas: Sequence[float],
    betas: Sequence[float],
    clip: float | None,
    ways: int,
) -> list[list[Activation]]:
    """For each direction its functions, each of which clips its argument first.

    As many alphas as functions belong to them one by one; else each function that has an alpha
    takes the next one, and its default when none is left. So do betas.
    """
    if len(names) != each * ways:
        raise ValueError(f"{len(names)} activations for {ways} directions of {each} each")
    keys = [name.lower() for name in names]
    if unknown := sorted(set(keys) - _PLAIN.keys() - _ALPHA.keys() - _ALPHA_BETA.keys()):
        raise ValueError(f"activation {unknown[0]!r} is unknown")
    defaults = {k: v[1] for k, v in _ALPHA.items()} | {k: v[1] for k, v in _ALPHA_BETA.items()}
    alpha = _spread(keys, alphas, defaults)
    beta = _spread(keys, betas, {k: v[2] for k, v in _ALPHA_BETA.items()})
    chosen = [
        _clipped(_bound(key, a, b), clip) for key, a, b in zip(keys, alpha, beta, strict=True)
    ]
    return [chosen[way * each : (way + 1) * each] for way in range(ways)]


def _spread(
    keys: Sequence[str], values: Sequence[float], defaults: Mapping[str, float]
) -> list[float]:
    if len(values) == len(keys):
        return list(values)
    rest = iter(values)
    return [next(rest, defaults[key]) if key in defaults else 0.0 for key in keys]


def _bound(key: str, alpha: float, beta: float) -> Activation:
    if key in _PLAIN:
        return _PLAIN[key]
    if key in _ALPHA:
        of_alpha = _ALPHA[key][0]
        return lambda x: of_alpha(x, alpha)
    of_both = _ALPHA_BETA[key][0]
    return lambda x: of_both(x, alpha, beta)


def _clipped(function: Activation, limit: float | None) -> Activation:
    if limit is None:
        return function
    return lambda x: function(np.clip(x, -limit, limit))
