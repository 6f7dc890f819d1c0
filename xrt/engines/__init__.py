"""The engines, by name. Other packages add theirs through the entry-point group ``xrt.engines``."""

from __future__ import annotations

import functools
import importlib
import sys
import types
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from xrt.engines.engine import Engine, Executable
from xrt.errors import EngineFallbackWarning, EngineUnavailableError, OptionError, unknown
from xrt.graph import Support

__all__ = ["Engine", "EngineStatus", "Executable", "engines", "resolve"]

ENTRY_POINTS = "xrt.engines"
AUTO = "auto"
HOST = "host"
"""Not an engine: the host runtime, which runs what no engine takes."""

_BUILT_IN = {
    "tensorrt": "xrt.engines.tensorrt:tensorrt",
    "tensorrt_rtx": "xrt.engines.tensorrt:tensorrt_rtx",
    "xla": "xrt.engines.xla:XlaEngine",
}
_AUTO = ("tensorrt", "xla")
"""What engine="auto" tries, in order, leaving out what cannot run here."""


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can run here.

    Attributes:
        name: The engine's name, as `xrt.compile(engine=...)` takes it.
        available: Whether it can run on this machine.
        reason: Why not.
        remedy: What to do about it.
    """

    name: str
    available: bool
    reason: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        if self.available:
            return f"{self.name}: available"
        return f"{self.name}: not available: {self.reason}" + (
            f" ({self.remedy})" if self.remedy else ""
        )


def engines() -> list[EngineStatus]:
    """What can run here and, for what cannot, the reason and the remedy."""
    listed = [EngineStatus(HOST, True)]
    for name in sorted(_factories()):
        support = _status(name)
        listed.append(EngineStatus(name, support.ok, support.reason, support.remedy))
    return listed


def resolve(
    engine: str | Sequence[str], target: str | None = None, *, strict: bool = False
) -> tuple[Engine, ...]:
    """The engines that `xrt.compile(engine=...)` names, in order of preference; none for "host".

    Of several that are named, one that cannot run here is left out with a warning, so that the next
    takes over. With a `target`, those that build for it remain; a warning names the others.

    Args:
        engine: A name, or several.
        target: A device to build for that need not be here.
        strict: Leave out none that was asked for by name: raise.

    Raises:
        OptionError: If a name is unknown, or no engine builds for `target`.
        EngineUnavailableError: If none that was asked for by name can run here, or, with a
            `target`, build here.
    """
    names = _names(engine)
    if target is not None:
        return _resolve_for(names, target)
    chosen: list[Engine] = []
    missing: list[EngineStatus] = []
    for name in names:
        if name == AUTO:
            chosen += _automatic()
        elif name != HOST:
            support = _status(name)
            if support:
                chosen.append(_load(name))
            else:
                missing.append(EngineStatus(name, False, *_why(support)))
    if missing and (strict or len(missing) == len(names)):
        raise EngineUnavailableError(str(missing[0]))
    for status in missing:
        warnings.warn(
            f"The next engine in the list takes over. {status}", EngineFallbackWarning, stacklevel=3
        )
    return tuple(dict.fromkeys(chosen))


def stand_ins(engine: str | Sequence[str]) -> tuple[Engine, ...]:
    """What runs here where engines build for a target that is not: to calibrate, and to compare.

    Those named that can run here; if none can, those of "auto" that can.
    """
    named = [name for name in _names(engine) if name not in (AUTO, HOST) and _status(name)]
    return tuple(_load(name) for name in named or [name for name in _AUTO if _status(name)])


def _names(engine: str | Sequence[str]) -> list[str]:
    several = isinstance(engine, Sequence) and not isinstance(engine, str)
    names: list[Any] = list(engine) if several else [engine]
    known = {HOST, AUTO, *_factories()}
    if not names:
        raise OptionError("engine=[] names no engine. Use 'host' to run without one.")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise OptionError(unknown("Engine", name, known - {AUTO}))
    return list(dict.fromkeys(names))


def _resolve_for(names: Sequence[str], target: str) -> tuple[Engine, ...]:
    """The engines that build for `target`."""
    wanted = [each for name in names for each in (_AUTO if name == AUTO else (name,))]
    chosen: list[Engine] = []
    refusals: list[OptionError] = []
    for name in dict.fromkeys(wanted):
        if name == HOST:
            continue
        try:
            made = _load(name).targeting(target)
        except OptionError as error:
            refusals.append(error)
            continue
        _require(name, made.available())
        chosen.append(made)
    if not chosen:
        nothing = OptionError(
            f"target={target!r}: the host runtime builds for no device. Name an engine that does, "
            "'tensorrt' for one."
        )
        raise (refusals or [nothing])[0]
    left_out = [name for name in names if name not in (AUTO, HOST, *(e.name for e in chosen))]
    if left_out:
        warnings.warn(
            f"For target={target!r} these engines build nothing: {', '.join(left_out)}. What "
            f"{', '.join(each.name for each in chosen)} cannot take runs on the host runtime, "
            "which every machine has.",
            EngineFallbackWarning,
            stacklevel=4,
        )
    return tuple(chosen)


def _require(name: str, support: Support) -> None:
    if not support:
        raise EngineUnavailableError(str(EngineStatus(name, False, *_why(support))))


def _automatic() -> list[Engine]:
    statuses = {name: _status(name) for name in _AUTO}
    if not any(statuses.values()):
        reasons = "; ".join(str(EngineStatus(n, False, *_why(s))) for n, s in statuses.items())
        warnings.warn(
            f"engine='auto' found no engine, so all runs on the host. {reasons}",
            EngineFallbackWarning,
            stacklevel=4,
        )
    return [_load(name) for name, support in statuses.items() if support]


def _why(support: Support) -> tuple[str, str]:
    return support.reason, support.remedy


def _status(name: str) -> Support:
    try:
        return _load(name).available()
    except Exception as error:  # a foreign package may fail in any way
        return Support.no(f"{type(error).__name__}: {error}", "reinstall its package")


@functools.cache
def _load(name: str) -> Engine:
    factory = _factories()[name]
    if isinstance(factory, str):
        module, _, attribute = factory.partition(":")
        made = getattr(importlib.import_module(module), attribute)()
    else:
        made = factory.load()()
    if not isinstance(made, Engine):
        raise OptionError(f"Entry point {name!r} gave {made!r}, which is no xrt Engine.")
    return made


def _factories() -> dict[str, Any]:
    found: dict[str, Any] = {
        point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)
    }
    return {**found, **_BUILT_IN}


class _CallablePackage(types.ModuleType):
    """Lets `xrt.engines()` be a call although `xrt.engines` is a package."""

    def __call__(self) -> list[EngineStatus]:
        return engines()


sys.modules[__name__].__class__ = _CallablePackage
