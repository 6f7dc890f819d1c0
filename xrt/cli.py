"""The command line: a thin layer over the library."""

from __future__ import annotations

import json
import time
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

from xrt.errors import (
    EngineFallbackWarning,
    InputError,
    MissingDependencyError,
    OptionError,
    XrtError,
    unknown,
)

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise MissingDependencyError("typer", "cli", "The command line") from error

import numpy as np

import xrt

app = typer.Typer(
    help="Compile neural networks into clusters for XLA and other engines, run and explain them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelPath = Annotated[Path, typer.Argument(help="An ONNX file.", metavar="MODEL.onnx")]
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


_NOT_PLAIN = ("accuracy_fn", "quantization", "xla")
"""Options that no text can give."""


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
    table = _table("engine", "available", *(("reason", "remedy") if explained else ()))
    for status in listed:
        why = (status.reason, status.remedy) if explained else ()
        table.add_row(status.name, "yes" if status.available else "no", *why)
    Console().print(table)


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
    program, _ = _compile(model, engine, precision, inputs, shapes, settings)
    explanation = program.explain()
    if save is not None:
        explanation.save(save)
    if as_json:
        typer.echo(json.dumps(explanation.to_dict(), indent=2))
    else:
        typer.echo(str(explanation))


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
    program, feeds = _compile(model, engine, precision, inputs, shapes, settings)
    results = program(**feeds)
    named = _named(program, results)
    table = _table("output", "dtype", "shape", "min", "mean", "max")
    for name, array in named:
        table.add_row(name, *_describe(array))
    Console().print(table)
    if output is not None:
        _save(output, named)
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
    profile: Annotated[bool, typer.Option("--profile", help="Show launches and the gap.")] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write a trace for Perfetto to this file.")
    ] = None,
) -> None:
    """Time MODEL: compile seconds, then the latency of a batch."""
    begin = time.perf_counter()
    program, feeds = _compile(model, engine, precision, inputs, shapes, settings)
    compiled = time.perf_counter() - begin
    for _ in range(warmup):
        program(**feeds)
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        program(**feeds)
        seconds.append(time.perf_counter() - begin)
    p10, p50, p90 = np.percentile(np.array(seconds) * 1e3, [10, 50, 90])
    typer.echo(f"compile  {compiled:.2f} s, {_count(len(program.clusters), 'cluster')}")
    typer.echo(
        f"latency  median {p50:.3f} ms, p10 {p10:.3f} ms, p90 {p90:.3f} ms over "
        f"{_count(runs, 'run')}"
    )
    if profile or trace is not None:
        measured = program.profile([feeds] * runs)
        typer.echo(f"profile  {measured}")
        if trace is not None:
            measured.save(trace)


def _compile(
    path: Path,
    engine: str,
    precision: str,
    inputs: list[str] | None,
    shapes: list[str] | None,
    settings: list[str] | None,
) -> tuple[Any, dict[str, Any]]:
    """The program of the model at `path`, and inputs for it: from files, else random."""
    from xrt.importers.onnx import load_onnx

    options = _options(settings)
    model = load_onnx(path)
    feeds = _feeds(model, inputs, shapes)
    names = [name.strip() for name in engine.split(",")]
    chosen = names[0] if len(names) == 1 else names
    calibration = [feeds] if precision == "int8" else None
    program = xrt.compile(
        model, feeds, engine=chosen, precision=precision, calibration=calibration, options=options
    )
    return program, feeds


def _options(settings: list[str] | None) -> xrt.CompileOptions:
    known = {f.name: f.default for f in fields(xrt.CompileOptions) if f.name not in _NOT_PLAIN}
    values: dict[str, Any] = {}
    for name, text in _pairs(settings, "--option").items():
        if name not in known:
            raise OptionError(unknown("Option", name, known))
        values[name] = _parse_value(text)
        if isinstance(known[name], bool) and not isinstance(values[name], bool):
            raise OptionError(f"--option {name} takes true or false; got {text!r}.")
    return xrt.CompileOptions(**values)


def _parse_value(text: str) -> Any:
    """A number, true, false or none; else the text itself."""
    try:
        return None if text.lower() == "none" else json.loads(text.lower())
    except json.JSONDecodeError:
        return text


def _feeds(
    model: Any, inputs: list[str] | None, shapes: list[str] | None
) -> dict[str, np.ndarray[Any, Any]]:
    """An array for every input of `model`; symbolic dimensions that nothing fixes are 1."""
    files = _pairs(inputs, "--input")
    wanted = {name: _parse_shape(name, s) for name, s in _pairs(shapes, "--shape").items()}
    values = {str(value.name): value for value in model.graph.inputs}
    for name in (*files, *wanted):
        if name not in values:
            raise InputError(
                f"Input {name!r} is unknown. This model takes: {', '.join(values) or 'none'}."
            )
    feeds = {name: _load_array(name, file) for name, file in files.items()}
    symbols: dict[str, int] = {}
    for name, shape in {**wanted, **{n: a.shape for n, a in feeds.items()}}.items():
        dims = values[name].shape or ()
        symbols.update(
            (str(dim), size)
            for dim, size in zip(dims, shape, strict=False)
            if not isinstance(dim, int)
        )
    for name, value in values.items():
        if name not in feeds:
            feeds[name] = _random(value, wanted.get(name), symbols)
    return feeds


def _pairs(options: list[str] | None, flag: str) -> dict[str, str]:
    pairs = {}
    for option in options or []:
        name, separator, value = option.partition("=")
        if not separator or not name or not value:
            raise OptionError(f"{flag} takes NAME=VALUE; got {option!r}.")
        pairs[name] = value
    return pairs


def _load_array(name: str, file: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(np.load(file, allow_pickle=False))
    except FileNotFoundError:
        raise InputError(f"Input {name!r}: the file {file!r} does not exist.") from None
    except (ValueError, OSError, EOFError):
        raise InputError(
            f"Input {name!r}: {file!r} is no .npy file of numbers or strings. Use numpy.save."
        ) from None
    return array.astype(object) if array.dtype.kind in "SU" else array


def _parse_shape(name: str, text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise OptionError(f"--shape {name}={text}: a shape looks like 8x3x224x224.")
    return tuple(map(int, parts))


def _random(
    value: Any, shape: tuple[int, ...] | None, symbols: dict[str, int]
) -> np.ndarray[Any, Any]:
    kind = value.dtype.numpy().kind if value.dtype is not None else "O"
    if kind == "O" or type(value.type).__name__ != "TensorType":
        raise InputError(
            f"Input {value.name!r} is {value.type or 'of unknown type'}, for which there are no "
            f"random values. Give it: --input {value.name}=FILE.npy"
        )
    if shape is None:
        dims = list(value.shape or ())
        shape = tuple(d if isinstance(d, int) else symbols.get(str(d), 1) for d in dims)
    generator = np.random.default_rng(0)
    dtype = value.dtype.numpy()
    if kind in "iu":
        return np.asarray(generator.integers(0, 2, shape).astype(dtype))
    if kind == "b":
        return np.ones(shape, dtype)
    return np.asarray(generator.standard_normal(shape).astype(dtype))


def _named(program: Any, results: Any) -> list[tuple[str, Any]]:
    """Name and array of every output; the items of a sequence are numbered."""
    results = results if isinstance(results, tuple) else (results,)
    outputs = program.specialization.imported.model.graph.outputs
    named: list[tuple[str, Any]] = []
    for value, result in zip(outputs, results, strict=True):
        if isinstance(result, list):
            named += [(f"{value.name}[{i}]", item) for i, item in enumerate(result)]
        else:
            named.append((str(value.name), result))
    return named


def _describe(array: Any) -> tuple[str, ...]:
    """dtype, shape, minimum, mean and maximum, as text."""
    if array is None:
        return ("-",) * 5
    dtype, shape = str(array.dtype), "x".join(map(str, array.shape)) or "scalar"
    if not array.size or array.dtype.kind in "SUOc":
        return (dtype, shape, "-", "-", "-")
    values = array.astype(np.float64)
    return (dtype, shape, *(f"{v:.6g}" for v in (values.min(), values.mean(), values.max())))


def _save(folder: Path, named: list[tuple[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in named:
        if array is not None:
            file = "".join(c if c.isalnum() or c in "._-" else "_" for c in name)
            np.save(folder / f"{file}.npy", array.astype(str) if array.dtype == object else array)
    typer.echo(f"{_count(len(named), 'output')} written to {folder}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


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


if __name__ == "__main__":
    main()
