"""RNN, GRU and LSTM against torch, ONNX Runtime and the equations of the standard."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from tests.kernels.host.peers import ort
from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(5)
STEPS, BATCH, SIZE, HIDDEN = 7, 3, 5, 4
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
TORCH_ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""Where ONNX's gates stand among torch's: r z n, and i f g o."""

FLOAT = onnx.TensorProto.FLOAT


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _weights(op_type: str, ways: int = 1) -> tuple[Any, Any, Any]:
    rows = GATES[op_type] * HIDDEN
    return _x(ways, rows, SIZE), _x(ways, rows, HIDDEN), _x(ways, 2 * rows)


def _outputs(op_type: str) -> int:
    return 3 if op_type == "LSTM" else 2


def _check_against_ort(op_type: str, *inputs: Any, **attributes: Any) -> None:
    attributes.setdefault("hidden_size", HIDDEN)
    count = _outputs(op_type)
    got = run(op_type, *inputs, output_count=count, **attributes)
    want = ort(op_type, *inputs, outputs=[FLOAT] * count, **attributes)
    assert len(got) == len(want) == count
    for g, w in zip(got, want, strict=True):
        assert_close(g, w)


def _torch_to_onnx(op_type: str, values: list[Any]) -> Any:
    """Weights or biases of torch's directions as ONNX stacks them."""
    order = list(TORCH_ORDER[op_type])
    ways = []
    for value in values:
        array = value.detach().numpy()
        ways.append(array.reshape(len(order), HIDDEN, -1)[order].reshape(array.shape))
    return np.stack(ways)


@pytest.mark.parametrize("lengths", [None, [7, 2, 4]])
@pytest.mark.parametrize("ways", [1, 2])
@pytest.mark.parametrize("op_type", sorted(GATES))
def test_layers_of_torch(op_type: str, ways: int, lengths: list[int] | None) -> None:
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, op_type)(SIZE, HIDDEN, bidirectional=ways == 2)
    states = [_x(ways, BATCH, HIDDEN) for _ in range(_outputs(op_type) - 1)]
    x = _x(STEPS, BATCH, SIZE)
    suffixes = ["_l0", "_l0_reverse"][:ways]
    w, r = (
        _torch_to_onnx(op_type, [getattr(layer, f"weight_{k}{s}") for s in suffixes])
        for k in ("ih", "hh")
    )
    b = np.concatenate(
        [
            _torch_to_onnx(op_type, [getattr(layer, f"bias_{k}{s}") for s in suffixes])
            for k in ("ih", "hh")
        ],
        axis=1,
    )
    initial = tuple(map(torch.from_numpy, states))
    packed = torch.from_numpy(x)
    if lengths is not None:
        pack = torch.nn.utils.rnn.pack_padded_sequence
        packed = pack(packed, torch.tensor(lengths), enforce_sorted=False)
    with torch.no_grad():
        wanted, last = layer(packed, initial if len(initial) > 1 else initial[0])
    if lengths is not None:
        wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(wanted, total_length=STEPS)
    lens = None if lengths is None else np.array(lengths, np.int32)
    attributes: dict[str, Any] = {"direction": "bidirectional" if ways == 2 else "forward"}
    if op_type == "GRU":
        attributes["linear_before_reset"] = 1
    y, *final = run(
        op_type, x, w, r, b, lens, *states, output_count=_outputs(op_type), **attributes
    )
    assert y.shape == (STEPS, ways, BATCH, HIDDEN)
    assert_close(y, wanted.numpy().reshape(STEPS, BATCH, ways, HIDDEN).swapaxes(1, 2))
    for got, want in zip(final, last if len(initial) > 1 else (last,), strict=True):
        assert_close(got, want.numpy())


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", sorted(GATES))
def test_directions_layouts_and_absent_inputs(op_type: str, direction: str) -> None:
    ways = 2 if direction == "bidirectional" else 1
    w, r, b = _weights(op_type, ways)
    x, h = _x(STEPS, BATCH, SIZE), _x(ways, BATCH, HIDDEN)
    count = _outputs(op_type)
    attributes: dict[str, Any] = {"direction": direction, "output_count": count}
    compare(op_type, x, w, r, **attributes, hidden_size=HIDDEN)
    compare(op_type, x, w, r, b, None, h, **attributes)
    compare(op_type, x[:1], w, r, None, None, h, **attributes)
    plain = run(op_type, x, w, r, b, None, h, **attributes)
    batch_first = run(
        op_type, x.swapaxes(0, 1), w, r, b, None, h.swapaxes(0, 1), **attributes, layout=1
    )
    np.testing.assert_array_equal(plain[0].transpose(2, 0, 1, 3), batch_first[0])
    for a, c in zip(plain[1:], batch_first[1:], strict=True):
        np.testing.assert_array_equal(a.swapaxes(0, 1), c)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", sorted(GATES))
def test_sequence_lengths(op_type: str, direction: str) -> None:
    w, r, b = _weights(op_type, 2 if direction == "bidirectional" else 1)
    x, lengths = _x(STEPS, BATCH, SIZE), np.array([3, 7, 1], np.int32)
    _check_against_ort(op_type, x, w, r, b, lengths, direction=direction)


def test_a_sequence_of_no_steps_keeps_its_initial_state() -> None:
    w, r, b = _weights("LSTM")
    states = [_x(1, BATCH, HIDDEN) for _ in range(2)]
    lengths = np.array([0, 2, 0], np.int32)
    y, h, c = run("LSTM", _x(STEPS, BATCH, SIZE), w, r, b, lengths, *states, output_count=3)
    assert not y[:, :, [0, 2]].any()
    for got, initial in zip((h, c), states, strict=True):
        np.testing.assert_array_equal(got[:, [0, 2]], initial[:, [0, 2]])


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("linear_before_reset", [0, 1])
def test_gru_against_onnxruntime(linear_before_reset: int, clip: float | None) -> None:
    w, r, b = _weights("GRU", 2)
    extra = {} if clip is None else {"clip": clip}
    _check_against_ort(
        "GRU",
        _x(STEPS, BATCH, SIZE),
        w,
        r,
        b,
        None,
        _x(2, BATCH, HIDDEN),
        direction="bidirectional",
        linear_before_reset=linear_before_reset,
        **extra,
    )


@pytest.mark.parametrize("input_forget", [0, 1])
@pytest.mark.parametrize("peepholes", [False, True])
def test_lstm_against_onnxruntime(peepholes: bool, input_forget: int) -> None:
    w, r, b = _weights("LSTM", 2)
    h, c = _x(2, BATCH, HIDDEN), _x(2, BATCH, HIDDEN)
    p = _x(2, 3 * HIDDEN) if peepholes else None
    _check_against_ort(
        "LSTM",
        _x(STEPS, BATCH, SIZE),
        w,
        r,
        b,
        np.array([7, 4, 2], np.int32),
        h,
        c,
        *([p] if peepholes else []),
        direction="bidirectional",
        input_forget=input_forget,
    )


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def test_clip_bounds_what_every_activation_of_an_lstm_gets() -> None:
    limit = 0.25
    (w, r, b), x = _weights("LSTM"), _x(1, BATCH, SIZE)
    memory = 2 * _x(1, BATCH, HIDDEN)
    y, h, c = run("LSTM", x, w, r, b, None, None, memory, output_count=3, clip=limit)
    hidden, memory = np.zeros((BATCH, HIDDEN)), memory[0].astype(np.float64)
    for step in x.astype(np.float64):
        gates = step @ w[0].T + hidden @ r[0].T + b[0, : 4 * HIDDEN] + b[0, 4 * HIDDEN :]
        i, o, f, g = np.split(np.clip(gates, -limit, limit), 4, axis=1)
        memory = _sigmoid(f) * memory + _sigmoid(i) * np.tanh(g)
        hidden = _sigmoid(o) * np.tanh(np.clip(memory, -limit, limit))
    assert np.abs(memory).max() > limit
    assert_close(y[-1], hidden[None].astype(np.float32))
    assert_close(h, hidden[None].astype(np.float32))
    assert_close(c, memory[None].astype(np.float32))


FUNCTIONS: dict[str, Any] = {
    "Relu": lambda x, a, b: np.maximum(x, 0),
    "Tanh": lambda x, a, b: np.tanh(x),
    "Sigmoid": lambda x, a, b: _sigmoid(x),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ThresholdedRelu": lambda x, a, b: np.where(x >= a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1),
    "Elu": lambda x, a, b: np.where(x >= 0, x, a * (np.exp(x) - 1)),
    "Softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "Softplus": lambda x, a, b: np.log(1 + np.exp(x)),
}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_activations(name: str) -> None:
    alpha, beta = 0.3, 0.7
    (w, r, b), x = _weights("RNN"), 3 * _x(1, BATCH, SIZE)
    y, _ = run(
        "RNN",
        x,
        w,
        r,
        b,
        output_count=2,
        activations=[name],
        activation_alpha=[alpha],
        activation_beta=[beta],
    )
    inner = x[0].astype(np.float64) @ w[0].T + b[0, :HIDDEN] + b[0, HIDDEN:]
    assert_close(y[0, 0], FUNCTIONS[name](inner, alpha, beta).astype(np.float32))
    lower = run(
        "RNN",
        x,
        w,
        r,
        b,
        activations=[name.lower()],
        activation_alpha=[alpha],
        activation_beta=[beta],
    )
    np.testing.assert_array_equal(lower[0], y)


def test_default_parameters_of_activations() -> None:
    w, r, b = _weights("LSTM")
    x = _x(STEPS, BATCH, SIZE)
    _check_against_ort("LSTM", x, w, r, b, activations=["HardSigmoid", "LeakyRelu", "Elu"])


def test_each_activation_with_an_alpha_takes_the_next() -> None:
    w, r, b = _weights("LSTM", 2)
    x = _x(STEPS, BATCH, SIZE)
    _check_against_ort(
        "LSTM",
        x,
        w,
        r,
        b,
        direction="bidirectional",
        activations=["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "LeakyRelu", "Tanh"],
        activation_alpha=[0.3, 0.2, 0.1],
        activation_beta=[0.4],
    )


def test_as_many_alphas_as_activations_belong_to_them_one_by_one() -> None:
    w, r, b = _weights("GRU")
    x = _x(STEPS, BATCH, SIZE)
    names = ["Sigmoid", "LeakyRelu"]
    given = run("GRU", x, w, r, b, activations=names, activation_alpha=[0.0, 0.2])
    taken = run("GRU", x, w, r, b, activations=names, activation_alpha=[0.2])
    np.testing.assert_array_equal(given[0], taken[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("op_type", sorted(GATES))
def test_other_types_round_once(op_type: str, dtype: Any) -> None:
    inputs = [v.astype(dtype) for v in (_x(STEPS, BATCH, SIZE), *_weights(op_type))]
    count = _outputs(op_type)
    got = run(op_type, *inputs, output_count=count)
    wide = run(op_type, *(v.astype(np.float64) for v in inputs), output_count=count)
    for g, w in zip(got, wide, strict=True):
        assert g.dtype == dtype
        assert_close(g, w.astype(dtype))


def test_what_does_not_fit_is_refused() -> None:
    w, r, b = _weights("LSTM")
    x = _x(STEPS, BATCH, SIZE)
    with pytest.raises(KernelError, match=r"'sideways' is unknown; known: forward, reverse"):
        run("LSTM", x, w, r, b, direction="sideways")
    with pytest.raises(KernelError, match="needs weights of 2 directions"):
        run("LSTM", x, w, r, b, direction="bidirectional")
    with pytest.raises(KernelError, match="hidden_size is 9"):
        run("LSTM", x, w, r, b, hidden_size=9)
    with pytest.raises(KernelError, match="'gelu' is unknown"):
        run("LSTM", x, w, r, b, activations=["Sigmoid", "Gelu", "Tanh"])
    with pytest.raises(KernelError, match=r"1 activations for 1 directions of 3"):
        run("LSTM", x, w, r, b, activations=["Sigmoid"])
    with pytest.raises(KernelError, match="sequence_lens"):
        run("LSTM", x, w, r, b, np.array([8, 1, 1], np.int32))
