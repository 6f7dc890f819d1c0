"""RNN, GRU and LSTM against a loop written in NumPy, torch.nn and onnx.reference."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.engines.xla import ops_support
from tests.engines.xla.ops_support import node_model, run_node, run_reference, support
from tests.support import assert_close
from xrt.engines.xla import trace as T

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TIME, N, FEATURES, H = 5, 3, 4, 6

FUNCTIONS: dict[str, Any] = {
    "Affine": lambda x, a, b: a * x + b,
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)),
    "HardSigmoid": lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1),
    "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "Sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "Softplus": lambda x, a, b: np.log1p(np.exp(x)),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Tanh": lambda x, a, b: np.tanh(x),
    "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
}


def step(op: str, x: Any, h: Any, c: Any, weights: Any, act: Any, options: Any) -> Any:
    """One step of one sequence, from the equations of the standard; (hidden, memory)."""
    w, r, wb, rb, p = weights
    parts = [np.split(a, GATES[op]) for a in (w, r, wb, rb)]
    forward = [a @ x + b for a, b in zip(parts[0], parts[2], strict=True)]
    back = [a @ h + b for a, b in zip(parts[1], parts[3], strict=True)]
    if op == "RNN":
        return act[0](forward[0] + back[0]), c
    if op == "GRU":
        z, reset = (act[0](forward[i] + back[i]) for i in (0, 1))
        if options.get("linear_before_reset"):
            new = act[1](forward[2] + reset * back[2])
        else:
            new = act[1](forward[2] + parts[1][2] @ (reset * h) + parts[3][2])
        return (1 - z) * new + z * h, c
    i, o, f, g = (a + b for a, b in zip(forward, back, strict=True))
    pi, po, pf = np.split(p, 3)
    i = act[0](i + pi * c)
    f = 1 - i if options.get("input_forget") else act[0](f + pf * c)
    c = f * c + i * act[1](g)
    return act[0](o + po * c) * act[2](c), c


def expected(op: str, inputs: Any, functions: Any, **options: Any) -> list[Any]:
    """Y, Y_h and Y_c by a loop over directions, sequences and steps, in float64."""
    x, w, r, b, lengths, h0, c0, p = (
        None if a is None else np.asarray(a, np.float64) for a in (*inputs, *[None] * 8)[:8]
    )
    direction = options.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    if options.get("layout"):
        x, h0, c0 = (None if a is None else np.swapaxes(a, 0, 1) for a in (x, h0, c0))
    time, batch, hidden = x.shape[0], x.shape[1], r.shape[2]
    clip = options.get("clip", np.inf)
    y = np.zeros((time, directions, batch, hidden))
    last = np.zeros((2, directions, batch, hidden))
    for d, n in itertools.product(range(directions), range(batch)):
        act = [lambda v, f=f: f(np.clip(v, -clip, clip)) for f in functions[d]]
        length = time if lengths is None else int(lengths[n])
        order = list(range(length))
        if direction == "reverse" or d == 1:
            order.reverse()
        h, c = (np.zeros(hidden) if s is None else s[d, n] for s in (h0, c0))
        bias = np.zeros(2 * GATES[op] * hidden) if b is None else b[d]
        peep = np.zeros(3 * hidden) if p is None else p[d]
        for t in order:
            weights = (w[d], r[d], *np.split(bias, 2), peep)
            h, c = step(op, x[t, n], h, c, weights, act, options)
            y[t, d, n] = h
        last[:, d, n] = h, c
    results = [y, *last][: 3 if op == "LSTM" else 2]
    if options.get("layout"):
        results = [y.transpose(2, 0, 1, 3), *(s.swapaxes(0, 1) for s in results[1:])]
    return results


def functions(op: str, directions: int) -> Any:
    names = {"RNN": ("Tanh",), "GRU": ("Sigmoid", "Tanh"), "LSTM": ("Sigmoid", "Tanh", "Tanh")}
    return [[with_numbers(name) for name in names[op]]] * directions


def with_numbers(name: str, alpha: float = 0.0, beta: float = 0.0) -> Any:
    return lambda x: FUNCTIONS[name](x, alpha, beta)


def make(op: str, directions: int, *, dtype: Any = np.float32, layout: int = 0) -> list[Any]:
    """All inputs that `op` takes."""
    rng = np.random.default_rng(0)
    width = GATES[op] * H

    def normal(*shape: int) -> Any:
        return (rng.standard_normal(shape) / 2).astype(dtype)

    state = (N, directions, H) if layout else (directions, N, H)
    inputs = [
        normal(N, TIME, FEATURES) if layout else normal(TIME, N, FEATURES),
        normal(directions, width, FEATURES),
        normal(directions, width, H),
        normal(directions, 2 * width),
        np.array([3, 5, 0], np.int32),
        normal(*state),
    ]
    return [*inputs, normal(*state), normal(directions, 3 * H)] if op == "LSTM" else inputs


def outputs(op: str) -> int:
    return 3 if op == "LSTM" else 2


def check(op: str, inputs: Any, *, want: Any, layouts: bool = False, **keywords: Any) -> None:
    keywords = {"hidden_size": H, "outputs": outputs(op), **keywords}
    ops_support.check(op, inputs, want=want, layouts=layouts, **keywords)


OPS = ("RNN", "GRU", "LSTM")
DIRECTIONS = {"forward": 1, "reverse": 1, "bidirectional": 2}


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("op", OPS)
def test_sequences_of_any_length_in_every_direction(op: str, direction: str, layout: int) -> None:
    count = DIRECTIONS[direction]
    inputs = make(op, count, layout=layout)
    options = {"direction": direction, "layout": layout}
    want = [a.astype("f") for a in expected(op, inputs, functions(op, count), **options)]
    check(op, inputs, want=want, **options)


@pytest.mark.parametrize("constants", [(), (1, 2, 3)])
@pytest.mark.parametrize("op", OPS)
def test_only_what_must_be_given(op: str, constants: tuple[int, ...]) -> None:
    for given in (3, 4):
        inputs = make(op, 1)[:given]
        want = [a.astype("f") for a in expected(op, inputs, functions(op, 1))]
        known = [position for position in constants if position < given]
        check(op, inputs, want=want, constants=known)


@pytest.mark.parametrize("op", OPS)
def test_a_padded_step_is_zero_and_the_last_state_is_the_last_valid_one(op: str) -> None:
    inputs = make(op, 1)
    y, last, *_ = run_node(op, inputs, outputs=outputs(op), hidden_size=H)
    assert not y[3:, 0, 0].any()
    np.testing.assert_array_equal(last[0, 0], y[2, 0, 0])
    np.testing.assert_array_equal(last[0, 2], inputs[5][0, 2])  # of length 0: never updated


@pytest.mark.parametrize("positions", [(0,), (1,), (0, 2), (2,)])
def test_outputs_may_be_absent(positions: tuple[int, ...]) -> None:
    inputs = make("LSTM", 1)
    want = expected("LSTM", inputs, functions("LSTM", 1))
    got = run_node("LSTM", inputs, outputs=positions, hidden_size=H)
    assert_close(got, [want[i].astype("f") for i in positions])


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_resets_before_or_after_the_product(before: int, direction: str) -> None:
    count = DIRECTIONS[direction]
    inputs = make("GRU", count)
    options = {"linear_before_reset": before, "direction": direction}
    want = [a.astype("f") for a in expected("GRU", inputs, functions("GRU", count), **options)]
    check("GRU", inputs, want=want, **options)


@pytest.mark.parametrize("options", [{"input_forget": 1}, {"clip": 0.3}])
def test_lstm_options(options: dict[str, Any]) -> None:
    inputs = make("LSTM", 1)
    want = [a.astype("f") for a in expected("LSTM", inputs, functions("LSTM", 1), **options)]
    check("LSTM", inputs, want=want, **options)


@pytest.mark.parametrize("op", ["RNN", "GRU"])
def test_the_inputs_of_activations_are_clipped(op: str) -> None:
    inputs = make(op, 1)
    want = [a.astype("f") for a in expected(op, inputs, functions(op, 1), clip=0.25)]
    check(op, inputs, want=want, clip=0.25)


# alpha and beta as given; what an activation uses where they are not.
ACTIVATIONS = {
    "Affine": (0.7, 0.1, None),
    "Elu": (0.6, None, (1.0, 0)),
    "HardSigmoid": (0.4, 0.3, (0.2, 0.5)),
    "LeakyRelu": (0.2, None, (0.01, 0)),
    "Relu": (None, None, (0, 0)),
    "ScaledTanh": (0.8, 0.6, None),
    "Sigmoid": (None, None, (0, 0)),
    "Softplus": (None, None, (0, 0)),
    "Softsign": (None, None, (0, 0)),
    "tanh": (None, None, (0, 0)),
    "ThresholdedRelu": (0.1, None, (1.0, 0)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_with_and_without_numbers(name: str) -> None:
    alpha, beta, defaults = ACTIVATIONS[name]
    inputs = make("RNN", 1)
    inputs[0] = inputs[0] * 3  # beyond the bounds of each
    canonical = "Tanh" if name == "tanh" else name
    cases = [(alpha, beta)] if defaults is None else [(alpha, beta), (None, None)]
    for a, b in cases:
        known = defaults or (a, b)
        function = with_numbers(
            canonical, known[0] if a is None else a, known[1] if b is None else b
        )
        want = [x.astype("f") for x in expected("RNN", inputs, [[function]])]
        check(
            "RNN", inputs, want=want, activations=[name],
            activation_alpha=None if a is None else [a], activation_beta=None if b is None else [b],
        )  # fmt: skip


def test_numbers_go_in_order_to_the_activations_that_take_them() -> None:
    inputs = make("LSTM", 2)
    names = ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "ScaledTanh", "Elu"]
    table = [
        [("HardSigmoid", 0.3, 0.4), ("Tanh",), ("LeakyRelu", 0.2)],
        [("Sigmoid",), ("ScaledTanh", 0.9, 0.8), ("Elu", 0.5)],
    ]
    known = [[with_numbers(*each) for each in row] for row in table]
    options = {"direction": "bidirectional"}
    want = [a.astype("f") for a in expected("LSTM", inputs, known, **options)]
    check(
        "LSTM", inputs, want=want, activations=names,
        activation_alpha=[0.3, 0.2, 0.9, 0.5], activation_beta=[0.4, 0.8], **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("op", OPS)
def test_dtypes(op: str, dtype: Any) -> None:
    inputs = make(op, 1, dtype=dtype)
    exact = expected(op, inputs, functions(op, 1))
    want = [a.astype(dtype) for a in exact]
    got = run_node(op, inputs, outputs=outputs(op), hidden_size=H)
    assert_close(got, want)
    if dtype == np.float16:  # computed in float32, so at most a rounding away
        assert np.abs(got[0] - exact[0]).max() <= 2**-11


@pytest.mark.parametrize("op", OPS)
def test_agrees_with_the_reference(op: str) -> None:
    inputs = make(op, 1)[:4]
    want = run_reference(op, inputs, outputs=outputs(op), hidden_size=H)
    check(op, inputs, want=want, layouts=True)


@pytest.mark.parametrize("op", OPS)
def test_agrees_with_torch(op: str) -> None:
    torch.manual_seed(0)
    module = getattr(torch.nn, op)(FEATURES, H, bidirectional=True)
    order = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}[op]

    def weight(name: str) -> Any:
        both = [getattr(module, f"{name}_l0{tail}").detach().numpy() for tail in ("", "_reverse")]
        return np.stack([np.concatenate([np.split(a, GATES[op])[i] for i in order]) for a in both])

    x = make(op, 1)[0]
    b = np.concatenate([weight("bias_ih"), weight("bias_hh")], 1)
    with torch.no_grad():
        y, last = module(torch.from_numpy(x))
    last = list(last) if op == "LSTM" else [last]
    want = [y.numpy().reshape(TIME, N, 2, H).transpose(0, 2, 1, 3), *(s.numpy() for s in last)]
    inputs = [x, weight("weight_ih"), weight("weight_hh"), b]
    check(
        op, inputs, want=want, constants=(1, 2, 3),
        direction="bidirectional", linear_before_reset=1 if op == "GRU" else None,
    )  # fmt: skip


def test_the_inputs_of_all_steps_are_projected_at_once() -> None:
    inputs = make("LSTM", 1)[:4]
    body = ir.from_proto(node_model("LSTM", inputs, outputs=3, hidden_size=H)).graph
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(T.function(body, T.plan(body)))(*inputs)
    (scan,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    inner = [eqn.primitive.name for eqn in scan.params["jaxpr"].eqns]
    outer = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert inner.count("dot_general") == 1
    assert [eqn.outvars[0].aval.shape for eqn in outer] == [(TIME * N, 4 * H)]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activations": ["Swish"]}, "RNN: the activation 'Swish' is unknown"),
        ({"activations": ["Tanh"] * 2}, "RNN: it has 2 activations, and forward takes 1"),
        (
            {"activations": ["Affine"], "activation_alpha": [1.0]},
            "RNN: the activation 'Affine' needs activation_alpha and _beta",
        ),
    ],
)
def test_refusals(options: dict[str, Any], reason: str) -> None:
    answer = support("RNN", make("RNN", 1), outputs=2, hidden_size=H, **options)
    assert answer.reason == reason
