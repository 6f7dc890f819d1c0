"""Pictures of results: grouped bars of speed-ups, and a timeline of batches with its gaps."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.report import Chart

_OURS = ("#2b6cb0", "#4a90d9", "#7fb3e6", "#2f855a", "#68b98a", "#a3d5b8", "#b7791f", "#d9a94f")
_THEIRS = ("#9aa0a6", "#c3c7cb", "#7a7f85", "#dadde0")
_LANES = ("#b7791f", "#d9a94f", "#2b6cb0", "#2f855a", "#a3d5b8", "#9aa0a6", "#7a7f85")


def draw_bars(chart: Chart, where: str, path: Path) -> None:
    """Write a chart as an image whose format the suffix names; published bars are grey, hatched."""
    names = list(dict.fromkeys(name for _, each in chart.groups for name in each))
    ours = [name for name in names if name in chart.measured]
    theirs = [name for name in names if name not in chart.measured]
    colours = {name: _OURS[i % len(_OURS)] for i, name in enumerate(ours)}
    colours |= {name: _THEIRS[i % len(_THEIRS)] for i, name in enumerate(theirs)}
    count = sum(len(each) for _, each in chart.groups)
    figure, axes = _figure(9, 1.6 + 0.2 * count + 0.25 * len(chart.groups))
    y, ticks = 0.0, []
    shown: set[str] = set()
    for label, each in chart.groups:
        begin = y
        for name, value in each.items():
            axes.barh(
                y, value, height=0.85, color=colours[name],
                hatch=None if name in chart.measured else "//", edgecolor="white",
                label=None if name in shown else name,
            )  # fmt: skip
            shown.add(name)
            axes.text(value, y, f" {value:.2f}", va="center", fontsize=7, color="#555")
            y += 1
        ticks.append(((begin + y - 1) / 2, label))
        y += 1
    axes.axvline(1, color="#333", linewidth=0.8, linestyle="--")
    axes.set_yticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.invert_yaxis()
    axes.set_title(f"{chart.title}\nmeasured: {where}", fontsize=10, loc="left")
    if shown:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, path)


def draw_timeline(record: dict[str, Any], path: Path) -> None:
    """Write the lanes of a stream of batches over time; times in which nothing runs are marked."""
    lanes = list(dict.fromkeys(lane for _, lane, _, _ in record["timeline"]))
    figure, axes = _figure(9, 1.2 + 0.45 * len(lanes))
    for row, lane in enumerate(lanes):
        spans = [(b, start, end) for b, each, start, end in record["timeline"] if each == lane]
        for batch, start, end in spans:
            axes.barh(
                row, end - start, left=start, height=0.7, linewidth=0.5,
                color=_LANES[row % len(_LANES)], alpha=0.6 if batch % 2 else 1.0,
            )  # fmt: skip
    launches = sorted((s, e) for _, lane, s, e in record["timeline"] if lane == "launches")
    for (_, end), (start, _) in itertools.pairwise(launches):
        if start > end:
            axes.axvspan(end, start, color="#e53e3e", alpha=0.25, linewidth=0)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds; gaps between launches are red")
    axes.set_title(
        f"{record['network']}, batch {record['batch']}, {record['column']}: a gap of "
        f"{record['gap_ms']:.2f} ms a batch",
        fontsize=10,
        loc="left",
    )
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import rc_context

    metadata: dict[str, Any] = {"Date": None} if path.suffix == ".svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "xrt"}):  # the same picture gives the same file
        figure.savefig(path, bbox_inches="tight", dpi=120, facecolor="white", metadata=metadata)
