"""Networks so small that a benchmark script can be tried out with them within seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SIZE = 32
"""Height and width of the images."""


class TinyBert(nn.Module):
    """One layer of an encoder: ids, mask and types int64 [N, L] to scores [N, L, words]."""

    def __init__(self, words: int = 64, width: int = 16) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(words, width), nn.Embedding(2, width)
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, words)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        """The scores of every word at every place."""
        hidden = self.words(input_ids) + self.types(token_type_ids)
        scores = hidden @ hidden.transpose(1, 2) / 4
        scores = scores.masked_fill(attention_mask[:, None] == 0, -1e9)
        hidden = self.norm(hidden + self.mix(scores.softmax(-1) @ hidden))
        return self.head(hidden)


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


NETWORKS = {"tiny_cnn": _cnn, "tiny_bert": TinyBert}


def inputs(name: str, batch: int, seed: int) -> tuple[Tensor, ...] | dict[str, Tensor]:
    """Random inputs that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    if name == "tiny_cnn":
        return (torch.randn(batch, 3, SIZE, SIZE, generator=generator),)
    ids = torch.randint(0, 64, (batch, 8), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }


def load(name: str, batch: int, seed: int = 0) -> tuple[nn.Module, Any]:
    """A network in eval mode, with example inputs for it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NETWORKS[name]().eval()
    return module, inputs(name, batch, seed)
