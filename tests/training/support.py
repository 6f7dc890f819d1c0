"""What the tests of training share: small networks, and the same training by torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import xrt

Make = Callable[[Any], Any]
"""Makes an optimizer of parameters."""


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16),
        nn.ReLU(),
        nn.Linear(16, 16),
        nn.GELU(),
        nn.LayerNorm(16),
        nn.Linear(16, 4),
    )


def classes(count: int, batch: int = 6, *, seed: int = 1) -> list[tuple[Any, Any]]:
    """Batches for `mlp` and the loss "cross_entropy"."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(batch, 8, generator=generator),
            torch.randint(0, 4, (batch,), generator=generator),
        )
        for _ in range(count)
    ]


def by_torch(
    module: nn.Module,
    make: Make,
    batches: Sequence[Any],
    loss: Callable[[Any, Any], Any] = nn.functional.cross_entropy,
    *,
    clip: float | None = None,
    schedule: Callable[[Any], Any] | None = None,
) -> list[float]:
    """The losses of training `module`, in place, by torch."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = make(module)
    scheduler = schedule(optimizer) if schedule else None
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        value = loss(module(inputs), targets)
        value.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(value.item())
    return losses


def trainer(module: nn.Module, make: Make, batch: Any, **keywords: Any) -> xrt.Trainer:
    """A trainer of a copy of `module`."""
    module = copy.deepcopy(module)
    keywords.setdefault("loss", "cross_entropy")
    options = xrt.TrainingOptions(progress=False, **keywords.pop("options", {}))
    return xrt.compile_training(module, batch, optimizer=make(module), options=options, **keywords)


def assert_same_weights(module: nn.Module, trained: xrt.Trainer, tolerance: float = 1e-5) -> None:
    """Fail unless a trainer holds the state dict of `module`, within a tolerance."""
    got = trained.state_dict()
    assert list(got) == list(module.state_dict())
    for name, want in module.state_dict().items():
        assert got[name].dtype == want.dtype, name
        np.testing.assert_allclose(got[name], want, rtol=tolerance, atol=tolerance, err_msg=name)
