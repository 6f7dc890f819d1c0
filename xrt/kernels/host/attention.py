"""Attention and rotary embedding."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math

import numpy as np

from xrt.kernels.host.common import Array, contiguous, numpy_dtype, widen
from xrt.kernels.host.registry import kernel


@kernel("Attention")
def attention(
    q: Array,
    k: Array,
    v: Array,
    attn_mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    nonpad_kv_seqlen: Array | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """softmax(Q K' scale + mask) V by heads, with an optional cache of keys and values.

    A query row whose keys are all masked gives zeros.
    """
    dtype, merged = q.dtype, q.ndim == 3
    if merged:
        q, k, v = _split(q, q_num_heads), _split(k, kv_num_heads), _split(v, kv_num_heads)
    # Where query 0 stands among the keys: one number, or one per sample.
    first: Array = np.zeros((), np.int64)
    if past_key is not None and past_value is not None:
        first = np.asarray(past_key.shape[2])
        k = np.concatenate([past_key, k], axis=2)
        v = np.concatenate([past_value, v], axis=2)
    elif nonpad_kv_seqlen is not None:
        first = (nonpad_kv_seqlen.reshape(-1) - q.shape[2]).reshape(-1, 1, 1, 1)
    right = 0 if is_causal else right_window_size
    allowed = _window(q.shape[2], k.shape[2], first, left_window_size, right)
    bias = _bias(attn_mask, allowed, nonpad_kv_seqlen, k.shape[2])

    scale = 1 / math.sqrt(q.shape[3]) if scale is None else scale
    weights, shown = _weights(q, k, bias, scale, softcap, softmax_precision, qk_matmul_output_mode)
    values = _repeat(widen(v), q.shape[1] // v.shape[1])
    y = np.matmul(weights, values).astype(dtype, copy=False)
    if merged:
        y = y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)
    return y, k, v, shown.astype(dtype, copy=False)


def _weights(
    q: Array,
    k: Array,
    bias: Array | None,
    scale: float,
    softcap: float,
    precision: int | None,
    mode: int,
) -> tuple[Array, Array]:
    """softmax of the scores, and the stage of their computation that `mode` asks for."""
    keys = _repeat(widen(k), q.shape[1] // k.shape[1])
    q = widen(q)
    kind = q.dtype.type
    # The root of the scale goes to either side, as in ONNX's function, and its sign to the keys.
    root = math.sqrt(abs(scale))
    signed = kind(math.copysign(root, scale))
    scores = np.matmul(q * kind(root), np.swapaxes(keys, -1, -2) * signed)
    stages = [scores]
    if softcap > 0:
        scores = np.tanh(scores / kind(softcap)) * kind(softcap)
    stages.append(scores)
    if bias is not None:
        scores = scores + bias
    stages.append(scores)
    weights = _softmax(scores, bias, precision).astype(q.dtype, copy=False)
    stages.append(weights)
    return weights, stages[mode]


def _split(x: Array, heads: int | None) -> Array:
    """(batch, length, heads size) to (batch, heads, length, size)."""
    if not heads:
        raise ValueError("3-D inputs need q_num_heads and kv_num_heads")
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)


def _repeat(x: Array, count: int) -> Array:
    return x if count == 1 else np.repeat(x, count, axis=1)


def _window(queries: int, keys: int, first: Array, left: int, right: int) -> Array | None:
    """Which keys each query may see by position; None for all of them."""
    if left < 0 and right < 0:
        return None
    ahead = np.arange(keys) - (np.arange(queries)[:, None] + first)
    allowed = np.ones(ahead.shape, np.bool_)
    if right >= 0:
        allowed &= ahead <= right
    if left >= 0:
        allowed &= -ahead <= left
    return allowed


def _bias(
    mask: Array | None, allowed: Array | None, lengths: Array | None, keys: int
) -> Array | None:
    """Everything that masks, as one term to add to the scores."""
    if lengths is not None:
        inside = np.arange(keys) < lengths.reshape(-1, 1, 1, 1)
        allowed = inside if allowed is None else allowed & inside
    if mask is not None:
        missing = keys - mask.shape[-1]
        if missing > 0:
            outside = False if mask.dtype == np.bool_ else -np.inf
            pads = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
            mask = np.pad(mask, pads, constant_values=outside)
        if mask.dtype == np.bool_:
            allowed = mask if allowed is None else allowed & mask
            mask = None
    if mask is not None:
        mask = widen(mask)
        return mask if allowed is None else np.where(allowed, mask, mask.dtype.type(-np.inf))
    if allowed is None:
        return None
    return np.where(allowed, np.float32(0), np.float32(-np.inf))


def _softmax(scores: Array, bias: Array | None, precision: int | None) -> Array:
    if precision is not None:
        # float16 and bfloat16 are asked for at times; they are honoured by rounding the scores.
        scores = widen(scores.astype(numpy_dtype(precision)))
    weights = np.asarray(scores - np.max(scores, axis=-1, keepdims=True, initial=-np.inf))
    np.exp(weights, out=weights)
    weights /= np.sum(weights, axis=-1, keepdims=True)
    if bias is not None:
        masked = np.isneginf(np.max(bias, axis=-1, keepdims=True, initial=-np.inf))
        if masked.any():
            weights = np.where(masked, weights.dtype.type(0), weights)
    return weights


@kernel("RotaryEmbedding")
def rotary_embedding(
    x: Array,
    cos: Array,
    sin: Array,
    position_ids: Array | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Array:
    """Rotate pairs of features by angles that grow with the position."""
    shape, dtype = x.shape, x.dtype
    wide = widen(x)
    # (batch, length, heads, size)
    if x.ndim == 4:
        by_head = wide.transpose(0, 2, 1, 3)
    else:
        by_head = wide.reshape(*shape[:2], num_heads or 1, -1)
    size = rotary_embedding_dim or by_head.shape[-1]
    turned, kept = by_head[..., :size], by_head[..., size:]
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    cos, sin = (widen(t)[:, :, None, : size // 2] for t in (cos, sin))
    if interleaved:
        real, imaginary = turned[..., 0::2], turned[..., 1::2]
    else:
        real, imaginary = turned[..., : size // 2], turned[..., size // 2 :]
    parts = (cos * real - sin * imaginary, sin * real + cos * imaginary)
    if interleaved:
        turned = np.stack(parts, axis=-1).reshape(turned.shape)
    else:
        turned = np.concatenate(parts, axis=-1)
    y = np.concatenate([turned, kept], axis=-1)
    y = y.transpose(0, 2, 1, 3) if x.ndim == 4 else y.reshape(shape)
    return contiguous(y.astype(dtype, copy=False))
