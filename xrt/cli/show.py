"""What the commands show and write: tables, arrays, profiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import xrt
from xrt.runtime.explanation import size_text


def show_profile(traces: dict[str, xrt.Trace]) -> None:
    """A table of the runs, and the timeline of the last one: each batch has its digit."""
    from xrt.runtime import timeline

    console = Console()
    shown = table("profile", *traces)
    for name, show in _PROFILED.items():
        shown.add_row(name, *map(show, traces.values()))
    console.print(shown)
    last = list(traces.values())[-1]
    lines = timeline.lines(last, max(console.width - 22, 20), _SHOWN_BATCHES)
    typer.echo(f"\n{last}")
    for line in lines:
        text = Text(f"{line.name:20}  ")
        for mark, cell in zip(str(line), line.cells, strict=True):
            gap = line.name == timeline.GAPS
            text.append(mark, "" if cell is None else "red" if gap else _COLOURS[cell % 5])
        console.print(text)


_SHOWN_BATCHES = 4
_COLOURS = ("blue", "yellow", "green", "magenta", "cyan")
_PROFILED: dict[str, Callable[[xrt.Trace], str]] = {
    "ms a batch": lambda trace: f"{trace.wall_ms:.3f}",
    "busy": lambda trace: f"{trace.busy_ms:.3f}",
    "gap": lambda trace: f"{trace.gap_ms:.3f}",
    "gap, %": lambda trace: f"{trace.gap_fraction * 100:.2f}",
    "latency, p50": lambda trace: f"{trace.p50_ms:.3f}",
    "p90": lambda trace: f"{trace.p90_ms:.3f}",
    "p99": lambda trace: f"{trace.p99_ms:.3f}",
    "launches": lambda trace: f"{trace.launches_per_batch:g}",
    "peak memory": lambda trace: size_text(trace.peak_memory_bytes),
}
"""Rows of the profile."""


def named(program: Any, results: Any) -> list[tuple[str, Any]]:
    """Name and array of every output; the items of a sequence are numbered."""
    from xrt.importers.interface import OnnxInterface

    imported = program.specialization.imported
    if isinstance(imported.interface, OnnxInterface):
        results = results if isinstance(results, tuple) else (results,)
    else:
        results = _arrays(results)
    outputs = imported.model.graph.outputs
    pairs: list[tuple[str, Any]] = []
    for value, result in zip(outputs, results, strict=True):
        if isinstance(result, list):
            pairs += [(f"{value.name}[{i}]", item) for i, item in enumerate(result)]
        else:
            pairs.append((str(value.name), result))
    return pairs


def _arrays(results: Any) -> tuple[Any, ...]:
    """The arrays in the results of a torch model, in order."""
    if hasattr(results, "dtype"):
        return (results,)
    if isinstance(results, Mapping):
        results = tuple(results.values())
    items = results if isinstance(results, (list, tuple)) else ()
    return tuple(array for item in items for array in _arrays(item))


def describe(array: Any) -> tuple[str, ...]:
    """dtype, shape, minimum, mean and maximum, as text."""
    if array is None:
        return ("-",) * 5
    dtype, shape = str(array.dtype), "x".join(map(str, array.shape)) or "scalar"
    if not array.size or array.dtype.kind in "SUOc":
        return (dtype, shape, "-", "-", "-")
    values = array.astype(np.float64)
    return (dtype, shape, *(f"{v:.6g}" for v in (values.min(), values.mean(), values.max())))


def save_arrays(folder: Path, pairs: list[tuple[str, Any]]) -> None:
    """Write arrays as NAME.npy into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in pairs:
        if array is not None:
            file = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
            np.save(folder / f"{file}.npy", array.astype(str) if array.dtype == object else array)
    typer.echo(f"{count(len(pairs), 'output')} written to {folder}")


def table(*columns: str) -> Table:
    """A table without lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def ago(moment: float) -> str:
    """A moment in seconds since the epoch as date and minute, local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def count(number: int, noun: str) -> str:
    """A number with its noun: "3 runs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
