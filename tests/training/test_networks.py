"""Whole networks: the loss of each of 20 steps beside PyTorch's, dropout off."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import xrt

OPTIMIZERS = {
    "sgd": lambda m, rate: torch.optim.SGD(m.parameters(), lr=rate, momentum=0.9),
    "adamw": lambda m, rate: torch.optim.AdamW(m.parameters(), lr=rate / 10),
}


def by_both(module, make, batches, keywords, loss):
    """The losses by xrt and by torch, which trains `module`; the trainer."""
    mine = copy.deepcopy(module)
    trainer = xrt.compile_training(
        mine,
        batches[0],
        optimizer=make(mine),
        options=xrt.TrainingOptions(progress=False),
        **keywords,
    )
    optimizer, want = make(module), []
    for batch in batches:
        optimizer.zero_grad()
        value = loss(batch)
        value.backward()
        optimizer.step()
        want.append(value.item())
    return [trainer.step(batch) for batch in batches], want, trainer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bert(name):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=4,
        intermediate_size=256,
        vocab_size=500,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    module = transformers.BertForMaskedLM(config).train()
    mask = torch.ones(4, 64, dtype=torch.long)
    mask[1:, 50:] = 0
    batches = []
    for _ in range(20):
        ids = torch.randint(0, 500, (4, 64))
        labels = torch.where(torch.rand(4, 64) < 0.2, ids, -100)
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    got, want, trainer = by_both(
        module,
        lambda m: OPTIMIZERS[name](m, 0.01),
        batches,
        {},
        lambda batch: module(**batch).loss,
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    again = copy.deepcopy(module)
    again.load_state_dict(trainer.state_dict(), strict=True)


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.down = None
        if stride > 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.down = nn.Sequential(conv, nn.BatchNorm2d(c_out))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.down is None else self.down(x)))


class ResNet(nn.Module):
    """The layers of ResNet-18, narrow."""

    def __init__(self, widths=(16, 24, 32, 48), classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1, self.pool = nn.BatchNorm2d(widths[0]), nn.MaxPool2d(3, 2, 1)
        blocks, before = [], widths[0]
        for number, width in enumerate(widths):
            blocks += [Block(before, width, 1 if number == 0 else 2), Block(width, width, 1)]
            before = width
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(before, classes)

    def forward(self, x):
        x = self.pool(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(self.blocks(x).mean((2, 3)))


@pytest.mark.parametrize(("name", "rate"), [("sgd", 1e-3), ("adamw", 1e-4)])
def test_resnet_18(name, rate):
    """Where an input of ReLU is 0 but for rounding, its gradient is there or not, and from then on
    two runs drift apart, as PyTorch in float32 does from float64. Of these data sets at least one
    has to have no such place; of six of them, 3 had none by SGD and 4 by AdamW."""
    farthest = []
    for seed in (0, 5, 2):
        torch.manual_seed(seed)
        module = ResNet().train()
        images, labels = torch.randn(20, 8, 3, 48, 48), torch.randint(0, 10, (20, 8))
        got, want, trainer = by_both(
            module,
            lambda m: OPTIMIZERS[name](m, rate),
            list(zip(images, labels, strict=True)),
            {"loss": "cross_entropy"},
            lambda batch, m=module: nn.functional.cross_entropy(m(batch[0]), batch[1]),
        )
        np.testing.assert_allclose(got[:2], want[:2], rtol=1e-5)
        farthest.append(np.max(np.abs(np.subtract(got, want)) / want))
        if farthest[-1] < 1e-5:
            break
    assert farthest[-1] < 1e-5, farthest
    state = trainer.state_dict()
    for key, buffer in module.named_buffers():
        np.testing.assert_allclose(state[key], buffer, rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_of_convolutions(groups, stride, dilation):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 12, (3, 2), stride, padding=(2, 0), dilation=dilation, groups=groups)
    module = nn.Sequential(nn.Conv2d(3, 6, 1), conv, nn.Flatten())
    x = torch.randn(2, 3, 9, 8)
    y = torch.randn(module(x).shape)
    mine = xrt.compile_training(
        module,
        (x, y),
        optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        loss="mse",
        options=xrt.TrainingOptions(progress=False),
    )
    mine.step((x, y))
    nn.functional.mse_loss(module(x), y).backward()
    state = mine.state_dict()
    for name, parameter in module.named_parameters():
        want = (parameter - parameter.grad).detach()
        np.testing.assert_allclose(state[name], want, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_convolution_in_one_and_in_three_dimensions():
    for kind, size in ((nn.Conv1d, (7,)), (nn.Conv3d, (4, 5, 6))):
        torch.manual_seed(0)
        module = nn.Sequential(kind(2, 3, 3, padding=1), nn.Flatten())
        x = torch.randn(2, 2, *size)
        y = torch.randn(module(x).shape)
        mine = xrt.compile_training(
            module, (x, y), optimizer=torch.optim.SGD(module.parameters(), lr=1.0), loss="mse"
        )
        mine.step((x, y))
        nn.functional.mse_loss(module(x), y).backward()
        want = (module[0].weight - module[0].weight.grad).detach()
        np.testing.assert_allclose(mine.state_dict()["0.weight"], want, rtol=1e-5, atol=1e-6)
