"""Where every node runs and why: `Program.explain()`."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrt.runtime import memory
from xrt.runtime.inputs import contents_of
from xrt.runtime.paths import path_of, writing

if TYPE_CHECKING:
    from xrt.runtime.program import Specialization


@dataclass(frozen=True)
class Explanation:
    """A report on one specialization; `str()` gives text, `to_dict()` plain data.

    Attributes:
        inputs: Name, dtype and shape of every input, and its contents where shapes depend on them;
            no shape for what is not one tensor.
        clusters: For each cluster: name, engine, nodes, operators, inputs, outputs, digest, and
            what its engine adds.
        placements: For each node: name, operator, engine ("host" for the host runtime), reason.
        precision: What became of the numbers: precision, nodes kept in fp32 with the reason, notes,
            and, for int8, how it compares with fp32 on the calibration data.
        cuts: Tensors that cross between clusters and host: name, shape, bytes.
        seconds: Compile time by stage.
        memory: Bytes of a call in flight, see `runtime.memory.report`.
    """

    inputs: tuple[dict[str, Any], ...]
    clusters: tuple[dict[str, Any], ...]
    placements: tuple[dict[str, str], ...]
    precision: dict[str, Any]
    cuts: tuple[dict[str, Any], ...]
    seconds: dict[str, float]
    memory: dict[str, int] = field(default_factory=dict)

    def reasons(self) -> dict[str, dict[str, int]]:
        """Operator -> reason -> count, of the nodes that no engine took."""
        table: dict[str, dict[str, int]] = {}
        for placed in self.placements:
            if placed["engine"] == "host":
                counts = table.setdefault(placed["op"], {})
                counts[placed["reason"]] = counts.get(placed["reason"], 0) + 1
        return table

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, lists, strings and numbers, fit for JSON."""
        return {
            "inputs": list(self.inputs),
            "clusters": list(self.clusters),
            "placements": list(self.placements),
            "reasons": self.reasons(),
            "precision": self.precision,
            "cuts": list(self.cuts),
            "seconds": self.seconds,
            "memory": self.memory,
        }

    def __str__(self) -> str:
        by_engine = Counter(placed["engine"] for placed in self.placements)
        total = sum(by_engine.values())
        shares = ", ".join(f"{count} on {engine}" for engine, count in by_engine.most_common())
        inputs = ", ".join(map(_input_text, self.inputs))
        lines = [
            f"inputs    {inputs}",
            f"nodes     {total}: {shares}" if total else "nodes     0",
            "",
        ]
        rows = [("cluster", "engine", "nodes", "operators")]
        for cluster in self.clusters:
            most = Counter(cluster["operators"]).most_common(5)
            ops = ", ".join(f"{count} {op}" for op, count in most)
            more = len(cluster["operators"]) - len(most)
            ops += f", {more} more kinds" if more > 0 else ""
            rows.append((cluster["name"], cluster["engine"], str(cluster["nodes"]), ops))
        lines += _table(rows) if self.clusters else ["no clusters"]
        told = [(c["name"], c["summary"]) for c in self.clusters if c.get("summary")]
        lines += ["", *(f"{name}: {text}" for name, text in told)] if told else []
        left = [
            (op, str(count), reason)
            for op, counts in sorted(self.reasons().items())
            for reason, count in counts.items()
        ]
        if left:
            lines += ["", *_table([("on the host", "count", "reason"), *left])]
        if self.cuts:
            total_bytes = sum(cut["bytes"] or 0 for cut in self.cuts)
            lines += ["", f"cut tensors: {len(self.cuts)}, {total_bytes / 1e6:.3f} MB"]
        lines += _precision_lines(self.precision)
        stages = ", ".join(f"{stage} {spent:.2f} s" for stage, spent in self.seconds.items())
        lines += ["", *_memory_lines(self.memory), f"compile   {stages}"]
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the report as one HTML page that needs nothing else.

        Raises:
            OptionError: If `path` is no path.
            ProgramWriteError: If the file cannot be written.
        """
        target = path_of(path, "Explanation.save")
        with writing(target, "report"):
            target.write_text(_page(self), encoding="utf-8")


def explain(specialization: Specialization) -> Explanation:
    """The explanation of `specialization`."""
    partition = specialization.partition
    return Explanation(
        inputs=tuple(
            {
                "name": str(value.name),
                "dtype": entry[1],
                "shape": None if entry[0] is None else list(entry[0]),
                "value": None if (array := contents_of(entry)) is None else array.tolist(),
            }
            for value, entry in zip(
                partition.model.graph.inputs, specialization.signature, strict=True
            )
        ),
        clusters=tuple(
            {
                "name": cluster.name,
                "engine": cluster.engine,
                "nodes": len(cluster.nodes),
                "operators": dict(Counter(node.op_type for node in cluster.nodes)),
                "inputs": list(cluster.inputs),
                "outputs": list(cluster.outputs),
                "digest": cluster.digest,
                **specialization.executables[cluster.name].details,
            }
            for cluster in partition.clusters
        ),
        placements=tuple(
            {"node": p.node, "op": p.op, "engine": p.engine, "reason": p.reason}
            for p in partition.placements
        ),
        precision=specialization.conversion.to_dict(),
        cuts=tuple(
            {"name": cut.name, "shape": list(cut.shape or ()), "bytes": cut.bytes}
            for cut in partition.cuts
        ),
        seconds=dict(specialization.seconds),
        memory=memory.report(specialization.schedule, specialization.executables),
    )


def _memory_lines(told: dict[str, int]) -> list[str]:
    if not told:
        return []
    shares = f"{size_text(told['peak'])} at most between steps"
    if told["peak"] < told["unshared"]:
        shares += f" ({size_text(told['unshared'])} if no two values shared memory)"
    parts = [shares, f"{size_text(told['temporaries'])} inside clusters"]
    if told["kept"]:
        parts.append(f"{size_text(told['kept'])} kept for the next call")
    parts.append(f"weights {size_text(told['weights'])}")
    return [f"memory    {', '.join(parts)}"]


def size_text(count: float) -> str:
    """A number of bytes for people: "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _precision_lines(precision: dict[str, Any]) -> list[str]:
    """The numbers of a program in text; nothing for fp32."""
    name = precision["precision"]
    if name == "fp32":
        return []
    lines = ["", f"precision {name}"]
    if "mismatches" in precision:
        lines.append(
            f"against fp32, {precision['batches']} calibration batches: "
            f"{precision['mismatches']} of {precision['predictions']} predictions differ "
            f"(agreement {precision['agreement']:.2%}), "
            f"signal to noise {precision['signal_to_noise']:.1f} dB"
        )
    if "int8_ms" in precision:
        lines[-1] += f", {precision['int8_ms']:.3g} ms against {precision['fp32_ms']:.3g} ms"
    lines += precision["notes"]
    kept = [(each["op"], each["node"], each["reason"]) for each in precision["kept"]]
    if kept:
        lines += _table([("in fp32", "node", "reason"), *kept])
    return lines


def _input_text(given: dict[str, Any]) -> str:
    shape = " sequence or none" if given["shape"] is None else given["shape"]
    value = "" if given["value"] is None else f" = {given['value']}"
    return f"{given['name']}: {given['dtype']}{shape}{value}"


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of text in columns; the first is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [line.rstrip() for line in [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]]


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left }
th, td { vertical-align: top }
th { background: #f4f4f4 }
td.number { text-align: right }
pre { background: #f8f8f8; padding: 1rem }
"""


def _page(explanation: Explanation) -> str:
    clusters = [
        (
            c["name"],
            c["engine"],
            c["nodes"],
            ", ".join(f"{n} {op}" for op, n in c["operators"].items()),
        )
        for c in explanation.clusters
    ]
    reasons = [
        (op, count, reason)
        for op, counts in sorted(explanation.reasons().items())
        for reason, count in counts.items()
    ]
    cuts = [(c["name"], str(c["shape"]), c["bytes"]) for c in explanation.cuts]
    nodes = [(p["node"], p["op"], p["engine"], p["reason"]) for p in explanation.placements]
    parts = [
        f"<h1>xrt</h1><pre>{html.escape(str(explanation))}</pre>",
        _html_table("Clusters", ("name", "engine", "nodes", "operators"), clusters),
        _html_table("On the host", ("operator", "count", "reason"), reasons),
        _html_table("Cut tensors", ("name", "shape", "bytes"), cuts),
        _html_table("Nodes", ("name", "operator", "engine", "reason"), nodes),
    ]
    head = f'<!doctype html><meta charset="utf-8"><title>xrt</title><style>{_STYLE}</style>'
    return head + "\n".join(parts)


def _html_table(title: str, heading: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heading)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="number">{cell}</td>'
            if isinstance(cell, int)
            else f"<td>{html.escape(str(cell))}</td>"
            for cell in row
        )
        + "</tr>"
        for row in rows
    )
    return f"<h2>{title}</h2><table><tr>{head}</tr>{body}</table>"
