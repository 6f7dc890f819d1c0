"""Dimensions that stay open: support, export, profiles, and programs that are saved with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

import xrt
from tests.engines.tensorrt.trt_support import OPTIONS, RTX, annotated, numbers, run_exported
from tests.support import assert_close, model
from xrt import cli
from xrt.engines.tensorrt.build import UnknownShapesError, build
from xrt.engines.tensorrt.engine import TensorRTEngine
from xrt.engines.tensorrt.export import export
from xrt.errors import EngineUnavailableError, InputError
from xrt.graph import Cluster
from xrt.runtime.ranges import Range, Ranges
from xrt.runtime.restore import Package

ENGINE = TensorRTEngine("tensorrt_rtx", "sm_89")
RNG = np.random.default_rng(0)

RESHAPED = """
g (float[n,6] x) => (float[m,3] y) <int64[1] last = {3}, int64[1] two = {2}> {
  size = Shape <start = 0, end = 1> (x)
  more = Mul (size, two)
  to = Concat <axis = 0> (more, last)
  flat = Reshape (x, to)
  z = Sin (flat)
  y = Exp (z)
}"""

HEADS = """
g (float[n,s,8] x, float[8,24] w, float[8,8] o) => (float[n,s,8] y)
<int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[4] heads = {0,0,6,4},
 int64[1] width = {8}, float scale = {0.5}> {
  qkv = MatMul (x, w)
  all = Reshape (qkv, heads)
  t = Transpose <perm = [0,2,1,3]> (all)
  q, k, v = Split <axis = 1, num_outputs = 3> (t)
  kt = Transpose <perm = [0,1,3,2]> (k)
  raw = MatMul (q, kt)
  scaled = Mul (raw, scale)
  p = Softmax <axis = -1> (scaled)
  mixed = MatMul (p, v)
  back = Transpose <perm = [0,2,1,3]> (mixed)
  shape = Shape (x)
  rows = Gather <axis = 0> (shape, zero)
  steps = Gather <axis = 0> (shape, one)
  r = Unsqueeze (rows, first)
  c = Unsqueeze (steps, first)
  to = Concat <axis = 0> (r, c, width)
  flat = Reshape (back, to)
  y = MatMul (flat, o)
}"""
"""Self-attention as older exporters write it: sizes from Shape, Gather, Unsqueeze and Concat."""


def heads() -> ir.Model:
    """`HEADS` with weights."""
    text = HEADS.replace(", float[8,24] w, float[8,8] o)", ")").replace(
        "scale = {0.5}>", "scale = {0.5}, float[8,24] w, float[8,8] o>"
    )
    return model(text, w=RNG.normal(size=(8, 24)), o=RNG.normal(size=(8, 8)))


def compiled(given: ir.Model | str, *args: Any, **options: Any) -> xrt.Program:
    """A program for a GPU that is elsewhere."""
    made = model(given) if isinstance(given, str) else given
    settings = xrt.CompileOptions(cache=False, min_cluster_weight=0, progress=False, **options)
    return xrt.compile(
        ir.to_proto(made), args or None, engine="tensorrt", target="sm_89", options=settings
    )


def clusters(program: xrt.Program) -> Sequence[Cluster]:
    """What was given to TensorRT."""
    return program.specialization.built.partition.clusters


def plan(program: xrt.Program) -> Any:
    """The only plan of a program."""
    (executable,) = program.specialization.built.executables.values()
    return executable.plan


def check(given: ir.Model, program: xrt.Program, *calls: Sequence[Any]) -> None:
    """Check that what the parser gets computes what the host does, at every call's sizes."""
    (cluster,) = clusters(program)
    host = xrt.compile(ir.to_proto(given), engine="host")
    names = [str(value.name) for value in cluster.body.inputs]
    for call in calls:
        feeds = dict(zip((str(v.name) for v in given.graph.inputs), call, strict=True))
        (got,) = run_exported(export(cluster.body), [feeds[name] for name in names])
        assert_close(np.asarray(got), np.asarray(host(*call)))


def test_shape_arithmetic_goes_into_the_cluster():
    given = model(RESHAPED)
    program = compiled(given, numbers(3, 6), ranges={"n": (1, 4, 8)})
    assert program.explain().reasons() == {}
    assert plan(program).profiles == ({"x": ((1, 6), (4, 6), (8, 6))},)
    assert plan(program).inputs[0].shape == (None, 6)
    assert plan(program).outputs[0].shape[0] is None
    check(given, program, *[[numbers(rows, 6)] for rows in (1, 4, 7, 8)])


def test_an_attention_of_open_batch_and_length_is_one_cluster():
    given = heads()
    program = compiled(given, numbers(2, 5, 8), ranges={"n": (1, 2, 4), "s": (2, 6, 32)})
    assert program.explain().reasons() == {}
    assert plan(program).profiles == ({"x": ((1, 2, 8), (2, 6, 8), (4, 32, 8))},)
    check(given, program, *[[numbers(n, s, 8)] for n, s in ((1, 2), (2, 6), (4, 32), (3, 9))])


def test_a_plan_with_profiles_survives_as_bytes():
    made = plan(compiled(RESHAPED, numbers(3, 6), ranges={"n": (1, 8)}))
    again = type(made).from_bytes(made.to_bytes())
    assert again.profiles == made.profiles
    assert again.inputs == made.inputs


def test_a_call_outside_the_range_is_an_error_that_quotes_it():
    program = compiled(RESHAPED, numbers(3, 6), ranges={"n": (1, 4, 32)})
    with pytest.raises(InputError, match="Dimension 0 of input 'x' is 40; the range of 'n' is 1 t"):
        program(numbers(40, 6))
    with pytest.raises(EngineUnavailableError, match="was built for sm_89"):
        program(numbers(32, 6))


def test_a_range_widens_where_that_is_asked_for():
    program = compiled(RESHAPED, numbers(3, 6), ranges={"n": (2, 4)}, widen_ranges=True)
    program.prepare(numbers(9, 6))
    assert plan(program).profiles == ({"x": ((2, 6), (9, 6), (9, 6))},)


def test_the_executable_itself_refuses_what_no_profile_covers():
    program = compiled(RESHAPED, numbers(3, 6), ranges={"n": (2, 8)})
    (executable,) = program.specialization.built.executables.values()
    with pytest.raises(InputError, match=r"size 9 in dimension 0.*the engine was built for 2 to 8"):
        executable.run([numbers(9, 6)])


def test_without_a_range_the_sizes_seen_make_one():
    program = compiled(RESHAPED, numbers(3, 6))
    assert plan(program).profiles == ()
    assert plan(program).inputs[0].shape == (3, 6)
    program.prepare(numbers(5, 6))
    assert plan(program).profiles == ({"x": ((3, 6), (5, 6), (5, 6))},)


class Block(pytest.importorskip("torch").nn.Module):  # type: ignore[misc]
    """A layer of a transformer."""

    def __init__(self) -> None:
        from torch import nn

        super().__init__()
        self.before, self.after = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Any, mask: Any = None) -> Any:
        from torch.nn.functional import scaled_dot_product_attention

        n, s, d = x.shape
        qkv = self.qkv(self.before(x)).view(n, s, 3, 2, d // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, s, d))
        return x + self.mlp(self.after(x))


class Vision(Block):
    """Patches, a class token, positions, and a layer: as ViT."""

    def __init__(self) -> None:
        import torch

        super().__init__()
        self.patches = torch.nn.Conv2d(3, 16, 8, 8)
        self.token = torch.nn.Parameter(torch.randn(1, 1, 16))
        self.places = torch.nn.Parameter(torch.randn(1, 5, 16))

    def forward(self, x: Any) -> Any:
        import torch

        patches = self.patches(x).flatten(2).transpose(1, 2)
        token = self.token.expand(x.shape[0], -1, -1)
        return super().forward(torch.cat([token, patches], 1) + self.places)[:, 0]


class Text(Block):
    """Words, positions up to the length of the call, a mask, and a layer: as BERT."""

    def __init__(self) -> None:
        import torch

        super().__init__()
        self.words, self.places = torch.nn.Embedding(50, 16), torch.nn.Embedding(32, 16)
        self.register_buffer("order", torch.arange(32)[None])

    def forward(self, words: Any, mask: Any) -> Any:
        places = self.places(self.order[:, : words.shape[1]])
        return super().forward(self.words(words) + places, mask[:, None, None, :].bool())


def transformer(kind: str, n: int, s: int) -> tuple[Any, tuple[Any, ...], Any]:
    """A network, inputs of a size, and its dynamic dimensions."""
    import torch

    torch.manual_seed(0)
    rows, length = torch.export.Dim("rows", min=1, max=8), torch.export.Dim("steps", min=2, max=32)
    if kind == "vision":
        return Vision().eval(), (torch.randn(n, 3, 16, 16),), ({0: rows},)
    words, mask = torch.randint(0, 50, (n, s)), torch.ones(n, s, dtype=torch.int64)
    mask[:, s - s // 3 :] = 0
    return Text().eval(), (words, mask), ({0: rows, 1: length}, {0: rows, 1: length})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_torch_transformer_of_open_sizes_is_one_cluster(kind, precision):
    net, args, dims = transformer(kind, 3, 7)
    program = xrt.compile(
        net,
        args,
        engine="tensorrt",
        target="sm_89",
        dynamic_shapes=dims,
        precision=precision,
        calibration=[args] if precision == "int8" else None,
        options=OPTIONS,
    )
    assert program.explain().reasons() == {}
    (profile,) = plan(program).profiles
    assert {(least[0], usual[0], most[0]) for least, usual, most in profile.values()} == {(1, 3, 8)}
    (cluster,) = clusters(program)
    for n, s in ((1, 2), (3, 7), (8, 32)):
        _, given, _ = transformer(kind, n, s)
        arrays = [array.numpy() for array in given]
        (got,) = run_exported(export(cluster.body), arrays)
        want = net(*given).detach().numpy()
        if precision == "fp32":
            assert_close(np.asarray(got), want)
        else:  # how good it is, tests of precision ask; here, that no size was baked in
            assert got.shape == want.shape
            assert np.abs(got - want).mean() < {"fp16": 0.01, "int8": 0.2}[precision]


# --- builds and files ----------------------------------------------------------------------------


def test_functions_that_the_parser_lacks_are_inlined_at_open_sizes():
    given = model("""
        g (float[n,5] x, int64[n] t) => (float[n] y)
        { y = NegativeLogLikelihoodLoss <reduction = "none"> (x, t) }
    """)
    program = compiled(given, numbers(3, 5), np.array([1, 4, 0]), ranges={"n": (1, 8)})
    assert program.explain().reasons() == {}
    calls = [[numbers(n, 5), RNG.integers(0, 5, n)] for n in (1, 3, 8)]
    check(given, program, *calls)


def test_an_input_that_decides_shapes_is_refused_and_named():
    cluster = annotated(
        "g (float[n,6] x, int64[2] to) => (float[a,b] y) { z = Exp (x)  y = Reshape (z, to) }",
        *({"x": (n, 6)} for n in (1, 2, 3)),
    )
    with pytest.raises(UnknownShapesError, match="depend on the contents of 'to'") as caught:
        build(RTX, cluster, OPTIONS, "sm_89")
    assert caught.value.op == "Reshape"


def test_plans_of_other_ranges_have_other_keys():
    text = "g (float[n,6] x) => (float[n,6] y) { y = Exp (x) }"
    keys = set()
    for most in (8, 8, 9):
        cluster = annotated(text, *({"x": (n, 6)} for n in (1, 4, most)))
        keys.add(ENGINE._key(RTX, cluster, OPTIONS))
    assert len(keys) == 2


def saved(tmp_path: Path) -> tuple[xrt.Program, Any]:
    """A program with a range, and what its file restores for a call within it."""
    program = compiled(RESHAPED, numbers(3, 6), ranges={"n": (1, 4, 8)})
    program.save(tmp_path / "model.xrt")
    package = Package(tmp_path / "model.xrt")
    assert package.latest[1] == (((4, 6), "float32", None),)
    ((imported, ranges),) = package.ranges()
    assert ranges == program.specialization.ranges == (("n", Range(1, 4, 8)),)
    engine = TensorRTEngine("tensorrt", "sm_89")
    kept = Ranges(package.options.ranges, widen=False)
    kept.restore(imported, ranges)
    signature, again = kept.open(imported, (((7, 6), "float32", None),))
    restored = package.restore(imported, signature, again, [engine], OPTIONS)
    return program, restored


def test_ranges_are_saved_with_the_program(tmp_path):
    program, restored = saved(tmp_path)
    (executable,) = restored.built.executables.values()
    assert executable.plan.data == plan(program).data
    assert executable.plan.profiles == plan(program).profiles


def test_a_plan_that_was_saved_can_be_built_again(tmp_path):
    program, restored = saved(tmp_path)
    (cluster,) = restored.built.partition.clusters
    assert build(RTX, cluster, OPTIONS, "sm_89").profiles == plan(program).profiles


def test_a_program_with_ranges_goes_to_engines_without(tmp_path):
    saved(tmp_path)
    loaded = xrt.load(tmp_path / "model.xrt", engine="xla")
    for rows in (2, 9):
        x = numbers(rows, 6)
        assert_close(np.asarray(loaded(x)), np.exp(np.sin(x.reshape(-1, 3))))


def test_int8_with_open_sizes_is_judged_on_the_calibration_batches():
    net, first, dims = transformer("text", 3, 7)
    program = xrt.compile(
        net,
        engine="tensorrt",
        target="sm_89",
        dynamic_shapes=dims,
        precision="int8",
        calibration=[first, first],
        options=replace(OPTIONS, max_mismatch=0.9),
    )
    assert program.specialization.ranges
    report = program.specialization.conversion.report
    assert report["batches"] == 2
    assert report["reverted"] == []  # which is said where a bound was held


def test_the_command_line_takes_a_target_and_ranges(tmp_path):
    onnx.save(ir.to_proto(model(RESHAPED)), tmp_path / "m.onnx")
    output = tmp_path / "m.xrt"
    arguments = ["compile", str(tmp_path / "m.onnx"), "-o", str(output), "-e", "tensorrt"]
    settings = ["--target", "sm_89", "--range", "n=1:4:8", "-s", "x=3x6", "-O", "cache=false"]
    given = [*arguments, *settings, "-O", "min_cluster_weight=0"]
    done = CliRunner().invoke(cli.app, given, catch_exceptions=False)
    assert "1 cluster" in done.output
    assert Package(output).ranges()[0][1] == (("n", Range(1, 4, 8)),)
    again = CliRunner().invoke(cli.app, ["run", str(output), "-e", "host"], catch_exceptions=False)
    assert "8x3" in again.output  # of the usual size
    wrong = CliRunner().invoke(cli.app, [*arguments, "--range", "n=1"])
    assert "a range looks like 1:32" in str(wrong.exception)
    saved = CliRunner().invoke(cli.app, ["compile", str(output), "-o", str(output), *settings[:2]])
    assert "--target and --range are for ONNX models" in str(saved.exception)
