"""Example inputs, shaped and typed as each network's own preprocessing leaves them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Inputs", "bert", "detection", "image", "owlvit", "pixels"]

Inputs = tuple[Tensor, ...] | dict[str, Tensor]

_BERT_LENGTH = 128
_CLIP_LENGTH = 16
# "a photo of a cat" and "a photo of a dog", the queries of the published measurement, in CLIP's
# vocabulary; OwlViT's processor pads them with zeros.
_CLIP_QUERIES = (
    (49406, 320, 1125, 539, 320, 2368, 49407),
    (49406, 320, 1125, 539, 320, 1929, 49407),
)


def image(batch: int, seed: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Normalised images, float32 ``[batch, 3, H, W]``, mean near 0 and variance 1, positional.

    Image i is the same in a batch of any size.
    """
    generator = torch.Generator().manual_seed(seed)
    return (torch.stack([_photograph(generator, size) for _ in range(batch)]),)


def _photograph(generator: torch.Generator, size: tuple[int, int]) -> Tensor:
    """Noise of equal strength at every octave, ``[3, H, W]``, as in photographs.

    White noise averages out in deep layers, which leaves them nothing but rounding to normalise.
    """
    picture = torch.zeros(1, 3, *size)
    scale = 1
    while scale <= max(size):
        grid = [-(-side // scale) for side in size]
        noise = torch.randn(1, 3, *grid, generator=generator)
        picture += F.interpolate(noise, size=size, mode="bilinear")
        scale *= 2
    return picture[0] / picture.std()


def pixels(batch: int, seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """``pixel_values``, float32 ``[batch, 3, H, W]``."""
    return {"pixel_values": image(batch, seed, size)[0]}


def detection(batch: int, seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """``pixel_values`` and an all-ones ``pixel_mask``, int64 ``[batch, H, W]``."""
    mask = torch.ones(batch, *size, dtype=torch.int64)
    return {**pixels(batch, seed, size), "pixel_mask": mask}


def owlvit(batch: int, seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """``pixel_values`` with two text queries an image: ids and mask, int64 ``[2 * batch, 16]``."""
    ids = torch.zeros(len(_CLIP_QUERIES), _CLIP_LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, tokens in enumerate(_CLIP_QUERIES):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
    return {
        "input_ids": ids.repeat(batch, 1),
        "attention_mask": mask.repeat(batch, 1),
        **pixels(batch, seed, size),
    }


def bert(batch: int, seed: int) -> dict[str, Tensor]:
    """Two full segments of random word pieces: ids, mask and types, int64 ``[batch, 128]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, _BERT_LENGTH)
    ids = torch.randint(1000, 30522, shape, generator=generator)  # below 1000: special and unused
    half = _BERT_LENGTH // 2
    ids[:, 0] = 101  # [CLS]
    ids[:, half - 1] = ids[:, -1] = 102  # [SEP]
    types = torch.zeros(shape, dtype=torch.int64)
    types[:, half:] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
