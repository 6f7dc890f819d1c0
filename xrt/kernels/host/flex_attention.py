"""Attention whose scores and probabilities pass through graphs of the model's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import UnsupportedOpError
from xrt.graph import captured_values
from xrt.kernels.host import registry
from xrt.kernels.host.common import Array, is_float, numpy_dtype, widen
from xrt.kernels.host.control import Body, Environment, Find, on_host
from xrt.kernels.host.normalization import softmax

KNOWN = frozenset({"prob_mod", "scale", "score_mod", "softmax_precision"})


@registry.builder("ai.onnx.preview::FlexAttention")
def flex_attention(node: ir.Node, find: Find = on_host) -> registry.Kernel:
    """prob_mod(softmax(score_mod(Q K' scale))) V by heads, in groups of queries for a key.

    A row whose scores are all -inf gives NaN, as softmax does.
    """
    if unknown := sorted(node.attributes.keys() - KNOWN):
        raise UnsupportedOpError(
            f"Attribute {unknown[0]!r} of FlexAttention at node {node.name!r} is unknown. "
            f"Known attributes: {', '.join(sorted(KNOWN))}."
        )
    score_mod, prob_mod = (
        Body(node.attributes[name].as_graph(), find) if name in node.attributes else None
        for name in ("score_mod", "prob_mod")
    )
    captured = tuple(captured_values(node))
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else None
    asked = node.attributes.get("softmax_precision")
    precision = None if asked is None else numpy_dtype(asked.as_int())
    if precision is not None and not is_float(precision):
        raise UnsupportedOpError(
            f"softmax_precision {precision.name!r} of FlexAttention at node {node.name!r} is no "
            "floating-point type."
        )

    def run(q: Array, k: Array, v: Array, *outer: Any) -> Array:
        values: Environment = dict(zip(captured, outer, strict=True))
        kind = precision if precision is not None else widen(q).dtype
        factor = scale if scale is not None else 1 / math.sqrt(q.shape[-1])
        scores = _scores(q, k, factor).astype(kind, copy=False)
        if score_mod is not None:
            (scores,) = score_mod(values, [scores])
        probabilities = softmax(np.asarray(scores))
        if prob_mod is not None:
            (probabilities,) = prob_mod(values, [probabilities])
        shared = np.repeat(widen(v), q.shape[1] // v.shape[1], axis=1)
        y: Array = np.matmul(widen(np.asarray(probabilities)), shared)
        return y.astype(v.dtype, copy=False)

    return run


def _scores(q: Array, k: Array, factor: float) -> Array:
    if not q.ndim == k.ndim == 4 or q.shape[1] % k.shape[1]:
        raise ValueError(
            f"Q {q.shape} and K {k.shape} must have 4 dimensions, and Q a multiple of K's heads"
        )
    wide = widen(q)
    keys = np.repeat(widen(k), q.shape[1] // k.shape[1], axis=1)
    return np.asarray(np.matmul(wide * wide.dtype.type(factor), keys.swapaxes(-1, -2)))
