"""FlexAttention against torch's attention and onnx.reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from tests.kernels.host.support import assert_close
from xrt.errors import KernelError, UnsupportedOpError
from xrt.graph import OPSET, captured_values
from xrt.kernels.host import find

RNG = np.random.default_rng(37)
CAUSAL = """score_mod = s (float[B,H,L,S] x) => (float[B,H,L,S] y) {
    n = Shape <start = 2> (x)
    one = Constant <value_float = 1.0> ()
    ones = Expand (one, n)
    below = Trilu <upper = 0> (ones)
    zero = Constant <value_float = 0.0> ()
    low = Constant <value_float = -inf> ()
    seen = Greater (below, zero)
    y = Where (seen, x, low)
}"""


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _model(attributes: str, kind: str = "float", extra: str = "") -> onnx.ModelProto:
    spread = f"<{attributes}>" if attributes else ""
    return onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": {OPSET}, "ai.onnx.preview": 1]>
        g ({kind}[B,H,L,E] q, {kind}[B,K,S,E] k, {kind}[B,K,S,F] v{extra}) => ({kind}[B,H,L,F] y) {{
            y = ai.onnx.preview.FlexAttention {spread} (q, k, v)
        }}"""
    )


def _run(model: onnx.ModelProto, *inputs: Any) -> Any:
    """The output, from the node's inputs and then those that its graphs capture."""
    (node,) = ir.from_proto(model).graph
    kernel = find(node)
    assert kernel.native
    given = dict(zip(("q", "k", "v", "bias"), inputs, strict=False))
    (y,) = kernel([*inputs[:3], *(given[str(value.name)] for value in captured_values(node))])
    return y


def _reference(model: onnx.ModelProto, *inputs: Any) -> Any:
    (y,) = ReferenceEvaluator(model).run(None, dict(zip("qkv", inputs, strict=True)))
    return y


def _qkv(heads: int = 4, shared: int = 2) -> tuple[Any, Any, Any]:
    return _x(2, heads, 5, 8), _x(2, shared, 6, 8), _x(2, shared, 6, 3)


@pytest.mark.parametrize("shared", [1, 2, 4])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_attention_of_torch(scale: float | None, shared: int) -> None:
    torch = pytest.importorskip("torch")
    attend = torch.nn.functional.scaled_dot_product_attention
    for causal in (False, True):
        q, k, v = _qkv(shared=shared)
        parts = [*([f"scale = {scale}"] if scale else []), *([CAUSAL] if causal else [])]
        y = _run(_model(", ".join(parts)), q, k, v)
        want = attend(
            *map(torch.from_numpy, (q, k, v)), is_causal=causal, scale=scale, enable_gqa=True
        )
        assert_close(y, want.numpy())


def test_graphs_change_scores_and_probabilities() -> None:
    cap = """score_mod = s (float[B,H,L,S] x) => (float[B,H,L,S] y) {
        c = Constant <value_float = 0.5> ()
        d = Div (x, c)
        t = Tanh (d)
        y = Mul (t, c)
    }, prob_mod = p (float[B,H,L,S] a) => (float[B,H,L,S] b) { b = Mul (a, a) }"""
    model, inputs = _model(cap), _qkv()
    q, k, v = (x.astype(np.float64) for x in inputs)
    k, v = np.repeat(k, 2, axis=1), np.repeat(v, 2, axis=1)
    scores = 0.5 * np.tanh(q @ k.swapaxes(-1, -2) / np.sqrt(8) / 0.5)
    weights = np.exp(scores)
    weights /= weights.sum(axis=-1, keepdims=True)
    y = _run(model, *inputs)
    assert_close(y, (weights**2 @ v).astype(np.float32))
    assert_close(y, _reference(model, *inputs))


def test_graphs_capture_values_around_them() -> None:
    score_mod = "score_mod = s (float[B,H,L,S] x) => (float[B,H,L,S] y) { y = Add (x, bias) }"
    model, (q, k, v), bias = _model(score_mod, extra=", float[L,S] bias"), _qkv(), _x(5, 6)
    y = _run(model, q, k, v, bias)
    torch = pytest.importorskip("torch")
    want = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=torch.from_numpy(bias), enable_gqa=True
    )
    assert_close(y, want.numpy())


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.float16, "float16"), (ml_dtypes.bfloat16, "bfloat16"), (np.float64, "double")],
)
def test_other_types(dtype: Any, kind: str) -> None:
    inputs = [x.astype(dtype) for x in _qkv()]
    y = _run(_model("", kind), *inputs)
    want = _run(_model(""), *(x.astype(np.float32) for x in inputs))
    assert y.dtype == dtype
    if dtype is np.float64:
        assert_close(y, _reference(_model("", kind), *inputs))
    else:
        np.testing.assert_array_equal(y, want.astype(dtype))


def test_softmax_precision_is_the_type_that_graphs_see() -> None:
    double = onnx.TensorProto.DOUBLE
    seen = "prob_mod = p (double[B,H,L,S] a) => (double[B,H,L,S] b) { b = Mul (a, two) }"
    model = _model(f"softmax_precision = {double}, {seen}", extra=", double two")
    (node,) = ir.from_proto(model).graph
    q, k, v = _qkv()
    (y,) = find(node)([q, k, v, np.array(2.0)])
    assert y.dtype == np.float32
    assert_close(y, 2 * _run(_model(""), q, k, v))


def test_what_is_unknown_or_does_not_fit_is_refused() -> None:
    (node,) = ir.from_proto(_model("axis = 1")).graph
    with pytest.raises(UnsupportedOpError, match=r"'axis' of FlexAttention.*prob_mod, scale"):
        find(node)
    (node,) = ir.from_proto(_model(f"softmax_precision = {onnx.TensorProto.INT32}")).graph
    with pytest.raises(UnsupportedOpError, match="'int32' of FlexAttention"):
        find(node)
    with pytest.raises(KernelError, match="a multiple of K's heads"):
        _run(_model(""), _x(1, 3, 2, 4), _x(1, 2, 2, 4), _x(1, 2, 2, 4))
