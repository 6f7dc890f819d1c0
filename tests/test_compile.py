"""The whole path on small networks, each against an independent reference."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import xrt
from tests.support import assert_close, model, run_reference
from xrt.engines.xla import XlaEngine
from xrt.errors import EngineBuildError, EngineFallbackWarning, InputError, XrtError

CNN = """
<ir_version: 10, opset_import: ["" : 20]>
cnn (float[N, 3, 8, 8] image) => (float[N, 5] scores)
<float[4, 3, 3, 3] w, float[4] b, float[4] scale, float[4] shift, float[4] mean, float[4] var,
 float[64, 5] dense, int64[2] flat = {-1, 64}> {
  c = Conv<pads = [1, 1, 1, 1]>(image, w, b)
  n = BatchNormalization(c, scale, shift, mean, var)
  r = Relu(n)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
  f = Reshape(p, flat)
  scores = MatMul(f, dense)
}
"""

SPLIT = """
<ir_version: 10, opset_import: ["" : 20]>
split (float[8, 8] x, float[8, 8] w) => (float[N, 2] picked, float[8, 8] y) {
  a = MatMul(x, w)
  b = Relu(a)
  i = NonZero(b)
  t = Transpose<perm = [1, 0]>(i)
  picked = Cast<to = 1>(t)
  c = MatMul(b, w)
  y = Tanh(c)
}
"""


def cnn(seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    shapes = {"w": (4, 3, 3, 3), "dense": (64, 5)}
    names = ("w", "b", "scale", "shift", "mean", "dense")
    weights = {name: rng.standard_normal(shapes.get(name, (4,))) for name in names}
    return model(CNN, var=rng.uniform(0.5, 1.5, 4), **weights)


def image(batch: int = 2, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((batch, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def options(tmp_path):
    return xrt.CompileOptions(cache_dir=tmp_path)


@pytest.mark.parametrize("engine", ["auto", "xla", "host", ["xla", "host"]])
def test_every_engine_agrees_with_the_reference(engine, options):
    program = xrt.compile(cnn(), engine=engine, options=options)
    (want,) = run_reference(cnn(), {"image": image()})
    assert_close(program(image()), want)
    assert len(program.clusters) == (0 if engine == "host" else 1)


def test_batchnorm_and_bias_are_folded_and_shape_arithmetic_is_gone(options):
    program = xrt.compile(cnn(), (image(),), options=options)
    (cluster,) = program.clusters
    assert [node.op_type for node in cluster.nodes] == [
        "Conv",
        "Relu",
        "MaxPool",
        "Reshape",
        "MatMul",
    ]


def test_what_no_engine_takes_runs_on_the_host_with_a_reason(options):
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((8, 8)).astype(np.float32) for name in ("x", "w")}
    program = xrt.compile(model(SPLIT), feeds, options=options)
    for got, want in zip(program(**feeds), run_reference(model(SPLIT), feeds), strict=True):
        assert_close(got, want)
    assert program.clusters
    reasons = program.explain().reasons()
    assert reasons["NonZero"]
    assert all(reason for counts in reasons.values() for reason in counts)
    assert "NonZero" in str(program.explain())


def test_symbolic_dimensions_bind_at_each_call_and_the_oldest_go(tmp_path):
    options = xrt.CompileOptions(cache_dir=tmp_path, max_specializations=2)
    program = xrt.compile(cnn(), options=options)
    with pytest.raises(XrtError, match="compiled at its first call"):
        program.clusters  # noqa: B018
    for batch in (1, 2, 3, 1):
        (want,) = run_reference(cnn(), {"image": image(batch)})
        assert_close(program(image(batch)), want)
    first = program.specialization
    assert program.prepare(image(1)) is first
    program.prepare(image(2))
    program.prepare(image(3))
    assert program.prepare(image(1)) is not first


def test_fixed_shapes_compile_without_example_inputs(options):
    program = xrt.compile(model(SPLIT), options=options)
    assert program.clusters


def test_inputs_by_position_name_and_mapping(options):
    program = xrt.compile(cnn(), options=options)
    want = program(image())
    np.testing.assert_array_equal(program(image=image()), want)
    np.testing.assert_array_equal(program({"image": image()}), want)


def test_a_wrong_call_leaves_the_program_usable(options):
    program = xrt.compile(cnn(), options=options)
    for wrong in (image()[0], image().astype(np.float64), image()[:, :2]):
        with pytest.raises(InputError, match="image"):
            program(wrong)
    assert program(image()).shape == (2, 5)


def test_the_program_is_a_snapshot(options):
    torch = pytest.importorskip("torch")
    linear = torch.nn.Linear(4, 4).eval()
    x = torch.randn(2, 4)
    program = xrt.compile(linear, (x,), options=options)
    want = linear(x).detach().clone()
    with torch.no_grad():
        linear.weight.zero_()
    assert_close(program(x).numpy(), want.numpy())


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_a_new_signature_sees_the_snapshot_too(engine, tmp_path):
    """Else weights of then and now would mix, and poison the cache under the digest of then."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    small, large = torch.randn(2, 4), torch.randn(5, 4)
    shapes = ({0: torch.export.Dim("batch")},)
    options = xrt.CompileOptions(cache_dir=tmp_path)
    program = xrt.compile(net, (small,), engine=engine, dynamic_shapes=shapes, options=options)
    with torch.no_grad():
        want = [net(small), net(large)]
        for parameter in net.parameters():
            parameter.mul_(-3)
    for x, y in zip((small, large), want, strict=True):
        assert_close(program(x).numpy(), y.numpy())
    again = xrt.compile(net, (small,), engine=engine, dynamic_shapes=shapes, options=options)
    assert_close(again(large).numpy(), net(large).detach().numpy())


def test_torch_modules_compile_lazily_and_for_new_shapes(options):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).eval()
    program = xrt.compile(net, options=options)
    with pytest.raises(InputError, match="missing a required argument"):
        program()
    for size in (8, 9):
        x = torch.randn(1, 3, size, size)
        got = program(x)
        assert isinstance(got, torch.Tensor)
        assert_close(got.numpy(), net(x).detach().numpy())


def test_the_least_recently_used_export_goes(tmp_path):
    torch = pytest.importorskip("torch")
    options = xrt.CompileOptions(cache_dir=tmp_path, max_specializations=2)
    program = xrt.compile(torch.nn.Linear(4, 4).eval(), options=options)
    first, second, third = (torch.ones(size, 4) for size in (1, 2, 3))
    kept = program.prepare(first)
    for x in (second, first, third):
        program.prepare(x)
    assert program.prepare(first) is kept


def test_torch_dynamic_shapes_export_once(options):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
    batch = torch.export.Dim("batch")
    x = torch.randn(2, 4)
    program = xrt.compile(net, (x,), dynamic_shapes=({0: batch},), options=options)
    first = program.specialization.imported
    x = torch.randn(5, 4)
    assert_close(program(x).numpy(), net(x).detach().numpy())
    assert program.specialization.imported is first


def test_threads_share_a_program(options):
    program = xrt.compile(cnn(), options=options)
    want = {batch: program(image(batch, seed=batch)) for batch in (1, 2, 3)}
    fresh = xrt.compile(cnn(), options=options)
    errors: list[BaseException] = []

    def work(batch: int) -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(fresh(image(batch, seed=batch)), want[batch])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1 + n % 3,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_fuel_bisects(options, tmp_path):
    total = len(xrt.compile(cnn(), (image(),), options=options).clusters[0].nodes)
    taken = []
    for fuel in range(total + 1):
        limited = xrt.CompileOptions(cache_dir=tmp_path, fuel=fuel, min_cluster_weight=0)
        program = xrt.compile(cnn(), (image(),), options=limited)
        taken.append(sum(len(cluster.nodes) for cluster in program.clusters))
        (want,) = run_reference(cnn(), {"image": image()})
        assert_close(program(image()), want)
    assert taken == list(range(total + 1))
    assert (
        "fuel" in str(xrt.compile(cnn(), (image(),), options=limited).explain())
        or taken[-1] == total
    )


class TestFailingBuild:
    """A build that fails moves the cluster on, with a warning, or raises under strict."""

    @staticmethod
    def fail_at(monkeypatch, op: str, place: bool) -> None:
        build = XlaEngine.compile

        def compile_(self, cluster, options):
            for node in cluster.nodes:
                if node.op_type == op:
                    name = node.name if place else ""
                    raise EngineBuildError("xla", "made to fail", op=op, place=name)
            return build(self, cluster, options)

        monkeypatch.setattr(XlaEngine, "compile", compile_)

    def test_the_named_node_alone_goes_to_the_host(self, monkeypatch, options):
        self.fail_at(monkeypatch, "MaxPool", place=True)
        with pytest.warns(EngineFallbackWarning, match=r"'xla'.*MaxPool.*made to fail"):
            program = xrt.compile(cnn(), (image(),), options=options)
        (want,) = run_reference(cnn(), {"image": image()})
        assert_close(program(image()), want)
        assert list(program.explain().reasons()) == ["MaxPool"]
        assert "made to fail" in str(program.explain())

    def test_without_a_name_the_whole_cluster_goes(self, monkeypatch, options):
        self.fail_at(monkeypatch, "MaxPool", place=False)
        with pytest.warns(EngineFallbackWarning, match="all 5 nodes"):
            program = xrt.compile(cnn(), (image(),), options=options)
        assert not program.clusters
        (want,) = run_reference(cnn(), {"image": image()})
        assert_close(program(image()), want)

    def test_strict_raises(self, monkeypatch, tmp_path):
        self.fail_at(monkeypatch, "MaxPool", place=True)
        strict = xrt.CompileOptions(cache_dir=tmp_path, strict=True)
        with pytest.raises(EngineBuildError, match=r"'xla'.*MaxPool.*made to fail"):
            xrt.compile(cnn(), (image(),), options=strict)
