"""BatchNorm in training: the statistics of the batch, and running ones that come back."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import xrt
from tests.training.support import assert_same_weights, by_torch, trainer
from xrt.errors import ModelImportError


def network(**keywords):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6, **keywords),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 4),
    )


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 3, 6, 6, generator=generator) * 2 + 1, torch.randint(0, 4, (5,)))
        for _ in range(count)
    ]


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("engine", ["xla", "host"])
@pytest.mark.parametrize(
    "keywords", [{}, {"momentum": 0.3, "eps": 1e-2}, {"affine": False}], ids=str
)
def test_losses_and_running_statistics_are_those_of_torch(engine, keywords):
    module, given = network(**keywords), batches(10)
    mine = trainer(module, sgd, given[0], engine=engine)
    losses = [mine.step(batch) for batch in given]
    np.testing.assert_allclose(losses, by_torch(module, sgd, given), rtol=1e-5)
    assert_same_weights(module, mine, 1e-4)
    assert mine.state_dict()["1.num_batches_tracked"] == 10
    again = network(**keywords)
    again.load_state_dict(mine.state_dict(), strict=True)


def test_evaluation_uses_the_running_statistics():
    module, given = network(), batches(6)
    mine = trainer(module, sgd, given[0])
    mine.fit(given[:5])
    trained = copy.deepcopy(module)
    trained.load_state_dict(mine.state_dict())
    trained.eval()
    want = nn.functional.cross_entropy(trained(given[5][0]), given[5][1]).item()
    assert mine.evaluate(given[5:]) == pytest.approx(want, rel=1e-4)
    program = mine.program((given[5][0],), options=xrt.CompileOptions(cache=False))
    np.testing.assert_allclose(
        program(given[5][0]), trained(given[5][0]).detach(), rtol=1e-4, atol=1e-5
    )


def test_without_running_statistics():
    module, given = network(track_running_stats=False), batches(5)
    mine = trainer(module, sgd, given[0])
    losses = [mine.step(batch) for batch in given]
    np.testing.assert_allclose(losses, by_torch(module, sgd, given), rtol=1e-5)


def test_a_part_in_eval_mode_stays_there():
    module, given = network(), batches(5)
    module[1].running_mean.fill_(0.7)
    module[1].eval()
    mine = trainer(module, sgd, given[0])
    losses = [mine.step(batch) for batch in given]
    np.testing.assert_allclose(losses, by_torch(module, sgd, given), rtol=1e-5)
    assert_same_weights(module, mine, 1e-4)
    assert mine.state_dict()["1.num_batches_tracked"] == 0


def test_parts_of_a_batch_update_the_statistics_in_turn():
    module, given = network(), batches(4)
    pairs = [
        tuple(torch.cat(each) for each in zip(*given[:2], strict=True)),
        tuple(torch.cat(each) for each in zip(*given[2:], strict=True)),
    ]
    mine = trainer(module, sgd, pairs[0], options={"accumulate": 2})
    mine.fit(pairs)
    optimizer = sgd(module)
    for first in (0, 2):
        optimizer.zero_grad()
        for x, y in given[first : first + 2]:
            (nn.functional.cross_entropy(module(x), y) / 2).backward()
        optimizer.step()
    assert_same_weights(module, mine, 1e-4)
    assert mine.state_dict()["1.num_batches_tracked"] == 4


def test_cumulative_averages_are_refused():
    with pytest.raises(ModelImportError, match=r"'1' is a BatchNorm.*momentum=None.*Set its"):
        trainer(network(momentum=None), sgd, batches(1)[0])
    module = network(momentum=None)
    module[1].eval()
    given = batches(2)
    mine = trainer(module, sgd, given[0])
    losses = [mine.step(batch) for batch in given]
    np.testing.assert_allclose(losses, by_torch(module, sgd, given), rtol=1e-5)
