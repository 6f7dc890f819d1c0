"""Strategies of matrix products, normalizations and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.case import Array, Case
from tests.fuzz.values import BOOL, Maker, Source, types


def _matmul(s: Source) -> Case:
    dtype = s.pick(types("MatMul"))
    m, k, n = s.sizes(3)
    left, right = s.broadcast(2)
    form = s.pick(["both", "both", "left vector", "right vector", "vectors"])
    a = (*left[-3:], m, k) if form in ("both", "right vector") else (k,)
    b = (*right[-3:], k, n) if form in ("both", "left vector") else (k,)
    inputs = [s.array(a, dtype, "tame"), s.array(b, dtype, "tame")]
    return Case("MatMul", inputs, constants=s.pick([(), (1,)]))


def _gemm(s: Source) -> Case:
    dtype = s.pick(types("Gemm"))
    m, k, n = s.sizes(3)
    trans_a, trans_b = s.flag(), s.flag()
    a = s.array((k, m) if trans_a else (m, k), dtype, "tame")
    b = s.array((n, k) if trans_b else (k, n), dtype, "tame")
    inputs: list[Array | None] = [a, b]
    if s.flag():
        inputs.append(s.array(s.pick([(m, n), (n,), (1, n), (m, 1), (), (1,)]), dtype, "tame"))
    factors = (1.0, 2.0) if dtype.kind in "iu" else (1.0, 2.0, 0.5, 0.3)
    attributes = {
        "alpha": s.pick([None, *map(_single, factors)]),
        "beta": s.pick([None, *map(_single, factors)]),
        "transA": trans_a,
        "transB": trans_b,
    }
    return Case("Gemm", inputs, attributes, constants=s.pick([(), (1,)]))


def _single(value: float) -> float:
    return float(np.float32(value))


_EQUATIONS = (
    "ij,jk->ik",
    "ij,jk",
    "bij,bjk->bik",
    "i,i->",
    "ij->ji",
    "ij->",
    "ii->i",
    "ii->",
    "...ij,...jk->...ik",
    "ij,kj->ik",
    "bhid,bhjd->bhij",
    "i,j->ij",
    "ij,jk,kl->il",
    "ij,ij->i",
)


def _einsum(s: Source) -> Case:
    equation = s.pick(_EQUATIONS)
    dtype = s.pick(types("Einsum"))
    letters = {letter: s.sizes(1)[0] for letter in "bhdijkl"}
    batch = s.sizes(s.integer(0, 2), low=1)
    inputs: list[Array | None] = []
    for term in equation.split("->")[0].split(","):
        shape = (*(batch if "..." in term else ()), *(letters[c] for c in term if c != "."))
        inputs.append(s.array(shape, dtype, "tame"))
    return Case("Einsum", inputs, {"equation": equation})


def _epsilon(s: Source) -> float | None:
    return s.pick([None, float(np.float32(1e-3)), 0.5])


def _batch_normalization(s: Source) -> Case:
    training = s.flag()
    dtype = s.pick(types("BatchNormalization"))
    shape = s.shape(2, least=1)
    vectors = [s.array((shape[1],), dtype, "positive") for _ in range(4)]
    attributes = {
        "epsilon": _epsilon(s),
        "momentum": s.pick([None, 0.5]),
        "training_mode": s.maybe(training),
    }
    outputs = 3 if attributes["training_mode"] else 1
    inputs = [s.array(shape, dtype, "tame"), *vectors]
    return Case("BatchNormalization", inputs, attributes, outputs=outputs)


def _instance_normalization(s: Source) -> Case:
    dtype = s.pick(types("InstanceNormalization"))
    shape = s.shape(3, least=1)
    vectors = [s.array((shape[1],), dtype, "tame") for _ in range(2)]
    inputs = [s.array(shape, dtype, "tame"), *vectors]
    return Case("InstanceNormalization", inputs, {"epsilon": _epsilon(s)}, scale=_STANDARDIZED)


_STANDARDIZED = 5.0
"""What has little variance is enlarged, its rounding errors too."""


def _group_normalization(s: Source) -> Case:
    dtype = s.pick(types("GroupNormalization"))
    groups = s.integer(1, 3)
    shape = (s.integer(1, 2), groups * s.integer(1, 2), *s.sizes(s.integer(1, 3), low=1))
    vectors = [s.array((shape[1],), dtype, "tame") for _ in range(2)]
    attributes = {"num_groups": groups, "epsilon": _epsilon(s)}
    inputs = [s.array(shape, dtype, "tame"), *vectors]
    return Case("GroupNormalization", inputs, attributes, scale=_STANDARDIZED)


def _layer_normalization(s: Source) -> Case:
    dtype = s.pick(types("LayerNormalization"))
    shape = s.shape(1, least=1)
    axis = s.axis(len(shape))
    rest = shape[axis % len(shape) :]
    inputs: list[Array | None] = [s.array(shape, dtype, "tame"), s.array(rest, dtype, "tame")]
    if s.flag():
        inputs.append(s.array(rest, dtype, "tame"))
    attributes = {"axis": axis, "epsilon": _epsilon(s)}
    outputs = s.pick([1, 1, 3])
    return Case("LayerNormalization", inputs, attributes, outputs=outputs, scale=_STANDARDIZED)


def _rms_normalization(s: Source) -> Case:
    dtype = s.pick(types("RMSNormalization"))
    shape = s.shape(1, least=1)
    axis = s.axis(len(shape))
    inputs = [s.array(shape, dtype, "tame"), s.array(shape[axis:], dtype, "tame")]
    return Case("RMSNormalization", inputs, {"axis": axis, "epsilon": _epsilon(s)})


def _mean_variance(s: Source) -> Case:
    shape = s.sizes(4, low=1)
    axes = s.pick([[0, 2, 3], [2, 3], [0], [-1], [0, 1, 2, 3]])
    array = s.array(shape, s.pick(types("MeanVarianceNormalization")), "tame")
    return Case("MeanVarianceNormalization", [array], {"axes": axes}, scale=_STANDARDIZED)


def _lrn(s: Source) -> Case:
    shape = (s.integer(1, 2), s.integer(1, 6), *s.sizes(s.integer(0, 2), low=1))
    attributes = {
        "size": s.integer(1, 5),
        "alpha": s.pick([None, 0.5]),
        "beta": s.pick([None, 0.5]),
        "bias": s.pick([None, 2.0]),
    }
    return Case("LRN", [s.array(shape, s.pick(types("LRN")), "tame")], attributes)


def _attention(s: Source) -> Case:
    dtype = s.pick(types("Attention", "T1"))
    batch, kv_heads, share = s.integer(1, 2), s.integer(1, 2), s.pick([1, 1, 2])
    heads, queries, keys = kv_heads * share, s.integer(1, 4), s.integer(1, 5)
    size, v_size = s.integer(1, 4), s.integer(1, 4)
    past = s.pick([0, 0, 1, 3])
    flat = s.flag()
    inputs: list[Array | None] = [
        _heads(s, (batch, heads, queries, size), dtype, flat),
        _heads(s, (batch, kv_heads, keys, size), dtype, flat),
        _heads(s, (batch, kv_heads, keys, v_size), dtype, flat),
    ]
    inputs.append(_mask(s, (batch, heads, queries, past + keys), dtype))
    if past:
        inputs.append(s.array((batch, kv_heads, past, size), dtype, "unit"))
        inputs.append(s.array((batch, kv_heads, past, v_size), dtype, "unit"))
    elif s.pick([0, 0, 1]) and not flat:
        inputs += [None, None, s.rng().integers(1, keys + 1, batch).astype(np.int64)]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Any] = {
        "is_causal": s.maybe(s.flag()),
        "scale": s.pick([None, 0.5]),
        "softcap": s.pick([None, 2.0]),
        "left_window_size": s.pick([None, None, 1]),
        "right_window_size": s.pick([None, None, 1]),
        "q_num_heads": heads if flat else None,
        "kv_num_heads": kv_heads if flat else None,
    }
    outputs = s.pick([1, 4]) if past else s.pick([[0], [0, 3]])
    if outputs != 1 and outputs != [0]:
        attributes["qk_matmul_output_mode"] = s.integer(0, 3)
    return Case("Attention", inputs, attributes, outputs=outputs)


def _heads(s: Source, shape: tuple[int, int, int, int], dtype: Any, flat: int) -> Array:
    array = s.array(shape, dtype, "unit")
    if not flat:
        return array
    return np.ascontiguousarray(array.swapaxes(1, 2).reshape(shape[0], shape[2], -1))


def _mask(s: Source, shape: tuple[int, int, int, int], dtype: Any) -> Array | None:
    kind = s.pick(["none", "bool", "float"])
    if kind == "none":
        return None
    full = s.pick([shape[2:], (1, *shape[1:]), shape])
    if kind == "float":
        return s.array(full, dtype, "unit")
    mask = s.array(full, BOOL)
    mask[..., 0] = True  # the reference gives NaN where nothing may be attended to
    return mask


def _rotary(s: Source) -> Case:
    dtype = s.pick(types("RotaryEmbedding"))
    batch, heads, length = s.integer(1, 2), s.integer(1, 3), s.integer(1, 4)
    size = 2 * s.integer(1, 4)
    turned = s.pick([0, 0, 2])
    half = (turned or size) // 2
    flat = s.flag()
    x = _heads(s, (batch, heads, length, size), dtype, flat)
    attributes = {
        "interleaved": s.maybe(s.flag()),
        "rotary_embedding_dim": turned or None,
        "num_heads": heads if flat else None,
    }
    if s.flag():
        caches = [s.array((batch, length, half), dtype, "unit") for _ in range(2)]
        return Case("RotaryEmbedding", [x, *caches], attributes)
    caches = [s.array((6, half), dtype, "unit") for _ in range(2)]
    places = s.rng().integers(0, 6, (batch, length)).astype(np.int64)
    return Case("RotaryEmbedding", [x, *caches, places], attributes)


TABLE: dict[str, Maker] = {
    "Attention": _attention,
    "BatchNormalization": _batch_normalization,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_normalization,
    "RotaryEmbedding": _rotary,
}
