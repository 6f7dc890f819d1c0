"""Which package serves an engine, what it can do, and what it says."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from xrt.errors import OptionError

TENSORRT = "tensorrt"
TENSORRT_RTX = "tensorrt_rtx"

PACKAGES: Mapping[str, tuple[str, ...]] = {
    TENSORRT: (TENSORRT, TENSORRT_RTX),
    TENSORRT_RTX: (TENSORRT_RTX,),
}
"""Engine -> packages that serve it, in order of preference."""

_LEAST = {TENSORRT: 11, TENSORRT_RTX: 1}
"""Package -> its first release whose networks are typed by their graph alone."""

_WORTH_TELLING = ("INTERNAL_ERROR", "ERROR", "WARNING")
_MOST_MESSAGES = 1000


@dataclass(frozen=True)
class Library:
    """A TensorRT package.

    Attributes:
        name: The name of the package: "tensorrt" or "tensorrt_rtx".
        module: The package.
        version: Its exact version; plans of one are not for another.
    """

    name: str
    module: ModuleType
    version: str

    @property
    def trt(self) -> Any:
        """The package, for calls into it: its classes come from C++ and have no types."""
        return self.module

    @functools.cached_property
    def targets(self) -> tuple[str, ...]:
        """Targets that it builds for without such a GPU, as "sm_89"; none where it cannot."""
        kinds = getattr(self.trt, "ComputeCapability", None)
        names = dir(kinds) if kinds is not None else []
        numbers = sorted(int(name[2:]) for name in names if re.fullmatch(r"SM\d+", name))
        return tuple(f"sm_{number}" for number in numbers)

    def capability(self, target: str) -> Any:
        """The library's own name for a target.

        Raises:
            OptionError: If the library does not know the target.
        """
        if target not in self.targets:
            known = ", ".join(self.targets)
            raise OptionError(
                f"target={target!r} is unknown to {self.name} {self.version}. "
                + (f"Known targets: {known}." if known else "It builds for the GPU present only.")
            )
        return getattr(self.trt.ComputeCapability, target.replace("sm_", "SM"))


@functools.cache
def find(engine: str) -> Library | str:
    """The package that serves `engine`, or the reason why none does."""
    reasons = []
    for name in PACKAGES[engine]:
        loaded = load(name)
        if isinstance(loaded, Library):
            return loaded
        reasons.append(loaded)
    return "; ".join(reasons)


@functools.cache
def load(name: str) -> Library | str:
    """A package by name, or the reason why it cannot be used."""
    if name not in _LEAST:
        return f"{name!r} is no TensorRT package"
    try:
        module = importlib.import_module(name)
        version = str(module.__version__)
    except ModuleNotFoundError as error:
        return f"the package {error.name!r} is not installed"
    except Exception as error:  # a package whose libraries do not load may fail in any way
        return f"the package {name!r} does not load: {type(error).__name__}: {error}"
    if int(version.split(".")[0]) < _LEAST[name]:
        return f"{name} {version} is too old: xrt needs {_LEAST[name]} or newer"
    return Library(name, module, version)


@dataclass(frozen=True)
class Message:
    """What the library said.

    Attributes:
        severity: "INTERNAL_ERROR", "ERROR" or "WARNING".
        text: Its words.
    """

    severity: str
    text: str


_CODE = re.compile(r"^\w+::\w+: (?:Error Code \d+: )?(?P<kind>[\w ]+) \((?P<text>.*)\)$", re.DOTALL)
_PLACE = re.compile(r" ?In \S+ at /\S+:\d+\)?$")


def plain(text: str) -> str:
    """An error in the library's words, without the place in its C++ where it was found."""
    found = _CODE.match(text.strip())
    inner = found["text"] if found else text
    return _PLACE.sub("", inner.strip()).strip()


class Messages:
    """What a library said while somebody listened; safe to fill from several threads."""

    def __init__(self) -> None:
        self._all: collections.deque[Message] = collections.deque(maxlen=_MOST_MESSAGES)
        self._lock = threading.Lock()

    def add(self, severity: str, text: str) -> None:
        """Note a message if it is worth telling."""
        if severity in _WORTH_TELLING:
            with self._lock:
                self._all.append(Message(severity, text))

    @property
    def errors(self) -> list[str]:
        """The texts of errors, in order, each once."""
        return self._texts("INTERNAL_ERROR", "ERROR")

    @property
    def warnings(self) -> list[str]:
        """The texts of warnings, in order, each once."""
        return self._texts("WARNING")

    def take(self) -> list[Message]:
        """All messages so far, which are then forgotten."""
        with self._lock:
            taken = list(self._all)
            self._all.clear()
        return taken

    def _texts(self, *severities: str) -> list[str]:
        with self._lock:
            return list(dict.fromkeys(m.text for m in self._all if m.severity in severities))


_LISTENERS: list[tuple[int, Messages]] = []
_LISTENERS_LOCK = threading.Lock()


@contextlib.contextmanager
def listening(messages: Messages | None = None) -> Iterator[Messages]:
    """Collect what libraries say meanwhile in this thread, and in threads of their own."""
    collected = messages or Messages()
    entry = (threading.get_ident(), collected)
    with _LISTENERS_LOCK:
        _LISTENERS.append(entry)
    try:
        yield collected
    finally:
        with _LISTENERS_LOCK:
            _LISTENERS.remove(entry)


@functools.cache
def logger(library: Library) -> Any:
    """The logger (an `ILogger`) for all that is made by a library; it prints nothing.

    There is one: while a builder or runtime lives, the library ignores any other.
    """
    base = library.trt.ILogger

    class Collector(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            with _LISTENERS_LOCK:
                listeners = list(_LISTENERS)
            thread = threading.get_ident()
            own = [messages for ident, messages in listeners if ident == thread]
            for messages in own or [messages for _, messages in listeners]:
                messages.add(severity.name, text)

    return Collector()
