"""The page docs/reference/benchmarks.md and its picture, from benchmarks/results."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

_PEERS = {
    "eager": ("PyTorch eager", "#c9b28f"),
    "onnxruntime": ("ONNX Runtime", "#8fa9c9"),
    "handwritten": ("JAX by hand", "#a7c98f"),
}


def load(name: str) -> dict[str, Any] | None:
    """A result file, or None if the benchmark has not been run."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def page() -> str:
    """Every committed result as tables, with machine, date and commit."""
    parts = [
        "# Measurements\n\nWhat the scripts in `benchmarks/` measured last. Times are medians of "
        "calls taken in turn within one process, each after one of its own that does not count; "
        "ratios are xrt's time over the peer's, so below 1 xrt is faster. `make bench` repeats "
        "everything."
    ]
    for name, section in (
        ("networks", _networks),
        ("overhead", _overhead),
        ("partition", _partition),
    ):
        result = load(name)
        if result is not None:
            parts.append(section(result))
    return "\n\n".join(parts)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["packages"].items() if version != "absent"
    )
    return (
        f"{machine['date'][:10]}, commit {machine['commit']}, {machine['cpu']}, "
        f"{machine['cores']} cores; {versions}."
    )


def _networks(result: dict[str, Any]) -> str:
    lines = [
        "## The seventeen networks\n",
        "fp32, random weights. *difference*: the largest from PyTorch, relative to the largest "
        "magnitude of each output. *compile*: import included, caches empty.\n",
        "![Latency beside the peers](networks.svg)\n",
        " ".join([_machine(result), result.get("note", "")]).strip() + "\n",
        "| network | batch | clusters | on host | difference | compile s | xrt ms "
        "| / eager | / ONNX Runtime | / JAX by hand |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    for row in result["networks"]:
        if "error" in row:
            lines.append(f"| {row['name']} | {row['batch']} | {row['error']} |" + " |" * 7)
            continue
        on_host = sum(count for reasons in row["host"].values() for count in reasons.values())
        ratios = " | ".join(_ratio(row["times"], peer) for peer in _PEERS)
        lines.append(
            f"| {row['name']} | {row['batch']} | {row['clusters']} | {on_host} "
            f"| {row['difference']:.1e} | {row['compile_seconds']:.1f} "
            f"| {row['times']['xrt']['median_ms']:.1f} | {ratios} |"
        )
    return "\n".join(lines)


def _ratio(times: dict[str, Any], peer: str) -> str:
    if peer not in times:
        return ""
    return f"{times['xrt']['median_ms'] / times[peer]['median_ms']:.2f}"


def _overhead(result: dict[str, Any]) -> str:
    lines = [
        "## Overhead of a call\n",
        "A one-cluster program of two small matrix products, beside its bare XLA executable.\n",
        _machine(result) + "\n",
        "| call | microseconds | over the bare executable |",
        "| --- | ---: | ---: |",
    ]
    calls = result["call"]
    for name, micros in calls["microseconds"].items():
        lines.append(f"| {name} | {micros:.1f} | {calls['overhead'][name]:.1f} |")
    lines.append(f"\n`import xrt` takes {result['import']['seconds']:.3f} s.")
    return "\n".join(lines)


def _partition(result: dict[str, Any]) -> str:
    lines = [
        "## Passes and partitioning\n",
        "Seconds from the imported model to clusters: `PREPARE`, `SPECIALIZE`, and the three steps "
        "of partitioning. Synthetic graphs have one refused node in twenty.\n",
        _machine(result) + "\n",
        "| graph | nodes | clusters | prepare | specialize | assign | form | outline | us/node |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    steps = ("prepare", "specialize", "assign", "form", "outline")
    for row in result["rows"]:
        seconds = " | ".join(f"{row[step]:.3f}" for step in steps)
        lines.append(
            f"| {row['graph']} | {row['nodes']} | {row['clusters']} | {seconds} "
            f"| {row['us_per_node']:.0f} |"
        )
    return "\n".join(lines)


def chart() -> str:
    """Bars of each peer's latency over xrt's, as SVG."""
    result = load("networks") or {"networks": []}
    rows = [row for row in result["networks"] if "error" not in row]
    bar, gap, left, width = 9, 10, 170, 560
    shown = [(row, [p for p in _PEERS if p in row["times"]]) for row in rows]
    most = max((_speedup(row, peer) for row, peers in shown for peer in peers), default=1.0)
    scale = (width - 60) / most
    y = 46
    parts = []
    for row, peers in shown:
        middle = y + bar * len(peers) / 2 + 4
        title = escape(f"{row['name']}, batch {row['batch']}")
        parts.append(f'<text x="{left - 8}" y="{middle:.0f}" text-anchor="end">{title}</text>')
        for peer in peers:
            times = _speedup(row, peer)
            parts.append(
                f'<rect x="{left}" y="{y}" width="{times * scale:.1f}" height="{bar - 1}" '
                f'fill="{_PEERS[peer][1]}"/>'
                f'<text class="v" x="{left + times * scale + 4:.1f}" y="{y + 7}">{times:.2f}</text>'
            )
            y += bar
        y += gap
    one = left + scale
    parts.append(
        f'<line x1="{one:.1f}" y1="36" x2="{one:.1f}" y2="{y}" stroke="#333" '
        'stroke-dasharray="3 3"/>'
        f'<text x="{one:.1f}" y="30" text-anchor="middle">xrt = 1</text>'
    )
    for index, (title, colour) in enumerate(_PEERS.values()):
        x = left + 120 * index
        parts.append(
            f'<rect x="{x}" y="6" width="10" height="10" fill="{colour}"/>'
            f'<text x="{x + 15}" y="15">{title}</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width} {y + 6}" '
        'font-family="system-ui, sans-serif" font-size="11" fill="#222">'
        "<style>.v { font-size: 8px; fill: #666 }</style>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _speedup(row: dict[str, Any], peer: str) -> float:
    times = row["times"]
    return float(times[peer]["median_ms"] / times["xrt"]["median_ms"])
