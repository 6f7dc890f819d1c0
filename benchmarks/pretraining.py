"""BERT pre-training: the network with its loss, and batches of made-up sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTH, PREDICTIONS = 128, 20
"""Words of a pair of sentences, and those of them that are to be predicted."""


class Pretraining(nn.Module):
    """BERT with both pre-training heads, scored at the masked places only, as its authors did.

    ``input_ids``, ``token_type_ids`` int64 [N, L], ``places`` int64 [N, P] (which words are
    masked), ``words`` int64 [N, P] (what they were) and ``follows`` int64 [N] (whether the second
    sentence follows the first) -> the loss, a scalar: the sum of both cross-entropies.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import BertForPreTraining

        made = BertForPreTraining(config)
        self.bert, self.cls = made.bert, made.cls

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        places: Tensor,
        words: Tensor,
        follows: Tensor,
    ) -> Tensor:
        """The loss."""
        found = self.bert(input_ids, token_type_ids=token_type_ids)
        hidden, pooled = found.last_hidden_state, found.pooler_output
        index = places[:, :, None].expand(-1, -1, hidden.shape[-1])
        scores, relation = self.cls(hidden.gather(1, index), pooled)
        masked = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), words.reshape(-1))
        return masked + F.cross_entropy(relation, follows)


def build(*, tiny: bool, dropout: float, seed: int = 0) -> nn.Module:
    """BERT-base, or a network of the same kind that is trained in moments; in training mode."""
    from transformers import BertConfig

    size: dict[str, int] = {}
    if tiny:
        size = {
            "vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64,
        }  # fmt: skip
    config = BertConfig(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Pretraining(config).train()


def batch(size: int, number: int, vocabulary: int) -> dict[str, Tensor]:
    """Batch `number`: words are as frequent as by Zipf's law, so that there is something to learn.

    The first tenth of the vocabulary, at most 1000, are marks, as in BERT's own.
    """
    rng = np.random.default_rng([number, 7])
    first = min(1000, vocabulary // 10)
    ranks = np.arange(1, vocabulary - first + 1)
    ids = first + rng.choice(ranks.size, (size, LENGTH), p=(1 / ranks) / (1 / ranks).sum())
    places = np.stack([rng.permutation(LENGTH)[:PREDICTIONS] for _ in range(size)])
    words = np.take_along_axis(ids, places, axis=1)
    np.put_along_axis(ids, places, min(103, first - 1), axis=1)  # [MASK]
    types = np.zeros((size, LENGTH), np.int64)
    types[:, LENGTH // 2 :] = 1
    arrays = {
        "input_ids": ids,
        "token_type_ids": types,
        "places": places,
        "words": words,
        "follows": rng.integers(0, 2, size),
    }
    return {name: torch.from_numpy(array.astype(np.int64)) for name, array in arrays.items()}


def optimizer(module: nn.Module) -> torch.optim.Optimizer:
    """Adam as in the published runs, with decoupled decay of the weights."""
    return torch.optim.AdamW(module.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01)


CLIP_NORM = 1.0
"""Largest norm of all gradients together."""
