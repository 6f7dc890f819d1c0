from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import xrt
from tests.support import assert_close, model, run_reference
from xrt.engines.engine import Engine
from xrt.errors import (
    EngineBuildError,
    EngineFallbackWarning,
    EngineUnavailableError,
    OptionError,
)
from xrt.graph import Support
from xrt.kernels.cuda import device

registry = sys.modules["xrt.engines"]
VENDOR = Path(__file__).parents[1] / "data" / "vendor_engine"
OPTIONS = xrt.CompileOptions(cache=False, min_cluster_weight=0)
STRICT = xrt.CompileOptions(cache=False, min_cluster_weight=0, strict=True)

MIXED = """
    g (float[2,3] x) => (float[2,3] y) {
        a = Exp (x)
        [mine] b = Mul (a, x)
        c = Neg (b)
        d = Abs (c)
        [theirs] e = Mul (d, d)
        y = Sqrt (e)
    }
"""
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """A machine without a GPU, which "auto" would prefer."""
    monkeypatch.setattr(device, "present", lambda: "no NVIDIA driver is installed")


@pytest.fixture
def vendor(monkeypatch):
    """A package with an engine, installed from a folder."""
    monkeypatch.syspath_prepend(str(VENDOR))
    registry._load.cache_clear()
    yield
    registry._load.cache_clear()
    sys.modules.pop("xrt_vendor", None)


def names(engine) -> list[str]:
    return [each.name for each in registry.resolve(engine)]


def test_the_built_in_engines_resolve_by_name_in_order():
    assert names("xla") == ["xla"]
    assert names("auto") == ["xla"]
    assert names("host") == []
    assert names(["host", "xla"]) == ["xla"]
    assert names(["xla", "auto", "xla"]) == ["xla"]


def test_an_engine_is_made_once():
    assert registry.resolve("xla") == registry.resolve("auto")


@pytest.mark.parametrize("engine", ["tpu", ["xla", "tpu"], "", "XLA"])
def test_an_unknown_name_lists_the_known_ones(engine):
    with pytest.raises(OptionError, match=r"is unknown\. Known engines: host, .*xla"):
        registry.resolve(engine)


def test_a_name_that_is_no_string_is_unknown():
    with pytest.raises(OptionError, match="Engine 3 is unknown"):
        registry.resolve(["xla", 3])


@pytest.mark.parametrize("engine", [None, 3])
def test_what_is_neither_name_nor_list_is_unknown(engine):
    with pytest.raises(OptionError, match=f"Engine {engine} is unknown"):
        registry.resolve(engine)


def test_engines_lists_the_host_and_all_others():
    listed = {status.name: status for status in xrt.engines()}
    assert listed["host"].available
    assert listed["xla"].available
    assert str(listed["xla"]) == "xla: available"


def test_an_engine_that_cannot_run_says_why_and_what_to_do(monkeypatch):
    engine = registry.resolve("xla")[0]
    monkeypatch.setattr(type(engine), "available", lambda self: Support.no("no device", "buy one"))
    with pytest.raises(EngineUnavailableError, match=r"xla: not available: no device \(buy one\)"):
        registry.resolve("xla")
    with pytest.warns(EngineFallbackWarning, match=r"all runs on the host\. .*; xla: .*buy one"):
        assert names("auto") == []  # auto leaves it out
    status = next(s for s in registry.engines() if s.name == "xla")
    assert (status.available, status.reason, status.remedy) == (False, "no device", "buy one")


def test_of_several_engines_the_next_takes_over_from_one_that_cannot_run(monkeypatch):
    engine = registry.resolve("xla")[0]
    monkeypatch.setattr(type(engine), "available", lambda self: Support.no("no device", "buy one"))
    for listed in (["xla", "host"], ["host", "xla"]):
        with pytest.warns(EngineFallbackWarning, match=r"takes over\. xla: .*no device"):
            assert names(listed) == []
        with pytest.raises(EngineUnavailableError, match="no device"):
            registry.resolve(listed, strict=True)
    with pytest.raises(EngineUnavailableError, match=r"tensorrt: .*no NVIDIA driver"):
        names(["tensorrt", "xla"])


def test_a_package_adds_an_engine_through_its_entry_point(vendor):
    assert names("vendor") == ["vendor"]
    assert names(["vendor", "xla"]) == ["vendor", "xla"]
    assert names("auto") == ["xla"]  # only what is built in
    assert isinstance(registry.resolve("vendor")[0], Engine)
    assert "vendor: available" in map(str, registry.engines())
    with pytest.raises(OptionError, match=r"Known engines: host, .*vendor, xla"):
        registry.resolve("tpu")


def test_an_engine_of_a_package_and_xla_share_a_model(vendor):
    made = model(MIXED)
    program = xrt.compile(made, engine=["vendor", "xla"], options=OPTIONS)
    clusters = program.clusters
    assert [c.engine for c in clusters] == ["xla", "vendor", "xla", "vendor", "xla"]
    assert [len(c.nodes) for c in clusters] == [1, 1, 2, 1, 1]
    assert_close(program(X), run_reference(made, [X])[0])
    assert xrt.verify(program, X)


def test_the_order_of_preference_decides(vendor):
    program = xrt.compile(model(MIXED), engine=["xla", "vendor"], options=OPTIONS)
    assert {c.engine for c in program.clusters} == {"xla"}


def test_the_host_takes_what_the_only_engine_refuses(vendor):
    made = model(MIXED)
    program = xrt.compile(made, engine="vendor", options=OPTIONS)
    assert [c.engine for c in program.clusters] == ["vendor", "vendor"]
    assert program.explain().reasons()["Exp"] == {"vendor: this vendor has no Exp": 1}
    assert_close(program(X), run_reference(made, [X])[0])


def test_a_failed_build_goes_to_the_next_engine(vendor):
    made = model(MIXED.replace("[theirs]", "[broken]"))
    with pytest.warns(EngineFallbackWarning, match="'vendor' .*Mul 'broken': the device said no"):
        program = xrt.compile(made, engine=["vendor", "xla"], options=OPTIONS)
    assert [c.engine for c in program.clusters] == ["xla", "vendor", "xla"]
    assert_close(program(X), run_reference(made, [X])[0])


def test_after_the_last_engine_a_failed_build_goes_to_the_host(vendor):
    made = model(MIXED.replace("[theirs]", "[broken]"))
    with pytest.warns(EngineFallbackWarning, match="the device said no"):
        program = xrt.compile(made, engine="vendor", options=OPTIONS)
    assert [c.engine for c in program.clusters] == ["vendor"]
    reasons = program.explain().reasons()["Mul"]
    assert reasons == {"vendor: the build failed: the device said no": 1}
    assert_close(program(X), run_reference(made, [X])[0])


def test_a_failed_build_raises_if_strict(vendor):
    made = model(MIXED.replace("[theirs]", "[broken]"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(EngineBuildError, match="Mul 'broken': the device said no") as caught:
            xrt.compile(made, engine=["vendor", "xla"], options=STRICT)
    assert (caught.value.engine, caught.value.op) == ("vendor", "Mul")


def test_a_build_that_names_no_node_gives_up_that_cluster_only(monkeypatch):
    engine = registry.resolve("xla")[0]
    build = type(engine).compile

    def refuse_exp(self, cluster, options):
        if any(node.op_type == "Exp" for node in cluster.nodes):
            raise EngineBuildError("xla", "out of luck")
        return build(self, cluster, options)

    monkeypatch.setattr(type(engine), "compile", refuse_exp)
    # NonZero keeps the two clusters apart; no node has a name.
    made = model("""
        g (float[4] x) => (float[4] y, int64[1,n] c) {
            a = Exp (x)  b = Neg (a)  c = NonZero (b)  d = Cast <to=1> (c)
            s = ReduceSum <keepdims=0> (d)  f = Add (x, s)  y = Sqrt (f)
        }""")
    x = np.linspace(0, 1, 4, dtype=np.float32)
    with pytest.warns(EngineFallbackWarning, match="out of luck") as caught:
        program = xrt.compile(made, engine="xla", options=OPTIONS)
    assert len([w for w in caught if w.category is EngineFallbackWarning]) == 1
    placed = {p["op"]: p["engine"] for p in program.explain().placements}
    assert placed["Exp"] == "host"
    assert placed["Sqrt"] == "xla"
    for got, want in zip(program(x), run_reference(made, [x]), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("VendorEngine = dict", "which is no xrt Engine"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_package_is_named_and_harms_nobody_else(tmp_path, monkeypatch, source, message):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[xrt.engines]\nbroken = broken_pkg:VendorEngine\n")
    (tmp_path / "broken_pkg.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_pkg", raising=False)
    registry._load.cache_clear()
    with pytest.raises(EngineUnavailableError, match=message):
        registry.resolve("broken")
    status = {s.name: s for s in registry.engines()}
    assert not status["broken"].available
    assert message in status["broken"].reason
    assert status["xla"].available
    assert names("auto") == ["xla"]
    sys.modules.pop("broken_pkg", None)


def test_the_command_line_lists_an_installed_engine():
    code = "import sys; sys.path.insert(0, sys.argv[1]); import xrt; print(*xrt.engines())"
    done = subprocess.run(
        [sys.executable, "-c", code, str(VENDOR)], capture_output=True, text=True, check=True
    )
    assert "vendor: available" in done.stdout
