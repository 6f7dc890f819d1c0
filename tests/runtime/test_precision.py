"""Programs of precision "fp16" and "bf16"."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import model
from xrt.errors import OptionError
from xrt.runtime import processor

RNG = np.random.default_rng(0)
NET = """
g (float[2,16] x) => (float[2,8] y) <float[16,32] w, float[32] b, float[32,8] v> {
  h = Gemm (x, w, b)
  r = Relu (h)
  s = MatMul (r, v)
  y = Softmax (s)
}"""
WEIGHTS = {
    "w": RNG.normal(size=(16, 32)),
    "b": RNG.normal(size=32),
    "v": RNG.normal(size=(32, 8)) / 5,
}
X = RNG.normal(size=(2, 16)).astype(np.float32)
TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2}


def compiled(precision, example=(X,), text=NET, weights=WEIGHTS, **given):
    options = xrt.CompileOptions(cache=False, **given)
    proto = ir.to_proto(model(text, **weights))
    return xrt.compile(proto, example, precision=precision, options=options)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_close_to_full_precision(precision):
    got, want = compiled(precision)(X), compiled("fp32")(X)
    assert got.dtype == np.float32
    assert 0 < np.abs(got - want).max() < TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_stored_narrow_and_softmax_stays(precision):
    program = compiled(precision)
    body = program.clusters[0].body
    kinds = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    big = [v for v in body.initializers.values() if v.const_value.size > 100]
    assert len(big) == 2
    assert all(value.dtype in kinds for value in big)
    kept = program.explain().to_dict()["precision"]["kept"]
    json.dumps(kept)
    assert [each["op"] for each in kept] == ["Softmax"]
    assert "Softmax" in str(program.explain())


def test_what_overflows_on_the_example_stays_in_fp32():
    x = np.full((2, 16), 3e4, np.float32)
    weights = {**WEIGHTS, "w": np.abs(WEIGHTS["w"])}
    program = compiled("fp16", (x,), weights=weights)
    kept = {each["op"]: each["reason"] for each in program.explain().to_dict()["precision"]["kept"]}
    assert "largest magnitude seen" in kept["Gemm"]
    assert np.isfinite(program(x)).all()


def test_without_inputs_the_range_is_not_checked_and_that_is_said():
    assert "range of fp16 was not checked" in str(compiled("fp16", None).explain())
    assert "range" not in str(compiled("bf16", None).explain())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_cpu_that_does_not_compute_in_it_is_named(precision, monkeypatch):
    plain = frozenset({"sse2", "avx2"})
    monkeypatch.setattr(processor, "cpu_flags", lambda: plain)
    assert f"This CPU does not compute in {precision}" in str(compiled(precision).explain())
    able = frozenset({"avx512_fp16", "avx512_bf16"})
    monkeypatch.setattr(processor, "cpu_flags", lambda: able)
    assert "This CPU does not" not in str(compiled(precision).explain())


def test_seven_bits_without_vnni(monkeypatch):
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2"}))
    assert processor.weight_bits() == 7
    monkeypatch.setattr(processor, "cpu_flags", lambda: frozenset({"avx2", "avx512_vnni"}))
    assert processor.weight_bits() == 8


def test_a_torch_module_keeps_its_types():
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    x = torch.randn(3, 8)
    program = xrt.compile(net, (x,), precision="bf16")
    got = program(x)
    assert got.dtype == torch.float32
    assert (got - net(x)).abs().max() < 0.05


def test_the_host_sees_the_same_numbers():
    options = xrt.CompileOptions(cache=False)
    proto = ir.to_proto(model(NET, **WEIGHTS))
    host = xrt.compile(proto, (X,), precision="fp16", engine="host", options=options)
    assert np.abs(host(X) - compiled("fp16")(X)).max() < 1e-3


def test_an_unknown_precision_is_named():
    with pytest.raises(OptionError, match=r"Precision 'fp8' is unknown\. Known precisions: bf16"):
        compiled("fp8")


def test_infinite_masks_do_not_exceed_float16():
    text = """
    g (float[2,8] x) => (float[2,8] y) <float[8,8] a, float low, float half> {
      t1 = MatMul (x, a)
      hidden = Less (x, half)
      t2 = Where (hidden, low, t1)
      t3 = ReduceMax <keepdims = 1> (t2)
      t4 = Neg (t3)
      t5 = Add (t1, t4)
      y = MatMul (t5, a)
    }"""
    x = RNG.uniform(0.5, 1, (2, 8)).astype(np.float32)
    weights = {"a": RNG.uniform(0.5, 1, (8, 8)), "low": np.array(-np.inf), "half": np.array(0.7)}
    program = compiled("fp16", (x,), text, weights)
    kept = {each["op"] for each in program.explain().precision["kept"]}
    assert "Where" not in kept
    want = compiled("fp32", (x,), text, weights)(x)
    assert np.abs(program(x) - want).max() < 1e-2 * np.abs(want).max()
