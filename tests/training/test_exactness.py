"""What is easily lost between torch and a compiled step: the same numbers, or refused by name."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import xrt
from tests.training.support import assert_same_weights, by_torch, trainer
from xrt.errors import ModelImportError, TrainingError

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4
TOKENS = torch.arange(28).reshape(4, 7) % 10
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 + 1


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1)


def decaying(module):
    return torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)


class Net(nn.Module):
    """A module of parts by name, and what its forward computes of itself and its inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.compute = forward

    def forward(self, *inputs):
        return self.compute(self, *inputs)


def net(forward, **parts):
    torch.manual_seed(0)
    return Net(forward, **{name: make() for name, make in parts.items()})


def check(module, batch, make=sgd, steps=3):
    """The same losses and weights as torch's, of the loss "cross_entropy"."""
    mine, batches = trainer(module, make, batch), [batch] * steps
    losses = [mine.step(each) for each in batches]
    np.testing.assert_allclose(losses, by_torch(module, make, batches), rtol=1e-5)
    assert_same_weights(module, mine)
    return mine


def check_own(module, batch, steps=3):
    """The same losses and weights as torch's, of the loss that the module returns."""
    mine = trainer(module, sgd, batch, loss=None)
    losses = [mine.step(batch) for _ in range(steps)]
    optimizer, wanted = sgd(module), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module(*batch)
        loss.backward()
        optimizer.step()
        wanted.append(loss.item())
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert_same_weights(module, mine)


def refused(module, batch=(X, Y), loss="cross_entropy"):
    """The message; the module is not copied, because copies of parameters lose their hooks."""
    with pytest.raises(ModelImportError) as caught:
        xrt.compile_training(
            module,
            batch,
            optimizer=sgd(module),
            loss=loss,
            options=xrt.TrainingOptions(progress=False),
        )
    return str(caught.value)


def linear():
    return nn.Linear(6, 4)


IGNORING = Y.where(torch.arange(8) != 2, torch.tensor(-100))
WEIGHTS = torch.tensor([0.1, 0.5, 2.0, 1.0])


@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_label_smoothing_of_the_models_own_loss(weight):
    def loss(self, x, y):
        return F.cross_entropy(self.a(x), y, weight=weight, label_smoothing=0.2)

    check_own(net(loss, a=linear), (X, IGNORING))


def test_probabilities_as_targets_of_the_models_own_loss():
    def loss(self, x, y):
        return F.cross_entropy(self.a(x), y, weight=WEIGHTS, label_smoothing=0.1, reduction="sum")

    check_own(net(loss, a=linear), (X, X[:, :4].softmax(1)))


def test_the_row_of_padding_gets_no_gradient():
    def tied(self, tokens):
        return F.linear(self.norm(self.e(tokens)), self.head.weight).transpose(1, 2)

    module = net(
        tied,
        e=lambda: nn.Embedding(10, 6, padding_idx=0),
        norm=lambda: nn.LayerNorm(6),
        head=lambda: nn.Linear(6, 10, bias=False),
    )
    mine = check(module, (TOKENS, TOKENS.flip(0)), decaying)
    row = mine.state_dict()["e.weight"][0]
    assert torch.count_nonzero(row) == 0
    module.head.weight = module.e.weight  # then the row is trained as a part of the head
    check(module, (TOKENS, TOKENS.flip(0)))


def test_gradients_scaled_by_frequency_are_refused():
    module = net(
        lambda self, tokens: self.e(tokens).transpose(1, 2),
        e=lambda: nn.Embedding(10, 10, scale_grad_by_freq=True),
    )
    assert "scale_grad_by_freq=True" in refused(module, (TOKENS, TOKENS))


class Round(torch.autograd.Function):
    """Rounds; passes the gradient as it is."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def test_a_backward_pass_of_ones_own_is_refused():
    apply = torch.autograd.Function.__dict__["apply"]
    module = net(lambda self, x: self.a(Round.apply(x)), a=linear)
    message = refused(module)
    assert "torch.autograd.Function 'Round'" in message
    assert "detach()" in message
    assert torch.autograd.Function.__dict__["apply"] is apply


def test_the_remedy_for_rounding_trains_as_in_torch():
    def forward(self, x):
        x = self.a(x) * 3
        return self.b(x + (torch.round(x) - x).detach())

    check(net(forward, a=lambda: nn.Linear(6, 6), b=linear), (X, Y))


def test_torchs_own_functions_are_no_change_of_gradients():
    def forward(self, x, reentrant=False):
        return self.b(checkpoint(lambda x: torch.tanh(self.a(x)), x, use_reentrant=reentrant))

    check(net(forward, a=lambda: nn.Linear(6, 6), b=linear), (X, Y))
    module = net(lambda self, x: forward(self, x, True), a=lambda: nn.Linear(6, 6), b=linear)
    assert "switches gradients off" in refused(module)  # and not: a torch.autograd.Function


def test_hooks_are_refused():
    module = linear()
    module.weight.register_hook(lambda gradient: gradient * 0)
    assert "'weight' has hooks on its gradient" in refused(module)
    module.weight.requires_grad_(False)
    trained = xrt.compile_training(
        module,
        (X, Y),
        optimizer=torch.optim.SGD([module.bias], lr=0.1),
        loss="cross_entropy",
        options=xrt.TrainingOptions(progress=False),
    )
    assert np.isfinite(trained.step((X, Y)))
    module = linear()
    module.bias.register_post_accumulate_grad_hook(lambda parameter: None)
    assert "'bias' has hooks on its gradient" in refused(module)
    module = nn.Sequential(linear())
    module[0].register_full_backward_hook(lambda module, before, after: None)
    assert "the module '0' has backward hooks" in refused(module)
    module = nn.Sequential(linear())
    module[0].register_full_backward_pre_hook(lambda module, after: None)
    assert "the module '0' has backward hooks" in refused(module)

    def forward(self, x):
        x = self.a(x)
        x.register_hook(lambda gradient: gradient * 2)
        return x

    assert "uses Tensor.register_hook" in refused(net(forward, a=linear))


def test_instance_norm_updates_its_running_statistics():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    before = module[1].running_var.clone()
    mine = check(module, (IMAGES, Y[:4]))
    assert (mine.state_dict()["1.running_var"] - before).abs().max() > 0.1


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_dropout_between_the_layers_of_an_rnn_is_refused(nonlinearity):
    def forward(self, x):
        return self.r(x[:, None])[0][:, 0]

    module = net(forward, r=lambda: nn.RNN(6, 4, 2, nonlinearity, batch_first=True, dropout=0.5))
    assert "dropout between the layers of nn.RNN" in refused(module)
    module.r.eval()
    check(module, (X, Y))


def test_what_gets_no_gradient_does_not_decay():
    def forward(self, x):
        x = x + self.before(x).detach()
        return self.a(x) + 0 * self.picking(x).argmax(1, keepdim=True).float()

    module = net(forward, before=lambda: nn.Linear(6, 6), a=linear, picking=linear)
    mine = check(module, (X, Y), decaying)
    first = net(forward, before=lambda: nn.Linear(6, 6), a=linear, picking=linear)
    for name in ("before.weight", "picking.bias"):
        assert torch.equal(mine.state_dict()[name], first.state_dict()[name])
    assert not torch.equal(mine.state_dict()["a.weight"], first.state_dict()["a.weight"])


def test_a_gradient_of_zeros_is_one():
    module = net(lambda self, x: self.a(x) + torch.round(self.b(x)), a=linear, b=linear)
    mine = check(module, (X, Y), decaying)
    first = net(module.compute, a=linear, b=linear)
    assert not torch.equal(mine.state_dict()["b.weight"], first.state_dict()["b.weight"])


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_that_are_no_class(label):
    module, wrong = linear(), Y.clone()
    wrong[3] = label
    mine = trainer(module, sgd, (X, Y))
    with pytest.raises(TrainingError, match="not finite"):
        mine.step((X, wrong))
    assert_same_weights(module, mine, 0)
    wrong[3] = -100
    want = F.cross_entropy(module(X), wrong).item()
    assert mine.step((X, wrong)) == pytest.approx(want, rel=1e-5)


def row_masked_out():
    allowed = torch.ones(8, 8, dtype=torch.bool).tril()
    allowed[3] = False
    return allowed


MASKS = {
    "bool": row_masked_out(),
    "float": torch.zeros(8, 8).masked_fill(~row_masked_out(), -torch.inf),
}


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dropout", [0.0, 1e-9])
def test_attention_where_everything_is_masked(kind, dropout):
    """The probability is too small to drop anything, and takes the way of one that does."""

    def forward(self, x):
        q = self.q(x).view(1, 2, 8, 4)
        z = F.scaled_dot_product_attention(q, q, q, attn_mask=MASKS[kind], dropout_p=dropout)
        return self.o(z.reshape(8, 8))

    check(net(forward, q=lambda: nn.Linear(6, 8), o=lambda: nn.Linear(8, 4)), (X, Y))


class Buffered(nn.Module):
    """Keeps an average of what it computes."""

    def __init__(self, *, persistent=True, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.a = linear()
        self.register_buffer("average", torch.zeros(4, dtype=dtype), persistent=persistent)

    def forward(self, x):
        x = self.a(x)
        if self.average.dtype == torch.float32:
            self.average.mul_(0.9).add_(x.detach().mean(0))
        return x + self.average.float()


def test_buffers_that_cannot_be_kept():
    check(Buffered(), (X, Y))
    assert "the buffer 'average', which the state dict" in refused(Buffered(persistent=False))
    assert "'average' is of type bfloat16" in refused(Buffered(dtype=torch.bfloat16))


class Extra(Buffered):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


def test_extra_state_is_refused():
    assert "'_extra_state' in the state dict is a dict of get_extra_state()" in refused(Extra())


def test_a_refusal_leaves_torch_and_the_module_as_they_were():
    module = net(lambda self, x: Round.apply(self.a(x)), a=linear)
    before = copy.deepcopy(module.state_dict())
    refused(module)
    module(X).sum().backward()
    assert module.a.weight.grad is not None
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
