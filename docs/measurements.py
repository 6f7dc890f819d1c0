"""The page docs/reference/benchmarks.md and its picture, from benchmarks/results."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from docs import runtime_measurements

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
        ("ops", _operators),
        ("precision", _precision),
        ("quantization", _quantization),
    ):
        result = load(name)
        if result is not None:
            parts.append(section(result))
    for name, later in runtime_measurements.SECTIONS.items():
        result = load(name)
        if result is not None:
            parts.append(
                later(result, " ".join([_machine(result), result.get("note", "")]).strip())
            )
    return "\n\n".join(parts)


def _quantization(result: dict[str, Any]) -> str:
    lines = [
        "## Options of int8\n",
        "What observers, weight equalization and bias correction do to the error of int8, on "
        "inputs that it was not calibrated on: `python -m benchmarks.quantization`.\n",
        _machine(result) + "\n",
        "| network | options | predictions that differ | mean relative error |",
        "| --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {row['network']} | {row['options']} | {row['mismatches']} of {row['predictions']} "
        f"| {row['mean_relative_error']:.2e} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def conformance() -> list[str]:
    """What ONNX's backend suite found, for the page of operators; nothing if it was not run."""
    result = load("conformance")
    if result is None:
        return []
    columns = [name for name in result["kinds"]["all"] if name not in ("passed", "total")]
    lines = [
        f"## The backend suite of onnx {result['onnx']}\n",
        "Every case through `xrt.onnx_backend`, with every cluster built, however light: "
        "`python -m benchmarks.conformance`. Kind *real* is of generated models, which the suite "
        "counts apart.\n",
        _machine(result) + "\n",
        "| kind | passed | cases | " + " | ".join(columns) + " |",
        "| --- " + "| ---: " * (2 + len(columns)) + "|",
    ]
    for kind, found in result["kinds"].items():
        cells = [kind, str(found["passed"]), str(found["total"])]
        lines.append("| " + " | ".join([*cells, *(str(found[name]) for name in columns)]) + " |")
    lines += ["\nOutside XLA:\n", "| operator | nodes | reason |", "| --- | ---: | --- |"]
    lines += [
        f"| {operator} | {count} | {reason.removeprefix('xla: ')} |"
        for operator, reasons in result["outside"].items()
        for reason, count in reasons.items()
    ]
    return ["\n".join(lines)]


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


def _operators(result: dict[str, Any]) -> str:
    lines = [
        "## Single operators\n",
        "Operators whose lowering chooses an algorithm, beside PyTorch eager on the same tensors: "
        "`python -m benchmarks.ops.algorithms`. *code*: the compiled code without the call around "
        "it, which an operator within a network does not pay. *CPU*: the ratio of processor time. "
        "*between*: the operator between two 1x1 convolutions, where layout is free. What falls "
        "behind is explained in `benchmarks/ops/README.md`.\n",
        _machine(result) + "\n",
        "| operator | case | as in | xrt ms | / PyTorch | CPU | code "
        "| between, ms | / PyTorch | CPU |",
        "| --- | --- | --- " + "| ---: " * 7 + "|",
    ]
    between = {(row["op"], row["name"]): row for row in result["rows"] if row["between"]}
    for row in result["rows"]:
        if row["between"]:
            continue
        inner = between.get((row["op"], row["name"]))
        cells = [
            *_beside(row),
            f"{row['bare_ratio']:.2f}",
            *(_beside(inner) if inner else 3 * [""]),
        ]
        lines.append(f"| {row['op']} | {row['name']} | {row['where']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _beside(row: dict[str, Any]) -> list[str]:
    """Milliseconds, and the ratios to PyTorch of wall and of processor time."""
    ours, theirs = row["times"]["xrt"], row["times"]["torch"]
    cpu = ours["cpu_ms"] / theirs["cpu_ms"]
    return [f"{ours['median_ms']:.2f}", f"{row['ratio']:.2f}", f"{cpu:.2f}"]


_NARROW = ("fp16", "bf16", "int8")


def _precision(result: dict[str, Any]) -> str:
    networks = result["networks"]
    parts = [
        "## Precision\n",
        "Each network against itself in fp32, on inputs that did not calibrate it. *differ*: "
        "predictions that are not those of fp32. *error*: the mean magnitude of the main output's "
        "error over the mean magnitude of that output. ONNX Runtime's int8 (static, QDQ, per "
        "channel, same data) is held against its own fp32. Weights are random but for digits, so "
        "scores lie closer together than those of a trained network.\n",
        " ".join([_machine(result), result.get("note", "")]).strip() + "\n",
        *_errors(networks),
        "\nMilliseconds of a call in fp32, and the others' time over it: below 1 is faster.\n",
        *_latencies(networks),
        "\nMegabytes: the constants of the graph, and what XLA plans for a call (weights, inputs, "
        "outputs, temporaries).\n",
        *_sizes(networks),
    ]
    failures = [
        f"- {network['name']}, {column}: {row['error']}"
        for network in networks
        for column, row in network["columns"].items()
        if "error" in row
    ]
    parts += ["\nWhat failed:\n", *failures] if failures else []
    if "bound" in result:
        parts.append(f"\n{_bound(result['bound'])}")
    return "\n".join(parts)


def _errors(networks: list[dict[str, Any]]) -> list[str]:
    columns = (*_NARROW, "onnxruntime int8")
    heading = " | ".join(f"{_title(column)}: differ | error" for column in columns)
    lines = [f"| network | predictions | {heading} |", "| --- " + "| ---: " * 9 + "|"]
    for network in networks:
        known = network["columns"]
        cells = []
        for column in columns:
            row = known.get(column)
            found = ("", "")  # not run
            if row is not None:
                found = ("failed", "") if "error" in row else (row["mismatches"], _error(row))
            cells += [str(cell) for cell in found]
        total = known["fp32"].get("predictions", "")
        lines.append(f"| {network['name']} | {total} | {' | '.join(cells)} |")
    return lines


def _title(column: str) -> str:
    return column.replace("onnxruntime", "ONNX Runtime")


def _error(row: dict[str, Any]) -> str:
    return f"{row['mean_relative_error']:.1e}"


def _latencies(networks: list[dict[str, Any]]) -> list[str]:
    columns = (*_NARROW, "onnxruntime fp32", "onnxruntime int8")
    heading = " | ".join(_title(column) for column in columns)
    lines = [f"| network | batch | fp32 ms | {heading} |", "| --- " + "| ---: " * 7 + "|"]
    for network in networks:
        if not any("times" in row or "error" in row for row in network["columns"].values()):
            continue  # only its errors were measured
        medians = {
            column: row["times"]["median_ms"]
            for column, row in network["columns"].items()
            if "times" in row
        }
        base = medians.get("fp32")
        cells = [
            f"{medians[column] / base:.2f}" if base and column in medians else "failed"
            for column in columns
        ]
        shown = f"{base:.1f}" if base else "failed"
        lines.append(f"| {network['name']} | {network['batch']} | {shown} | {' | '.join(cells)} |")
    return lines


def _sizes(networks: list[dict[str, Any]]) -> list[str]:
    columns = ("fp32", *_NARROW)
    heading = " | ".join([f"{c} weights" for c in columns] + [f"{c} planned" for c in columns])
    lines = [f"| network | {heading} |", "| --- " + "| ---: " * 8 + "|"]
    for network in networks:
        rows = [network["columns"][column] for column in columns]
        weights = ["" if "error" in r else f"{r['weight_bytes'] / 1e6:.1f}" for r in rows]
        planned = ["" if "error" in r else f"{sum(r['memory'].values()) / 1e6:.0f}" for r in rows]
        lines.append(f"| {network['name']} | {' | '.join(weights + planned)} |")
    return lines


def _bound(found: dict[str, Any]) -> str:
    held = found["bounded"]
    total = held["calibration"]["predictions"]
    lines = [
        "### int8 within a bound\n",
        f"ResNet-50, random weights, beside fp32 on the {total} inputs that calibrate it and on as "
        f"many others, in which fp32 finds {found['classes']} classes. "
        f"`max_mismatch={found['bound']:g}` reverted {held['reverted']} of "
        f"{found['free']['groups']} operators.\n",
        "| | agree, calibration | agree, others | error, others | operators on int8 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for title, row in (("no bound", found["free"]), ("bound", held)):
        agree = [
            f"{1 - row[kind]['mismatches'] / row[kind]['predictions']:.2%}"
            for kind in ("calibration", "held_out")
        ]
        cells = [*agree, _error(row["held_out"]), str(row["groups"])]
        lines.append(f"| {title} | {' | '.join(cells)} |")
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
