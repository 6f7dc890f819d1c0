"""Layers that carry a state from one call to the next: linear attention, causal convolution."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math

import numpy as np

from xrt.kernels.host.common import Array, contiguous, widen
from xrt.kernels.host.registry import kernel

RULES = {
    "linear": (False, False),
    "gated": (True, False),
    "delta": (False, True),
    "gated_delta": (True, True),
}
"""For each update rule whether it decays the state, and whether it writes differences."""


@kernel("LinearAttention")
def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Array, Array]:
    """Attention through a matrix per head that every token decays, writes to and reads.

    `query` is (batch, length, q heads * d_k), the output (batch, length, q heads * d_v), the state
    (batch, kv heads, d_k, d_v). Heads of queries share those of keys and values in groups.
    """
    decays, corrects = _rule(update_rule, decay, beta)
    if kv_num_heads < 1 or q_num_heads % kv_num_heads:
        raise ValueError(f"q_num_heads {q_num_heads} is no multiple of kv_num_heads {kv_num_heads}")
    # Steps first: (length, batch, kv heads, queries per head, size).
    q = _by_step(query, q_num_heads)
    q = q.reshape(*q.shape[:2], kv_num_heads, q_num_heads // kv_num_heads, q.shape[-1])
    k, v = (_by_step(x, kv_num_heads)[:, :, :, None] for x in (key, value))
    factor = np.float32(scale or 1 / math.sqrt(q.shape[-1]))
    rates = None if beta is None or not corrects else _by_step(beta, beta.shape[-1])[..., None]
    gates = None
    if decay is not None and decays:
        gates = np.exp(_by_step(decay, kv_num_heads))[..., None]

    if past_state is None:
        state = np.zeros((*k.shape[1:3], k.shape[-1], v.shape[-1]), np.float32)
    else:
        state = past_state.astype(np.float32)
    out = np.empty((*q.shape[:-1], v.shape[-1]), np.float32)
    for step in range(len(q)):
        if gates is not None:
            state *= gates[step]
        written = v[step]
        if rates is not None:
            written = rates[step] * (written - k[step] @ state)
        state += k[step].swapaxes(-1, -2) * written
        np.matmul(q[step], state, out=out[step])
    out *= factor
    y = out.transpose(1, 0, 2, 3, 4).reshape(*query.shape[:2], q_num_heads * v.shape[-1])
    kept = query.dtype if past_state is None else past_state.dtype
    return y.astype(query.dtype, copy=False), state.astype(kept, copy=False)


def _rule(name: str, decay: Array | None, beta: Array | None) -> tuple[bool, bool]:
    if name not in RULES:
        raise ValueError(f"update_rule {name!r} is unknown; known: {', '.join(RULES)}")
    for needed, given, what in zip(RULES[name], (decay, beta), ("decay", "beta"), strict=True):
        if needed != (given is not None):
            raise ValueError(f"update_rule {name!r} {'needs' if needed else 'takes no'} {what}")
    return RULES[name]


def _by_step(x: Array, heads: int) -> Array:
    """(batch, length, heads * size) to (length, batch, heads, size), in float32."""
    split = x.astype(np.float32, copy=False).reshape(*x.shape[:2], heads, x.shape[2] // heads)
    return contiguous(split.swapaxes(0, 1))


@kernel("CausalConvWithState")
def causal_conv_with_state(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    past_state: Array | None = None,
    *,
    activation: str = "none",
) -> tuple[Array, Array]:
    """Depthwise convolution over the present and past of (batch, channels, length).

    The state is the last elements of the input, one fewer than the filter (channels, 1, k) has.
    """
    if activation not in ("none", "silu", "swish"):
        raise ValueError(f"activation {activation!r} is unknown; known: none, silu, swish")
    length, taps = x.shape[2], weight.shape[2]
    if past_state is None:
        past_state = np.zeros((*x.shape[:2], taps - 1), x.dtype)
    padded = np.concatenate([past_state, x], axis=2)
    wide, filters = widen(padded), widen(weight)[:, 0, :, None]
    y = np.zeros(x.shape, wide.dtype)
    for tap in range(taps):
        y += wide[:, :, tap : tap + length] * filters[:, tap]
    if bias is not None:
        y += widen(bias)[:, None]
    if activation != "none":
        y /= 1 + np.exp(-y)
    return y.astype(x.dtype, copy=False), contiguous(padded[:, :, length:])
