"""From a file on the command line to a program and inputs for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import xrt
from xrt.errors import InputError, OptionError, unknown
from xrt.runtime.ranges import closed

SAVED = ".xrt"
"""Suffix of saved programs."""

_NOT_PLAIN = ("accuracy_fn", "quantization", "xla")
"""Options that no text can give."""


def open_model(
    path: Path,
    engine: str,
    precision: str,
    inputs: list[str] | None,
    shapes: list[str] | None,
    settings: list[str] | None,
    *,
    target: str | None = None,
    ranges: list[str] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """The program of the model at `path`, and inputs for it: from files, else random."""
    from xrt.importers.onnx import load_onnx

    if path.suffix == SAVED:
        if target or ranges:
            raise OptionError(f"{path} is compiled; --target and --range are for ONNX models.")
        return _load(path, engine, precision, inputs, shapes, settings)
    options = _options(settings)
    if ranges:
        bounds = {
            name: _parse_range(name, text) for name, text in _pairs(ranges, "--range").items()
        }
        options = replace(options, ranges=bounds)
    model = load_onnx(path)
    feeds = _feeds(model, inputs, shapes)
    names = [name.strip() for name in engine.split(",")]
    chosen = names[0] if len(names) == 1 else names
    calibration = [feeds] if precision == "int8" else None
    program = xrt.compile(
        model,
        feeds,
        engine=chosen,
        precision=precision,
        calibration=calibration,
        target=target,
        options=options,
    )
    return program, feeds


def _load(
    path: Path,
    engine: str,
    precision: str,
    inputs: list[str] | None,
    shapes: list[str] | None,
    settings: list[str] | None,
) -> tuple[Any, dict[str, Any]]:
    """The saved program at `path`, and inputs for it, by default of the shapes it was saved for."""
    chosen: Any = [name.strip() for name in engine.split(",")]
    program = xrt.load(
        path,
        engine=None if chosen == ["auto"] else chosen,
        options=_options(settings) if settings else None,
    )
    saved = program.specialization
    if precision not in ("fp32", saved.conversion.precision):
        raise OptionError(
            f"{path} was compiled in {saved.conversion.precision}; --precision is for ONNX models."
        )
    values = saved.imported.model.graph.inputs
    signature = closed(saved.imported, saved.signature, saved.ranges)
    usual = {
        str(dim): size
        for value, (shape, _, _) in zip(values, signature, strict=True)
        for dim, size in zip(value.shape or (), shape or (), strict=False)
    }
    feeds = _feeds(saved.imported.model, inputs, shapes, usual)
    program.prepare(**feeds)
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
    model: Any,
    inputs: list[str] | None,
    shapes: list[str] | None,
    usual: Mapping[str, int] | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """An array for every input of `model`; symbolic dimensions that nothing fixes are `usual`."""
    files = _pairs(inputs, "--input")
    wanted = {name: _parse_shape(name, s) for name, s in _pairs(shapes, "--shape").items()}
    values = {str(value.name): value for value in model.graph.inputs}
    for name in (*files, *wanted):
        if name not in values:
            raise InputError(
                f"Input {name!r} is unknown. This model takes: {', '.join(values) or 'none'}."
            )
    feeds = {name: _load_array(name, file) for name, file in files.items()}
    symbols = dict(usual or {})
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


def _parse_range(name: str, text: str) -> tuple[int, ...]:
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise OptionError(f"--range {name}={text}: a range looks like 1:32, or 1:8:32.")
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
