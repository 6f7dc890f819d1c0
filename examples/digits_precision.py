"""One small network in fp32, fp16, bf16 and int8, on data that scikit-learn ships.

    python -m examples.digits_precision

A residual network learns to read handwritten digits from half of the images, in seconds. Compiled
in every precision it then reads the other half, which training never saw: how many it gets right,
how many predictions differ from fp32's, how long a batch takes and how large the weights are.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import xrt
from benchmarks import harness
from xrt.options import PRECISIONS

BATCH = 31  # 29 of them make the held-out half of 899 images
CALIBRATION_BATCHES = 16


class Residual(nn.Module):
    """Two convolutions with BatchNorm, added to their input."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.skip = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, channels, H, W] to [N, out, H / stride, W / stride]."""
        return F.relu(self.body(x) + self.skip(x))


def network() -> nn.Module:
    """A residual network of 96,000 parameters: float32 [N, 1, 8, 8] to scores [N, 10]."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32, 32),
        Residual(32, 32),
        Residual(32, 64, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


@dataclass(frozen=True)
class Digits:
    """Images float32 [N, 1, 8, 8] of mean near 0, and what they show, int64 [N].

    The held-out half is by writers whom training never saw.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def digits() -> Digits:
    """The 1,797 images, first half and second half."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(data.target, dtype=torch.int64)
    half = len(images) // 2
    return Digits(images[:half], labels[:half], images[half:], labels[half:])


def trained(data: Digits, *, epochs: int = 12, seed: int = 0) -> nn.Module:
    """The network, trained on the first half, in eval mode."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # images this small are not worth a barrier between threads
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _train(network(), data, epochs).eval()
    finally:
        torch.set_num_threads(threads)


def _train(net: nn.Module, data: Digits, epochs: int) -> nn.Module:
    whole = len(data.train) // 64
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * whole)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.train)).split(64)[:whole]:
            optimizer.zero_grad()
            scores = net(_shifted(data.train[chosen]))
            F.cross_entropy(scores, data.train_labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return net


def _shifted(images: Tensor) -> Tensor:
    """The images, moved by a pixel at most: more to learn from."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    return torch.roll(images, (down, right), dims=(2, 3))


@dataclass(frozen=True)
class Row:
    """What one precision does on the held-out half.

    Attributes:
        precision: The precision.
        correct: Images read correctly.
        differing: Predictions that differ from fp32's.
        total: Images.
        milliseconds: Median time of a batch.
        weight_bytes: Bytes of the constants in the compiled graph.
    """

    precision: str
    correct: int
    differing: int
    total: int
    milliseconds: float
    weight_bytes: int


def weight_bytes(program: xrt.Program) -> int:
    """Bytes of the constants of a program, as its graph holds them."""
    values = program.specialization.built.model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def compare(
    net: nn.Module, data: Digits, *, runs: int = 30, options: xrt.CompileOptions | None = None
) -> list[Row]:
    """Compile `net` in every precision, read the held-out half, and time a batch."""
    batches = data.test.split(BATCH)
    calibration = [(images,) for images in data.train.split(BATCH)[:CALIBRATION_BATCHES]]
    programs: dict[str, xrt.Program] = {}
    for precision in PRECISIONS:
        given: dict[str, Any] = {"calibration": calibration} if precision == "int8" else {}
        programs[precision] = xrt.compile(
            net, (batches[0],), precision=precision, options=options, **given
        )
    found = {
        precision: torch.cat([program(images) for images in batches]).argmax(1).numpy()
        for precision, program in programs.items()
    }
    calls = {name: lambda p=program: p(batches[0]) for name, program in programs.items()}
    times = harness.interleave(calls, runs=runs, settle=1)
    labels = data.test_labels.numpy()
    return [
        Row(
            precision=name,
            correct=int(np.sum(classes == labels)),
            differing=int(np.sum(classes != found["fp32"])),
            total=len(labels),
            milliseconds=times[name]["median_ms"],
            weight_bytes=weight_bytes(programs[name]),
        )
        for name, classes in found.items()
    ]


def main() -> None:
    """Train, compile and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    out, data = Console(), digits()
    with out.status("training"):
        net = trained(data, epochs=chosen.epochs, seed=chosen.seed)
    with out.status("compiling"):
        rows = compare(net, data)
    table = Table("precision", "accuracy, held out", "differ from fp32", "ms / batch", "weights")
    for row in rows:
        table.add_row(
            row.precision,
            f"{row.correct / row.total:.2%}",
            f"{row.differing} of {row.total}",
            f"{row.milliseconds:.3f}",
            f"{row.weight_bytes / 1024:.0f} KiB",
        )
    out.print(table)


if __name__ == "__main__":
    main()
