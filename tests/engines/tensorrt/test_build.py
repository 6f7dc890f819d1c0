from __future__ import annotations

import _thread
import threading

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.engines.tensorrt.trt_support import (
    NETWORKS,
    OPTIONS,
    RTX,
    cluster_of,
    conv_bn_relu,
    mlp,
)
from tests.support import model
from xrt.engines.tensorrt import build as B
from xrt.engines.tensorrt.engine import TensorRTEngine
from xrt.engines.tensorrt.library import Message, Messages, listening, logger, plain
from xrt.errors import EngineBuildError, OptionError

TOP = """
    g (float[1,9000] x) => (float[1,5000] y) <int64[1] k={5000}>
    { a = Relu (x)  [top] y, i = TopK (a, k) }
"""


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", ["sm_80", "sm_120"])
def test_networks_build_for_a_gpu_that_is_not_here(name, target):
    cluster = cluster_of(NETWORKS[name]())
    plan = B.build(RTX, cluster, OPTIONS, target)
    assert plan.target == target
    assert len(plan.data) == plan.report["plan_bytes"] > 10_000
    assert plan.report["layers"] >= len([n for n in cluster.nodes if n.op_type != "Identity"]) - 3
    assert tuple(binding.name for binding in plan.inputs) == cluster.inputs
    assert tuple(binding.name for binding in plan.outputs) == cluster.outputs


@pytest.mark.parametrize("target", RTX.targets)
def test_every_target_builds(target):
    text = "g (float16[4,16] x, float16[16,8] w) => (float16[4,8] y) { y = MatMul (x, w) }"
    assert B.build(RTX, cluster_of(text), OPTIONS, target).data


def test_what_a_gpu_has_no_kernel_for_is_found_when_it_is_built():
    text = "g (float[4,16] x, float[16,8] w) => (float[4,8] y) { [product] y = MatMul (x, w) }"
    with pytest.raises(EngineBuildError, match="for Turing") as caught:
        B.build(RTX, cluster_of(text), OPTIONS, "sm_75")
    assert (caught.value.op, caught.value.place) == ("MatMul", "product")


def test_types_and_order_of_inputs_and_outputs():
    plan = B.build(
        RTX,
        cluster_of("""
            g (int64[3] i, float16[4,5] x, bool[3,1] m, float[2] unused)
            => (float16[3,5] y, int64[3] j, bool[3,1] n)
            { g = Gather (x, i)  c = Cast <to=10> (m)  y = Mul (g, c)  j = Add (i, i)  n = Not (m) }
        """),
        OPTIONS,
        "sm_86",
    )
    assert [(b.name, b.dtype, b.original, b.shape) for b in plan.inputs] == [
        ("i", "int64", "int64", (3,)),
        ("x", "float16", "float16", (4, 5)),
        ("m", "bool", "bool", (3, 1)),
        ("unused", "float32", "float32", (2,)),
    ]
    assert [(b.name, b.dtype, b.shape) for b in plan.outputs] == [
        ("y", "float16", (3, 5)),
        ("j", "int64", (3,)),
        ("n", "bool", (3, 1)),
    ]


def test_a_failed_build_names_the_node_in_the_librarys_words():
    with pytest.raises(EngineBuildError, match="K exceeds the maximum value allowed") as caught:
        B.build(RTX, cluster_of(TOP), OPTIONS, "sm_86")
    assert (caught.value.op, caught.value.place) == ("TopK", "top")


@pytest.mark.parametrize(
    ("text", "op", "reason"),
    [
        ("{ [here] y = AveragePool <kernel_shape=[3,3], strides=[2,2], ceil_mode=1, "
         "count_include_pad=1> (x) }", "AveragePool", "ceil_mode"),
        ("{ [here] y = MaxPool <kernel_shape=[2,2], strides=[2,2], dilations=[2,2], "
         "pads=[1,1,1,1]> (x) }", "MaxPool", "dilations"),
    ],
)  # fmt: skip
def test_a_node_that_cannot_be_exported_or_parsed_is_named(text, op, reason):
    with pytest.raises(EngineBuildError, match=reason) as caught:
        B.build(
            RTX, cluster_of("g (float[1,2,8,8] x) => (float[1,2,4,4] y) " + text), OPTIONS, "sm_86"
        )
    assert (caught.value.op, caught.value.place) == (op, "here")


# --- options -------------------------------------------------------------------------------------


def options(**chosen) -> xrt.CompileOptions:
    return xrt.CompileOptions(cache=False, progress=False, tensorrt=xrt.TensorRTOptions(**chosen))


@pytest.mark.parametrize(
    "chosen",
    [
        {"workspace": 1 << 28},
        {"optimization_level": 5},
        {"tf32": True},
        {"weight_streaming": True},
        {"cuda_graphs": False, "shape_specialization": "none"},
    ],
)
def test_options_that_rtx_takes(chosen):
    plan = B.build(RTX, cluster_of(conv_bn_relu()), options(**chosen), "sm_89")
    assert plan.data
    if "workspace" in chosen:
        assert plan.report["workspace_limit"] == 1 << 28


def test_options_reach_the_builder():
    network = B._network(RTX, cluster_of(mlp()))[1]
    flags = RTX.trt.BuilderFlag
    plain_config = B._configure(RTX, network, xrt.TensorRTOptions(), "sm_89")
    assert not plain_config.get_flag(flags.TF32)  # float32 means float32
    assert plain_config.num_compute_capabilities == 1
    config = B._configure(
        RTX,
        network,
        xrt.TensorRTOptions(tf32=True, optimization_level=1, weight_streaming=True),
        "sm_89",
    )
    assert config.get_flag(flags.TF32)
    assert config.get_flag(flags.WEIGHT_STREAMING)
    assert config.builder_optimization_level == 1


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"version_compatible": True}, "for one release"),
        ({"hardware_compatibility": "ampere_plus"}, "every GPU of their compute capability"),
        ({"timing_cache": "somewhere"}, "measures nothing"),
    ],
)
def test_an_option_that_rtx_lacks_is_refused(chosen, why):
    (name,) = chosen
    with pytest.raises(OptionError, match=rf"TensorRTOptions\.{name} is not for .*{why}"):
        B.build(RTX, cluster_of(mlp()), options(**chosen), "sm_86")


def test_refitting_needs_a_gpu_to_build(monkeypatch):
    monkeypatch.setattr(B, "present", lambda: "no NVIDIA driver is installed")
    with pytest.raises(OptionError, match=r"refit is not for .* with a GPU only"):
        B.build(RTX, cluster_of(mlp()), options(refit=True), "sm_86")


def test_too_little_workspace_is_an_error_in_the_librarys_words():
    with pytest.raises(EngineBuildError, match="workspace limit"):
        B.build(RTX, cluster_of(conv_bn_relu()), options(workspace=1024), "sm_86")


@pytest.mark.parametrize(
    "chosen",
    [
        {"workspace": 0},
        {"optimization_level": 6},
        {"optimization_level": True},
        {"hardware_compatibility": "all"},
        {"shape_specialization": "now"},
        {"tf32": 1},
    ],
)
def test_a_value_out_of_range_is_refused_at_once(chosen):
    (name,) = chosen
    with pytest.raises(OptionError, match=rf"TensorRTOptions\.{name} must be"):
        xrt.TensorRTOptions(**chosen)


# --- progress and interrupts ---------------------------------------------------------------------


def test_phases_of_the_build_are_shown(monkeypatch):
    import contextlib

    seen, titles = [], []

    @contextlib.contextmanager
    def listen(title, total, show):
        titles.append(title)
        yield seen.append

    monkeypatch.setattr(B, "progress", listen)
    cluster = cluster_of(mlp())
    B.build(RTX, cluster, OPTIONS, "sm_86")
    assert titles == [f"TensorRT: {cluster.name}"]
    assert "Building engine" in seen
    assert len(seen) > 3


def test_an_interrupt_stops_the_build_and_goes_on(monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def interrupt(title, total, show):
        yield lambda phase: phase == "Building engine" and _thread.interrupt_main()

    monkeypatch.setattr(B, "progress", interrupt)
    monkeypatch.setattr(B, "_WAIT_SECONDS", 0.001)
    text = "g (float[1,64,64,64] x) => (float[1,64,64,64] y) <float[64,64,3,3] w> {"
    steps = "".join(f"a{i + 1} = Conv <pads=[1,1,1,1]> (a{i}, w) " for i in range(40))
    big = model(
        text + "a0 = Relu (x)" + steps + "y = Relu (a40) }",
        w=np.random.default_rng(0).normal(size=(64, 64, 3, 3)),
    )
    with pytest.raises(KeyboardInterrupt):
        B.build(RTX, cluster_of(big), OPTIONS, "sm_86")
    assert not [t for t in threading.enumerate() if t.name == "xrt-tensorrt-build"]
    monkeypatch.undo()
    assert B.build(RTX, cluster_of(mlp()), OPTIONS, "sm_86").data


def test_a_cancelled_build_ends_early():
    cancelled = []

    def work():
        while not cancelled:
            pass
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        B._run_interruptible(lambda: cancelled.append(1) or work(), lambda: None)


# --- the cache -----------------------------------------------------------------------------------


def test_a_second_build_comes_from_the_cache(tmp_path):
    engine = TensorRTEngine("tensorrt_rtx", "sm_86")
    cached = xrt.CompileOptions(cache_dir=tmp_path, progress=False)
    given = conv_bn_relu()
    first = engine.plan(cluster_of(given), cached)
    second = engine.plan(cluster_of(given), cached)
    assert not first.report["cache_hit"]
    assert second.report["cache_hit"]
    assert second.data == first.data
    assert second.report["build_seconds"] == first.report["build_seconds"]


@pytest.mark.parametrize(
    "other",
    [
        lambda: (TensorRTEngine("tensorrt_rtx", "sm_89"), {}, conv_bn_relu()),
        lambda: (TensorRTEngine("tensorrt_rtx", "sm_86"), {"tf32": True}, conv_bn_relu()),
        lambda: (TensorRTEngine("tensorrt_rtx", "sm_86"), {}, mlp()),
    ],
)
def test_another_target_option_or_cluster_is_another_plan(tmp_path, other):
    cached = xrt.CompileOptions(cache_dir=tmp_path, progress=False)
    TensorRTEngine("tensorrt_rtx", "sm_86").plan(cluster_of(conv_bn_relu()), cached)
    engine, chosen, given = other()
    changed = xrt.CompileOptions(
        cache_dir=tmp_path, progress=False, tensorrt=xrt.TensorRTOptions(**chosen)
    )
    assert not engine.plan(cluster_of(given), changed).report["cache_hit"]


def test_options_of_a_run_share_a_plan(tmp_path):
    engine, given = TensorRTEngine("tensorrt_rtx", "sm_86"), conv_bn_relu()
    hits = []
    for graphs in (True, False):
        chosen = xrt.TensorRTOptions(cuda_graphs=graphs)
        cached = xrt.CompileOptions(cache_dir=tmp_path, progress=False, tensorrt=chosen)
        hits.append(engine.plan(cluster_of(given), cached).report["cache_hit"])
    assert hits == [False, True]


@pytest.mark.filterwarnings("ignore::xrt.errors.CacheWarning")
def test_a_damaged_entry_is_built_again(tmp_path):
    engine, given = TensorRTEngine("tensorrt_rtx", "sm_86"), conv_bn_relu()
    cached = xrt.CompileOptions(cache_dir=tmp_path, progress=False)
    first = engine.plan(cluster_of(given), cached)
    (path,) = (tmp_path / "tensorrt_rtx").glob("*.xrtcache")
    path.write_bytes(path.read_bytes()[:-10])
    again = engine.plan(cluster_of(given), cached)
    assert not again.report["cache_hit"]
    assert len(again.data) == len(first.data)


# --- messages ------------------------------------------------------------------------------------


def test_what_the_library_says_is_collected_while_somebody_listens():
    log = logger(RTX)
    severity = RTX.trt.ILogger.Severity
    with listening() as messages:
        log.log(severity.ERROR, "broken")
        log.log(severity.INFO, "chatter")
        log.log(severity.WARNING, "odd")
        log.log(severity.WARNING, "odd")
    log.log(severity.ERROR, "too late")
    assert (messages.errors, messages.warnings) == (["broken"], ["odd"])
    assert messages.take()[0] == Message("ERROR", "broken")
    assert messages.errors == []


def test_each_thread_hears_its_own_messages():
    log, severity = logger(RTX), RTX.trt.ILogger.Severity
    heard: dict[int, list[str]] = {}

    def work(number: int) -> None:
        with listening() as messages:
            barrier.wait()
            log.log(severity.ERROR, str(number))
            barrier.wait()
            heard[number] = messages.errors

    barrier = threading.Barrier(2)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {0: ["0"], 1: ["1"]}


def test_messages_are_bounded():
    messages = Messages()
    for number in range(5000):
        messages.add("WARNING", str(number))
    assert len(messages.take()) == 1000


def test_errors_lose_the_place_in_the_librarys_source():
    said = (
        "ITensor::getDimensions: Error Code 4: API Usage Error (Add: inputs differ "
        "In validateTypes at /_src/optimizer/common/nodes/elementWiseNode.cpp:72)"
    )
    assert plain(said) == "Add: inputs differ"
    assert plain("nothing of that kind (really)") == "nothing of that kind (really)"


@pytest.mark.slow
def test_weights_of_more_than_a_message_holds(tmp_path):
    side = 24_000
    size = 4 * side * side
    assert size > 2**31
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(size)
    given = model(f"g (float[1,{side}] x) => (float[1,{side}] y) {{ p = Neg (x)  y = Neg (p) }}")
    tensor = ir.ExternalTensor(
        tmp_path / "weights.bin", 0, size, ir.DataType.FLOAT, name="w", shape=ir.Shape([side, side])
    )
    weights = ir.Value(name="w", const_value=tensor, type=ir.TensorType(ir.DataType.FLOAT))
    weights.shape = ir.Shape([side, side])
    given.graph.register_initializer(weights)
    first = given.graph.node(0)
    first.op_type = "MatMul"
    first.resize_inputs(2)
    first.replace_input_with(1, weights)
    assert len(B.build(RTX, cluster_of(given), OPTIONS, "sm_86").data) > size
