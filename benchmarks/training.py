"""Training steps of BERT beside PyTorch: time, and memory, on the machine at hand.

    python -m benchmarks.training                      # 4 layers, sequence 128, batch 8, AdamW
    python -m benchmarks.training --layers 1 --rounds 3

The steps are timed in turn: eager, torch.compile, xrt, xrt without clusters, eager, ... Peak memory
is that of a process of its own for each: the most that is resident after three steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness

SYSTEMS = ("eager", "torch.compile", "xrt xla", "xrt host")
Step = Callable[[], float]


def build(layers: int, sequence: int, batch: int, dropout: float) -> tuple[Any, dict[str, Any]]:
    """BERT for masked words, in training mode, and a batch."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout
    )
    ids = torch.randint(0, config.vocab_size, (batch, sequence))
    labels = torch.where(torch.rand(batch, sequence) < 0.15, ids, -100)
    return BertForMaskedLM(config).train(), {"input_ids": ids, "labels": labels}


def make(system: str, module: Any, batch: dict[str, Any]) -> Step:
    """A training step of `module`, or of a copy, that returns its loss."""
    import torch

    import xrt

    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    if system.startswith("xrt"):
        trainer = xrt.compile_training(module, batch, optimizer=optimizer, engine=system.split()[1])
        return lambda: trainer.step(batch)
    called = torch.compile(module) if system == "torch.compile" else module

    def step() -> float:
        optimizer.zero_grad()
        loss = called(**batch).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def times(chosen: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of each system's step, in turn, and the losses of the first three."""
    module, batch = build(chosen.layers, chosen.sequence, chosen.batch, chosen.dropout)
    steps = {name: make(name, copy.deepcopy(module), batch) for name in chosen.systems}
    losses = {name: [step() for _ in range(3)] for name, step in steps.items()}
    found = harness.interleave(
        steps, runs=chosen.rounds, seconds=1200, pause=0.3, settle=chosen.settle
    )
    return {"losses": losses, "times": found}


def memory(system: str, chosen: argparse.Namespace) -> float:
    """Most megabytes that a process resides in, which trains three steps and does nothing else."""
    arguments = [f"--{name}={getattr(chosen, name)}" for name in ("layers", "sequence", "batch")]
    command = [sys.executable, "-m", "benchmarks.training", "--alone", system, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(run.stdout.splitlines()[-1])


def alone(system: str, chosen: argparse.Namespace) -> None:
    """Train three steps and print the most megabytes that they took beyond compiling."""
    module, batch = build(chosen.layers, chosen.sequence, chosen.batch, chosen.dropout)
    step = make(system, module, batch)
    step()
    with harness.watch_memory():
        for _ in range(3):
            step()
    print(harness._status("VmHWM") / 1e6)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--settle", type=int, default=0, help="steps before each timed one")
    parser.add_argument("--systems", nargs="+", default=SYSTEMS, choices=SYSTEMS)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--alone", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/training.json")
    chosen = parser.parse_args()
    if chosen.alone:
        alone(chosen.alone, chosen)
        return
    result = times(chosen)
    if not chosen.no_memory:
        result["peak_mb"] = {name: memory(name, chosen) for name in chosen.systems}
    base = next(iter(chosen.systems))
    for name, found in result["times"].items():
        speed = result["times"][base]["median_ms"] / found["median_ms"]
        peak = result.get("peak_mb", {}).get(name, float("nan"))
        print(
            f"{name:14} {found['median_ms']:8.0f} ms ({found['min_ms']:.0f} to "
            f"{found['max_ms']:.0f})  {speed:.2f}x {base}  {peak:7.0f} MB  "
            f"losses {json.dumps(result['losses'][name])}"
        )
    settings = {n: getattr(chosen, n) for n in ("layers", "sequence", "batch", "dropout")}
    print(f"written: {harness.save('training', {**settings, **result}, chosen.json)}")


if __name__ == "__main__":
    main()
