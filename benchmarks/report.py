"""Write docs/reference/published.md and its charts from the results: `python -m benchmarks.report`.

The charts are drawn with matplotlib, as SVG for the page and as PNG. With `--check` nothing is
written; what is stale or missing is named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bars, harness, models
from benchmarks.published import load as load_published
from docs import generate, published

PAGE = "published.md"

Record = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """Bars in groups: a label, and speed-ups by series.

    Attributes:
        title: What is compared.
        groups: Label of a group and its bars: series -> speed-up.
        measured: Names of the series that were measured here; the others are published.
    """

    title: str
    groups: Sequence[tuple[str, Mapping[str, float]]]
    measured: frozenset[str]


def speedups(
    records: Sequence[Record], figure: str, base: str, *, inverse: bool
) -> dict[tuple[str, int], dict[str, float]]:
    """Speed-ups over the column `base`, by network and batch.

    Args:
        records: Of a result.
        figure: What is compared.
        base: The column that is 1.
        inverse: Less is faster.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for record in records:
        if record.get(figure):
            key = record["network"], record["batch"]
            found.setdefault(key, {})[record["column"]] = record[figure]
    return {
        key: {
            column: (row[base] / value if inverse else value / row[base])
            for column, value in row.items()
            if column != base
        }
        for key, row in found.items()
        if base in row
    }


def cnn_chart(result: Record) -> Chart:
    """Throughput over eager's, beside TensorRT's over OneFlow's fp32 as published in 2020."""
    ours = speedups(result["records"], "images_per_second", "eager fp32", inverse=False)
    groups = []
    for (name, batch), bars_here in ours.items():
        row = next(
            (
                row
                for row in load_published("cnn_inference_tensorrt")["rows"]
                if (row["model"], row["batch_size"]) == (name, batch)
                and row["measured"].startswith("2020")
            ),
            None,
        )
        theirs = {
            f"published: TensorRT {precision} / OneFlow fp32": row[f"tensorrt_{precision}"]
            / row["oneflow_fp32"]
            for precision in ("fp32", "fp16", "int8")
            if row and row[f"tensorrt_{precision}"]
        }
        groups.append((f"{name}, batch {batch}", {**bars_here, **theirs}))
    return _chart("CNN inference: throughput over PyTorch eager in fp32", groups)


def hf_chart(result: Record) -> Chart:
    """Latency of eager over each column's, beside torch.compile's on an A100 as published."""
    ours = speedups(result["records"], "median_ms", "eager fp32", inverse=True)
    keys = {each.name: each.reference_key for each in models.NETWORKS.values()}
    rows = {
        (row["model"], row["batch_size"]): row["eager_ms"] / row["compiled_ms"]
        for row in load_published("torch_compile_inference")["rows"]
        if row["gpu"] == "A100" and row["stage"] == "torch-2.0.1 default" and row["compiled_ms"]
    }
    groups = []
    for (name, batch), bars_here in ours.items():
        theirs = rows.get((keys.get(name) or "", batch))
        more = {"published: torch.compile, A100": theirs} if theirs else {}
        groups.append((f"{name}, batch {batch}", {**bars_here, **more}))
    return _chart("Latency of PyTorch eager in fp32 over each column's", groups)


def bert_chart(result: Record) -> Chart:
    """Training with clusters over training without, beside the published."""
    ours = speedups(result["records"], "samples_per_second", "host fp32", inverse=False)
    rows = load_published("bert_training_xla")["rows"]
    theirs = {
        f"published: OneFlow with XLA, {row['precision']}": row["speedup"]
        for row in rows
        if row["gpus"] == 1 and row["system"] == "oneflow_xla"
    }
    groups = [
        (f"{name}, batch {batch}", {**bars_here, **theirs})
        for (name, batch), bars_here in ours.items()
    ]
    return _chart("BERT training: samples per second over the host's", groups)


def _chart(title: str, groups: list[tuple[str, dict[str, float]]]) -> Chart:
    series = {name for _, each in groups for name in each}
    return Chart(title, groups, frozenset(s for s in series if not s.startswith("published")))


CHARTS: dict[str, Callable[[Record], Chart]] = {
    "cnn_inference": cnn_chart,
    "hf_inference": hf_chart,
    "bert_training": bert_chart,
}


def pictures(root: Path = harness.RESULTS) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Name of each picture that the results allow, and what draws it.

    Of a table that was measured on several devices the first is drawn.
    """
    drawn = set()
    for result in published.results(root):
        table = result["table"]
        if table in drawn or table not in CHARTS:
            continue
        drawn.add(table)
        chart = CHARTS[table](result)
        name = published.CHARTS[table][0]
        where = result["machine"].get("gpu") or result["machine"]["cpu"]
        date = result["machine"]["date"][:10]
        yield name, partial(bars.draw_bars, chart, f"{where}, {date}")
        if table == "cnn_inference":
            lanes = _timeline(result["records"])
            if lanes is not None:
                yield published.TIMELINE, partial(bars.draw_timeline, lanes)


def _timeline(records: Sequence[Record]) -> Record | None:
    """The record whose intervals are drawn: the first that has any."""
    return next((each for each in records if each.get("timeline")), None)


def main(arguments: list[str] | None = None, folder: Path = generate.FOLDER) -> int:
    """Write the page and the charts, or with `--check` name what is stale; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, name what is stale")
    chosen = parser.parse_args(arguments)
    if chosen.check:
        return _check(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PAGE).write_text(generate.render(PAGE), "utf-8")
    print(f"wrote {folder / PAGE}")
    for name, draw in pictures():
        for suffix in ("svg", "png"):
            draw(folder / f"{name}.{suffix}")
            print(f"wrote {folder / name}.{suffix}")
    return 0


def _check(folder: Path) -> int:
    page = folder / PAGE
    stale = [] if page.exists() and page.read_text("utf-8") == generate.render(PAGE) else [page]
    stale += [path for name, _ in pictures() if not (path := folder / f"{name}.svg").exists()]
    for path in stale:
        print(f"{path} is stale. Run: python -m benchmarks.report", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
