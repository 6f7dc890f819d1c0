"""Attention and rotary position embedding.

Everything runs on (batch, heads, sequence, head size). Query heads that share a head of keys are
folded into the sequence, so grouped-query attention is the same two batched products.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, lowering
from xrt.engines.xla.ops.normalization import softmax
from xrt.engines.xla.ops.numerics import dtype_of, wide, wide_dtype
from xrt.graph import Support
from xrt.kernels.jax import attention as kernels

_INPUT_COUNT = 7


def _present(node: ir.Node, position: int) -> bool:
    return position < len(node.inputs) and node.inputs[position] is not None


def _supports_attention(node: ir.Node) -> Support:
    shapes = [G.static_shape(node.inputs[i]) for i in range(3)]
    ranks = {len(shape) for shape in shapes if shape is not None}
    if ranks not in ({3}, {4}):
        return Support.no(f"Attention: Q, K and V are of ranks {sorted(ranks)}, not all of 3 or 4")
    if ranks == {3} and not {"q_num_heads", "kv_num_heads"} <= set(node.attributes):
        return Support.no("Attention: 3-D inputs need the attributes q_num_heads and kv_num_heads")
    if _present(node, 4) != _present(node, 5):
        return Support.no("Attention: past_key and past_value come together")
    if _present(node, 4) and _present(node, 6):
        return Support.no("Attention: nonpad_kv_seqlen does not go with past_key and past_value")
    return Support.yes()


@lowering("Attention", supports=_supports_attention)
def attention(ctx: Context, *inputs: Any, **options: Any) -> tuple[Any, ...]:
    """softmax(Q K' * scale, capped, + masks) V, with a cache of keys and values."""
    padded = (*inputs, *[None] * (_INPUT_COUNT - len(inputs)))
    q, k, v, mask, past_key, past_value, valid = padded
    q, k, v = map(jnp.asarray, (q, k, v))
    flat = np.ndim(q) == 3
    q_heads, kv_heads = options.get("q_num_heads", 0), options.get("kv_num_heads", 0)
    if flat:
        q, k, v = _split(q, q_heads), _split(k, kv_heads), _split(v, kv_heads)
    past = 0
    if past_key is not None:
        past = np.shape(past_key)[2]
        k = jnp.concatenate((past_key, k), axis=2)
        v = jnp.concatenate((past_value, v), axis=2)
    offset = past if valid is None else jnp.reshape(valid, (-1, 1, 1, 1)) - q.shape[2]
    bias = _bias(q, k, mask, valid, offset, options)
    result, scores = _attend(ctx, q, k, v, bias, options)
    if flat:
        result = _join(result)
    return (result.astype(ctx.output_dtype()), k, v, scores)


def _split(x: Any, heads: int) -> Any:
    """(batch, sequence, heads * size) -> (batch, heads, sequence, size)."""
    batch, length, hidden = np.shape(x)
    return jnp.transpose(jnp.reshape(x, (batch, length, heads, hidden // heads)), (0, 2, 1, 3))


def _join(x: Any) -> Any:
    """The inverse of `_split`."""
    batch, heads, length, size = x.shape
    return jnp.reshape(jnp.transpose(x, (0, 2, 1, 3)), (batch, length, heads * size))


def _attend(
    ctx: Context, q: Any, k: Any, v: Any, bias: Any, options: dict[str, Any]
) -> tuple[Any, Any]:
    """The output, and what `qk_matmul_output_mode` asks for (None if nobody uses it)."""
    scale = options.get("scale")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if _fits_kernel(ctx, q, v, options):
        softcap = options.get("softcap", 0.0)
        return kernels.attention(q, k, v, bias, scale=scale, softcap=softcap), None
    stages = [_grouped_product(q * scale, jnp.swapaxes(k, 2, 3))]
    softcap = options.get("softcap", 0.0)
    stages.append(softcap * jnp.tanh(stages[0] / softcap) if softcap else stages[0])
    stages.append(stages[1] if bias is None else stages[1] + bias)
    stages.append(_probabilities(stages[2], bias, options.get("softmax_precision")))
    result = _grouped_product(stages[3].astype(v.dtype), v)
    if not ctx.has_output(3):
        return result, None
    return result, stages[options.get("qk_matmul_output_mode", 0)].astype(ctx.output_dtype(3))


def _fits_kernel(ctx: Context, q: Any, v: Any, options: dict[str, Any]) -> bool:
    """Whether the CPU's kernel, which never holds all scores at once, gives what is asked for."""
    return (
        D.device().platform == "cpu"
        and not ctx.has_output(3)
        and dtype_of(q) == dtype_of(v)
        and (options.get("softmax_precision") != ir.DataType.DOUBLE or q.dtype == jnp.float64)
    )


def _grouped_product(a: Any, b: Any) -> Any:
    """a @ b where consecutive heads of `a` share one head of `b`; accumulates in float32."""
    batch, heads, rows, inner = a.shape
    shared = b.shape[1]
    a = jnp.reshape(a, (batch, shared, heads // shared * rows, inner))
    result = jnp.matmul(a, b, preferred_element_type=wide_dtype(dtype_of(a)))
    return jnp.reshape(result, (batch, heads, rows, b.shape[-1]))


def _probabilities(scores: Any, bias: Any, precision: int | None) -> Any:
    """Softmax over the keys; a query that may attend to no key gets zeros."""
    if precision == ir.DataType.DOUBLE:
        scores = scores.astype(jnp.float64)
    result = softmax(scores, axis=-1)
    if bias is None or not scores.size:
        return result
    blocked = jnp.max(bias, axis=-1, keepdims=True) == -jnp.inf
    return jnp.where(blocked, 0, result)


def _bias(q: Any, k: Any, mask: Any, valid: Any, offset: Any, options: dict[str, Any]) -> Any:
    """What is added to the scores, minus infinity where a query may not attend; None for nothing.

    Args:
        valid: For each batch, how many keys are not padding; or None.
        offset: How many keys precede the first query: a number, or one for each batch.
    """
    dtype = wide_dtype(dtype_of(q))
    keys = k.shape[2]
    allowed = _window(q.shape[2], keys, offset, options)
    if valid is not None:
        allowed.append(jnp.arange(keys) < jnp.reshape(valid, (-1, 1, 1, 1)))
    bias = None
    if mask is not None:
        mask = _pad_mask(jnp.asarray(mask), keys)
        if mask.dtype == bool:
            allowed.append(mask)
        else:
            bias = mask.astype(dtype)
    for condition in allowed:
        bias = jnp.where(condition, jnp.zeros((), dtype) if bias is None else bias, -jnp.inf)
    return bias


def _pad_mask(mask: Any, keys: int) -> Any:
    """A mask for all keys; those that a short mask leaves out may not be attended to."""
    missing = keys - mask.shape[-1]
    if missing <= 0:
        return mask
    padding = [(0, 0)] * (mask.ndim - 1) + [(0, missing)]
    return jnp.pad(mask, padding, constant_values=False if mask.dtype == bool else -jnp.inf)


def _window(queries: int, keys: int, offset: Any, options: dict[str, Any]) -> list[Any]:
    """The conditions that causality and the sliding window put on (query, key) pairs."""
    position = jnp.arange(queries)[:, None] + offset
    key = jnp.arange(keys)
    left, right = options.get("left_window_size", -1), options.get("right_window_size", -1)
    conditions = []
    if options.get("is_causal", 0):
        conditions.append(key <= position)
    if left >= 0:
        conditions.append(key >= position - left)
    if right >= 0:
        conditions.append(key <= position + right)
    return conditions


def _supports_rotary(node: ir.Node) -> Support:
    shape = G.static_shape(node.inputs[0])
    if shape is not None and len(shape) == 3 and not node.attributes.get_int("num_heads", 0):
        return Support.no("RotaryEmbedding: a 3-D input needs the attribute num_heads")
    return Support.yes()


@lowering("RotaryEmbedding", supports=_supports_rotary)
def rotary_embedding(
    ctx: Context,
    x: Any,
    cos_cache: Any,
    sin_cache: Any,
    position_ids: Any = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Any:
    """Rotate pairs of elements of each head by angles that depend on the position."""
    flat = np.ndim(x) == 3
    heads = _split(x, num_heads) if flat else jnp.asarray(x)
    size = rotary_embedding_dim or heads.shape[-1]
    turned, kept = wide(heads[..., :size]), heads[..., size:]
    cos, sin = _angles(cos_cache, position_ids), _angles(sin_cache, position_ids)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = jnp.split(turned, 2, axis=-1)
    real = cos * first - sin * second
    imaginary = sin * first + cos * second
    if interleaved:
        rotated = jnp.reshape(jnp.stack((real, imaginary), axis=-1), turned.shape)
    else:
        rotated = jnp.concatenate((real, imaginary), axis=-1)
    result = jnp.concatenate((rotated.astype(heads.dtype), kept), axis=-1)
    return _join(result) if flat else result


def _angles(cache: Any, position_ids: Any) -> Any:
    """Values for (batch, 1, sequence, half of the rotated size)."""
    cache = wide(cache)
    if position_ids is not None:
        cache = jnp.take(cache, position_ids, axis=0, mode="clip")
    return jnp.expand_dims(cache, 1)
