"""torch.optim optimizers and schedulers, read and run by xrt, against torch itself."""

import numpy as np
import optax
import pytest
import torch
from torch import nn

import xrt
from tests.training.support import assert_same_weights, by_torch, classes, mlp, trainer

OPTIMIZERS = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
    "dampening": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, dampening=0.3),
    "nesterov": lambda m: torch.optim.SGD(
        m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01
    ),
    "adam": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, weight_decay=0.1),
    "amsgrad": lambda m: torch.optim.Adam(m.parameters(), lr=1e-2, amsgrad=True, eps=1e-6),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, betas=(0.8, 0.95)),
    "decoupled": lambda m: torch.optim.Adam(
        m.parameters(), lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "maximize": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, maximize=True),
    "groups": lambda m: torch.optim.AdamW(
        [
            {"params": [p for p in m.parameters() if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for p in m.parameters() if p.ndim == 1], "weight_decay": 0, "lr": 3e-3},
        ],
        lr=1e-2,
    ),
    "tensor rate": lambda m: torch.optim.AdamW(m.parameters(), lr=torch.tensor(1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_trains_as_torch_does(name):
    module, batches = mlp(), classes(30)
    mine = trainer(module, OPTIMIZERS[name], batches[0])
    losses = [mine.step(batch) for batch in batches]
    np.testing.assert_allclose(losses, by_torch(module, OPTIMIZERS[name], batches), rtol=1e-5)
    assert_same_weights(module, mine, 1e-4)


SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 4, gamma=0.3),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 1 / (1 + n)),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
    "one cycle": lambda o: torch.optim.lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=30, cycle_momentum=False
    ),
    "sequential": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 5),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [5],
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduler_steps_with_the_updates(name):
    module, batches = mlp(), classes(20)
    make = OPTIMIZERS["momentum"]
    given = []

    def scheduled(m):
        given.append(SCHEDULES[name](make(m)))
        return given[0]

    mine = trainer(module, scheduled, batches[0])
    losses = [mine.step(batch) for batch in batches]
    want = by_torch(module, make, batches, schedule=SCHEDULES[name])
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    assert_same_weights(module, mine, 1e-4)
    assert given[0].last_epoch == 0, "the user's own scheduler stays where it is"
    assert mine.metrics.learning_rates != (0.05,)


def test_a_scheduler_of_two_groups_keeps_their_ratio():
    module, batches = mlp(), classes(3)
    make = OPTIMIZERS["groups"]
    mine = trainer(
        module, lambda m: torch.optim.lr_scheduler.ExponentialLR(make(m), 0.5), batches[0]
    )
    for batch in batches:
        mine.step(batch)
    assert mine.metrics.learning_rates == pytest.approx((1e-2 / 4, 3e-3 / 4))


def test_gradients_are_clipped_by_their_global_norm():
    module, batches = mlp(), classes(15)
    make = OPTIMIZERS["momentum"]
    mine = trainer(module, make, batches[0], options={"clip_norm": 0.3})
    losses = [mine.step(batch) for batch in batches]
    np.testing.assert_allclose(losses, by_torch(module, make, batches, clip=0.3), rtol=1e-5)
    assert mine.metrics.grad_norm > 0.3


def test_an_optax_transformation_sees_weights_by_name():
    module, batches = mlp(), classes(20)
    names = [name for name, _ in module.named_parameters()]
    seen = []

    def mask(tree):
        seen.append(sorted(tree))
        return {name: array.ndim > 1 for name, array in tree.items()}

    chain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.cosine_decay_schedule(1e-2, 50), weight_decay=0.1, mask=mask),
    )
    mine = trainer(module, lambda _: chain, batches[0])
    host = trainer(module, lambda _: chain, batches[0], engine="host")
    losses = [mine.step(batch) for batch in batches]
    assert seen[0] == sorted(names)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    np.testing.assert_allclose([host.step(batch) for batch in batches], losses, rtol=1e-5)


def test_optax_sgd_is_torch_sgd():
    module, batches = mlp(), classes(10)
    mine = trainer(module, lambda _: optax.sgd(0.05, momentum=0.9), batches[0])
    losses = [mine.step(batch) for batch in batches]
    want = by_torch(module, OPTIMIZERS["momentum"], batches)
    np.testing.assert_allclose(losses, want, rtol=1e-5)


def test_a_frozen_parameter_stays_and_others_train():
    module, batches = mlp(), classes(10)
    module[2].weight.requires_grad_(False)
    make = OPTIMIZERS["adamw"]
    mine = trainer(module, make, batches[0])
    losses = [mine.step(batch) for batch in batches]
    before = module[2].weight.clone()
    np.testing.assert_allclose(losses, by_torch(module, make, batches), rtol=1e-5)
    assert torch.equal(mine.state_dict()["2.weight"], before)
    assert_same_weights(module, mine, 1e-4)


def test_what_the_optimizer_does_not_hold_stays():
    module, batches = mlp(), classes(5)

    def last_only(m):
        return torch.optim.AdamW(m[-1].parameters(), lr=1e-2)

    mine = trainer(module, last_only, batches[0])
    losses = [mine.step(batch) for batch in batches]
    np.testing.assert_allclose(losses, by_torch(module, last_only, batches), rtol=1e-5)
    assert torch.equal(mine.state_dict()["0.weight"], module[0].weight)


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        self.unused(x)
        return self.used(x)


def test_a_parameter_without_gradient_does_not_decay():
    torch.manual_seed(0)
    module, batches = WithUnused(), classes(5)
    make = OPTIMIZERS["nesterov"]
    mine = trainer(module, make, batches[0])
    for batch in batches:
        mine.step(batch)
    by_torch(module, make, batches)
    assert_same_weights(module, mine)


def refused(make, module=None):
    module = module or mlp()
    with pytest.raises(xrt.XrtError) as caught:
        trainer(module, make, classes(1)[0])
    return str(caught.value)


def test_what_cannot_be_read_is_named():
    parameters = [nn.Parameter(torch.zeros(2))]
    assert "RMSprop" in refused(lambda m: torch.optim.RMSprop(m.parameters()))
    assert "AdamW, SGD" in refused(lambda m: torch.optim.RMSprop(m.parameters()))
    assert "'adam' is unknown" in refused(lambda m: "adam")
    assert "none of the model's" in refused(lambda m: torch.optim.SGD(parameters, lr=0.1))
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
    sgd = OPTIMIZERS["momentum"]
    assert "by a metric" in refused(lambda m: plateau(sgd(m)))
    cycle = torch.optim.lr_scheduler.OneCycleLR
    assert "cycle_momentum=False" in refused(lambda m: cycle(sgd(m), 0.1, total_steps=9))


def test_an_optimizer_that_has_made_steps_is_refused():
    def used(m):
        optimizer = OPTIMIZERS["momentum"](m)
        by_torch(m, lambda _: optimizer, classes(1))
        return optimizer

    assert "made steps already" in refused(used)
