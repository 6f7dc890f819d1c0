"""The XLA engine: weights, caches, settings, and the miscompile that is kept out."""

from __future__ import annotations

import numpy as np
import pytest

import xrt
from tests.support import assert_close, model
from tests.test_compile import cnn, image
from xrt.engines.xla import XlaEngine, compiler_flags
from xrt.engines.xla import device as D
from xrt.engines.xla import engine as E

jax = pytest.importorskip("jax")


@pytest.fixture
def options(tmp_path):
    return xrt.CompileOptions(cache_dir=tmp_path)


def test_canary_the_reduce_fusion_miscompile_is_kept_out(options):
    """jax issue 39103: sums over 32769 rows came out wrong with jaxlib 0.10.2's own defaults."""
    text = """
    <ir_version: 10, opset_import: ["" : 28]>
    g (float[32769, 3] r) => (float[32769] y)
    <int64[1] axes = {1}, float[3, 3] eye = {1, 0, 0, 0, 1, 0, 0, 0, 1}> {
      p = MatMul(r, eye)
      s = Mul(p, p)
      y = ReduceSum<keepdims = 0>(s, axes)
    }
    """
    rows = np.random.default_rng(0).standard_normal((32769, 3)).astype(np.float32)
    program = xrt.compile(model(text), engine="xla", options=options)
    assert len(program.clusters) == 1
    assert_close(program(rows), (rows.astype(np.float64) ** 2).sum(1).astype(np.float32))


def test_canary_in_jax_itself():
    """The published reproduction, under the engine's own compile options."""
    function = jax.vmap(lambda r: jax.numpy.sum((jax.numpy.eye(3) @ r) ** 2))
    rows = np.random.default_rng(1).standard_normal((32769, 3)).astype(np.float32)
    lowered = jax.jit(function).lower(D.put(rows))
    flags = compiler_flags.CPU if D.device().platform == "cpu" else {}
    got = lowered.compile(compiler_options=flags)(D.put(rows))
    assert_close(np.asarray(got), (rows.astype(np.float64) ** 2).sum(1).astype(np.float32))


def test_weights_are_on_the_device_once_for_all_signatures(options):
    program = xrt.compile(cnn(), options=options)
    (one,) = program.prepare(image(1)).executables.values()
    (two,) = program.prepare(image(2)).executables.values()
    large = [p for p in one._parameters if p.size > 300]
    assert large
    assert {id(p) for p in large} <= {id(p) for p in two._parameters}


def test_serialized_code_runs_again(options):
    program = xrt.compile(cnn(), (image(),), options=options)
    (cluster,) = program.clusters
    (executable,) = program.specialization.executables.values()
    again = XlaEngine().deserialize(executable.serialize(), cluster, options)
    np.testing.assert_array_equal(
        np.asarray(again.run([image()])[0]), np.asarray(executable.run([image()])[0])
    )


def test_code_that_was_loaded_can_be_serialized_again(options):
    # jaxlib 0.10.2 loses functions when it serializes what it has loaded itself.
    want = xrt.compile(cnn(), options=options)(image())
    program = xrt.compile(cnn(), (image(),), options=options)  # from the cache
    (cluster,) = program.clusters
    (executable,) = program.specialization.executables.values()
    for _ in range(3):
        executable = XlaEngine().deserialize(executable.serialize(), cluster, options)
        np.testing.assert_array_equal(np.asarray(executable.run([image()])[0]), want)


def test_a_foreign_payload_is_refused(options):
    program = xrt.compile(cnn(), (image(),), options=options)
    with pytest.raises(xrt.XrtError, match="not of this device"):
        XlaEngine().deserialize(b"nonsense", program.clusters[0], options)


def test_the_second_compile_comes_from_disk(options, monkeypatch):
    want = xrt.compile(cnn(), (image(),), options=options)(image())

    def refuse(*args):
        raise AssertionError("compiled although it was cached")

    monkeypatch.setattr(E, "_build", refuse)
    np.testing.assert_array_equal(xrt.compile(cnn(), (image(),), options=options)(image()), want)


def test_a_damaged_cache_file_is_built_anew(options, tmp_path):
    want = xrt.compile(cnn(), (image(),), options=options)(image())
    for path in (tmp_path / "xla").iterdir():
        path.write_bytes(path.read_bytes()[:-10])
    np.testing.assert_array_equal(xrt.compile(cnn(), (image(),), options=options)(image()), want)


def test_options_and_weights_are_part_of_the_cache_key(options):
    program = xrt.compile(cnn(), (image(),), options=options)
    other = xrt.compile(cnn(seed=5), (image(),), options=options)
    (left,), (right,) = program.clusters, other.clusters
    assert E._cache_key(left, {}) != E._cache_key(right, {})
    assert E._cache_key(left, {}) != E._cache_key(left, {"xla_cpu_enable_fast_math": True})


def test_the_users_jax_configuration_is_untouched(options):
    before = dict(jax.config.values)
    program = xrt.compile(cnn(), options=options)
    program(image())
    assert dict(jax.config.values) == before
    assert jax.numpy.arange(3).dtype == np.int32  # the user's x64 flag still is off


def test_the_users_settings_do_not_reach_xrt(options):
    with jax.debug_nans(True), jax.disable_jit(True), jax.numpy_rank_promotion("raise"):
        program = xrt.compile(cnn(), options=options)
        nan = image()
        nan[0, 0, 0, 0] = np.nan
        assert np.isnan(program(nan)).any()


def test_int64_stays_int64(options):
    text = """
    <ir_version: 10, opset_import: ["" : 28]>
    g (int64[4] x) => (int64[4] y) <int64[4] big = {4294967296, 1, 1, 1}> {
      a = Add(x, big)
      y = Mul(a, a)
    }
    """
    program = xrt.compile(model(text), engine="xla", options=options)
    x = np.array([1, 2, 3, 1 << 20], np.int64)
    big = np.array([4294967296, 1, 1, 1])
    np.testing.assert_array_equal(program(x), (x + big) ** 2)
    assert len(program.clusters) == 1


def test_options_for_single_clusters(tmp_path):
    plain = xrt.compile(cnn(), (image(),), options=xrt.CompileOptions(cache_dir=tmp_path))
    (cluster,) = plain.clusters
    wrong = xrt.CompileOptions(
        cache_dir=tmp_path,
        strict=True,
        xla=xrt.XlaOptions(cluster_compiler_options={cluster.name: {"no_such_option": True}}),
    )
    with pytest.raises(xrt.XrtError, match="no_such_option"):
        xrt.compile(cnn(), (image(),), options=wrong)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("y = NonZero(x)", "NonZero"),
        ("s = Shape(x)\n r = Mul(s, s)\n y = Cast<to = 8>(r)", "type"),
    ],
)
def test_refusals_name_the_operator_and_the_cause(text, reason, options):
    kind = "int64[2, N]" if "NonZero" in text else "string[2]"
    source = (
        f'<ir_version: 10, opset_import: ["" : 28]> g (float[4, 4] x) => ({kind} y) {{ {text} }}'
    )
    program = xrt.compile(model(source), engine="xla", options=options)
    assert reason in str(program.explain().reasons())


@pytest.mark.parametrize("offset", [0, 4, 16])
def test_a_run_has_ended_when_it_returns_whatever_the_alignment(offset, options):
    """An unaligned input used to be copied in the background, and the launch with it."""
    program = xrt.compile(cnn(), (image(),), options=options)
    memory = np.zeros(image().nbytes + 128, np.uint8)
    start = -memory.ctypes.data % D.ALIGNMENT + offset
    shifted = memory[start : start + image().nbytes].view(np.float32).reshape(image().shape)
    shifted[...] = image()
    placed = D.put(shifted)
    assert placed.is_ready()
    assert (placed.unsafe_buffer_pointer() == shifted.ctypes.data) == (offset == 0)
    (executable,) = program.specialization.executables.values()
    (result,) = executable.run([shifted])
    assert result.is_ready()
    np.testing.assert_array_equal(np.asarray(result), program(image()))
