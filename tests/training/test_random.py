"""Dropout: its share, its scale, its seed; alike however the step is run."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.support import trainer

X = torch.ones(64, 256)


class Dropped(nn.Module):
    """Gives its weight the gradient mean(dropout(1)) column by column."""

    def __init__(self, p=0.25):
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.zeros(256)), nn.Dropout(p)

    def forward(self, x):
        return (self.drop(x) * self.weight).sum() / len(x)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=1.0, maximize=True)


def kept(engine="xla", steps=1, module=None, **options):
    """The change of the weight in the last of `steps` steps: how often each column was kept."""
    mine = trainer(module or Dropped(), sgd, X, engine=engine, loss=None, options=options)
    before = np.zeros(256)
    for _ in range(steps):
        before = mine.state_dict()["weight"].numpy()
        mine.step(X)
    return mine.state_dict()["weight"].numpy() - before


def test_it_keeps_its_share_and_scales_by_it():
    share = kept()
    assert share.mean() == pytest.approx(1, abs=4 * np.sqrt(0.25 / 0.75 / X.numel()))
    counts = share * 64 * 0.75
    np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    assert 48 - 15 < counts.min() < counts.max() < 48 + 15
    assert counts.std() == pytest.approx(np.sqrt(64 * 0.25 * 0.75), rel=0.2)


def test_a_seed_gives_the_same_numbers_and_every_step_other_ones():
    np.testing.assert_array_equal(kept(), kept())
    assert not np.array_equal(kept(), kept(seed=1))
    assert not np.array_equal(kept(), kept(steps=2))


def test_the_numbers_do_not_depend_on_how_the_step_is_cut():
    np.testing.assert_allclose(kept("host"), kept(), atol=1e-6)
    np.testing.assert_allclose(kept(segments=2), kept(), atol=1e-6)


def test_parts_of_a_batch_draw_their_own():
    halves = kept(accumulate=2)
    assert halves.mean() == pytest.approx(1, abs=0.02)
    counts = halves * 64 * 0.75
    assert len(set((counts.round() % 2).tolist())) == 2, "two equal draws give even counts only"
    np.testing.assert_allclose(kept("host", accumulate=2), halves, atol=1e-6)


def test_evaluation_drops_nothing():
    module = Dropped()
    nn.init.ones_(module.weight)
    mine = trainer(module, sgd, X, loss=None)
    assert mine.evaluate([X]) == pytest.approx(256)
    assert module.training
    assert module.drop.training


class Attention(nn.Module):
    def __init__(self, p, causal=False):
        super().__init__()
        self.weight, self.p, self.causal = nn.Parameter(torch.zeros(1)), p, causal

    def forward(self, q, v):
        p = self.p if self.training else 0.0
        attended = nn.functional.scaled_dot_product_attention(
            q, q, v, dropout_p=p, is_causal=self.causal
        )
        return ((self.weight + 1) * attended).mean()


def test_the_dropout_inside_attention_is_there():
    q, v = torch.zeros(8, 4, 32, 16), torch.ones(8, 4, 32, 16)
    mine = trainer(Attention(0.5), sgd, (q, v), loss=None)
    mine.step((q, v))
    first = mine.metrics.loss
    # Each of the 1024 rows is the mean of 32 weights that are 0 or 2.
    assert first != pytest.approx(1, abs=1e-4)
    assert first == pytest.approx(1, abs=5 / np.sqrt(32 * 1024))
    assert mine.evaluate([(q, v)]) == pytest.approx(1 + float(mine.state_dict()["weight"][0]))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_dropout_is_that_of_torch(causal):
    torch.manual_seed(0)
    q, v = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    module = Attention(0.0, causal)
    mine = trainer(module, sgd, (q, v), loss=None)
    assert mine.step((q, v)) == pytest.approx(module(q, v).item(), rel=1e-5)


def test_a_parameter_free_encoder_layer_of_torch_trains():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
    x, y = torch.randn(4, 6, 16), torch.zeros(4, 6, 16)
    mine = trainer(layer, lambda m: torch.optim.SGD(m.parameters(), lr=0.1), (x, y), loss="mse")
    losses = [mine.step((x, y)) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
