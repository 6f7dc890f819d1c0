"""Programs of precision "int8": how they calibrate, switch, report, and refuse."""

from __future__ import annotations

import json
import threading

import numpy as np
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import assert_close, model
from xrt.errors import CalibrationError, OptionError
from xrt.quantization import Calibration

RNG = np.random.default_rng(0)

CNN = """
g (float[n,3,16,16] x) => (float[n,10] y) <float[8,3,3,3] a, float[8] b, float[8,8,3,3] c,
                                           float[8,10] d, float[10] e> {
  t1 = Conv <pads = [1,1,1,1]> (x, a, b)
  t2 = Relu (t1)
  t3 = Conv <pads = [1,1,1,1]> (t2, c)
  t4 = Add (t3, t2)
  t5 = Relu (t4)
  t6 = GlobalAveragePool (t5)
  t7 = Flatten (t6)
  y = Gemm (t7, d, e)
}"""
WEIGHTS = {
    "a": RNG.normal(size=(8, 3, 3, 3)) / 5,
    "b": RNG.normal(size=8),
    "c": RNG.normal(size=(8, 8, 3, 3)) / 8,
    "d": RNG.normal(size=(8, 10)),
    "e": RNG.normal(size=10),
}


def batch(seed=0, count=4):
    return np.random.default_rng(seed).normal(size=(count, 3, 16, 16)).astype(np.float32)


BATCHES = [batch(seed) for seed in range(3)]


@pytest.fixture
def options(tmp_path):
    return xrt.CompileOptions(cache_dir=tmp_path, calibration_batches=2)


@pytest.fixture
def compiled(options):
    def make(text=CNN, weights=WEIGHTS, **given):
        given = {"precision": "int8", "options": options, **given}
        return xrt.compile(ir.to_proto(model(text, **weights)), **given)

    return make


@pytest.fixture
def full(options):
    return xrt.compile(ir.to_proto(model(CNN, **WEIGHTS)), options=options)


def error(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def operators(program):
    return {op for cluster in program.explain().clusters for op in cluster["operators"]}


def test_calibrated_on_batches(compiled, full):
    program = compiled(calibration=BATCHES)
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators(program)
    got, want = program(batch(7)), full(batch(7))
    assert got.dtype == np.float32
    assert 0 < error(got, want) < 0.03


def test_every_engine_computes_the_same_numbers(compiled):
    """Within one step of the last rounding, the input of the product that makes the output."""
    xla = compiled(calibration=BATCHES, engine="xla")
    host = compiled(calibration=BATCHES, engine="host")
    got, want = xla(batch(7)), host(batch(7))
    body = xla.clusters[0].body
    steps = [n.inputs[1].const_value.numpy() for n in body if n.op_type == "QuantizeLinear"]
    weight = np.abs(WEIGHTS["d"]).sum(axis=0).max()
    assert np.abs(got - want).max() <= float(steps[-1]) * weight


def test_the_report_on_the_calibration_data(compiled):
    explanation = compiled(calibration=BATCHES).explain()
    found = explanation.to_dict()["precision"]
    json.dumps(found)
    assert found["precision"] == "int8"
    assert found["batches"] == 3
    assert found["predictions"] == 12
    assert found["agreement"] == 1 - found["mismatches"] / 12
    assert found["signal_to_noise"] > 30
    assert min(found["int8_ms"], found["fp32_ms"]) > 0
    # what the first convolution takes is the input, which has no noise yet
    assert [layer["op"] for layer in found["layers"]] == [
        *("Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"),
    ]
    assert all(layer["signal_to_noise"] > 25 for layer in found["layers"])
    assert "predictions differ" in str(explanation)


def test_an_example_of_another_shape_is_compiled_too(compiled):
    program = compiled(calibration=BATCHES, example_inputs=(batch(0, count=2),))
    shapes = {s.signature[0][0] for s in program._specializations.values()}
    assert shapes == {(4, 3, 16, 16), (2, 3, 16, 16)}
    assert all(s.observe is None for s in program._specializations.values())


def test_a_slower_int8_is_said_to_be_slower(compiled):
    found = compiled(calibration=BATCHES).explain().to_dict()["precision"]
    slower = [note for note in found["notes"] if "int8 is slower than fp32" in note]
    assert bool(slower) == (found["int8_ms"] > found["fp32_ms"])


def test_without_data_the_first_calls_calibrate(compiled, full):
    program = compiled()
    for seed in range(2):
        assert_close(program(batch(seed)), full(batch(seed)))
        assert "Calibrating" in program.explain().to_dict()["precision"]["notes"][0]
    got = program(batch(2))
    assert "QuantizeLinear" in operators(program)
    assert 0 < error(got, full(batch(2))) < 0.03
    assert program.explain().to_dict()["precision"]["batches"] == 2
    assert len(program._specializations) == 1


def test_other_shapes_after_calibration(compiled, full):
    program = compiled(calibration=BATCHES)
    got, want = program(batch(3, count=2)), full(batch(3, count=2))
    assert 0 < error(got, want) < 0.03


def test_it_switches_from_whichever_thread(compiled, full):
    program = compiled()
    wrong: list[float] = []

    def call(seed):
        x = batch(seed)
        for _ in range(4):
            wrong.append(error(program(x), full(x)))

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 16
    assert max(wrong) < 0.03
    assert "QuantizeLinear" in operators(program)


def test_a_caller_may_reuse_its_buffers(compiled, full):
    program, x = compiled(), batch(0)
    for seed in range(3):
        x[...] = batch(seed)
        got = program(x)
    assert error(got, full(x)) < 0.03
    assert program.explain().to_dict()["precision"]["signal_to_noise"] > 30


def test_calibration_is_kept_on_disk(compiled, monkeypatch):
    first = compiled(calibration=BATCHES)
    monkeypatch.setattr(Calibration, "observe", lambda *_: pytest.fail("calibrated again"))
    second = compiled(calibration=iter(BATCHES))
    assert [c.digest for c in first.clusters] == [c.digest for c in second.clusters]
    assert second.explain().to_dict()["precision"]["batches"] == 3


@pytest.mark.parametrize("observer", ["minmax", "percentile", "entropy", "mse"])
def test_observers(compiled, full, tmp_path, observer):
    chosen = xrt.QuantizationOptions(observer=observer, report=False)
    options = xrt.CompileOptions(cache_dir=tmp_path, quantization=chosen)
    program = compiled(calibration=BATCHES, options=options)
    assert 0 < error(program(batch(7)), full(batch(7))) < 0.1


def test_a_torch_module(options):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    batches = [(torch.randn(5, 8),) for _ in range(3)]
    program = xrt.compile(net, precision="int8", calibration=batches, options=options)
    with torch.no_grad():
        got, want = program(*batches[0]), net(*batches[0])
    assert isinstance(got, torch.Tensor)
    assert 0 < error(got.numpy(), want.numpy()) < 0.05


QUANTIZED = """
g (float[2,4] x) => (float[2,4] y) <float s, int8 z, int8[4,4] w> {
  q = QuantizeLinear (x, s, z)
  d = DequantizeLinear (q, s, z)
  v = DequantizeLinear (w, s, z)
  y = MatMul (d, v)
}"""


@pytest.mark.parametrize("calibration", [None, [np.ones((2, 4), np.float32)]])
def test_a_quantized_model_runs_as_it_is(compiled, options, calibration):
    weights = {"s": 0.1, "z": 0, "w": np.arange(16).reshape(4, 4)}
    program = compiled(QUANTIZED, weights, calibration=calibration)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    as_is = xrt.compile(ir.to_proto(model(QUANTIZED, **weights)), options=options)
    assert_close(program(x), as_is(x))
    assert "quantized already" in str(program.explain())


# Bad input: who, what was got, what to do; nothing half-converted


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        ([], "calibration= holds no batch"),
        (5, "calibration must be an iterable of batches; got a int"),
        ("photos", "calibration must be an iterable of batches; got a str"),
        ([batch(0), np.full((4, 3, 16, 16), np.nan, np.float32)],
         "batch 1 has NaN or infinity in 'x'"),
        ([batch(0), batch(0, count=3)], r"batch 1 has 'x' of float32\[3, 3, 16, 16\]; batch 0 has"),
        ([batch(0)[:, :2]], "batch 0 does not fit: .*'x'"),
        ([batch(0).astype(np.float64)], "batch 0 does not fit: Input 'x' has dtype float64"),
    ],
)  # fmt: skip
def test_calibration_data_that_does_not_fit(compiled, calibration, message):
    with pytest.raises(CalibrationError, match=message):
        compiled(calibration=calibration)


def test_nothing_to_quantize(compiled):
    relu = "g (float[2] x) => (float[2] y) { y = Relu (x) }"
    with pytest.raises(CalibrationError, match="no operator to quantize: no Conv"):
        compiled(relu, {}, calibration=[np.ones(2, np.float32)])
    with pytest.raises(CalibrationError, match="no operator to quantize"):
        compiled(relu, {})


def test_why_nothing_can_be_quantized(compiled):
    text = "g (float[1,1,4,4] x, float[1,1,2,2] w) => (float[1,1,3,3] y) { y = Conv (x, w) }"
    feeds = {"x": np.ones((1, 1, 4, 4), np.float32), "w": np.ones((1, 1, 2, 2), np.float32)}
    with pytest.raises(CalibrationError, match="'y': its weights are not constant"):
        compiled(text, {}, calibration=[feeds])


def test_a_network_that_overflows_is_not_calibrated(compiled):
    big = {**WEIGHTS, "a": np.full((8, 3, 3, 3), 3e38)}
    with pytest.raises(CalibrationError, match=r"makes .* NaN or infinite"):
        compiled(weights=big, calibration=BATCHES)


def test_a_branch_that_no_batch_reaches_is_named(compiled):
    """Rows above a bound go through a product of their own; here there are none."""
    text = """
    g (float[4,8] x) => (float[4,8] y, float[k,8] z) <float[8,8] w, float limit> {
      y = MatMul (x, w)
      m = ReduceMax <keepdims = 0> (x, axis)
      c = Greater (m, limit)
      rows = Compress <axis = 0> (x, c)
      z = MatMul (rows, w)
    }"""
    text = text.replace("float limit>", "float limit, int64[1] axis>")
    weights = {"w": np.eye(8), "limit": 1e9, "axis": [1]}
    with pytest.raises(CalibrationError, match=r"never saw 'rows': no batch gave it an element"):
        compiled(text, weights, calibration=[np.ones((4, 8), np.float32)])


def test_calibration_is_for_int8_only(compiled):
    with pytest.raises(OptionError, match="calibration is for precision 'int8'"):
        compiled(precision="fp16", calibration=BATCHES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xrt.QuantizationOptions(observer="best"), "Observer 'best' is unknown"),
        (lambda: xrt.QuantizationOptions(weight_bits=4), "weight_bits must be 7, 8 or None"),
        (lambda: xrt.QuantizationOptions(percentile=101), "percentile must be a number from 50"),
        (lambda: xrt.CompileOptions(max_mismatch=2), "max_mismatch must be a number from 0 to 1"),
        (lambda: xrt.CompileOptions(max_accuracy_drop=0.1), "accuracy_fn go together"),
        (lambda: xrt.CompileOptions(accuracy_fn=len), "accuracy_fn go together"),
    ],
)
def test_options_that_make_no_sense(make, message):
    with pytest.raises(OptionError, match=message):
        make()


# A bound on accuracy: rank, revert, validate


def bounded(tmp_path, **given):
    return xrt.CompileOptions(cache_dir=tmp_path, **given)


def near_ties(scores=20):
    """A network whose second product nearly ties all classes, so that bytes decide wrongly."""
    base = RNG.normal(size=(8, 1))
    return {**WEIGHTS, "d": base + 2e-3 * RNG.normal(size=(8, 10)), "e": np.zeros(10)}


def test_operators_go_back_until_the_bound_holds(compiled, tmp_path):
    weights = near_ties()
    free = compiled(weights=weights, calibration=BATCHES)
    before = free.explain().to_dict()["precision"]
    assert before["mismatches"] > 0, "the network is too easy to show anything"
    options = bounded(tmp_path, max_mismatch=0.0)
    found = compiled(weights=weights, calibration=BATCHES, options=options)
    after = found.explain().to_dict()["precision"]
    assert after["mismatches"] == 0
    reverted = [each for each in after["kept"] if "to hold the bound" in each["reason"]]
    assert 0 < len(reverted) < before["groups"]
    assert {each["op"] for each in reverted} <= {
        "Conv",
        "Add",
        "GlobalAveragePool",
        "Flatten",
        "Gemm",
    }
    assert after["groups"] < before["groups"]
    harm = [each["harm"] for each in after["reverted"]]
    assert len(harm) == len(reverted)
    assert harm == sorted(harm, reverse=True)


def test_a_bound_that_holds_reverts_nothing(compiled, tmp_path):
    program = compiled(calibration=BATCHES, options=bounded(tmp_path, max_mismatch=1.0))
    assert program.explain().to_dict()["precision"]["kept"] == []


def test_a_bound_on_accuracy_by_the_users_own_measure(compiled, full, tmp_path):
    weights = near_ties()
    truth = xrt.compile(ir.to_proto(model(CNN, **weights)))(BATCHES[0]).argmax(1)
    calls = []

    def accuracy(run):
        calls.append(run)
        return np.mean(run(BATCHES[0]).argmax(1) == truth)

    options = bounded(tmp_path, max_accuracy_drop=0.0, accuracy_fn=accuracy)
    program = compiled(weights=weights, calibration=BATCHES, options=options)
    assert calls
    assert accuracy(program) == 1.0


def test_a_bound_that_cannot_be_met_names_the_best_reached(compiled, tmp_path):
    drop = iter([1.0] + [0.25] * 100)
    options = bounded(tmp_path, max_accuracy_drop=0.1, accuracy_fn=lambda run: next(drop))
    with pytest.raises(CalibrationError, match=r"cannot be met: .* the best reached is 0\.75"):
        compiled(calibration=BATCHES, options=options)


def test_an_accuracy_function_that_gives_no_number(compiled, tmp_path):
    options = bounded(tmp_path, max_accuracy_drop=0.1, accuracy_fn=lambda run: "good")
    with pytest.raises(CalibrationError, match="accuracy_fn gave 'good'; it must return a number"):
        compiled(calibration=BATCHES, options=options)


def test_an_accuracy_function_with_batches_of_another_shape(compiled, tmp_path):
    options = bounded(
        tmp_path, max_accuracy_drop=0.1, accuracy_fn=lambda run: run(batch(0, count=1)).max()
    )
    with pytest.raises(xrt.XrtError, match="accuracy_fn called the program with inputs"):
        compiled(calibration=BATCHES, options=options)


@pytest.mark.parametrize("chosen", [{"equalize": True}, {"correct_bias": True}])
def test_options_of_quantization_keep_the_numbers(compiled, full, tmp_path, chosen):
    options = xrt.CompileOptions(
        cache_dir=tmp_path, quantization=xrt.QuantizationOptions(report=False, **chosen)
    )
    for _ in range(2):  # calibrated, then from the cache
        program = compiled(calibration=BATCHES, options=options)
        assert 0 < error(program(batch(7)), full(batch(7))) < 0.03
