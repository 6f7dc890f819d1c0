"""The page docs/reference/published.md: measured tables beside the published ones."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs.measurements import RESULTS

TABLES = ("bert_training", "cnn_inference", "hf_inference", "flagperf_resnet50", "mlperf")
"""The scripts in benchmarks/, each of which renders its own results."""

CHARTS = {
    "cnn_inference": ("cnn-speedup", "Speed-up of CNN inference, beside the published"),
    "hf_inference": ("hf-speedup", "Speed-up over eager, beside the published"),
    "bert_training": ("bert-speedup", "Speed-up of BERT training, beside the published"),
}
"""The picture of a table's section: name of the file, and what it shows."""

TIMELINE = "gap-timeline"


def results(root: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """Every result of a published table, table by table."""
    for table in TABLES:
        for path in sorted(root.glob(f"*/{table}.json")):
            yield {"table": table, **json.loads(path.read_text("utf-8"))}


def page(root: Path = RESULTS) -> str:
    """Every committed result with the published rows beside it."""
    parts = [
        "# The published tables\n\nFive published tables, and what the scripts in `benchmarks/` "
        "measured of the same networks, by the same protocol as far as the machine allows. The "
        "hardware is not the same: rows are to be compared by their ratios. A form called *quick* "
        "has fewer networks and rounds. `python -m benchmarks.report` writes this page and its "
        "charts from `benchmarks/results` and `benchmarks/published`."
    ]
    seen: set[str] = set()
    for result in results(root):
        table = result["table"]
        if table not in seen:
            parts.append(_head(table, result))
            seen.add(table)
        parts.append(_section(result))
    missing = [f"`python -m benchmarks.{table}`" for table in TABLES if table not in seen]
    if missing:
        parts.append(f"## Not measured yet\n\n{', '.join(missing)}.")
    return "\n\n".join(parts)


def _head(table: str, result: dict[str, Any]) -> str:
    lines = [f"## {result['title']}", f"`python -m benchmarks.{table}`"]
    if table in CHARTS:
        name, title = CHARTS[table]
        lines.append(f"![{title}]({name}.svg)")
    if table == "cnn_inference" and any("timeline" in each for each in result["records"]):
        lines.append(f"![Where the time of a batch goes]({TIMELINE}.svg)")
    return "\n\n".join(lines)


def _section(result: dict[str, Any]) -> str:
    """One device's result, as its script prints it."""
    script: Any = importlib.import_module(f"benchmarks.{result['table']}")
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version != "absent"
    )
    where = machine.get("gpu") or machine["cpu"]
    lines = [
        f"### {where}, {result['form']} form",
        f"{machine['date'][:10]}, commit {machine['commit']}, {machine['cores']} cores, "
        f"{result['threads']} threads; {versions}. {result['protocol']}",
        script.render(result),
    ]
    return "\n\n".join(lines)
