"""Programs of precision "fp16" and "bf16"."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.support import model

GROWS = """
g (float[4,8] x) => (float[4,8] y) <float[8,8] a, float[8,8] b> {
  t1 = MatMul (x, a)
  t2 = Relu (t1)
  y = MatMul (t2, b)
}"""
RNG = np.random.default_rng(0)
WEIGHTS = {"a": RNG.uniform(0.5, 1, (8, 8)), "b": RNG.normal(size=(8, 8))}


@pytest.fixture
def compiled(tmp_path):
    def make(text, x, precision, **weights):
        options = xrt.CompileOptions(cache_dir=tmp_path)
        given = ir.to_proto(model(text, **weights))
        return xrt.compile(given, None if x is None else (x,), precision=precision, options=options)

    return make


def inputs(size):
    return (size * RNG.uniform(0.5, 1, (4, 8))).astype(np.float32)


def kept(program):
    return {each["op"] for each in program.explain().precision["kept"]}


@pytest.mark.parametrize(("precision", "digits"), [("fp16", 11), ("bf16", 8)])
def test_numbers_are_as_exact_as_the_type(compiled, precision, digits):
    x = inputs(1)
    program, full = (compiled(GROWS, x, name, **WEIGHTS) for name in (precision, "fp32"))
    got, want = program(x), full(x)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - want).max() < 4 * 2.0**-digits * np.abs(want).max()
    assert not kept(program)


def test_what_overflows_float16_stays_in_float32(compiled):
    x = inputs(30_000)
    program, full = (compiled(GROWS, x, name, **WEIGHTS) for name in ("fp16", "fp32"))
    assert {"MatMul", "Relu"} <= kept(program)
    assert np.isfinite(program(x)).all()
    assert np.abs(program(x) - full(x)).max() < 1e-2 * np.abs(full(x)).max()
    reasons = [each["reason"] for each in program.explain().precision["kept"]]
    assert any("its largest magnitude seen is" in reason for reason in reasons)


def test_without_inputs_the_range_is_not_checked_and_it_is_said(compiled):
    program = compiled(GROWS, None, "fp16", **WEIGHTS)
    assert any("was not checked" in note for note in program.explain().precision["notes"])


def test_infinite_masks_do_not_exceed_float16(compiled):
    text = """
    g (float[4,8] x) => (float[4,8] y) <float[8,8] a, float low, float half> {
      t1 = MatMul (x, a)
      hidden = Less (x, half)
      t2 = Where (hidden, low, t1)
      t3 = ReduceMax <keepdims = 1> (t2)
      t4 = Neg (t3)
      t5 = Add (t1, t4)
      y = MatMul (t5, a)
    }"""
    x = inputs(1)
    weights = {"a": WEIGHTS["a"], "low": np.array(-np.inf), "half": np.array(0.7)}
    program = compiled(text, x, "fp16", **weights)
    assert "Where" not in kept(program)
    want = compiled(text, x, "fp32", **weights)(x)
    assert np.abs(program(x) - want).max() < 1e-2 * np.abs(want).max()
