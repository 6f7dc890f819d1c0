"""The run half without a GPU: what is planned, checked and said. See test_run_gpu.py."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace
from pathlib import Path
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
from xrt.engines.tensorrt import engine as tensorrt
from xrt.engines.tensorrt import loading, session
from xrt.engines.tensorrt.build import build
from xrt.engines.tensorrt.executable import TensorRTExecutable, summary
from xrt.engines.tensorrt.loading import KernelCache
from xrt.engines.tensorrt.plan import Binding, Plan
from xrt.engines.tensorrt.session import Session, fit, profile_for
from xrt.errors import (
    CacheWarning,
    DeviceMemoryError,
    EngineRunError,
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


def test_only_what_makes_plans_is_part_of_their_key(tmp_path, monkeypatch):
    folder = tmp_path / "tensorrt"
    shutil.copytree(Path(tensorrt.__file__).parent, folder)
    monkeypatch.setattr(tensorrt, "__file__", str(folder / "engine.py"))
    rules = tensorrt._rules.__wrapped__
    before = rules()
    for name in tensorrt._RUN_MODULES:
        path = folder / f"{name}.py"
        path.write_text(path.read_text() + "# changed")
    assert rules() == before
    (folder / "export.py").write_text("# changed")
    assert rules() != before


# --- kernels that the library compiles, on disk. A GPU alone makes real ones ---------------------


class Compiled:
    """The library's cache of kernels: bytes, which grow when it compiles."""

    data = b""
    usable = True

    def __init__(self) -> None:
        self.serialized = 0

    def serialize(self) -> memoryview:
        self.serialized += 1
        return memoryview(self.data)

    def deserialize(self, data: bytes) -> bool:
        if self.usable:
            self.data = data
        return self.usable


class Config:
    """The library's runtime configuration."""

    def __init__(self, taken: bool = True, usable: bool = True) -> None:
        self.cache, self._taken = Compiled(), taken
        self.cache.usable = usable

    def create_runtime_cache(self) -> Compiled:
        return self.cache

    def set_runtime_cache(self, cache: Compiled) -> bool:
        return self._taken


GPU = device.Gpu("NVIDIA L4", (8, 9), (13, 0))


def kernels(config: Config, folder: Path) -> KernelCache:
    return KernelCache(config, plan_of(), GPU, replace(OPTIONS, cache=True, cache_dir=folder))


def stored(folder: Path) -> bytes:
    """What the next process would start with."""
    config = Config()
    kernels(config, folder)
    return config.cache.data


def test_kernels_are_saved_now_and_then_and_at_the_end(tmp_path):
    config = Config()
    cache = kernels(config, tmp_path)
    for size in range(1, 100):
        config.cache.data = b"k" * size
        cache.save()
    assert config.cache.serialized == 1
    assert stored(tmp_path) == b"k"
    del cache
    gc.collect()
    assert stored(tmp_path) == b"k" * 99


def test_fewer_kernels_do_not_replace_more(tmp_path):
    few, many = Config(), Config()
    slow, fast = kernels(few, tmp_path), kernels(many, tmp_path)
    many.cache.data = b"many kernels"
    fast.save()
    (path,) = (tmp_path / "tensorrt-kernels").glob("*.xrtcache")
    written = path.stat().st_ino
    few.cache.data = b"few"
    slow.save()
    del slow, fast  # each saves once more
    gc.collect()
    assert stored(tmp_path) == b"many kernels"
    assert path.stat().st_ino == written, "what is on disk already is not written again"


def test_kernels_that_the_library_does_not_take_are_replaced(tmp_path):
    first = Config()
    first.cache.data = b"of a driver that is gone"
    kernels(first, tmp_path).save()
    second = Config(usable=False)
    cache = kernels(second, tmp_path)
    second.cache.data = b"new"
    cache.save()
    assert stored(tmp_path) == b"new"


def test_a_library_that_takes_no_cache_is_told_of(tmp_path):
    config = Config(taken=False)
    with pytest.warns(CacheWarning, match="compiles them anew"):
        cache = kernels(config, tmp_path)
    config.cache.data = b"k"
    cache.save()
    assert stored(tmp_path) == b""


class Loaded:
    """What a session asks of its engine here."""

    saved = 0

    def save_kernels(self) -> None:
        self.saved += 1

    def failure(self, said: list[str], what: str) -> EngineRunError:
        return EngineRunError(f"failed at {what}")


def bare_session(**state: Any) -> Session:
    """A session without a GPU, of which one step is tested."""
    made = object.__new__(Session)
    vars(made).update(_loaded=Loaded(), **state)
    return made


def test_new_shapes_save_kernels_up_to_a_number():
    made = bare_session(_seen=set())
    for size in (*range(1000), 1, 2):
        made._save_kernels(((size, 4),))
    assert made._loaded.saved == len(made._seen) == session.MOST_SEEN


def test_a_context_that_does_not_take_the_event_of_its_inputs_is_not_run():
    class Context:
        def set_input_consumed_event(self, event: int) -> bool:
            return False

    class Event:
        handle = 5

    made = bare_session(_context=Context(), _spare=Event(), _consumed=0, _stream=1)
    with pytest.raises(EngineRunError, match="the event of its inputs"):
        made._enqueue(None)
