from __future__ import annotations

import sys
import warnings
import zipfile

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.engines.tensorrt.trt_support import NETWORKS, OPTIONS, conv_bn_relu, inputs_for, mlp
from tests.support import assert_close, model, run_reference
from xrt.engines.tensorrt import engine as E
from xrt.engines.tensorrt import library as L
from xrt.engines.tensorrt.engine import TensorRTEngine
from xrt.errors import (
    EngineBuildError,
    EngineFallbackWarning,
    EngineUnavailableError,
    OptionError,
    StaleProgramWarning,
)
from xrt.kernels.cuda import device

registry = sys.modules["xrt.engines"]

NO_GPU = "no NVIDIA driver is installed"


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine without a GPU."""
    monkeypatch.setattr(device, "present", lambda: NO_GPU)


@pytest.fixture
def gpu(monkeypatch):
    """A machine with a GPU of the compute capability that the fixture is called with."""

    def put(major: int, minor: int) -> None:
        found = device.Gpu("NVIDIA Test", (major, minor), (13, 0), 1 << 34)
        monkeypatch.setattr(device, "present", lambda: found)

    return put


@pytest.fixture
def not_installed(monkeypatch):
    """A machine without either package."""
    monkeypatch.setattr(E, "load", lambda name: f"the package {name!r} is not installed")
    monkeypatch.setattr(E, "find", lambda name: "the package 'tensorrt_rtx' is not installed")
    monkeypatch.setattr(E.importlib.util, "find_spec", lambda name: None)


# --- what is available ---------------------------------------------------------------------------


def test_without_a_gpu_it_says_what_to_install_or_which_target_to_give(no_gpu):
    with pytest.raises(EngineUnavailableError) as caught:
        xrt.compile(conv_bn_relu(), engine="tensorrt", precision="int8")
    assert str(caught.value) == (
        "tensorrt: not available: no NVIDIA driver is installed (install an NVIDIA driver on a "
        "machine with an NVIDIA GPU, or build for a GPU that is elsewhere, as in target='sm_89')"
    )


def test_without_a_package_it_says_what_to_install(no_gpu, not_installed):
    with pytest.raises(EngineUnavailableError, match=r"pip install 'xrt\[tensorrt\]'") as caught:
        xrt.compile(conv_bn_relu(), engine="tensorrt_rtx")
    assert "the package 'tensorrt_rtx' is not installed and no NVIDIA driver" in str(caught.value)
    with pytest.raises(EngineUnavailableError, match=r"is not installed \(pip install"):
        xrt.compile(conv_bn_relu(), engine="tensorrt", target="sm_86")


def test_auto_goes_on_to_xla_and_loads_no_library(no_gpu, monkeypatch):
    monkeypatch.setattr(E, "find", lambda name: pytest.fail("the library is not needed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [each.name for each in registry.resolve("auto")] == ["xla"]


def test_a_gpu_that_the_library_does_not_know_is_named_before_anything_is_built(gpu):
    gpu(9, 0)
    found = TensorRTEngine("tensorrt_rtx").available()
    assert not found
    assert "does not support the GPU present, NVIDIA Test (sm_90), but sm_75, sm_80" in found.reason
    assert [each.name for each in registry.resolve("auto")] == ["xla"]
    with pytest.raises(EngineUnavailableError, match=r"sm_90.*use another engine"):
        registry.resolve("tensorrt_rtx")
    with pytest.warns(EngineFallbackWarning, match=r"next engine .* takes over\..*sm_90"):
        assert [each.name for each in registry.resolve(["tensorrt_rtx", "xla"])] == ["xla"]


def test_with_a_gpu_and_all_packages_auto_prefers_it(gpu, monkeypatch):
    gpu(8, 9)
    monkeypatch.setattr(device, "core", lambda: sys)
    assert TensorRTEngine("tensorrt").available()
    assert [each.name for each in registry.resolve("auto")] == ["tensorrt", "xla"]


def test_engines_are_listed_with_reason_and_remedy(no_gpu):
    listed = {status.name: status for status in xrt.engines()}
    for name in ("tensorrt", "tensorrt_rtx"):
        assert not listed[name].available
        assert NO_GPU in listed[name].reason
        assert "target='sm_89'" in listed[name].remedy


def test_tensorrt_is_served_by_the_package_of_that_name_first():
    assert L.PACKAGES == {
        "tensorrt": ("tensorrt", "tensorrt_rtx"),
        "tensorrt_rtx": ("tensorrt_rtx",),
    }
    assert L.find("tensorrt_rtx").name == "tensorrt_rtx"
    assert L.load("tensorrt_of_mine") == "'tensorrt_of_mine' is no TensorRT package"


def test_a_package_too_old_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for source, reason in (
        ("__version__ = '10.3.0'", "tensorrt 10.3.0 is too old: xrt needs 11 or newer"),
        ("raise OSError('libnvinfer.so.11: no such file')", "does not load: OSError: libnvinfer"),
    ):
        (tmp_path / "tensorrt.py").write_text(source)
        monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
        assert reason in L.load.__wrapped__("tensorrt")


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_1", "foo", "sm_90", "SM_86", ""])
@pytest.mark.parametrize("engine", ["tensorrt", ["tensorrt", "xla"], "auto"])
def test_an_unknown_target_lists_the_known_ones(engine, target):
    with pytest.raises(OptionError, match=r"Known targets: sm_75, sm_80, sm_86, sm_89, sm_120"):
        xrt.compile(conv_bn_relu(), engine=engine, target=target)


def test_an_engine_that_builds_for_this_machine_only_says_so():
    with pytest.raises(OptionError, match="the engine 'xla' builds for the device that is here"):
        xrt.compile(conv_bn_relu(), engine="xla", target="sm_86")
    with pytest.raises(OptionError, match=r"the host runtime builds for no device.*'tensorrt'"):
        xrt.compile(conv_bn_relu(), engine="host", target="sm_86")


def test_a_library_without_targets_builds_for_the_gpu_present_only(monkeypatch):
    class Elder:
        ILogger = object

    monkeypatch.setattr(E, "load", lambda name: L.Library("tensorrt", Elder, "11.0.0"))
    with pytest.raises(OptionError, match=r"builds for the GPU present only.*xrt\[tensorrt\]"):
        TensorRTEngine("tensorrt").targeting("sm_86")


def test_for_a_target_other_engines_are_left_out_with_a_warning():
    with pytest.warns(EngineFallbackWarning, match="build nothing: xla.*runs on the host runtime"):
        chosen = registry.resolve(["tensorrt", "xla"], "sm_86")
    assert [(each.name, each.target) for each in chosen] == [("tensorrt", "sm_86")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [each.name for each in registry.resolve("auto", "sm_89")] == ["tensorrt"]


def test_what_stands_in_for_a_target_runs_here(no_gpu):
    names = lambda engine: [each.name for each in registry.stand_ins(engine)]  # noqa: E731
    assert names("tensorrt") == ["xla"]
    assert names(["tensorrt", "xla"]) == ["xla"]
    assert names("auto") == ["xla"]


# --- programs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", ["sm_86", "sm_89"])
def test_a_network_compiles_to_one_cluster_for_a_target(name, target):
    program = xrt.compile(NETWORKS[name](), engine="tensorrt", target=target, options=OPTIONS)
    (cluster,) = program.explain().clusters
    assert program.explain().reasons() == {}
    assert cluster["engine"] == "tensorrt"
    assert cluster["target"] == target
    assert cluster["plan_bytes"] > 10_000
    assert cluster["build_seconds"] > 0
    assert cluster["cache_hit"] is False


def test_a_program_for_a_gpu_that_is_not_here_says_what_is_missing(no_gpu):
    given = mlp()
    program = xrt.compile(given, engine="tensorrt", target="sm_89", options=OPTIONS)
    for _ in range(2):
        with pytest.raises(EngineUnavailableError, match="sm_89"):
            program(*inputs_for(given))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_for_a_target(precision):
    given = mlp()
    program = xrt.compile(
        given,
        tuple(inputs_for(given)),
        engine="tensorrt",
        target="sm_86",
        precision=precision,
        options=OPTIONS,
    )
    assert len(program.clusters) == 1
    notes = program.explain().precision["notes"]
    assert not any("CPU" in note for note in notes)  # which computes nothing of it
    wanted = ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16
    products = [node for node in program.clusters[0].nodes if node.op_type == "MatMul"]
    assert {node.outputs[0].dtype for node in products} == {wanted}


def test_fp16_for_a_target_looks_at_the_numbers_on_this_machine():
    given = model(
        "g (float[2,4] x) => (float[2,4] y) <float[4,4] w>{ a = MatMul (x, w)  y = MatMul (a, w) }",
        w=np.full((4, 4), 300.0),
    )
    program = xrt.compile(
        given,
        np.full((2, 4), 300.0, np.float32),
        engine="tensorrt",
        target="sm_86",
        precision="fp16",
        options=OPTIONS,
    )
    assert program.explain().precision["kept"]


def test_int8_for_a_target_calibrates_on_this_machine(no_gpu):
    given = conv_bn_relu()
    batches = [tuple(inputs_for(given, seed)) for seed in range(3)]
    program = xrt.compile(
        given,
        batches[0],
        engine="tensorrt",
        target="sm_86",
        precision="int8",
        calibration=batches,
        options=OPTIONS,
    )
    (cluster,) = program.clusters
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in cluster.nodes}
    report = program.explain().precision
    assert report["signal_to_noise"] > 20
    assert "int8_ms" not in report  # this machine's times say nothing of the target's
    assert "signal to noise" in str(program.explain())
    tensors = [value.const_value for value in cluster.body.initializers.values()]
    (weights,) = (t.numpy() for t in tensors if t.dtype == ir.DataType.INT8 and t.size == 216)
    assert np.abs(weights).max() == 127  # not the 7 bits of a CPU without VNNI


def test_int8_without_data_calibrates_on_the_first_calls_and_then_needs_the_gpu(no_gpu):
    given = conv_bn_relu()
    options = xrt.CompileOptions(
        cache=False, min_cluster_weight=0, progress=False, calibration_batches=2
    )
    program = xrt.compile(
        given, engine="tensorrt", target="sm_86", precision="int8", options=options
    )
    for seed in range(2):
        arrays = inputs_for(given, seed)
        assert_close(program(*arrays), run_reference(given, arrays)[0])
    with pytest.raises(EngineUnavailableError, match="sm_86"):
        program(*inputs_for(given))
    assert program.clusters[0].engine == "tensorrt"


# --- failures ------------------------------------------------------------------------------------

# The product of 9000 by 1 keeps TensorRT busy on both sides of what it cannot build.
TOP = """
    g (float[1,9000] x) => (float[1,5000] y) <int64[1] k={5000}> {
        a = Mul (x, x)  b = Exp (a)  [top] c, i = TopK (b, k)  d = Neg (c)  y = Sigmoid (d)
    }
"""


def test_a_node_that_fails_to_build_goes_to_the_host_with_its_reason():
    with pytest.warns(EngineFallbackWarning, match=r"TopK 'top': .*3840.*for that node"):
        program = xrt.compile(model(TOP), engine="tensorrt", target="sm_86", options=OPTIONS)
    assert [len(cluster.nodes) for cluster in program.clusters] == [2, 2]
    reasons = program.explain().reasons()
    assert list(reasons) == ["TopK"]
    assert "K exceeds the maximum value allowed (3840)" in next(iter(reasons["TopK"]))


def test_a_node_like_one_that_failed_is_not_tried_again():
    renamed = TOP.replace("[top]", "[other]").replace("9000", "9001")
    with pytest.warns(EngineFallbackWarning):
        xrt.compile(model(renamed), engine="tensorrt", target="sm_89", options=OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", EngineFallbackWarning)
        program = xrt.compile(model(renamed), engine="tensorrt", target="sm_89", options=OPTIONS)
    (reason,) = program.explain().reasons()["TopK"]
    assert "a build failed at a node like it" in reason


def test_a_failed_build_raises_if_strict():
    strict = xrt.CompileOptions(cache=False, min_cluster_weight=0, progress=False, strict=True)
    with pytest.raises(EngineBuildError, match="3840") as caught:
        xrt.compile(
            model(TOP.replace("9000", "9002")), engine="tensorrt", target="sm_86", options=strict
        )
    assert (caught.value.engine, caught.value.op) == ("tensorrt", "TopK")


def test_what_the_parser_refuses_runs_on_the_host_with_the_parsers_reason():
    program = xrt.compile(
        model("""
            g (float[2,2] x) => (float y) {
                a = MatMul (x, x)  b = Exp (a)  c = Det (b)  d = Neg (c)  e = Exp (d)  y = Abs (e)
            }
        """),
        engine="tensorrt",
        target="sm_86",
        options=OPTIONS,
    )
    assert [len(cluster.nodes) for cluster in program.clusters] == [2, 3]
    reason = {"Det": {"tensorrt: TensorRT's parser has no operator Det": 1}}
    assert program.explain().reasons() == reason


# --- saved executables ---------------------------------------------------------------------------


def test_an_executable_survives_its_bytes(no_gpu):
    engine = TensorRTEngine("tensorrt", "sm_86")
    program = xrt.compile(mlp(), engine="tensorrt", target="sm_86", options=OPTIONS)
    (cluster,) = program.clusters
    executable = engine.compile(cluster, OPTIONS)
    again = engine.deserialize(executable.serialize(), cluster, OPTIONS)
    assert again.serialize() == executable.serialize()
    assert again.details["plan_bytes"] == executable.details["plan_bytes"]
    with pytest.raises(EngineBuildError, match="the plan is damaged"):
        engine.deserialize(executable.serialize()[:-1], cluster, OPTIONS)


def test_the_identity_names_library_and_gpu(gpu):
    def identity(engine: TensorRTEngine):
        return dict(engine.identity(OPTIONS))

    version = f"tensorrt_rtx {L.find('tensorrt_rtx').version}"
    there = identity(TensorRTEngine("tensorrt_rtx", "sm_89"))
    assert there == {"library": version, "target": "sm_89"}
    gpu(8, 9)  # what was built for a target is valid on each such GPU
    assert identity(TensorRTEngine("tensorrt_rtx")) == there
    gpu(8, 6)
    assert identity(TensorRTEngine("tensorrt_rtx")) != there


def test_a_saved_program_holds_its_plans_and_says_why_they_cannot_run_here(no_gpu, tmp_path):
    given = mlp()
    program = xrt.compile(given, engine="tensorrt", target="sm_89", options=OPTIONS)
    program.save(tmp_path / "model.xrt")
    (executable,) = program.specialization.executables.values()
    payload = executable.serialize()
    with zipfile.ZipFile(tmp_path / "model.xrt") as file:
        assert payload in [file.read(name) for name in file.namelist()]
    with pytest.warns(StaleProgramWarning, match="tensorrt: not available: no NVIDIA driver"):
        loaded = xrt.load(tmp_path / "model.xrt")
    arrays = inputs_for(given)
    assert_close(loaded(*arrays), run_reference(given, arrays)[0])
