"""A step: its numbers, whatever engine runs it and however it is cut."""

import copy
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

import xrt
from tests.training.support import assert_same_weights, by_torch, classes, mlp, trainer


def adamw(module):
    return torch.optim.AdamW(module.parameters(), lr=1e-2)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


def test_the_host_engine_gives_the_same_numbers():
    batches = classes(20)
    mine, host = (trainer(mlp(), adamw, batches[0], engine=e) for e in ("xla", "host"))
    for batch in batches:
        assert host.step(batch) == pytest.approx(mine.step(batch), rel=1e-5)
        assert host.metrics.grad_norm == pytest.approx(mine.metrics.grad_norm, rel=1e-4)
    got, want = host.state_dict(), mine.state_dict()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_accumulation_equals_the_large_batch(engine):
    batches = classes(10, batch=12)
    whole = trainer(mlp(), adamw, batches[0])
    parts = trainer(mlp(), adamw, batches[0], engine=engine, options={"accumulate": 3})
    for batch in batches:
        assert parts.step(batch) == pytest.approx(whole.step(batch), rel=1e-5)


@pytest.mark.parametrize("segments", [2, 5, 1000])
def test_checkpointing_gives_the_same_numbers(segments):
    batches = classes(5)
    plain = trainer(mlp(), adamw, batches[0])
    cut = trainer(mlp(), adamw, batches[0], options={"segments": segments})
    for batch in batches:
        assert cut.step(batch) == pytest.approx(plain.step(batch), rel=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Embedding(10, 6)
        self.last = nn.Linear(6, 10, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_tied_weights_are_one_parameter(engine):
    torch.manual_seed(0)
    module = Tied()
    batches = [(torch.randint(0, 10, (5,)), torch.randint(0, 10, (5,))) for _ in range(10)]
    mine = trainer(module, adamw, batches[0], engine=engine)
    losses = [mine.step(batch) for batch in batches]
    np.testing.assert_allclose(losses, by_torch(module, adamw, batches), rtol=1e-5)
    assert_same_weights(module, mine, 1e-4)
    again = Tied()
    again.load_state_dict(mine.state_dict(), strict=True)
    assert again.last.weight is again.first.weight


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.one(x).detach() * 2 + self.two(x) * self.one(x)


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_a_detached_value_passes_no_gradient(engine):
    torch.manual_seed(0)
    module, batches = Detached(), classes(5)
    mine = trainer(module, sgd, batches[0], engine=engine)
    losses = [mine.step(batch) for batch in batches]
    np.testing.assert_allclose(losses, by_torch(module, sgd, batches), rtol=1e-5)


class Kinks(nn.Module):
    """Functions whose derivative jumps, at points where it does."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor([-1.0, 0.0, 0.5, 1.0]))

    def forward(self, x):
        return torch.relu(self.shift) * 3 + torch.clamp(self.shift, 0, 1) * 5 + x


def test_derivatives_at_kinks_are_those_of_torch():
    module, x, y = Kinks(), torch.zeros(4), torch.ones(4)
    mine = trainer(module, lambda m: torch.optim.SGD(m.parameters(), lr=1.0), (x, y), loss="mse")
    mine.step((x, y))
    nn.functional.mse_loss(module(x), y).backward()
    want = module.shift.detach() - module.shift.grad
    np.testing.assert_allclose(mine.state_dict()["shift"], want, rtol=1e-6)


def test_a_loss_is_a_function_of_the_outputs_own_structure():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 4)

        def forward(self, x):
            return {"scores": self.linear(x), "kind": "linear"}

    def loss(outputs, targets):
        assert outputs["kind"] == "linear"
        return jnp.mean(jnp.abs(outputs["scores"] - targets["wanted"]))

    torch.manual_seed(0)
    module = Two()
    batches = [(torch.randn(3, 8), {"wanted": np.ones((3, 4), np.float32)}) for _ in range(4)]
    mine = trainer(module, sgd, batches[0], loss=loss)
    want = by_torch(
        module, sgd, batches, lambda o, t: (o["scores"] - torch.tensor(t["wanted"])).abs().mean()
    )
    np.testing.assert_allclose([mine.step(batch) for batch in batches], want, rtol=1e-5)


def test_cross_entropy_leaves_out_ignored_targets_and_takes_probabilities():
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, -100, 2], [-100, -100, -100, 4], [3, 3, 3, 3]])
    shares = torch.softmax(logits.flip(0), 1)
    from xrt.training.losses import cross_entropy

    for wanted in (targets, shares):
        got = cross_entropy(logits.numpy(), wanted.numpy())
        assert float(got) == pytest.approx(nn.functional.cross_entropy(logits, wanted).item(), 1e-6)
        own = jax.grad(lambda x, w=wanted: cross_entropy(x, w.numpy()))(jnp.asarray(logits.numpy()))
        leaf = logits.clone().requires_grad_()
        nn.functional.cross_entropy(leaf, wanted).backward()
        np.testing.assert_allclose(own, leaf.grad, atol=1e-7)


def test_a_step_whose_loss_is_not_finite_changes_nothing():
    batches = classes(3)
    bad = (torch.full_like(batches[0][0], math.inf), batches[0][1])
    for engine in ("xla", "host"):
        mine = trainer(mlp(), adamw, batches[0], engine=engine)
        mine.step(batches[0])
        before = mine.state_dict()
        with pytest.raises(xrt.XrtError, match=r"Step 2: the loss is not finite"):
            mine.step(bad)
        assert mine.metrics.skipped
        for name, array in mine.state_dict().items():
            assert torch.equal(array, before[name])
        mine.step(batches[1])


@pytest.mark.parametrize("kind", ["torch", "optax"])
def test_weights_and_moments_are_updated_in_place(kind):
    module = nn.Linear(512, 512)

    def adamw(trained):
        return torch.optim.AdamW(trained.parameters()) if kind == "torch" else optax.adamw(1e-3)

    batch = (torch.ones(2, 512), torch.ones(2, 512))
    step = trainer(module, adamw, batch, loss="mse")._step
    assert step.memory()["shared"] >= 3 * 4 * 512 * 512  # the weight and its two moments
    assert not re.findall(r"f32\[512,512\]\S* copy\(.*", step._compiled.as_text())


def test_such_a_step_can_be_skipped():
    batches = classes(2)
    bad = (torch.full_like(batches[0][0], math.nan), batches[0][1])
    mine = trainer(mlp(), adamw, batches[0], options={"nonfinite": "skip"})
    other = trainer(mlp(), adamw, batches[0])
    losses = mine.fit([batches[0], bad, batches[1]])
    assert math.isnan(losses[1])
    assert mine.metrics.skipped_steps == 1
    assert [losses[0], losses[2]] == other.fit(batches)


def test_evaluation_and_the_program_are_the_trained_model():
    batches = classes(12)
    module = mlp()
    mine = trainer(module, adamw, batches[0])
    mine.fit(batches[:8])
    trained = copy.deepcopy(module)
    trained.load_state_dict(mine.state_dict(), strict=True)
    trained.eval()
    with torch.no_grad():
        want = [nn.functional.cross_entropy(trained(x), y).item() for x, y in batches[8:]]
        hits = [float((trained(x).argmax(1) == y).float().mean()) for x, y in batches[8:]]
    assert mine.evaluate(batches[8:]) == pytest.approx(np.mean(want), rel=1e-5)
    accuracy = mine.evaluate(batches[8:], lambda o, t: jnp.mean((o.argmax(1) == t) * 1.0))
    assert accuracy == pytest.approx(np.mean(hits), rel=1e-6)
    program = mine.program((batches[0][0],), options=xrt.CompileOptions(cache=False))
    np.testing.assert_allclose(
        program(batches[0][0]), trained(batches[0][0]).detach(), rtol=1e-5, atol=1e-6
    )
    assert module[0].weight.equal(mlp()[0].weight), "the user's model stays as it was"


def test_weights_can_be_loaded():
    batches = classes(4)
    one, two = (trainer(mlp(), sgd, batches[0]) for _ in range(2))
    one.fit(batches)
    two.load_state_dict(one.state_dict())
    assert two.evaluate(batches) == one.evaluate(batches)
    state = {name: array.numpy() for name, array in one.state_dict().items()}
    two.load_state_dict(state)
    state["0.weight"] = state["0.weight"][:1]
    with pytest.raises(xrt.XrtError, match=r"'0.weight' as float32\[1, 8\]"):
        two.load_state_dict(state)
    del state["0.weight"]
    with pytest.raises(xrt.XrtError, match="lacks"):
        two.load_state_dict(state)


def test_loaded_weights_are_copies():
    batches = classes(2)
    module = mlp()
    module[0].weight.requires_grad_(False)  # one that no step replaces
    state = {name: value.clone() for name, value in mlp().state_dict().items()}
    mine = trainer(module, sgd, batches[0])
    mine.load_state_dict(state)
    for value in state.values():
        value.zero_()
    for name, value in mine.state_dict().items():
        assert torch.equal(value, mlp().state_dict()[name]), name


def test_the_last_of_a_sequence_is_a_slice_whose_derivative_is_a_pad():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.each = nn.Linear(8, 4)

        def forward(self, x):
            return self.each(x)[:, -1]

    batch = (torch.ones(2, 3, 8), torch.ones(2, 4))
    text = trainer(Last(), sgd, batch, loss="mse")._step._compiled.as_text()
    assert "scatter" not in text


def test_metrics_tell_of_the_last_step():
    batches = classes(2)
    mine = trainer(mlp(), sgd, batches[0])
    with pytest.raises(xrt.XrtError, match="before the first step"):
        _ = mine.metrics
    losses = mine.fit(batches)
    found = mine.metrics.to_dict()
    assert found["step"] == mine.steps == 2
    assert found["loss"] == losses[-1]
    assert found["learning_rates"] == (0.05,)
    assert found["loss_scale"] == 1
    assert found["samples_per_second"] == pytest.approx(6 / found["seconds"])
    assert mine.memory()["temporaries"] > 0
