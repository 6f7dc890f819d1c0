"""Whether clusters change training: losses of engine "xla" beside engine "host", step by step.

    python -m benchmarks.training_parity                  # 2 layers, 100 steps, fp32 and fp16
    python -m benchmarks.training_parity --layers 12 --hidden 768 --batch 60 --vocabulary 30522

The protocol is that of the published table: BERT with both pre-training heads, sentences of 128
words, AdamW with eps 1e-6 and decay 0.01, gradients clipped at norm 1. Dropout is on: both engines
draw the same numbers. The table's own parity is of the loss after 100 batches: 3e-6 in fp32, 2e-4
in fp16 mixed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import harness, pretraining

ENGINES = ("xla", "host")
PUBLISHED = {"fp32": 3e-6, "fp16": 2e-4}
"""Relative difference of the loss after 100 batches, with clusters and without."""


def network(chosen: argparse.Namespace) -> Any:
    """BERT of the sizes that were asked for, in training mode."""
    import torch
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=chosen.vocabulary,
        hidden_size=chosen.hidden,
        num_hidden_layers=chosen.layers,
        num_attention_heads=max(1, chosen.hidden // 64),
        intermediate_size=4 * chosen.hidden,
        hidden_dropout_prob=chosen.dropout,
        attention_probs_dropout_prob=chosen.dropout,
    )
    torch.manual_seed(0)
    return pretraining.Pretraining(config).train()


def losses(engine: str, precision: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """The losses of all steps, and how many of those were skipped."""
    import xrt

    module = network(chosen)
    batches = [
        pretraining.batch(chosen.batch, number, chosen.vocabulary) for number in range(chosen.steps)
    ]
    options = xrt.TrainingOptions(clip_norm=pretraining.CLIP_NORM, progress=False)
    trainer = xrt.compile_training(
        module,
        batches[0],
        optimizer=pretraining.optimizer(module),
        engine=engine,
        precision=precision,
        options=options,
    )
    return {"losses": trainer.fit(batches), "skipped": trainer.metrics.skipped_steps}


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """How far apart two runs are: after the last step, and at most."""
    apart = [abs(a - b) / abs(b) for a, b in zip(one["losses"], two["losses"], strict=True)]
    return {
        "last": apart[-1],
        "largest": max(apart),
        "largest_at_step": apart.index(max(apart)) + 1,
        "skipped": {"xla": one["skipped"], "host": two["skipped"]},
        "losses": {"xla": one["losses"], "host": two["losses"]},
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--precisions", nargs="+", default=tuple(PUBLISHED), choices=PUBLISHED)
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/training_parity.json"
    )
    chosen = parser.parse_args(arguments)
    found = {}
    for precision in chosen.precisions:
        found[precision] = compared(*(losses(each, precision, chosen) for each in ENGINES))
        one = found[precision]
        print(
            f"{precision}: after {chosen.steps} steps the losses differ by {one['last']:.1e} "
            f"(at most {one['largest']:.1e}, at step {one['largest_at_step']}); published: "
            f"{PUBLISHED[precision]:.0e}; skipped {one['skipped']}",
            flush=True,
        )
    names = ("layers", "hidden", "vocabulary", "batch", "steps", "dropout")
    settings = {name: getattr(chosen, name) for name in names}
    result = {**settings, "published": PUBLISHED, "found": found}
    print(f"written: {harness.save('training_parity', result, chosen.json)}")


if __name__ == "__main__":
    main()
