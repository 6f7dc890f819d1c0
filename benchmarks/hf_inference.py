"""Twelve vision networks: eager, torch.compile and xrt, beside the published latencies.

    python -m benchmarks.hf_inference            # all, batch 1, 4 and 16: hours without a GPU
    python -m benchmarks.hf_inference --quick    # ViT and ResNet, batch 1

Milliseconds of a batch that is on the device, copies and preprocessing not included: medians of
calls taken in turn within one process for each network and batch size. Weights are random.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from benchmarks import latency, models, tables
from benchmarks.published import load as load_published

TABLE = "hf_inference"
PUBLISHED = "torch_compile_inference"
PEERS = ("eager", "torch.compile", "reduce-overhead")
QUICK = ("xla fp32", "tensorrt fp32", "tensorrt fp16", "eager", "torch.compile", "reduce-overhead")
BASE = "eager fp32"

Record = dict[str, Any]


def jobs(chosen: argparse.Namespace) -> list[Record]:
    """Networks and batch sizes."""
    known = [each.name for each in models.NETWORKS.values() if each.reference_table == PUBLISHED]
    names, batches = known, [1, 4, 16]
    if chosen.quick:
        names, batches = ["vit", "resnet50_hf"], [1]
    if chosen.dry:
        names = ["tiny_cnn", "tiny_bert"]
    return [
        {"network": name, "batch": batch}
        for name in chosen.networks or names
        for batch in chosen.batch or batches
    ]


def measure(job: Record, chosen: argparse.Namespace) -> Iterator[Record]:
    """The columns of one network at one batch size."""
    columns = tables.choose(chosen, PEERS, QUICK)
    runs = chosen.runs or (2 if chosen.dry else 10 if chosen.quick else 300)
    with latency.loaded(job["network"], job["batch"], chosen) as subject:
        pairs = list(latency.built(subject, columns, chosen))
        records = latency.timed(pairs, runs=runs, seconds=60 if chosen.quick else 600, most=30)
    base = next((each.get("median_ms") for each in records if each["column"] == BASE), None)
    for record in records:
        if base and "median_ms" in record:
            record["gained_percent"] = 100 * (1 - record["median_ms"] / base)
        yield record


def published(records: list[Record]) -> list[list[str]]:
    """The lines of the published table for the networks and batch sizes that were measured."""
    keys = {each.name: each.reference_key for each in models.NETWORKS.values()}
    wanted = {(keys.get(each["network"]), each["batch"]) for each in records}
    return [
        [
            row["model"], str(row["batch_size"]), row["gpu"], row["stage"],
            "" if row["eager_ms"] is None else f"{row['eager_ms']:.1f}",
            "" if row["compiled_ms"] is None else f"{row['compiled_ms']:.1f}",
            _gained(row),
        ]
        for row in load_published(PUBLISHED)["rows"]
        if (row["model"], row["batch_size"]) in wanted
    ]  # fmt: skip


def _gained(row: Record) -> str:
    if not row["eager_ms"] or not row["compiled_ms"]:
        return ""
    return f"{100 * (1 - row['compiled_ms'] / row['eager_ms']):.0f}"


def render(found: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    records = found["records"]
    heading = ("network", "batch", "GPU", "stage", "eager ms", "compiled ms", "% gained")
    theirs = published(records)
    parts = [
        "Milliseconds for a batch:",
        tables.pivot(records, "median_ms"),
        f"Percent of the time of {BASE} that is gained:",
        tables.pivot(records, "gained_percent", form="{:.0f}"),
        "In detail:",
        tables.details(records),
        tables.reasons(found),
    ]
    if theirs:
        hardware = load_published(PUBLISHED)["hardware"]
        parts += [f"Published, {hardware}:", tables.markdown(heading, theirs, left=4)]
    return "\n\n".join(part for part in parts if part)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    chosen = tables.parser(__doc__).parse_args(arguments)
    if chosen.worker:
        tables.serve(measure, chosen)
        return
    records = tables.collect("benchmarks.hf_inference", jobs(chosen), measure, chosen)
    protocol = "Batches are on the device; copies and preprocessing are not inside. Random weights."
    found = tables.result(
        "Latency of twelve vision networks", protocol, records, chosen, published=PUBLISHED
    )
    tables.finish(TABLE, found, render(found), chosen)


if __name__ == "__main__":
    main()
