"""Linear attention by its recurrence in plain loops; causal convolution against torch."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError
from xrt.kernels.host.linear_attention import RULES

RNG = np.random.default_rng(19)
BATCH, STEPS, KEY, VALUE = 2, 5, 3, 4


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _inputs(q_heads: int, kv_heads: int, decay: int, beta: int) -> list[Any]:
    """Query, key, value, state, decay and beta; `decay` and `beta` are the sizes of the last."""
    return [
        _x(BATCH, STEPS, q_heads * KEY),
        _x(BATCH, STEPS, kv_heads * KEY),
        _x(BATCH, STEPS, kv_heads * VALUE),
        _x(BATCH, kv_heads, KEY, VALUE),
        -np.abs(_x(BATCH, STEPS, decay)),
        1 / (1 + np.exp(_x(BATCH, STEPS, beta))),
    ]


def _recurrence(
    rule: str, inputs: list[Any], q_heads: int, kv_heads: int, scale: float
) -> tuple[Any, Any]:
    """The equations of the standard for one head of one sample at a time, in float64."""
    q, k, v, past, decay, beta = (x.astype(np.float64) for x in inputs)
    y, states = np.zeros((BATCH, STEPS, q_heads * VALUE)), past.copy()
    for b, h in itertools.product(range(BATCH), range(kv_heads)):
        S = past[b, h]
        for t in range(STEPS):
            kt, vt = k[b, t, h * KEY : (h + 1) * KEY], v[b, t, h * VALUE : (h + 1) * VALUE]
            if decay.shape[2] == kv_heads:
                g = np.full(KEY, decay[b, t, h])
            else:
                g = decay[b, t, h * KEY : (h + 1) * KEY]
            rate = beta[b, t, h if beta.shape[2] > 1 else 0]
            if "gated" in rule:
                S = np.diag(np.exp(g)) @ S
            S = S + np.outer(kt, rate * (vt - S.T @ kt) if "delta" in rule else vt)
            group = q_heads // kv_heads
            for i in range(h * group, (h + 1) * group):
                y[b, t, i * VALUE : (i + 1) * VALUE] = scale * q[b, t, i * KEY : (i + 1) * KEY] @ S
        states[b, h] = S
    return y, states


def _used(rule: str, inputs: list[Any]) -> list[Any]:
    decays, corrects = RULES[rule]
    return [*inputs[:4], inputs[4] if decays else None, inputs[5] if corrects else None]


@pytest.mark.parametrize(("q_heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_recurrence(rule: str, q_heads: int, kv_heads: int) -> None:
    heads = {"q_num_heads": q_heads, "kv_num_heads": kv_heads}
    for decay, beta in ((kv_heads, kv_heads), (kv_heads * KEY, 1)):
        inputs = _inputs(q_heads, kv_heads, decay, beta)
        used = _used(rule, inputs)
        got = run("LinearAttention", *used, output_count=2, update_rule=rule, **heads)
        want = _recurrence(rule, inputs, q_heads, kv_heads, KEY**-0.5)
        for g, w in zip(got, want, strict=True):
            assert_close(g, w.astype(np.float32))
        compare("LinearAttention", *used, output_count=2, update_rule=rule, scale=0.3, **heads)


def test_state_goes_on_from_call_to_call() -> None:
    q, k, v, _, decay, beta = _inputs(4, 2, 2, 2)
    heads: dict[str, Any] = {"q_num_heads": 4, "kv_num_heads": 2, "output_count": 2}
    whole, last = run("LinearAttention", q, k, v, None, decay, beta, **heads)
    state, parts = None, []
    for part in (slice(0, 2), slice(2, 3), slice(3, STEPS)):
        sliced = [x[:, part] for x in (q, k, v)]
        y, state = run("LinearAttention", *sliced, state, decay[:, part], beta[:, part], **heads)
        parts.append(y)
    assert_close(np.concatenate(parts, axis=1), whole)
    assert_close(state, last)


def test_half_precision_accumulates_in_float32() -> None:
    inputs = [x.astype(np.float16) for x in _inputs(2, 2, 2, 2)]
    inputs[3] = inputs[3].astype(np.float32)
    y, state = run("LinearAttention", *inputs, output_count=2, q_num_heads=2, kv_num_heads=2)
    want, last = _recurrence("gated_delta", inputs, 2, 2, KEY**-0.5)
    assert_close(y, want.astype(np.float16))
    assert_close(state, last.astype(np.float32))


def test_no_tokens() -> None:
    inputs = _inputs(2, 2, 2, 2)
    none = [x[:, :0] for x in inputs[:3]]
    y, state = run(
        "LinearAttention",
        *none,
        inputs[3],
        output_count=2,
        update_rule="linear",
        q_num_heads=2,
        kv_num_heads=2,
    )
    assert y.shape == (BATCH, 0, 2 * VALUE)
    np.testing.assert_array_equal(state, inputs[3])


def test_linear_attention_refuses_what_a_rule_does_not_take() -> None:
    inputs = _inputs(2, 2, 2, 2)
    heads = {"q_num_heads": 2, "kv_num_heads": 2}
    with pytest.raises(KernelError, match="'linear' takes no decay"):
        run("LinearAttention", *inputs, update_rule="linear", **heads)
    with pytest.raises(KernelError, match="'gated_delta' needs beta"):
        run("LinearAttention", *inputs[:5], **heads)
    with pytest.raises(KernelError, match="'square' is unknown; known: linear"):
        run("LinearAttention", *inputs[:3], update_rule="square", **heads)
    with pytest.raises(KernelError, match="3 is no multiple of kv_num_heads 2"):
        run("LinearAttention", *inputs, q_num_heads=3, kv_num_heads=2)


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
def test_causal_convolution_of_torch(activation: str, length: int, taps: int) -> None:
    torch = pytest.importorskip("torch")
    x, w, b = _x(2, 3, length), _x(3, 1, taps), _x(3)
    past = _x(2, 3, taps - 1)
    for bias, state in itertools.product((None, b), (None, past)):
        before = np.zeros_like(past) if state is None else state
        padded = np.concatenate([before, x], axis=2)
        want = torch.nn.functional.conv1d(
            torch.from_numpy(padded),
            torch.from_numpy(w),
            None if bias is None else torch.from_numpy(bias),
            groups=3,
        )
        if activation != "none":
            want = torch.nn.functional.silu(want)
        y, present = run(
            "CausalConvWithState", x, w, bias, state, output_count=2, activation=activation
        )
        assert_close(y, want.numpy())
        np.testing.assert_array_equal(present, padded[:, :, length:])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_causal_convolution_of_narrow_types_rounds_once(dtype: Any) -> None:
    inputs = [v.astype(dtype) for v in (_x(2, 3, 50), _x(3, 1, 8), _x(3), _x(2, 3, 7))]
    y, present = run("CausalConvWithState", *inputs, output_count=2, activation="silu")
    wide = [v.astype(np.float32) for v in inputs]
    want, _ = run("CausalConvWithState", *wide, output_count=2, activation="silu")
    np.testing.assert_array_equal(y, want.astype(dtype))
    np.testing.assert_array_equal(present, inputs[0][:, :, -7:])


def test_causal_convolution_refuses_an_unknown_activation() -> None:
    with pytest.raises(KernelError, match="'relu' is unknown; known: none, silu, swish"):
        run("CausalConvWithState", _x(1, 1, 3), _x(1, 1, 2), activation="relu")
