"""Mixed precision: weights in fp32, the step in less, and the loss scale of fp16."""

import numpy as np
import pytest
import torch

import xrt
from tests.training.support import classes, mlp, trainer
from tests.training.test_networks import ResNet


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=3e-3)


def products(mine):
    """The types in which the step multiplies matrices."""
    nodes = mine._recipe.forward.nodes
    return {n.inputs[0].dtype.name for n in nodes if n.op_type in ("Gemm", "MatMul", "Conv")}


@pytest.mark.parametrize("engine", ["xla", "host"])
@pytest.mark.parametrize(("precision", "name"), [("bf16", "BFLOAT16"), ("fp16", "FLOAT16")])
def test_it_follows_fp32(precision, name, engine):
    batches = classes(30)
    full = trainer(mlp(), adamw, batches[0])
    options = {"loss_scale": 1024.0}
    mine = trainer(mlp(), adamw, batches[0], precision=precision, engine=engine, options=options)
    assert products(mine) == {name}
    got, want = mine.fit(batches), full.fit(batches)
    np.testing.assert_allclose(got, want, rtol=0.05 if precision == "bf16" else 0.005)
    assert got != want
    assert {array.dtype for array in mine.state_dict().values()} == {torch.float32}
    assert mine.metrics.loss_scale == (1024 if precision == "fp16" else 1)


def test_engines_agree_in_fp16():
    batches = classes(30)
    one, two = (
        trainer(mlp(), adamw, batches[0], precision="fp16", engine=e) for e in ("xla", "host")
    )
    np.testing.assert_allclose(one.fit(batches), two.fit(batches), rtol=2e-4)


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_the_loss_scale_backs_off_and_grows(engine):
    batch = classes(1)[0]
    options = {"loss_scale": 2.0**60, "scale_growth_steps": 4}
    mine = trainer(mlp(), adamw, batch, precision="fp16", engine=engine, options=options)
    before = mine.state_dict()
    mine.step(batch)
    assert mine.metrics.skipped
    assert mine.metrics.loss_scale == 2.0**60
    assert all(torch.equal(a, before[n]) for n, a in mine.state_dict().items())
    scales = []
    while mine.metrics.skipped:
        mine.step(batch)
        scales.append(mine.metrics.loss_scale)
    assert scales[:2] == [2.0**59, 2.0**58]
    assert mine.metrics.skipped_steps == mine.steps - 1
    assert np.isfinite(mine.metrics.grad_norm)
    settled = mine.metrics.loss_scale
    mine.fit([batch] * 4)
    assert mine.metrics.loss_scale == 2 * settled
    assert not all(torch.equal(a, before[n]) for n, a in mine.state_dict().items())


def test_the_reported_norm_is_that_of_the_unscaled_gradients():
    batch = classes(1)[0]
    full, half = (trainer(mlp(), adamw, batch, precision=p) for p in ("fp32", "fp16"))
    full.step(batch)
    half.step(batch)
    assert half.metrics.grad_norm == pytest.approx(full.metrics.grad_norm, rel=1e-2)


@pytest.mark.slow
def test_batch_norm_keeps_its_statistics_in_fp32():
    torch.manual_seed(0)
    module = ResNet(widths=(8, 8, 8, 8))
    batches = [(torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))) for _ in range(3)]

    def sgd(m):
        return torch.optim.SGD(m.parameters(), lr=1e-3)

    runs = {}
    for precision in ("fp32", "bf16"):
        mine = trainer(module, sgd, batches[0], precision=precision)
        runs[precision] = (mine.fit(batches), mine.state_dict())
    np.testing.assert_allclose(runs["bf16"][0], runs["fp32"][0], rtol=0.05)
    state = runs["bf16"][1]
    assert state["bn1.running_mean"].dtype == torch.float32
    assert not torch.equal(state["bn1.running_mean"], state["bn1.running_mean"].bfloat16().float())
    np.testing.assert_allclose(
        state["bn1.running_var"], runs["fp32"][1]["bn1.running_var"], rtol=0.02
    )


def test_a_trained_model_is_deployed_in_another_precision():
    batches = classes(20)
    mine = trainer(mlp(), adamw, batches[0], precision="bf16")
    mine.fit(batches)
    options = xrt.CompileOptions(cache=False)
    x = batches[0][0]
    full, half = (mine.program((x,), precision=p, options=options) for p in ("fp32", "fp16"))
    np.testing.assert_allclose(half(x), full(x), rtol=0.02, atol=0.02)
    assert not torch.equal(half(x), full(x))


class Summed(torch.nn.Module):
    """Its loss, a sum of squares, is beyond what fp16 holds."""

    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, wanted):
        return torch.nn.functional.mse_loss(self.body(x), wanted, reduction="sum")


@pytest.mark.parametrize("engine", ["xla", pytest.param("host", marks=pytest.mark.slow)])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_loss_of_a_model_is_computed_in_fp32(precision, engine):
    batch = (classes(1)[0][0], torch.full((6, 4), 60.0))
    options = {"clip_norm": 1.0, "loss_scale": 4.0}
    module = Summed().train()
    full, mine = (
        trainer(module, adamw, batch, loss=None, precision=p, engine=engine, options=options)
        for p in ("fp32", precision)
    )
    want, got = full.step(batch), mine.step(batch)
    assert want > 65504 * 1.2
    assert got == pytest.approx(want, rel=2e-3)
    assert not mine.metrics.skipped
