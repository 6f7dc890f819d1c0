"""Train a small network with xrt, deploy it in int8, save it, load it, and count what it reads.

    python -m examples.train_digits

A convolutional network learns handwritten digits from half of scikit-learn's images: forward pass,
backward pass and update are one executable. The program made of it, in fp32, in int8, and in int8
as it comes back from a file, then reads the other half, by writers whom training never saw.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import torch
from rich.console import Console
from torch import Tensor, nn

import xrt
from examples.digits_precision import BATCH, CALIBRATION_BATCHES, Digits, digits

LEARNING = 64
"""Images of a training batch; a step is compiled for batches of one shape."""


def network() -> nn.Module:
    """A network of 26,000 parameters: float32 [N, 1, 8, 8] to scores [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )


def shuffled(data: Digits, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of batches, each moved by a pixel at most: more to learn from."""
    order = torch.randperm(len(data.train), generator=generator)
    for chosen in order.split(LEARNING):
        if len(chosen) == LEARNING:
            shifts = torch.randint(-1, 2, (2,), generator=generator).tolist()
            yield torch.roll(data.train[chosen], shifts, dims=(2, 3)), data.train_labels[chosen]


def held_out(data: Digits) -> list[tuple[Tensor, Tensor]]:
    """Whole batches of the half that is not trained on."""
    images, labels = data.test.split(LEARNING), data.test_labels.split(LEARNING)
    return [(x, y) for x, y in zip(images, labels, strict=True) if len(x) == LEARNING]


def right(scores: Any, labels: Any) -> Any:
    """The share of images that are read correctly, in JAX."""
    return jnp.mean(jnp.argmax(scores, axis=1) == labels)


def train(data: Digits, epochs: int, out: Console) -> xrt.Trainer:
    """Train, and say after each epoch how many of the held-out images are read correctly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = network().train()
    generator = torch.Generator().manual_seed(0)
    steps = epochs * (len(data.train) // LEARNING)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=steps, cycle_momentum=False
    )
    trainer = xrt.compile_training(
        net,
        next(shuffled(data, torch.Generator())),
        optimizer=schedule,
        loss="cross_entropy",
        options=xrt.TrainingOptions(clip_norm=1.0, progress=False),
    )
    for epoch in range(1, epochs + 1):
        losses = trainer.fit(shuffled(data, generator))
        accuracy = trainer.evaluate(held_out(data), right)
        mean = sum(losses) / len(losses)
        out.print(f"epoch {epoch:2}: loss {mean:.3f}, {accuracy:.2%} of the held-out images")
    return trainer


def deploy(
    trainer: xrt.Trainer, data: Digits, path: Path, options: xrt.CompileOptions | None = None
) -> dict[str, float]:
    """Programs of the trained network: the share of the held-out half that each reads correctly."""
    batches = data.test.split(BATCH)
    calibration = [(images,) for images in data.train.split(BATCH)[:CALIBRATION_BATCHES]]
    full = trainer.program((batches[0],), options=options)
    small = trainer.program(
        (batches[0],), precision="int8", calibration=calibration, options=options
    )
    small.save(path)
    programs = {"fp32": full, "int8": small, "int8, loaded": xrt.load(path)}
    return {name: accuracy(program, data) for name, program in programs.items()}


def accuracy(program: xrt.Program, data: Digits) -> float:
    """The share of the held-out half that a program reads correctly."""
    classes = torch.cat([program(images) for images in data.test.split(BATCH)]).argmax(1)
    return float((classes == data.test_labels).float().mean())


def main(arguments: list[str] | None = None) -> None:
    """Train, deploy, save, load and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="file for the int8 program; default: none stays")
    chosen = parser.parse_args(arguments)
    out, data = Console(), digits()
    trainer = train(data, chosen.epochs, out)
    with tempfile.TemporaryDirectory() as folder:
        found = deploy(trainer, data, chosen.keep or Path(folder) / "digits.xrt")
    for name, share in found.items():
        out.print(f"{name:14}{share:.2%}")


if __name__ == "__main__":
    main()
