"""What the trainer does around its steps: loops, evaluation, unusual batches, schedules."""

import copy
import signal

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.support import assert_same_weights, by_torch, classes, mlp, trainer
from xrt.errors import OptionError, TrainingError

ENGINES = ["xla", "host"]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets).item()


def test_fit_takes_no_more_batches_than_steps():
    batches = classes(7)
    losses = trainer(mlp(), sgd, batches[0]).fit(batches)
    made = trainer(mlp(), sgd, batches[0])
    stream = iter(batches)
    found = [*made.fit(stream, steps=3), *made.fit(stream, steps=0), *made.fit(stream, steps=3)]
    assert found == losses[:6]
    assert made.fit(stream, steps=3) == losses[6:]
    with pytest.raises(OptionError, match="steps must be at least 0"):
        made.fit(stream, steps=-1)


class Switching(nn.Module):
    """Uses a parameter, a buffer and a non-persistent buffer in eval() mode only."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.register_buffer("shift", torch.arange(4.0), persistent=False)

    def forward(self, x):
        x = self.body(x)
        return x if self.training else self.head(x) * self.scale + self.shift


def test_evaluation_may_use_what_training_does_not():
    torch.manual_seed(0)
    module = Switching().train()
    batches = classes(3)
    made = trainer(module, sgd, batches[0])
    made.fit(batches[:2])
    state = made.state_dict()
    for change in (1.0, 3.0):
        state["scale"] = torch.full((4,), change)
        made.load_state_dict(state)
        like = copy.deepcopy(module)
        like.load_state_dict(state, strict=True)
        inputs, targets = batches[2]
        want = entropy(like.eval()(inputs), targets)
        assert made.evaluate([batches[2]]) == pytest.approx(want, rel=1e-5)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x, factor):
        return self.inner(x) * factor


@pytest.mark.parametrize("engine", ENGINES)
def test_parts_of_a_batch_share_its_scalars(engine):
    module = Scaled().train()
    batches = [((x, torch.tensor(2.0)), y) for x, y in classes(3)]
    made = trainer(module, sgd, batches[0], engine=engine, options={"accumulate": 2})
    losses = made.fit(batches)

    class Called(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, pair):
            return self.inner(*pair)

    want = by_torch(Called(module), sgd, batches)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert_same_weights(module, made)


@pytest.mark.parametrize("engine", ENGINES)
def test_targets_may_be_a_list_of_numbers(engine):
    batches = classes(3)
    options = {"accumulate": 2}
    want = trainer(mlp(), sgd, batches[0], engine=engine, options=options).fit(batches)
    lists = [(x, y.tolist()) for x, y in batches]
    made = trainer(mlp(), sgd, lists[0], engine=engine, options=options)
    assert made.fit(lists) == want


def test_a_schedule_that_ends_says_so_after_the_step():
    def cycle(module):
        return torch.optim.lr_scheduler.OneCycleLR(
            sgd(module), 0.1, total_steps=3, cycle_momentum=False
        )

    batches = classes(4)
    made = trainer(mlp(), cycle, batches[0])
    made.fit(batches[:3])
    with pytest.raises(TrainingError, match=r"The step was made, but OneCycleLR gives no learning"):
        made.step(batches[3])
    assert made.steps == made.metrics.step == 4
    assert np.isfinite(made.metrics.loss)


def test_a_schedule_of_weight_averaging_follows_torch():
    def swa(optimizer):
        return torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.5, anneal_epochs=3)

    batches = classes(6)
    module = mlp()
    made = trainer(module, lambda m: swa(sgd(m)), batches[0])
    losses = made.fit(batches)
    want = by_torch(module, sgd, batches, schedule=swa)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert made.metrics.learning_rates == (0.5,)


@pytest.mark.parametrize("engine", ["xla", "host"])
def test_an_interrupt_waits_for_the_step(engine):
    batches = classes(4)
    alone = trainer(mlp(), sgd, batches[0], engine=engine)
    want = [alone.step(batch) for batch in batches]
    interrupted = trainer(mlp(), sgd, batches[0], engine=engine)
    step = interrupted._step

    def interrupt(*arguments):
        made = step(*arguments)  # which has used up the state
        signal.raise_signal(signal.SIGINT)
        return made

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupted._step = interrupt
        with pytest.raises(KeyboardInterrupt):
            interrupted.step(batches[0])
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted.metrics.step == 1
    interrupted._step = step
    assert [interrupted.metrics.loss, *map(interrupted.step, batches[1:])] == want
