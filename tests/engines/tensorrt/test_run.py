"""The run half without a GPU: what is planned, checked and said. See test_run_gpu.py."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import xrt
from tests.engines.tensorrt.trt_support import (
    OPTIONS,
    RTX,
    cluster_of,
    inputs_for,
    mlp,
)
from xrt.engines.tensorrt import loading
from xrt.engines.tensorrt.build import build
from xrt.engines.tensorrt.executable import TensorRTExecutable, summary
from xrt.engines.tensorrt.plan import Binding, Plan
from xrt.engines.tensorrt.session import fit, profile_for
from xrt.errors import (
    DeviceMemoryError,
    EngineUnavailableError,
    InputError,
)
from xrt.kernels.cuda import device
from xrt.runtime.capture import CapturingSchedule

without_gpu = pytest.mark.skipif(
    not isinstance(device.present(), str), reason="this machine has a GPU"
)


@pytest.fixture(scope="module")
def executable() -> TensorRTExecutable:
    """A cluster that was built for a GPU that is elsewhere."""
    cluster = cluster_of(mlp())
    return TensorRTExecutable(build(RTX, cluster, OPTIONS, "sm_89"), cluster, OPTIONS)


def plan_of(**changes: Any) -> Plan:
    binding = Binding("x", "float32", "float32", (None, 4))
    base = Plan(RTX, b"engine", (binding,), (replace(binding, name="y"),), "sm_89")
    return replace(base, **changes)


PROFILES = (
    {"x": ((1, 4), (2, 4), (8, 4))},
    {"x": ((9, 4), (16, 4), (32, 4))},
)

# --- without a GPU -------------------------------------------------------------------------------


@without_gpu
def test_running_without_a_gpu_says_what_is_missing(executable):
    (x,) = inputs_for(mlp())
    for _ in range(2):
        with pytest.raises(EngineUnavailableError) as raised:
            executable.run([x])
        text = str(raised.value)
        assert f"was built for sm_89 by {RTX.name} {RTX.version} and cannot run here" in text
        assert str(device.present()) in text
        assert "a GPU of compute capability sm_89 and its driver" in text
        assert "engine='xla' or engine='host'" in text


@without_gpu
def test_a_program_says_so_too_and_knows_its_clusters():
    program = xrt.compile(mlp(), engine="tensorrt", target="sm_120", options=OPTIONS)
    with pytest.raises(EngineUnavailableError, match="was built for sm_120"):
        program(*inputs_for(mlp()))
    assert [cluster.engine for cluster in program.clusters] == ["tensorrt"]
    assert ": plan " in str(program.explain())


@without_gpu
def test_loading_without_a_gpu_is_the_same_error(executable):
    with pytest.raises(EngineUnavailableError, match="cannot run here"):
        executable.load()


def test_details_are_those_of_the_plan(executable):
    found = executable.details
    assert found["plan_bytes"] == len(executable.plan.data)
    assert found["cache_hit"] is False
    assert json.dumps(found)
    assert found["summary"].startswith("plan 0.")
    assert "for sm_89" in found["summary"]
    assert executable.memory()["weights"] == len(executable.plan.data)


def test_a_summary_counts_layers_by_precision():
    report = {
        "plan_bytes": 2_500_000,
        "target": "sm_89",
        "build_seconds": 1.5,
        "cache_hit": True,
        "engine_layers": [{}, {}, {}],
        "layers_by_precision": {"FP16": 2, "INT8": 1},
    }
    assert summary(report) == (
        "plan 2.50 MB, for sm_89, built in 1.50 s (now from the cache), 3 layers: 2 FP16, 1 INT8"
    )
    assert summary({}) == ""


def test_serialized_is_the_plan(executable):
    again = Plan.from_bytes(executable.serialize())
    assert again.data == executable.plan.data
    assert again.inputs == executable.plan.inputs


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "takes 1 inputs; got 0"),
        ([np.ones((4, 17), np.float32)], r"has shape \[4, 17\]; it was built for \[4, 16\]"),
        ([np.ones(16, np.float32)], r"has shape \[16\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_first(executable, inputs, message):
    with pytest.raises(InputError, match=message):
        executable.run(inputs)


@pytest.mark.parametrize(("size", "number"), [(1, 0), (8, 0), (9, 1), (32, 1)])
def test_the_first_profile_that_covers_the_shapes_is_chosen(size, number):
    assert profile_for(plan_of(profiles=PROFILES), [(size, 4)]) == number


def test_a_shape_outside_all_profiles_is_told_with_the_ranges():
    plan = plan_of(profiles=PROFILES)
    with pytest.raises(InputError, match=r"'x' has size 33 in dimension 0.* 1 to 8 or 9 to 32"):
        profile_for(plan, [(33, 4)])
    executable = TensorRTExecutable(plan, cluster_of(mlp()), OPTIONS)
    with pytest.raises(InputError, match="Compile with a wider range"):
        executable.run([np.ones((40, 4), np.float32)])


def test_integers_that_do_not_fit_the_engine_are_refused():
    binding = Binding("ids", "int32", "int64", (2,))
    assert fit(np.array([-5, 2**31 - 1]), binding).tolist() == [-5, 2**31 - 1]
    assert fit(np.zeros(0, np.int64), binding).size == 0
    with pytest.raises(InputError, match=r"'ids' holds 2147483648.*int32.*ends at 2147483647"):
        fit(np.array([0, 2**31]), binding)
    with pytest.raises(InputError, match=r"holds -2147483649.*ends at -2147483648"):
        fit(np.array([-(2**31) - 1, 0]), binding)
    floats = np.array([1e300])
    assert fit(floats, Binding("x", "float32", "float64", (1,))) is floats


def test_narrowed_integers_and_ranges_of_shapes_are_not_captured(executable):
    assert executable.capturable
    ranged = plan_of(profiles=PROFILES)
    assert not TensorRTExecutable(ranged, cluster_of(mlp()), OPTIONS).capturable
    narrow = plan_of(inputs=(Binding("x", "int32", "int64", (2,)),))
    assert not TensorRTExecutable(narrow, cluster_of(mlp()), OPTIONS).capturable
    off = replace(OPTIONS, tensorrt=xrt.TensorRTOptions(cuda_graphs=False))
    assert not TensorRTExecutable(executable.plan, cluster_of(mlp()), off).capturable


def test_schedules_of_clusters_that_can_be_captured_are_prepared():
    program = xrt.compile(mlp(), engine="tensorrt", target="sm_89", options=OPTIONS)
    schedule = program.specialization.schedule
    assert isinstance(schedule, CapturingSchedule)
    assert schedule.segments == [range(1)]


def test_diagnostics_are_read_from_their_bits():
    kinds = RTX.trt.EngineInvalidityDiagnostics
    bits = int(kinds.UNSUPPORTED_CC) | int(kinds.OLD_CUDA_DRIVER)
    assert sorted(loading.diagnose(RTX.trt, bits)) == ["OLD_CUDA_DRIVER", "UNSUPPORTED_CC"]
    assert loading.diagnose(RTX.trt, 0) == []
    assert set(loading._REASONS) == set(kinds.__members__), "a release added a diagnostic"


def test_an_invalid_engine_says_why():
    error = loading.invalid(plan_of(), "tensorrt_1", ["UNSUPPORTED_CC", "OLD_CUDA_DRIVER"], [])
    assert isinstance(error, EngineUnavailableError)
    assert "another compute capability than this GPU's, and the NVIDIA driver" in str(error)
    unknown = loading.invalid(plan_of(), "tensorrt_1", [], ["the library's own words"])
    assert "the library's own words" in str(unknown)
    small = loading.invalid(plan_of(), "tensorrt_1", ["INSUFFICIENT_GPU_MEMORY"], [])
    assert isinstance(small, DeviceMemoryError)


def test_a_damaged_engine_is_recognized_without_a_gpu():
    runtime = RTX.trt.Runtime(loading.logger(RTX))
    validity, bits = runtime.get_engine_validity(b"no engine " * 20)
    assert validity == RTX.trt.EngineValidity.INVALID
    assert loading.diagnose(RTX.trt, int(bits)) == ["MALFORMED_ENGINE"]


def test_layers_are_read_from_the_inspectors_json():
    detailed = {
        "Layers": [
            {
                "Name": "conv1",
                "LayerType": "CaskConvolution",
                "Outputs": [{"Name": "a", "Format/Datatype": "FP16"}],
            },
            {"Name": "split", "LayerType": "NoOp", "Outputs": []},
        ]
    }
    assert loading.layers_of(json.dumps(detailed)) == [
        {"name": "conv1", "kind": "CaskConvolution", "precision": "FP16"},
        {"name": "split", "kind": "NoOp"},
    ]
    assert loading.layers_of('{"Layers": ["conv1", "relu"]}') == [
        {"name": "conv1"},
        {"name": "relu"},
    ]
    assert loading.layers_of("not JSON") == []
