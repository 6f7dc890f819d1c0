"""Programs that are saved and loaded; faults are in test_package_faults.py."""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import warnings
import zipfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.engines.test_registry import vendor  # noqa: F401  (a fixture)
from tests.runtime.test_int8 import BATCHES, CNN, WEIGHTS
from tests.runtime.test_nested_clusters import BRANCH, LOOP, MAP, SCAN, W, X
from tests.runtime.test_ranges import RangedEngine
from tests.runtime.test_ranges import program as ranged
from tests.support import assert_close, model
from xrt.engines import prepared
from xrt.engines.xla import XlaEngine
from xrt.errors import InputError, StaleProgramWarning

RNG = np.random.default_rng(0)
MLP = "g (float[n,8] x) => (float[n,32] y) <float[8,32] w, float[32] b> {y = Gemm (x, w, b)}"
MLP_WEIGHTS = {"w": RNG.normal(size=(8, 32)), "b": RNG.normal(size=32)}
TWO = """
    g (float[2,8] x) => (float[2,32] y, int64[2,k] where) <float[8,32] w> {
        h = MatMul (x, w)
        where = NonZero (h)
        y = Relu (h)
    }"""


def normal(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _nothing_is_stale():
    """What is loaded here where it was saved loads whole, unless a test says otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", StaleProgramWarning)
        yield


@contextlib.contextmanager
def no_compiler():
    """XLA compiles nothing: all that runs was in the file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(XlaEngine, "compile", lambda *args: pytest.fail("compiled"))
        yield


def same(got: Any, want: Any) -> None:
    """Fail unless both are the same to the last bit."""
    if isinstance(want, (list, tuple)):
        assert type(got) is type(want)
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            same(one, other)
        return
    got, want = np.asarray(got), np.asarray(want)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    if got.dtype == object:
        assert got.tolist() == want.tolist()
    else:
        assert got.tobytes() == want.tobytes()


def compiled(text: str, *example: Any, constants: Any = None, **given: Any) -> xrt.Program:
    given = {"options": xrt.CompileOptions(min_cluster_weight=0), "engine": "xla", **given}
    return xrt.compile(ir.to_proto(model(text, **(constants or {}))), example or None, **given)


def again(program: xrt.Program, folder: Path, **given: Any) -> xrt.Program:
    path = folder / "program.xrt"
    program.save(path)
    with no_compiler():
        return xrt.load(path, **given)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_program_comes_back(tmp_path, precision):
    x = normal(2, 8)
    program = compiled(TWO, x, constants={"w": normal(8, 32)}, precision=precision)
    loaded = again(program, tmp_path)
    same(loaded(x), program(x))
    same(loaded(x=x), program(x))
    one, other = program.explain().to_dict(), loaded.explain().to_dict()
    assert list(other.pop("seconds")) == ["load"]
    one.pop("seconds")
    assert other == one
    assert [c.digest for c in loaded.clusters] == [c.digest for c in program.clusters]
    assert xrt.verify(loaded, (x,))


def test_weights_are_views_of_the_file_and_there_once(tmp_path):
    weights = {"w": normal(256, 256)}
    text = "g (float[n,256] x) => (float[n,256] y) <float[256,256] w> {y = MatMul (x, w)}"
    program = compiled(text, normal(1, 256), constants=weights)
    program.prepare(normal(2, 256))
    program.save(tmp_path / "program.xrt")
    del program  # whose arrays on the device would be taken
    gc.collect()
    loaded = xrt.load(tmp_path / "program.xrt")
    size = (tmp_path / "program.xrt").stat().st_size
    assert weights["w"].nbytes < size < weights["w"].nbytes + 60_000
    (value,) = loaded.specialization.imported.model.graph.initializers.values()
    array = value.const_value.numpy()
    assert not array.flags.writeable
    assert array.ctypes.data % 64 == 0
    (executable,) = loaded.specialization.executables.values()
    (parameter,) = executable._parameters
    assert np.shares_memory(np.asarray(parameter), array)  # nor does XLA hold a copy


def test_a_convolutions_prepared_weights_are_views_of_the_file(tmp_path):
    text = "g (float[1,32,9,9] x) => (float[1,64,9,9] y) <float[64,32,1,1] w> {y = Conv (x, w)}"
    x = normal(1, 32, 9, 9)
    small, whole = tmp_path / "small.xrt", tmp_path / "program.xrt"
    program = compiled(text, x, constants={"w": normal(64, 32, 1, 1)})
    want = program(x)
    program.save(whole)
    del program
    gc.collect()
    loaded = xrt.load(whole)
    (executable,) = loaded.specialization.executables.values()
    ((key, array),) = executable.prepared().items()
    assert np.shares_memory(array, prepared.find("xla", key))
    same(loaded(x), want)
    loaded.save(small, prepared=False)
    assert small.stat().st_size < whole.stat().st_size - 8000
    with no_compiler():
        same(xrt.load(small)(x), want)


def test_what_is_in_the_file_is_an_onnx_model_with_external_data(tmp_path):
    x = normal(2, 8)
    program = compiled(MLP, x, constants=MLP_WEIGHTS)
    program.save(tmp_path / "program.xrt")
    with zipfile.ZipFile(tmp_path / "program.xrt") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["xrt"] == xrt.__version__
    assert manifest["engines"][0]["identity"]["jaxlib"]
    proto = onnx.load(tmp_path / "unpacked" / "model-0.onnx")
    same(xrt.compile(proto, (x,), engine="host")(x), compiled(MLP, x, constants=MLP_WEIGHTS,
                                                             engine="host")(x))  # fmt: skip


def test_equal_programs_make_equal_files(tmp_path):
    x = normal(2, 8)
    for name in ("one", "other"):
        compiled(MLP, x, constants=MLP_WEIGHTS).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_every_signature_comes_back_and_new_ones_are_compiled(tmp_path):
    program = compiled(MLP, constants=MLP_WEIGHTS)
    inputs = [normal(n, 8) for n in (1, 2, 3)]
    want = [program(x) for x in inputs]
    loaded = again(program, tmp_path)
    assert len(loaded._specializations) == 1  # the others wait for their first call
    with no_compiler():
        for x, y in zip(inputs, want, strict=True):
            same(loaded(x), y)
    x = normal(5, 8)
    same(loaded(x), program(x))
    twice = again(loaded, tmp_path)
    with no_compiler():
        for each in (x, *inputs):
            same(twice(each), program(each))


def test_bound_contents_come_back(tmp_path):
    text = (
        "g (float[2,3] x, int64[n] axes) => (float[a,b] y) { s = ReduceSum (x, axes) y = Relu (s) }"
    )
    program, x = compiled(text), normal(2, 3)
    for axes in ([0], [1]):
        program(x, np.array(axes))
    loaded = again(program, tmp_path)
    with no_compiler():
        for axes in ([1], [0]):
            same(loaded(x, np.array(axes)), program(x, np.array(axes)))
    assert_close(loaded(x, np.array([0, 1])), np.maximum(x.sum(keepdims=True), 0))


@pytest.mark.parametrize(
    ("text", "inputs", "constants"),
    [
        (LOOP, (X,), {"trips": 3, "yes": True, "w": W, "b": RNG.normal(size=8)}),
        (BRANCH, (X, np.array(True)), {"w": W, "flat": [-1]}),
        (SCAN, (normal(3, 4, 8), X), {"w": W, "axes": [1]}),
        (MAP, (X,), {"w": W}),
    ],
    ids=["loop", "if", "scan", "map"],
)
def test_clusters_in_nested_graphs_come_back(tmp_path, text, inputs, constants):
    program = compiled(text, *inputs, constants=constants, options=None)
    loaded = again(program, tmp_path)
    assert len(loaded.clusters) == len(program.clusters) > 0
    same(loaded(*inputs), program(*inputs))
    assert [c.digest for c in loaded.clusters] == [c.digest for c in program.clusters]
    assert all(c.body.opset_imports for c in loaded.clusters)


def test_strings_sequences_optionals_and_the_host(tmp_path):
    text = """
        g (string[n] s, seq(float[2]) q, optional(float[2]) o)
            => (string[n] t, float[m,2] u, bool h)
        <string[1] tail = {"!"}> {
            t = StringConcat (s, tail)
            u = ConcatFromSequence <axis = 0, new_axis = 1> (q)
            h = OptionalHasElement (o)
        }"""
    inputs = (np.array(["a", "b"], object), [normal(2), normal(2)], None)
    program = compiled(text, engine="host")
    want = program(*inputs)
    loaded = again(program, tmp_path)
    same(loaded(*inputs), want)
    assert loaded.clusters == []


def test_numbers_of_every_width_come_back(tmp_path):
    kinds = ("bool", "int4", "uint4", "int8", "uint16", "int64", "float16", "bfloat16", "double",
             "float8e4m3fn")  # fmt: skip
    outputs = ", ".join(f"{kind}[64,64] y_{kind}" for kind in kinds)
    weights = ", ".join(f"{kind}[64,64] w_{kind}" for kind in kinds)
    nodes = " ".join(f"y_{kind} = Identity (w_{kind})" for kind in kinds)
    given = {f"w_{kind}": RNG.integers(0, 2, (64, 64)) for kind in kinds}
    program = compiled(f"g () => ({outputs}) <{weights}> {{{nodes}}}", constants=given)
    same(again(program, tmp_path)(), program())


def test_int8_comes_back_calibrated(tmp_path):
    options = xrt.CompileOptions(calibration_batches=2, max_mismatch=0.5)
    given = {"precision": "int8", "options": options, "constants": WEIGHTS}
    program = compiled(CNN, **given)
    program(BATCHES[0])
    with pytest.raises(xrt.XrtError, match="still calibrating: it saw 1 of 2 batches"):
        program.save(tmp_path / "early.xrt")
    assert list(tmp_path.glob("*.xrt")) == []
    program(BATCHES[1])
    program.save(tmp_path / "program.xrt")  # quantizes, since it has seen enough
    with no_compiler():
        loaded = xrt.load(tmp_path / "program.xrt")
        same(loaded(BATCHES[2]), program(BATCHES[2]))
    want = program.explain().precision
    assert want["precision"] == "int8"
    assert loaded.explain().precision == json.loads(json.dumps(want))
    other = BATCHES[2][:3]
    same(loaded(other), program(other))  # which needs the calibration
    assert loaded.explain().precision["groups"] == want["groups"]


def test_a_dropped_callable_leaves_valid_options(tmp_path):
    options = xrt.CompileOptions(
        max_accuracy_drop=0.5, accuracy_fn=lambda call: float(call(BATCHES[0]).shape[0]),
        quantization=xrt.QuantizationOptions(observer="minmax"), fuel=100, cache_dir=tmp_path,
    )  # fmt: skip
    given = {"precision": "int8", "options": options, "constants": WEIGHTS}
    program = compiled(CNN, calibration=BATCHES, **given)
    loaded = again(program, tmp_path)
    same(loaded(BATCHES[0]), program(BATCHES[0]))
    chosen = loaded._options
    assert (chosen.accuracy_fn, chosen.max_accuracy_drop, chosen.cache_dir) == (None, None, None)
    assert (chosen.quantization.observer, chosen.fuel) == ("minmax", 100)


class Net(torch.nn.Module):
    """Takes and returns all kinds of structures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 32)

    def forward(self, x, extra=None, scale=2.0, flip=False):
        y = self.layer(x) * scale
        if extra is not None:
            y = y + extra["bias"][0]
        pair = Pair(y, (y.sum(),))
        return {"out": y.flip(0) if flip else y, "pair": pair, "list": [y, None, 3]}


Pair = namedtuple("Pair", ["first", "second"])


def test_a_torch_program_comes_back_with_its_structures(tmp_path):
    x, bias = torch.randn(2, 8), torch.randn(32)
    program = xrt.compile(Net().eval(), (x,), engine="xla")
    extra = {"bias": (bias,)}
    calls = [((x,), {}), ((x,), {"extra": extra}), ((x, None, 3.0), {}), ((x,), {"flip": True})]
    want = [program(*args, **kwargs) for args, kwargs in calls]
    loaded = again(program, tmp_path)
    with no_compiler():
        got = [loaded(*args, **kwargs) for args, kwargs in calls]
    for one, other in zip(got, want, strict=True):
        assert list(one) == ["out", "pair", "list"]
        assert type(one["pair"]) is Pair
        assert isinstance(one["out"], torch.Tensor)
        same(one["out"], other["out"])
        same(one["pair"].second[0], other["pair"].second[0])
        assert one["list"][1:] == [None, 3]
    with pytest.raises(InputError, match=r"'x' has shape \[3, 8\].*dynamic_shapes"):
        loaded(torch.randn(3, 8))
    with pytest.raises(InputError, match=r"like none of the 4 .* 7\.0 .* was 3\.0"):
        loaded(x, scale=7.0)
    with pytest.raises(InputError, match=r"forward\(x, extra=None, scale=2.0, flip=False\)"):
        loaded(x, colour="red")
    twice = again(loaded, tmp_path)
    same(twice(x)["out"], want[0]["out"])


def test_an_exported_program_of_open_shape_comes_back(tmp_path):
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        torch.nn.Linear(8, 4).eval(), (torch.randn(2, 8),), dynamic_shapes=({0: batch},)
    )
    x = torch.randn(2, 8)
    program = xrt.compile(exported, (x,), engine="xla")
    loaded = again(program, tmp_path)
    same(loaded(x), program(x))
    other = torch.randn(5, 8)
    same(loaded(other), program(other))
    (name,) = (value.name for value in loaded.specialization.imported.model.graph.inputs)
    same(loaded(**{name: x}), program(x))
    with pytest.raises(InputError):
        loaded(x, x)


NO_TORCH = """
import sys
import numpy as np
sys.modules["torch"] = sys.modules["transformers"] = None
import xrt
program = xrt.load(sys.argv[1])
out = program(np.load(sys.argv[2]))
assert "torch" not in {name.split(".")[0] for name, module in sys.modules.items() if module}
np.save(sys.argv[3], out.last_hidden_state)
assert out[0] is out["last_hidden_state"] is out.to_tuple()[0]
assert list(out) == ["last_hidden_state", "pooler_output"]
try:
    out.logits
except AttributeError as error:
    print(error)
"""


def test_a_transformers_model_runs_without_torch_in_another_process(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16,
    )  # fmt: skip
    network = transformers.BertModel(config).eval()
    ids = torch.arange(12).reshape(2, 6)
    program = xrt.compile(network, (ids,), engine="xla")
    want = program(ids)
    loaded = again(program, tmp_path)
    assert type(loaded(ids)) is type(want)  # its class is at hand here
    same(loaded(ids).last_hidden_state, want.last_hidden_state)
    np.save(tmp_path / "ids.npy", ids.numpy())
    files = [str(tmp_path / name) for name in ("program.xrt", "ids.npy", "out.npy")]
    done = subprocess.run([sys.executable, "-c", NO_TORCH, *files], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The output has no 'logits'" in done.stdout
    same(np.load(tmp_path / "out.npy"), want.last_hidden_state)


def test_a_program_that_was_never_called_cannot_be_saved(tmp_path):
    with pytest.raises(xrt.XrtError, match="compiled at its first call"):
        compiled(MLP, constants=MLP_WEIGHTS).save(tmp_path / "program.xrt")


def test_a_vendors_engine_comes_back(tmp_path, vendor):  # noqa: F811
    x = normal(2, 3)
    text = "g (float[2,3] x) => (float[2,3] y) { a = Mul (x, x) b = Mul (a, x) y = Exp (b) }"
    program = compiled(text, x, engine=["vendor", "xla"])
    loaded = again(program, tmp_path)
    assert [c.engine for c in loaded.clusters] == ["vendor", "xla"]
    same(loaded(x), program(x))


def test_streams_and_profiles_run_on_loaded_programs(tmp_path):
    program = compiled(MLP, normal(2, 8), constants=MLP_WEIGHTS)
    loaded = again(program, tmp_path)
    batches = [normal(2, 8) for _ in range(4)]
    for got, x in zip(loaded.stream(batches), batches, strict=True):
        same(got, program(x))


def test_pixels_stay_the_input_of_a_program_that_normalizes(tmp_path):
    pixels = RNG.integers(0, 256, (2, 3, 6, 6), np.uint8)
    text = "g (float[n,3,h,w] x) => (float[n,4,p,q] y) <float[4,3,3,3] w> {y = Conv (x, w)}"
    normalization = xrt.InputNormalization(mean=(0.5,) * 3, std=(0.2,) * 3)
    options = xrt.CompileOptions(normalization=normalization)
    program = compiled(text, pixels, constants={"w": normal(4, 3, 3, 3)}, options=options)
    loaded = again(program, tmp_path)
    same(loaded(pixels), program(pixels))
    same(loaded(pixels[:1]), program(pixels[:1]))
    twice = again(loaded, tmp_path)
    same(twice(pixels), program(pixels))


def test_large_members_have_sizes_of_64_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("xrt.runtime.archive._LARGE", 100)
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 100)
    x = normal(2, 8)
    program = compiled(MLP, x, constants=MLP_WEIGHTS)
    same(again(program, tmp_path)(x), program(x))
    with zipfile.ZipFile(tmp_path / "program.xrt") as archive:
        assert archive.testzip() is None


def test_dimensions_that_stay_open_come_back(tmp_path, monkeypatch):
    engine = RangedEngine()
    program = ranged(engine)
    inputs = [normal(n, 6) for n in (2, 5, 3)]
    want = [program(x) for x in inputs]
    assert program.specialization.ranges
    program.save(tmp_path / "program.xrt")
    monkeypatch.setattr(sys.modules["xrt.load"], "resolve", lambda names: (engine,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleProgramWarning)  # ONNX Runtime's cannot be saved
        loaded = xrt.load(tmp_path / "program.xrt")
    built = len(engine.built)
    for x, y in zip(inputs, want, strict=True):
        same(loaded(x), y)
    assert loaded.specialization.ranges == program.specialization.ranges
    assert len(engine.built) == built  # one for all of them
    assert len(loaded._specializations) == 1
