"""Attention and rotary embedding against onnx.reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from tests.engines.xla.ops_support import check, run_node, run_reference
from tests.support import assert_close
from xrt.engines.xla import lowering as L

INF = float("inf")


def normal(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape)).astype(dtype)


def qkv(
    batch: int = 2,
    heads: int = 4,
    kv_heads: int = 4,
    queries: int = 5,
    keys: int = 7,
    size: int = 8,
) -> list[np.ndarray]:
    return [
        normal(batch, heads, queries, size),
        normal(batch, kv_heads, keys, size, seed=1),
        normal(batch, kv_heads, keys, size + 2, seed=2),
    ]


def flat(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """(batch, heads, sequence, size) -> (batch, sequence, heads * size)."""
    return [a.transpose(0, 2, 1, 3).reshape(a.shape[0], a.shape[2], -1) for a in arrays]


def attend(inputs: list[Any], **keywords: Any) -> None:
    check("Attention", inputs, layouts=False, **keywords)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"softcap": 2.0}, {"is_causal": 1}])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_four_dimensional(options: dict[str, Any], kv_heads: int) -> None:
    attend(qkv(kv_heads=kv_heads), **options)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_three_dimensional(kv_heads: int) -> None:
    inputs = flat(qkv(kv_heads=kv_heads))
    attend(inputs, q_num_heads=4, kv_num_heads=kv_heads)
    attend(inputs, q_num_heads=4, kv_num_heads=kv_heads, is_causal=1, softcap=1.5)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (4, 5, 7), (2, 1, 5, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize("causal", [0, 1])
def test_masks(shape: tuple[int, ...], causal: int) -> None:
    # With causality, onnx.reference takes the mask's number of rows for that of the queries.
    full = (*shape[:-2], 5, 7)
    mask = normal(*shape, seed=3)
    for one in (mask, mask > -1):
        wide = np.broadcast_to(one, full).copy()
        want = run_reference("Attention", [*qkv(), wide], is_causal=causal)
        attend([*qkv(), one], want=want, is_causal=causal)


def test_a_query_without_keys_gives_zeros() -> None:
    allowed = np.ones((5, 7), bool)
    allowed[2] = False
    attend([*qkv(), allowed])
    attend([*qkv(), np.where(allowed, 0, -INF).astype(np.float32)])
    (got,) = run_node("Attention", [*qkv(), allowed])
    assert not got[:, :, 2].any()


def test_a_short_mask_leaves_the_last_keys_out() -> None:
    attend([*qkv(), normal(5, 4, seed=3)])
    attend([*qkv(), normal(5, 4, seed=3) > -1])


@pytest.mark.parametrize(("left", "right"), [(2, 0), (1, 1), (-1, 1), (0, -1)])
@pytest.mark.parametrize("causal", [0, 1])
def test_sliding_window(left: int, right: int, causal: int) -> None:
    attend(qkv(), left_window_size=left, right_window_size=right, is_causal=causal)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_cache(causal: int, kv_heads: int) -> None:
    past = [normal(2, kv_heads, 3, 8, seed=4), normal(2, kv_heads, 3, 10, seed=5)]
    attend([*qkv(kv_heads=kv_heads), None, *past], outputs=3, is_causal=causal)
    mask = normal(5, 10, seed=3)
    attend([*qkv(kv_heads=kv_heads), mask, *past], outputs=3, is_causal=causal)
    heads = {"q_num_heads": 4, "kv_num_heads": kv_heads}
    attend([*flat(qkv(kv_heads=kv_heads)), None, *past], outputs=3, is_causal=causal, **heads)


@pytest.mark.parametrize("causal", [0, 1])
def test_padding_in_an_outer_cache(causal: int) -> None:
    valid = np.array([7, 3], np.int64)  # the second has fewer keys than queries
    attend([*qkv(), None, None, None, valid], is_causal=causal)
    attend([*qkv(), None, None, None, valid], is_causal=causal, left_window_size=1)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_score_output(mode: int) -> None:
    inputs = [*qkv(), normal(5, 7, seed=3) > -1]
    attend(inputs, outputs=(0, 3), qk_matmul_output_mode=mode)
    # onnx.reference returns the capped scores in mode 0, against the standard's text.
    softcap = 0.0 if mode == 0 else 1.5
    attend(inputs, outputs=(0, 3), qk_matmul_output_mode=mode, softcap=softcap)


def test_raw_scores_are_not_capped() -> None:
    q, k, v = qkv()
    got = run_node("Attention", [q, k, v], outputs=(0, 3), softcap=0.5)[1]
    assert_close(got, q @ k.swapaxes(2, 3) / np.float32(np.sqrt(8)))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes(dtype: type) -> None:
    inputs = [a.astype(dtype) for a in qkv()]
    q, k, v = (a.astype(np.float64) for a in inputs)
    scores = np.exp(q @ k.swapaxes(2, 3) / np.sqrt(8))
    want = scores / scores.sum(-1, keepdims=True) @ v
    check("Attention", inputs, want=[want.astype(dtype)], layouts=False)
    check("Attention", inputs, want=[want.astype(dtype)], layouts=False, softmax_precision=11)


def refusal(op: str, shapes: list[tuple[int, ...] | None]) -> str:
    """Why the lowering refuses a node that ONNX's own shape inference would reject first."""
    values = [
        None if shape is None else ir.val(f"x{i}", dtype=ir.DataType.FLOAT, shape=ir.Shape(shape))
        for i, shape in enumerate(shapes)
    ]
    node = ir.Node("", op, values)
    rule = L.find(node)
    assert rule is not None
    assert rule.supports is not None
    return rule.supports(node).reason


def test_refusals() -> None:
    three, four = [(2, 5, 32)] * 3, [(2, 4, 5, 8)] * 3
    assert "q_num_heads" in refusal("Attention", [*three])
    assert "ranks" in refusal("Attention", [(2, 5, 32), *four[:2]])
    assert "together" in refusal("Attention", [*four, None, (2, 4, 3, 8)])
    cached = [*four, None, (2, 4, 3, 8), (2, 4, 3, 8), (2,)]
    assert "nonpad_kv_seqlen" in refusal("Attention", cached)
    assert "num_heads" in refusal("RotaryEmbedding", three)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("partial", [0, 4])
@pytest.mark.parametrize("positions", [False, True])
def test_rotary_embedding(interleaved: int, partial: int, positions: bool) -> None:
    x = normal(2, 3, 5, 8)
    half = (partial or 8) // 2
    shape = (9, half) if positions else (2, 5, half)
    inputs = [x, normal(*shape, seed=1), normal(*shape, seed=2)]
    if positions:
        inputs.append(np.random.default_rng(0).integers(0, 9, size=(2, 5)))
    options = {"interleaved": interleaved, "rotary_embedding_dim": partial, "num_heads": 3}
    check("RotaryEmbedding", inputs, **options)
    check("RotaryEmbedding", [flat([x])[0], *inputs[1:]], **options)
    half_precision = [a.astype(np.float16) for a in inputs[:3]]
    check("RotaryEmbedding", [*half_precision, *inputs[3:]], **options)


@pytest.mark.parametrize("options", [{}, {"is_causal": 1}, {"left_window_size": 40}])
def test_scores_too_many_for_the_cache(options: dict[str, Any]) -> None:
    q, k, v = qkv(batch=1, heads=2, kv_heads=1, queries=1200, keys=900)
    attend([q, k, v], **options)
