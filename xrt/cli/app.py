"""The commands."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

import xrt
from xrt.cli.models import SAVED, open_model
from xrt.cli.show import ago, count, describe, named, save_arrays, show_profile, table
from xrt.engines import cache as caching
from xrt.errors import EngineFallbackWarning, OptionError, XrtError
from xrt.options import CACHE_BYTES
from xrt.runtime.explanation import size_text

app = typer.Typer(
    help="Compile neural networks into clusters for XLA and other engines, run and explain them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cache = typer.Typer(help="Look into the compile cache, or empty it.", no_args_is_help=True)
app.add_typer(cache, name="cache")

ModelPath = Annotated[
    Path,
    typer.Argument(help="An ONNX file, or a program that `xrt compile` saved.", metavar="MODEL"),
]
EngineNames = Annotated[
    str,
    typer.Option("--engine", "-e", help="auto, host, an engine's name, or several: xla,host."),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        "-p",
        help="fp32, fp16, bf16 or int8, which is calibrated on the inputs given.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", help="An input as NAME=FILE.npy. May be repeated."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", "-s", help="Shape of a random input, as NAME=8x3x224x224. May be repeated."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        "-O",
        help="A field of CompileOptions, as strict=true or fuel=10. May be repeated.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"xrt {xrt.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Compile neural networks into clusters for XLA and other engines, run and explain them."""


@app.command()
def engines() -> None:
    """List the engines: which can run here and, for the others, why not and what to do."""
    listed = xrt.engines()
    explained = any(status.reason or status.remedy for status in listed)
    shown = table("engine", "available", *(("reason", "remedy") if explained else ()))
    for status in listed:
        why = (status.reason, status.remedy) if explained else ()
        shown.add_row(status.name, "yes" if status.available else "no", *why)
    Console().print(shown)


@cache.command("info")
def cache_info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, entry by entry.")] = False,
) -> None:
    """Show what the compile cache holds for each engine, and how large it may grow."""
    root = caching.cache_folder()
    found = caching.entries(root)
    if as_json:
        listed = [{**asdict(entry), "path": str(entry.path)} for entry in found]
        typer.echo(json.dumps({"folder": str(root), "entries": listed}, indent=2))
        return
    total = sum(entry.bytes for entry in found)
    typer.echo(f"folder   {root}")
    typer.echo(
        f"entries  {len(found)}, {size_text(total)} of at most {size_text(CACHE_BYTES)} by default"
    )
    if found:
        shown = table("engine", "entries", "size", "oldest use", "latest use", "damaged")
        for section in sorted({entry.section for entry in found}):
            mine = [entry for entry in found if entry.section == section]
            size = size_text(sum(entry.bytes for entry in mine))
            oldest, latest = (ago(each.used) for each in (mine[0], mine[-1]))
            damaged = sum(not entry.about for entry in mine)
            shown.add_row(section, str(len(mine)), size, oldest, latest, str(damaged))
        Console().print(shown)


@cache.command("clear")
def cache_clear(
    engine: Annotated[
        str | None, typer.Option("--engine", "-e", help="Only what this engine stored.")
    ] = None,
) -> None:
    """Remove what the compile cache holds. Programs that run keep working."""
    root = caching.cache_folder()
    known = {entry.section for entry in caching.entries(root)}
    if engine is not None and known and engine not in known:
        raise OptionError(
            f"The cache in {root} holds nothing of {engine!r}. It has: {', '.join(sorted(known))}."
        )
    removed, freed = caching.clear(root, engine)
    entries = "1 entry" if removed == 1 else f"{removed} entries"
    typer.echo(f"{entries}, {size_text(freed)}, removed from {root}")


@app.command()
def explain(
    model: ModelPath,
    engine: EngineNames = "auto",
    precision: Precision = "fp32",
    inputs: Inputs = None,
    shapes: Shapes = None,
    settings: Settings = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write an HTML report to this file.")] = None,
) -> None:
    """Show the clusters of MODEL, where every operator runs and why."""
    program, _ = open_model(model, engine, precision, inputs, shapes, settings)
    explanation = program.explain()
    if save is not None:
        explanation.save(save)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), indent=2))
    else:
        typer.echo(str(explanation))


@app.command("compile")
def compile_model(
    model: Annotated[Path, typer.Argument(help="An ONNX file.", metavar="MODEL.onnx")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The file to write, as model.xrt.")
    ],
    engine: EngineNames = "auto",
    precision: Precision = "fp32",
    inputs: Inputs = None,
    shapes: Shapes = None,
    settings: Settings = None,
    prepared: Annotated[
        bool,
        typer.Option(help="Keep weights also as prepared for this device: quicker, larger."),
    ] = True,
    target: Annotated[
        str | None, typer.Option(help="Build for a GPU that need not be here, as sm_89.")
    ] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range", help="Sizes of a symbolic dimension, as n=1:32 or n=1:8:32. May be repeated."
        ),
    ] = None,
) -> None:
    """Compile MODEL and save the program to a file, which the other commands take, too."""
    if output.suffix != SAVED:
        raise OptionError(f"--output {output}: the name of a saved program ends in {SAVED}.")
    program, _ = open_model(
        model, engine, precision, inputs, shapes, settings, target=target, ranges=ranges
    )
    program.save(output, prepared=prepared)
    clusters = count(len(program.clusters), "cluster")
    typer.echo(f"{output}: {clusters}, {size_text(output.stat().st_size)}")


@app.command()
def run(
    model: ModelPath,
    engine: EngineNames = "auto",
    precision: Precision = "fp32",
    inputs: Inputs = None,
    shapes: Shapes = None,
    settings: Settings = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the outputs, as NAME.npy.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare each cluster with the host; status 1 if off.")
    ] = False,
) -> None:
    """Run MODEL on inputs from .npy files (random where none is given) and show the outputs."""
    program, feeds = open_model(model, engine, precision, inputs, shapes, settings)
    results = program(**feeds)
    arrays = named(program, results)
    shown = table("output", "dtype", "shape", "min", "mean", "max")
    for name, array in arrays:
        shown.add_row(name, *describe(array))
    Console().print(shown)
    if output is not None:
        save_arrays(output, arrays)
    if verify:
        verification = xrt.verify(program, feeds)
        typer.echo(str(verification))
        if not verification:
            raise typer.Exit(1)


@app.command()
def bench(
    model: ModelPath,
    engine: EngineNames = "auto",
    precision: Precision = "fp32",
    inputs: Inputs = None,
    shapes: Shapes = None,
    settings: Settings = None,
    runs: Annotated[int, typer.Option(min=1, help="Batches to time.")] = 30,
    warmup: Annotated[int, typer.Option(min=0, help="Batches before the clock starts.")] = 5,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show where the time goes: launches, copies, gaps.")
    ] = False,
    depth: Annotated[int, typer.Option(min=1, help="Batches in flight, for the profile.")] = 2,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for Perfetto to this file.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the timeline to this file, as timeline.png.")
    ] = None,
) -> None:
    """Time MODEL: compile seconds, the latency of a batch, then a stream of batches."""
    begin = time.perf_counter()
    program, feeds = open_model(model, engine, precision, inputs, shapes, settings)
    compiled = time.perf_counter() - begin
    for _ in range(warmup):
        program(**feeds)
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        program(**feeds)
        seconds.append(time.perf_counter() - begin)
    p10, p50, p90 = np.percentile(np.array(seconds) * 1e3, [10, 50, 90])
    typer.echo(f"compile  {compiled:.2f} s, {count(len(program.clusters), 'cluster')}")
    typer.echo(
        f"latency  median {p50:.3f} ms, p10 {p10:.3f} ms, p90 {p90:.3f} ms over "
        f"{count(runs, 'run')}"
    )
    if not (profile or trace or plot):
        return
    streamed = program.profile([feeds] * runs, depth=depth)
    if profile:
        show_profile({"one by one": program.profile([feeds] * runs), "streamed": streamed})
    else:
        typer.echo(f"profile  {streamed}")
    if trace is not None:
        streamed.save(trace)
    if plot is not None:
        streamed.plot(plot)


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    label = "warning" if issubclass(category, EngineFallbackWarning) else category.__name__
    Console(stderr=True).print(f"{label}: {message}", style="yellow", markup=False, highlight=False)


def main() -> None:
    """Run the command line; an xrt error ends it with its message and status 2."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app(prog_name="xrt")
    except (XrtError, OSError) as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print("error:", style="bold red", end=" ")
        console.print(str(error), markup=False)
        raise SystemExit(2) from None
