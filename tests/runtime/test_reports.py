"""What a program tells about itself: explain, profile, verify."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xrt
from tests.support import model
from tests.test_compile import CNN, SPLIT, cnn, image
from xrt.engines.xla.executable import XlaExecutable
from xrt.errors import InputError, ProgramWriteError


@pytest.fixture
def options(tmp_path):
    return xrt.CompileOptions(cache_dir=tmp_path)


def test_explanation_places_every_node_once(options):
    program = xrt.compile(model(SPLIT), options=options)
    explanation = program.explain()
    data = explanation.to_dict()
    json.dumps(data)
    in_clusters = sum(cluster["nodes"] for cluster in data["clusters"])
    on_host = sum(placed["engine"] == "host" for placed in data["placements"])
    assert in_clusters + on_host == len(data["placements"])
    assert len({placed["node"] for placed in data["placements"]}) == len(data["placements"])
    assert all(placed["reason"] for placed in data["placements"] if placed["engine"] == "host")
    assert any(cut["bytes"] == 8 * 8 * 4 for cut in data["cuts"])


def test_explanation_page_escapes_names(options, tmp_path):
    made = cnn()
    made.graph.inputs[0].name = "<script>"
    explanation = xrt.compile(made, (image(),), options=options).explain()
    explanation.save(tmp_path / "report.html")
    with pytest.raises(ProgramWriteError, match="there is no folder"):
        explanation.save(tmp_path / "absent" / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_profile_counts_batches_and_launches(options, tmp_path):
    program = xrt.compile(model(SPLIT), options=options)
    feeds = {name: np.ones((8, 8), np.float32) for name in ("x", "w")}
    trace = program.profile([feeds] * 3)
    assert trace.batches == 3
    assert trace.launches_per_batch == len(program.clusters)
    assert 0 < trace.busy_ms <= trace.wall_ms
    assert trace.gap_ms == trace.wall_ms - trace.busy_ms
    assert 0 <= trace.gap_fraction < 1
    trace.save(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event.get("cat") in ("launch", "host")]
    assert len(steps) == 3 * len(program.specialization.schedule.steps)
    assert {event["args"]["batch"] for event in steps} == {0, 1, 2}


def test_profile_without_batches_is_refused(options):
    with pytest.raises(InputError, match="no batches"):
        xrt.compile(cnn(), options=options).profile([])


def test_verify_agrees(options):
    report = xrt.verify(xrt.compile(cnn(), options=options), image())
    assert report
    assert len(report.errors) == 1
    assert "agree" in str(report)


def test_verify_names_the_first_diverging_op(options, monkeypatch):
    from xrt.engines.xla import lowering as L

    rule = L._LOWERINGS["", "MaxPool"]
    wrong = L.Lowering(
        lambda *args, **kwargs: _scaled(rule.function(*args, **kwargs)),
        rule.supports, rule.static, rule.layouts, rule.elementwise, rule.prepare,
    )  # fmt: skip
    monkeypatch.setitem(L._LOWERINGS, ("", "MaxPool"), wrong)
    no_cache = xrt.CompileOptions(cache=False)
    report = xrt.verify(xrt.compile(cnn(), options=no_cache), image())
    assert not report
    assert report.divergence.op == "MaxPool"
    assert report.divergence.error > report.divergence.tolerance
    assert "MaxPool" in str(report)


def _scaled(result):
    import dataclasses

    first = result[0] if isinstance(result, tuple) else result
    return dataclasses.replace(first, array=first.array * 1.01)


def test_verify_walks_host_steps_between_clusters(options):
    program = xrt.compile(model(SPLIT), options=options)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("x", "w")}
    report = xrt.verify(program, feeds)
    assert report
    assert set(report.errors) == {cluster.name for cluster in program.clusters}


def test_executables_tell_their_memory(options):
    program = xrt.compile(cnn(), (image(),), options=options)
    (executable,) = program.specialization.executables.values()
    assert isinstance(executable, XlaExecutable)
    assert executable.memory()["outputs"] == 2 * 5 * 4


def test_repr_before_and_after_compiling(options):
    assert "BatchNormalization" in CNN
    program = xrt.compile(cnn(), options=options)
    assert repr(program) == "<xrt.Program, not compiled yet>"
    program(image())
    assert program.clusters[0].name in repr(program)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_narrow_numbers_are_held_to_their_own_tolerance(options, precision):
    calibration = [(image(),)] if precision == "int8" else None
    program = xrt.compile(
        cnn(), (image(),), precision=precision, calibration=calibration, options=options
    )
    found = xrt.verify(program, (image(),))
    assert found
    assert max(found.errors.values()) > 0


def test_what_draws_at_random_is_not_compared(options):
    made = model(
        "g (float[64] x) => (float[64] y) { r = RandomUniformLike (x) s = Mul (x, r) y = Exp (s) }"
    )
    x = np.ones(64, np.float32)
    program = xrt.compile(made, (x,), options=options)
    found = xrt.verify(program, (x,))
    assert found
    assert found.skipped == tuple(cluster.name for cluster in program.clusters)
    assert "1 not compared" in str(found)
