from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import xrt
from tests.support import model, run_reference
from xrt import cli
from xrt.engines.xla.refusals import REASONS

TEXT = """
    g (float[n,3,8,8] x, float[n,4] bias) => (float[n,4] y, int64[2,k] where)
    <float[4,3,3,3] w> {
        c = Conv <pads=[1,1,1,1]> (x, w)
        r = Relu (c)
        p = GlobalAveragePool (r)
        f = Flatten (p)
        y = Add (f, bias)
        where = NonZero (y)
    }
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def tiny(folder) -> str:
    """A model file with symbolic dimensions and an operator for the host."""
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    path = folder / "tiny.onnx"
    onnx.save(ir.to_proto(model(TEXT, w=weights)), path)
    return str(path)


@pytest.fixture(autouse=True)
def _cache(folder, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(folder / "cache"))


def call(*arguments: str, status: int = 0):
    result = CliRunner().invoke(cli.app, list(arguments))
    assert result.exit_code == status, (result.output, result.exception)
    return result


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xrt.cli", *arguments], capture_output=True, text=True
    )


def test_the_version():
    assert call("--version").output.strip() == f"xrt {xrt.__version__}"


def test_no_arguments_show_the_commands():
    output = CliRunner().invoke(cli.app, []).output
    assert all(name in output for name in ("engines", "explain", "run", "bench"))


def test_engines_lists_what_can_run():
    lines = call("engines").output.splitlines()
    assert lines[0].split()[:2] == ["engine", "available"]
    assert ["host", "yes"] in map(str.split, lines)
    assert ["xla", "yes"] in map(str.split, lines)


def test_engines_shows_reasons_where_there_are_any(monkeypatch):
    status = type(xrt.engines()[0])("npu", False, "it is not plugged in", "plug it in")
    monkeypatch.setattr(xrt, "engines", lambda: [status])
    output = call("engines").output
    assert "it is not plugged in" in output
    assert "plug it in" in output


def test_explain_shows_clusters_and_reasons(tiny):
    output = call("explain", tiny).output
    assert "x: float32[1, 3, 8, 8]" in output
    assert "1 Conv" in output
    assert f"NonZero: {REASONS['NonZero']}" in output


def test_explain_as_json_and_html(tiny, folder):
    page = folder / "report.html"
    told = json.loads(call("explain", tiny, "--json", "--save", str(page)).output)
    assert [cluster["engine"] for cluster in told["clusters"]] == ["xla"]
    assert told["reasons"] == {"NonZero": {f"xla: NonZero: {REASONS['NonZero']}": 1}}
    assert page.read_text().startswith("<!doctype html>")


def test_the_engine_can_be_a_list(tiny):
    assert "on host" in call("explain", tiny, "-e", "host").output
    assert "on xla" in call("explain", tiny, "-e", "xla, host").output


def test_options_reach_the_compiler(tiny):
    output = call("explain", tiny, "-O", "fuel=2", "-O", "cache=false").output
    assert "optimization fuel spent" in output
    assert "no clusters" in call("explain", tiny, "-O", "max_clusters=0").output
    call("explain", tiny, "-O", "max_clusters=None")


def test_run_on_files_gives_the_models_outputs(tiny, folder):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(2, 3, 8, 8)).astype(np.float32)
    bias = generator.normal(size=(2, 4)).astype(np.float32)
    np.save(folder / "x.npy", x)
    np.save(folder / "bias.npy", bias)
    given = ("-i", f"x={folder / 'x.npy'}", "-i", f"bias={folder / 'bias.npy'}")
    output = call("run", tiny, *given, "-o", str(folder / "out"), "--verify").output
    assert "1 clusters agree with the host" in output
    want = run_reference(ir.from_proto(onnx.load(tiny)), [x, bias])
    np.testing.assert_allclose(np.load(folder / "out" / "y.npy"), want[0], atol=1e-5)
    np.testing.assert_array_equal(np.load(folder / "out" / "where.npy"), want[1])


def test_run_fills_in_random_inputs_that_fit_together(tiny):
    lines = call("run", tiny, "-s", "x=3x3x8x8").output.splitlines()
    assert lines[0].split() == ["output", "dtype", "shape", "min", "mean", "max"]
    assert lines[1].split()[:3] == ["y", "float32", "3x4"]  # bias has 3 rows too
    assert lines[2].split()[:3] == ["where", "int64", "2x12"]


def test_run_shows_outputs_of_every_kind(folder):
    made = model("""
        g (float[2] x, bool c, int64 n) => (seq(float[2]) s, bool[2] b, int64 n2, float[0] e)
        <int64[1] zero = {0}> {
            s = SequenceConstruct (x, x)
            b = IsNaN (x)
            n2 = Abs (n)
            e = Slice (x, zero, zero)
        }""")
    path = folder / "kinds.onnx"
    onnx.save(ir.to_proto(made), path)
    lines = [line.split() for line in call("run", str(path)).output.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        ["s[0]", "float32", "2"],
        ["s[1]", "float32", "2"],
        ["b", "bool", "2"],
        ["n2", "int64", "scalar"],
        ["e", "float32", "0"],
    ]


def test_strings_come_from_files(folder):
    made = model("""
        g (string[n] x) => (string[m] y) {
            y = StringNormalizer <case_change_action="UPPER"> (x)
        }""")
    path, file = folder / "strings.onnx", folder / "strings.npy"
    onnx.save(ir.to_proto(made), path)
    np.save(file, np.array(["ab", "c"]))
    call("run", str(path), "-i", f"x={file}", "-o", str(folder / "strings"))
    assert np.load(folder / "strings" / "y.npy").tolist() == ["AB", "C"]
    result = CliRunner().invoke(cli.app, ["run", str(path)])
    assert "Give it: --input x=FILE.npy" in str(result.exception)


def test_verify_ends_with_status_1_if_a_cluster_is_off(tiny, monkeypatch):
    from xrt.engines.xla.executable import XlaExecutable

    run = XlaExecutable.run
    monkeypatch.setattr(
        XlaExecutable, "run", lambda self, *a: [np.asarray(y) + 1 for y in run(self, *a)]
    )
    assert "diverges at Conv" in call("run", tiny, "--verify", status=1).output


def test_bench_reports_compile_time_and_latency(tiny, folder):
    trace = folder / "trace.json"
    output = call("bench", tiny, "--runs", "3", "--warmup", "1", "--trace", str(trace)).output
    assert "compile  " in output
    assert "s, 1 cluster\n" in output
    assert "latency  median " in output
    assert "over 3 runs" in output
    assert "3 batches" in output
    assert json.loads(trace.read_text())["traceEvents"]


def test_bench_shows_a_profile(tiny, folder):
    plot = folder / "timeline.png"
    arguments = ("--runs", "3", "--warmup", "1", "--profile", "--depth", "3", "--plot", str(plot))
    lines = call("bench", tiny, *arguments).output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("profile"))
    assert lines[head].split() == ["profile", "one", "by", "one", "streamed"]
    wall, busy, gap = (
        [float(cell) for cell in line.split()[-2:]] for line in lines[head + 1 : head + 4]
    )
    np.testing.assert_allclose(np.subtract(wall, busy), gap, atol=2e-3)
    assert any("3 in flight" in line for line in lines)
    *_, launches = (line for line in lines if line.startswith("launches"))  # the lane is last
    marks = set(launches.split()[1])  # a batch that is shorter than a cell may hide
    assert marks <= {*"012."}
    assert marks & {*"012"}
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-i", "q=f.npy"), "Input 'q' is unknown. This model takes: x, bias."),
        (("-i", "x=absent.npy"), "Input 'x': the file 'absent.npy' does not exist."),
        (("-i", f"x={__file__}"), "is no .npy file of numbers or strings. Use numpy.save."),
        (("-i", "x"), "--input takes NAME=VALUE; got 'x'."),
        (("-s", "x=3x"), "--shape x=3x: a shape looks like 8x3x224x224."),
        (("-s", "x=-1x3"), "a shape looks like"),
        (("-s", "x=3x3x8x9x1"), "Input 'x' has rank 5, shape [3, 3, 8, 9, 1]"),
        (("-e", "tpu"), "Engine 'tpu' is unknown. Known engines: host, tensorrt"),
        (("-O", "fule=1"), "Option 'fule' is unknown. Known options: cache, cache_bytes, cache_d"),
        (("-O", "strict=perhaps"), "--option strict takes true or false; got 'perhaps'."),
        (("-O", "fuel=-1"), "CompileOptions.fuel must be a whole number of at least 0; got -1."),
    ],
)
def test_wrong_arguments_are_xrt_errors(tiny, arguments, message):
    result = CliRunner().invoke(cli.app, ["run", tiny, *arguments])
    assert isinstance(result.exception, xrt.XrtError)
    assert message in str(result.exception)


def test_errors_end_with_status_2_and_a_plain_message(folder):
    foreign = folder / "foreign.onnx"
    foreign.write_bytes(b"\x89PNG\r\n and more")
    for path, message in [
        ("absent.onnx", "no file absent.onnx."),
        (foreign, "is no ONNX"),
    ]:
        done = shell("run", str(path))
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr


def test_a_message_keeps_its_brackets(tiny):
    done = shell("explain", tiny, "-s", "x=3x8x8")
    assert (done.returncode, done.stdout) == (2, "")
    assert "rank 3, shape [3, 8, 8]; the model takes rank 4, shape [n,3,8,8]" in done.stderr


def test_a_file_that_cannot_be_written_is_an_error_too(tiny, folder):
    done = shell("explain", tiny, "--save", str(folder / "no" / "such" / "place.html"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_fallback_is_one_line_on_stderr(tiny):
    code = """
import sys
from xrt import cli
from xrt.engines.xla.refusals import REASONS
from xrt.engines.xla.engine import XlaEngine
from xrt.errors import EngineBuildError
def refuse(self, cluster, options):
    raise EngineBuildError("xla", "out of luck", op="Conv", place="")
XlaEngine.compile = refuse
sys.argv = ["xrt", "explain", *sys.argv[1:]]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code, tiny], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: Engine 'xla' could not build a cluster at Conv")
    assert "out of luck" in done.stderr
    assert "the build failed: out of luck" in done.stdout
    strict = subprocess.run(
        [sys.executable, "-c", code, tiny, "-O", "strict=true"], capture_output=True, text=True
    )
    assert strict.returncode == 2
    assert strict.stderr.startswith("error: Engine 'xla' could not build a cluster at Conv")


def test_the_cache_is_shown_and_emptied(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path))
    assert "entries  0, 0 B of at most" in call("cache", "info").output
    call("run", tiny)
    (tmp_path / "xla" / "notes.txt").write_text("mine")
    lines = call("cache", "info").output.splitlines()
    assert lines[0].split() == ["folder", str(tmp_path)]
    assert lines[1].startswith("entries  1, ")
    assert lines[3].split()[:2] == ["xla", "1"]
    told = json.loads(call("cache", "info", "--json").output)
    (entry,) = told["entries"]
    assert entry["bytes"] == Path(entry["path"]).stat().st_size
    assert entry["about"]["operators"]["Conv"] == 1
    status = shell("cache", "clear", "--engine", "tpu")
    assert status.returncode == 2
    assert "holds nothing of 'tpu'. It has: xla." in status.stderr
    assert call("cache", "clear", "-e", "xla").output.startswith("1 entry, ")
    assert call("cache", "clear").output.startswith("0 entries, 0 B, removed")
    assert [p.name for p in (tmp_path / "xla").iterdir() if p.name[0] != "."] == ["notes.txt"]
    call("run", tiny)
