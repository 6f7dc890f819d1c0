"""BERT-base pre-training with and without clusters, beside the published table.

    python -m benchmarks.bert_training            # batch 60 a device, 100 batches
    python -m benchmarks.bert_training --quick    # batch 4, 5 batches

Each column is a process of its own that waits for its turn; a turn is one batch, the same for all,
and turns go round among the columns of a precision. Without dropout, unless `--dropout` is given,
the losses of all columns must agree, and a time counts only then. The words are made up, by Zipf's
law.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks import contenders, harness, pretraining, tables
from benchmarks.published import load as load_published

TABLE = "bert_training"
PUBLISHED = "bert_training_xla"
PEERS = ("eager", "torch.compile")
QUICK = ("host fp32", "xla fp32", "xla bf16", "eager fp32", "eager bf16", "torch.compile fp32")
BASE = "eager fp32"
TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.05}
"""Largest relative difference of the last loss from that of eager in fp32, without dropout; with
dropout ten times as much, since no two runtimes draw the same numbers."""

Record = dict[str, Any]
Step = Callable[[int], float]
"""Trains on the batch of a number; returns the loss before the update."""


# --- the contenders -------------------------------------------------------------------------------


def make(column: str, job: Record, chosen: argparse.Namespace) -> Step:
    """Compile a column's step."""
    runtime, precision = column.split()
    module = pretraining.build(tiny=chosen.dry, dropout=chosen.dropout)
    vocabulary = module.bert.config.vocab_size
    size = job["batch"] * job["devices"]
    chosen_step = _torch if runtime in PEERS else _xrt
    if runtime in PEERS and job["devices"] > 1:
        raise contenders.RefusalError("one process of PyTorch trains on one device here")
    batches = lambda number: pretraining.batch(size, number, vocabulary)  # noqa: E731
    return chosen_step(runtime, precision, module, batches, job, chosen)


def _xrt(
    engine: str, precision: str, module: Any, batches: Any, job: Record, chosen: argparse.Namespace
) -> Step:
    import xrt

    trainer = xrt.compile_training(
        module,
        batches(0),
        optimizer=pretraining.optimizer(module),
        engine=engine,
        precision=precision,
        devices=job["devices"] if job["devices"] > 1 else None,
        options=xrt.TrainingOptions(clip_norm=pretraining.CLIP_NORM, progress=False),
    )
    return lambda number: trainer.step(batches(number))


def _torch(
    mode: str, precision: str, module: Any, batches: Any, job: Record, chosen: argparse.Namespace
) -> Step:
    import torch

    torch.set_num_threads(chosen.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if harness.gpu_name() else "cpu"
    module = module.to(device)
    parameters = list(module.parameters())
    optimizer = pretraining.optimizer(module)
    scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
    narrow = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    cast = torch.autocast(device, narrow) if narrow else contextlib.nullcontext()
    forward = module if mode == "eager" else torch.compile(module)

    def step(number: int) -> float:
        given = {name: array.to(device) for name, array in batches(number).items()}
        optimizer.zero_grad(set_to_none=True)
        with cast:
            loss = forward(**given)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, pretraining.CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        return float(loss.detach())

    return step


class Local:
    """A contender in this process.

    Attributes:
        record: What is known of it; has a "reason" once it cannot go on.
        turns: Loss, times and memory of each turn.
    """

    def __init__(self, job: Record, chosen: argparse.Namespace) -> None:
        self.record: Record = dict(job)
        self.turns: list[Record] = []
        self._memory = harness.Memory()
        begin = time.perf_counter()
        try:
            self._step = make(job["column"], job, chosen)
        except Exception as error:
            self.record["reason"] = tables.reason(error)
        self.record["compile_seconds"] = time.perf_counter() - begin

    def turn(self, number: int) -> None:
        """Train on a batch, unless there is a reason why not."""
        if "reason" in self.record:
            return
        work, begin = time.process_time(), time.perf_counter()
        try:
            loss = self._step(number)
        except Exception as error:
            self.record["reason"] = tables.reason(error)
            return
        seconds, cpu = time.perf_counter() - begin, time.process_time() - work
        self._memory.note()
        mib = self._memory.peak_bytes / 2**20
        self.turns.append({"loss": loss, "seconds": seconds, "cpu_seconds": cpu, "memory_mib": mib})

    def close(self) -> None:
        """Nothing is left to end."""


def serve(job: Record, chosen: argparse.Namespace) -> None:
    """Be the process of a `Remote` contender: take numbers of batches, answer with all there is."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    local = Local(job, chosen)
    print(json.dumps([local.record, []]), file=answers, flush=True)
    for line in sys.stdin:
        local.turn(int(line))
        print(json.dumps([local.record, local.turns[-1:]]), file=answers, flush=True)


class Remote:
    """A contender in a process of its own; as `Local`."""

    def __init__(self, job: Record, chosen: argparse.Namespace, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "benchmarks.bert_training", *arguments]
        self._process = subprocess.Popen(
            [*command, "--worker", json.dumps(job)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=_environment(job["devices"], chosen.threads),
        )  # fmt: skip
        self.record: Record = dict(job)
        self.turns: list[Record] = []
        self._hear()

    def turn(self, number: int) -> None:
        """Train on a batch, unless there is a reason why not."""
        if "reason" in self.record:
            return
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        self._hear()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        record, turn = json.loads(line) if line else ({}, [])
        if not line:
            record["reason"] = tables.ending(self._process.wait())
        self.record |= record
        self.turns += turn if "reason" not in record else []

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _environment(devices: int, threads: int) -> dict[str, str]:
    """Where there is no GPU, the processor is as many devices as are asked for."""
    environment = harness.threads_environment(threads)
    if devices > 1 and not harness.gpu_name():
        environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    return environment


# --- the measurement ------------------------------------------------------------------------------


def measure(job: Record, chosen: argparse.Namespace, arguments: Sequence[str]) -> Iterator[Record]:
    """All columns at one number of devices and one batch size; those of a precision in turn.

    Each holds the weights and moments of BERT, so that not all at once find room everywhere.
    """
    steps = chosen.runs or (2 if chosen.dry else 5 if chosen.quick else 100)
    columns = tables.choose(chosen, PEERS, QUICK, chosen.precisions)
    missing = contenders.unavailable()
    wanted: dict[str, list[str]] = {}
    for column in columns:
        why = missing.get(column.split()[0]) or chosen.left_out.get(column)
        if why:
            yield {**job, "column": column, "reason": why}
        else:
            wanted.setdefault(column.split()[1], []).append(column)
    base = None
    for group in wanted.values():
        running = list(_running(group, job, chosen, arguments))
        try:
            for number in range(steps):
                for each in running:
                    each.turn(number)
        finally:
            for each in running:
                each.close()
        last = [each.turns[-1] for each in running if each.record["column"] == BASE and each.turns]
        base = last[0]["loss"] if last else base
        yield from finished(running, base, chosen.dropout)


def _running(
    columns: Sequence[str], job: Record, chosen: argparse.Namespace, arguments: Sequence[str]
) -> Iterator[Local | Remote]:
    for column in columns:
        print(f"... {column}", file=sys.stderr, flush=True)
        mine = {**job, "column": column}
        yield Local(mine, chosen) if chosen.dry else Remote(mine, chosen, arguments)


def finished(
    running: Sequence[Local | Remote], base: float | None, dropout: float
) -> Iterator[Record]:
    """The record of each contender, without figures where its loss is not that of eager."""
    for each in running:
        record = each.record
        if "reason" in record or not each.turns:
            yield {"reason": "it had no turn", **record}
            continue
        loss, precision = each.turns[-1]["loss"], record["column"].split()[1]
        why = disagreement(loss, base, precision, dropout)
        yield {**record, "reason": why} if why else {**record, **_figures(each.turns, record)}


def disagreement(loss: float, base: float | None, precision: str, dropout: float) -> str:
    """Why a loss is not to be believed; nothing if it is."""
    allowed = TOLERANCE[precision] * (10 if dropout else 1)
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if base is not None and abs(loss - base) > allowed * base:
        return f"the loss is {loss:.5f}, that of eager in fp32 {base:.5f}"
    return ""


def _figures(turns: Sequence[Record], record: Record) -> Record:
    """Loss, and times of the turns after the first, in which libraries may still compile."""
    seconds = [turn["seconds"] for turn in turns[1:] or turns]
    median = statistics.median(seconds)
    return {
        "batches": len(turns),
        "loss": turns[-1]["loss"],
        "seconds_per_batch": median,
        "fastest": min(seconds),
        "slowest": max(seconds),
        "cpu_seconds": statistics.median(turn["cpu_seconds"] for turn in turns[1:] or turns),
        "memory_mib": max(turn["memory_mib"] for turn in turns),
        "samples_per_second": record["batch"] * record["devices"] / median,
    }


# --- the table ------------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    records = found["records"]
    heading = ("devices", "column", "batch", "batches", "loss", "s/batch", "memory MiB",
               "samples/s", "over host", "over eager")  # fmt: skip
    rates = {
        (each["devices"], each["column"]): each["samples_per_second"]
        for each in records
        if "samples_per_second" in each
    }
    table = load_published(PUBLISHED)
    theirs = [
        [
            str(row["gpus"]), row["system"], row["precision"],
            *(_cell(row[key], form) for key, form in (
                ("loss_after_100_batches", "{:.5f}"), ("seconds_per_batch", "{:.3f}"),
                ("memory_mib", "{:.0f}"), ("samples_per_second", "{:.1f}"), ("speedup", "{:.2f}"),
            )),
        ]
        for row in table["rows"]
    ]  # fmt: skip
    parts = [
        "Speed-ups are over the same precision, at the same number of devices:",
        tables.markdown(heading, [_line(r, rates) for r in records if "loss" in r], left=2),
        tables.reasons(found),
        f"Published, {table['hardware']}; batch 60 a card; the speed-up is over the same system "
        "without XLA:",
        tables.markdown(
            ("GPUs", "system", "precision", "loss", "s/batch", "memory MiB", "samples/s",
             "speed-up"), theirs, left=3,
        ),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _line(record: Record, rates: dict[tuple[int, str], float]) -> list[str]:
    rate, precision = record["samples_per_second"], record["column"].split()[1]
    bases = [rates.get((record["devices"], f"{base} {precision}")) for base in ("host", "eager")]
    return [
        *(str(record["devices"]), record["column"], str(record["batch"]), str(record["batches"])),
        *(f"{record['loss']:.5f}", f"{record['seconds_per_batch']:.3f}"),
        *(f"{record['memory_mib']:.0f}", f"{rate:.1f}"),
        *(_cell(base and rate / base, "{:.2f}") for base in bases),
    ]


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = tables.parser(__doc__, precisions=["fp32", "fp16", "bf16"])
    parser.add_argument("--devices", type=int, nargs="+", help="default: 1 2 4, quick: 1")
    parser.add_argument("--dropout", type=float, default=0.0, help="as published: 0.1")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        serve(json.loads(chosen.worker), chosen)
        return
    small = chosen.quick or chosen.dry
    batch = 2 if chosen.dry else 4 if chosen.quick else 60
    passed = sys.argv[1:] if arguments is None else arguments
    records = [
        record
        for devices in chosen.devices or ([1] if small else [1, 2, 4])
        for size in chosen.batch or [batch]
        for record in measure(
            {"network": "bert", "batch": size, "devices": devices}, chosen, passed
        )
    ]
    protocol = (
        f"{load_published(PUBLISHED)['protocol'].split(';')[0]}; here with dropout "
        f"{chosen.dropout:g} and words by Zipf's law, the batch size as given."
    )
    found = tables.result("BERT-base pre-training", protocol, records, chosen, published=PUBLISHED)
    tables.finish(TABLE, found, render(found), chosen)


if __name__ == "__main__":
    main()
