"""Compile ResNet-50 and BERT-base with xrt and hold them against PyTorch: `make demo`.

ResNet-50 looks at a photograph that scikit-learn ships. Its weights are random unless a checkpoint
in torchvision's format is given, so its opinion of the photograph counts for nothing; that it is
PyTorch's opinion, and how fast it comes, is the point.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image

import xrt
from benchmarks import harness, models

out = Console()

TEXT = (
    "A graph compiler takes a trained network, cuts its graph into clusters, hands each cluster to "
    "the engine that runs it best, and keeps the device busy from one batch to the next."
)


def photograph() -> torch.Tensor:
    """A photograph as ImageNet networks take it: float32 [1, 3, 224, 224], normalized."""
    image = Image.fromarray(load_sample_image("china.jpg"))
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    image = image.crop((left, top, left + 224, top + 224))
    pixels = np.asarray(image, dtype=np.float32) / 255
    pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1)[None].copy())


def sentence(length: int = 128) -> dict[str, torch.Tensor]:
    """A text as BERT takes it, its bytes for want of a vocabulary: int64 [1, length] each."""
    ids = list(TEXT.encode())[:length]
    padding = [0] * (length - len(ids))
    return {
        "input_ids": torch.tensor([ids + padding]),
        "attention_mask": torch.tensor([[1] * len(ids) + padding]),
        "token_type_ids": torch.zeros(1, length, dtype=torch.int64),
    }


def difference(got: Any, want: Any) -> float:
    """Largest difference over all outputs, relative to the largest magnitude of each."""
    pairs = zip(_leaves(got), _leaves(want), strict=True)
    return float(np.max([float((g - w).abs().max() / w.abs().max()) for g, w in pairs]))


def _leaves(tree: Any) -> list[torch.Tensor]:
    from torch.utils import _pytree

    return [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def show(title: str, module: torch.nn.Module, inputs: Any, runs: int) -> None:
    """Compile `module`, print its partition, and compare it with PyTorch."""
    out.rule(f"[bold]{title}", align="left")
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    begin = time.perf_counter()
    with out.status(f"compiling {title}"):
        program = xrt.compile(module, inputs)
    seconds = time.perf_counter() - begin
    print(f"{program.explain()}\n")  # as it is: rich would break its lines

    with torch.no_grad():
        worst = difference(program(*args, **kwargs), module(*args, **kwargs))
        calls = {
            "xrt": lambda: program(*args, **kwargs),
            "eager": lambda: module(*args, **kwargs),
        }
        # The rests let one library's threads fall asleep before the other's turn.
        times = harness.interleave(calls, runs=runs, pause=0.1, settle=1)
    trace = program.profile([inputs] * runs)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("largest difference from PyTorch", f"{worst:.1e} of the largest output")
    table.add_row("compile time, import included", f"{seconds:.1f} s")
    table.add_row("latency, xrt", f"{times['xrt']['median_ms']:.1f} ms")
    table.add_row("latency, PyTorch eager", f"{times['eager']['median_ms']:.1f} ms")
    table.add_row("speed-up", f"{1 / harness.ratio(times, 'xrt', 'eager'):.2f}x")
    table.add_row("gap between launches", f"{trace.gap_ms:.3f} ms ({trace.gap_fraction:.2%})")
    out.print(table)
    print()
    if not worst < 1e-4:  # NaN included
        raise SystemExit(f"{title} differs from PyTorch by {worst:.1e}; 1e-4 is allowed.")


def _weights(checkpoint: Path | None) -> str:
    return f"weights of {checkpoint.name}" if checkpoint else "random weights"


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resnet-checkpoint", type=Path, help="ResNet-50, torchvision's format")
    parser.add_argument("--bert-checkpoint", type=Path, help="BERT-base, transformers' format")
    parser.add_argument("--runs", type=_at_least_one, default=10, help="calls to time")
    chosen = parser.parse_args()
    available = ", ".join(status.name for status in xrt.engines() if status.available)
    print(f"xrt {xrt.__version__}; engines here: {available}; PyTorch {torch.__version__}\n")
    resnet, _ = models.load("resnet50", checkpoint=chosen.resnet_checkpoint)
    show(
        f"ResNet-50, one photograph, {_weights(chosen.resnet_checkpoint)}",
        resnet,
        (photograph(),),
        chosen.runs,
    )
    bert, _ = models.load("bert", checkpoint=chosen.bert_checkpoint)
    show(
        f"BERT-base, 128 tokens, {_weights(chosen.bert_checkpoint)}", bert, sentence(), chosen.runs
    )


if __name__ == "__main__":
    main()
