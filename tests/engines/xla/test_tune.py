"""Tuning: what is measured, what is kept, and where the choices end up. Nothing is timed here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import xrt
from tests.support import assert_close, model, run_reference
from xrt.engines.xla import XlaEngine, tune
from xrt.engines.xla import engine as E
from xrt.engines.xla.ops import conv as ops
from xrt.kernels.jax import conv as kernels

jax = pytest.importorskip("jax")

CONVOLUTIONS = """
g (float[2, 8, 12, 12] x) => (float[2, 4, 24, 24] y)
  <float[16, 8, 3, 3] w, float[16] b, float[16, 16, 3, 3] v, float[16, 4, 2, 2] t> {
  c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
  r = Relu (c)
  d = Conv <pads = [1, 1, 1, 1]> (r, v)
  e = Conv <pads = [1, 1, 1, 1]> (d, v)
  y = ConvTranspose <strides = [2, 2]> (e, t)
}
"""
SPEC = kernels.ConvSpec(2, 12, 12, 16, 16, kernel=(3, 3), pads=(1, 1, 1, 1))


def network(seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (16, 8, 3, 3), "b": (16,), "v": (16, 16, 3, 3), "t": (16, 4, 2, 2)}
    return model(CONVOLUTIONS, **{k: 0.1 * rng.standard_normal(s) for k, s in shapes.items()})


def image() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 8, 12, 12)).astype(np.float32)


def compiled(tuned: bool, folder, **options):
    chosen = xrt.CompileOptions(
        cache_dir=folder, strict=True, xla=xrt.XlaOptions(tune=tuned), **options
    )
    return xrt.compile(network(), engine="xla", options=chosen)


def prefer(monkeypatch, *order: str) -> None:
    """Let the first of `order` that is a candidate be the fastest, the others equally slow."""

    def times(runs, dropped, keep):
        best = next((name for name in order if name in runs), None)
        return {name: 1.0 if name == best else 9.0 for name in runs}

    monkeypatch.setattr(tune, "_times", times)


def refuse(*args, **kwargs):
    raise AssertionError("measured although the choices are cached")


def test_a_tuned_program_agrees(tmp_path):
    want, got = (compiled(tuned, tmp_path)(image()) for tuned in (False, True))
    assert_close(got, want)
    assert_close(got, run_reference(network(), {"x": image()})[0])


@pytest.mark.parametrize("best", ["winograd_f2", "im2col", "patchify", "direct"])
def test_whatever_wins_is_used_and_right(best, tmp_path, monkeypatch):
    prefer(monkeypatch, best)
    program = compiled(True, tmp_path)
    (cluster,) = program.explain().to_dict()["clusters"]
    assert best in cluster["algorithms"] or best == "patchify"
    assert sum(cluster["algorithms"].values()) == 4
    assert_close(program(image()), run_reference(network(), {"x": image()})[0])


def test_the_second_compile_measures_nothing(tmp_path, monkeypatch):
    prefer(monkeypatch, "im2col")
    first = compiled(True, tmp_path)
    monkeypatch.setattr(tune, "measure", refuse)
    second = compiled(True, tmp_path)
    assert first.explain().clusters == second.explain().clusters
    with pytest.raises(AssertionError, match="measured"):
        compiled(True, tmp_path / "another")


def test_equal_layers_are_measured_once(tmp_path, monkeypatch):
    seen = []
    measure = tune.measure
    monkeypatch.setattr(tune, "measure", lambda *args: (seen.append(args[0]), measure(*args))[1])
    prefer(monkeypatch)
    compiled(True, tmp_path)
    assert len(seen) == len(set(seen)) == 3  # of four: two have one specification


def test_a_foreign_cache_file_is_measured_anew(tmp_path, monkeypatch):
    prefer(monkeypatch, "im2col")
    compiled(True, tmp_path)
    for path in (tmp_path / "tune").iterdir():
        place = tune.DiskCache(tmp_path / "tune")
        place.put(path.stem, b'{"chosen": "winograd_f4"}')  # not exact: never chosen silently
    (cluster,) = compiled(True, tmp_path).explain().clusters
    assert "winograd_f4" not in cluster["algorithms"]


def test_the_key_changes_with_the_specification():
    keys = {tune.key(SPEC)}
    for changed in ({"n": 1}, {"c_in": 8}, {"strides": (2, 2)}, {"dtype": "float64"}):
        keys.add(tune.key(dataclasses.replace(SPEC, **changed)))
    assert len(keys) == 5


def test_choices_change_the_cache_key_and_not_the_cluster(tmp_path, monkeypatch):
    prefer(monkeypatch, "im2col")
    (plain,), (tuned,) = (compiled(t, tmp_path).clusters for t in (False, True))
    assert (plain.name, plain.digest) == (tuned.name, tuned.digest)
    assert tune.choices(tuned.body)
    assert not tune.choices(plain.body)
    assert E._cache_key(plain, {}) != E._cache_key(tuned, {})


def test_an_untuned_compile_ignores_what_the_model_carries(tmp_path):
    carrier = network()
    for node in carrier.graph:
        node.metadata_props[ops.ALGORITHM] = "winograd_f4"
    options = xrt.CompileOptions(cache_dir=tmp_path)
    (cluster,) = xrt.compile(carrier, engine="xla", options=options).explain().clusters
    assert "winograd_f4" not in cluster["algorithms"]


def test_a_tuned_executable_is_loaded_with_its_weights_laid_out(tmp_path, monkeypatch):
    prefer(monkeypatch, "im2col")
    program = compiled(True, tmp_path)
    ((name, executable),) = program.specialization.executables.items()
    (cluster,) = compiled(False, tmp_path).clusters  # the same cluster without the choices
    assert cluster.name == name
    again = XlaEngine().deserialize(executable.serialize(), cluster, xrt.CompileOptions())
    np.testing.assert_array_equal(np.asarray(again.run([image()])[0]), program(image()))


def test_only_exact_algorithms_are_candidates():
    names = {algorithm.name for algorithm in tune.candidates(SPEC)}
    assert "winograd_f2" in names
    assert "winograd_f4" not in names


def failing(x, w, spec):
    raise NotImplementedError("made to fail")


@pytest.mark.parametrize(
    ("apply", "reason"),
    [
        (failing, "NotImplementedError: made to fail"),
        (lambda x, w, spec: 1.001 * kernels.im2col(x, w, spec), "off by"),
        (lambda x, w, spec: kernels.im2col(x, w, spec) / 0, "off by inf"),
        (lambda x, w, spec: kernels.im2col(x, w, spec)[:1], "off by inf"),
    ],
)
def test_a_candidate_that_fails_or_errs_is_dropped(apply, reason, monkeypatch):
    broken = dataclasses.replace(kernels.IM2COL, apply=apply)
    monkeypatch.setitem(kernels.ALGORITHMS, "im2col", broken)
    prefer(monkeypatch, "im2col", "winograd_f2")
    with E.D.isolated():
        record = tune.measure(SPEC, {})
    assert record["chosen"] == "winograd_f2"
    assert reason in record["dropped"]["im2col"]


def test_a_candidate_that_stays_slow_is_dropped_but_not_the_rules_choice(monkeypatch):
    runs = {"rule": [9.0], "fast": [1.0], "late": [9.0, 9.0, 1.5], "slow": [9.0, 9.0, 9.0]}
    later = {"rule": 3.0, "fast": 1.0, "late": 1.5}
    clock = {name: iter(first + [later.get(name)] * 99) for name, first in runs.items()}
    monkeypatch.setattr(tune, "_seconds", lambda run: next(clock[run]))
    dropped = {}
    times = tune._times({name: name for name in runs}, dropped, "rule")
    assert times == {name: 1e3 * seconds for name, seconds in later.items()}
    assert list(dropped) == ["slow"]


def test_the_rule_stays_unless_another_is_clearly_faster(monkeypatch):
    rule = kernels.choose(SPEC).name
    for other, expected in ((0.95, rule), (0.5, "im2col")):
        times = {rule: 1.0, "im2col": other}
        monkeypatch.setattr(tune, "_times", lambda *_, times=times: times)
        with E.D.isolated():
            assert tune.measure(SPEC, {})["chosen"] == expected


def test_without_a_cache_it_still_tunes(tmp_path, monkeypatch):
    prefer(monkeypatch, "im2col")
    program = compiled(True, tmp_path, cache=False, progress=True)
    assert not list(tmp_path.iterdir())
    assert "im2col" in program.explain().clusters[0]["algorithms"]
