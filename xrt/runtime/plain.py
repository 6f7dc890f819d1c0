"""Parts of a program as plain data, fit for JSON, and back."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from xrt.options import CompileOptions
from xrt.passes.partition import Placement
from xrt.quantization import Calibration
from xrt.runtime.accuracy import Choice
from xrt.runtime.inputs import Signature
from xrt.runtime.int8 import Int8
from xrt.runtime.precision import Conversion, Precision
from xrt.runtime.ranges import Open, Range

_NOT_SAVED = (
    *("cache", "cache_bytes", "cache_dir", "timing_cache", "progress"),  # about a machine
    *("accuracy_fn", "max_accuracy_drop"),  # calls what is not in the file
    "normalization",  # has become a part of the graphs
)
"""Options that a file does not hold."""


def plain_options(options: Any) -> dict[str, Any]:
    """The options that are not at their defaults, as far as a file holds them."""
    default = type(options)()
    plain: dict[str, Any] = {}
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name in _NOT_SAVED or value == getattr(default, each.name):
            continue
        plain[each.name] = plain_options(value) if is_dataclass(value) else _plain(value)
    return plain


def options_from(plain: Mapping[str, Any], kind: Any = CompileOptions) -> Any:
    """Options of what `plain_options` gave; names that this version does not know are left out.

    Raises:
        OptionError: If a value is not valid.
    """
    default = kind()
    values: dict[str, Any] = {}
    for each in fields(kind):
        if each.name not in plain or each.name in _NOT_SAVED:
            continue
        before, value = getattr(default, each.name), plain[each.name]
        is_nested = is_dataclass(before)
        values[each.name] = options_from(value, type(before)) if is_nested else _tupled(value)
    return kind(**values)


def _tupled(value: Any) -> Any:
    """A value of an option, its lists as tuples."""
    if isinstance(value, dict):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def plain_signature(signature: Signature) -> list[Any]:
    """A signature; contents become text."""
    return [
        [shape, dtype, None if contents is None else base64.b64encode(contents).decode()]
        for shape, dtype, contents in signature
    ]


def signature_from(plain: Sequence[Any]) -> Signature:
    """The signature that became `plain`."""
    return tuple(
        (
            None if shape is None else tuple(map(int, shape)),
            str(dtype),
            None if contents is None else base64.b64decode(contents),
        )
        for shape, dtype, contents in plain
    )


def plain_ranges(ranges: Open) -> list[list[Any]]:
    """Ranges of dimensions that stay open."""
    return [[name, each.least, each.usual, each.most] for name, each in ranges]


def ranges_from(plain: Sequence[Sequence[Any]]) -> Open:
    """The ranges that became `plain`."""
    return tuple((str(name), Range(*map(int, sizes))) for name, *sizes in plain)


def plain_placements(placements: Sequence[Placement]) -> list[list[str]]:
    """Where the nodes run."""
    return [[p.node, p.op, p.engine, p.reason, p.cluster] for p in placements]


def placements_from(plain: Sequence[Sequence[Any]]) -> tuple[Placement, ...]:
    """The placements that became `plain`."""
    return tuple(Placement(*map(str, each)) for each in plain)


def plain_conversion(conversion: Conversion) -> dict[str, Any]:
    """What became of the numbers."""
    return {
        "precision": conversion.precision,
        "kept": [list(each) for each in conversion.kept],
        "notes": list(conversion.notes),
        "report": _plain(conversion.report),
    }


def conversion_from(plain: Mapping[str, Any]) -> Conversion:
    """The conversion that became `plain`."""
    kept = tuple((str(name), str(op), str(reason)) for name, op, reason in plain["kept"])
    notes = tuple(map(str, plain["notes"]))
    return Conversion(str(plain["precision"]), kept, notes, dict(plain["report"]))


def plain_calibration(precision: Precision, imported: Any) -> dict[str, Any] | None:
    """What calibration found for a model; None if there is nothing to know."""
    if not isinstance(precision, Int8) or not precision.stage(imported):
        return None
    state = precision.state(imported)
    choice = state.choice
    return {
        "calibration": state.calibration.to_json().decode(),
        "choice": choice and {"exclude": list(choice.exclude), "harm": _plain(choice.harm)},
        "report": _plain(state.report),
        "notes": list(state.notes),
    }


def restore_calibration(plain: Mapping[str, Any] | None, precision: Any, imported: Any) -> None:
    """Tell `precision` what calibration found for a model, if anything.

    Raises:
        CalibrationError: If it is no calibration.
    """
    if plain is None or not isinstance(precision, Int8):
        return
    state = precision.state(imported)
    state.calibration = Calibration.from_json(plain["calibration"])
    if plain["choice"]:
        harm = {str(name): float(value) for name, value in plain["choice"]["harm"].items()}
        state.choice = Choice(tuple(map(str, plain["choice"]["exclude"])), harm)
    state.report = dict(plain["report"])
    state.notes = list(map(str, plain["notes"]))
    state.ready = True
