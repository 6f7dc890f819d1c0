"""Regular expressions of RE2, translated to those of Python.

ONNX writes patterns in RE2's syntax (https://github.com/google/re2/wiki/Syntax). It lacks some of
Python's (references, lookaround), adds to it (``\\pL``, ``\\Q...\\E``, flags in the middle) and
means other things by it (``\\d`` and ``\\b`` are ASCII, ``$`` is the very end). Only whether a text
matches is kept: groups do not capture, and lazy repetition is as good as greedy. Unlike RE2,
Python's matcher can take exponential time on patterns with nested repetitions.
"""

from __future__ import annotations

import functools
import re
import sys
import unicodedata
from dataclasses import dataclass
from typing import TypeAlias

Ranges: TypeAlias = tuple[tuple[int, int], ...]
"""Characters, as inclusive ranges of code points."""

Class: TypeAlias = tuple[Ranges, bool]
"""Characters, and whether all others are meant."""

PERL: dict[str, Ranges] = {
    "d": ((0x30, 0x39),),
    "s": ((0x09, 0x0A), (0x0C, 0x0D), (0x20, 0x20)),
    "w": ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)),
}
POSIX: dict[str, Ranges] = {
    "alnum": ((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": ((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": ((0x00, 0x7F),),
    "blank": ((0x09, 0x09), (0x20, 0x20)),
    "cntrl": ((0x00, 0x1F), (0x7F, 0x7F)),
    "digit": ((0x30, 0x39),),
    "graph": ((0x21, 0x7E),),
    "lower": ((0x61, 0x7A),),
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": ((0x09, 0x0D), (0x20, 0x20)),
    "upper": ((0x41, 0x5A),),
    "word": PERL["w"],
    "xdigit": ((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
CONTROLS = {"a": 0x07, "f": 0x0C, "t": 0x09, "n": 0x0A, "r": 0x0D, "v": 0x0B}
ANCHORS = {"A": r"\A", "z": r"\Z", "b": r"(?a:\b)", "B": r"(?a:\B)"}
MOST_REPEATS = 1000
"""RE2 refuses more."""

_REPEAT = re.compile(r"(?:[*+?]|\{(\d+)(?:,(\d*))?\})\??")
_GROUP = re.compile(r"\((?:\?P?<\w+>)?(?!\?)")
_FLAGS = re.compile(r"\(\?([imsU]*)(?:-([imsU]+))?([:)])")
_PROPERTY = re.compile(r"\\([pP])(?:\{(\^?)([^}]*)\}|(\w))")
_POSIX = re.compile(r"\[:(\^?)(\w+):\]")
_CODE = re.compile(r"\\(?:x\{([0-9A-Fa-f]{1,6})\}|x([0-9A-Fa-f]{2})|(0[0-7]{0,2}|[1-7][0-7]{2}))")
_QUOTED = re.compile(r"\\Q(.*?)(?:\\E|\Z)", re.DOTALL)


@functools.lru_cache(maxsize=128)
def compile(pattern: str) -> re.Pattern[str]:
    """A pattern of Python that fully matches the same texts as `pattern` does in RE2.

    Raises:
        ValueError: `pattern` is not valid in RE2, or uses scripts, bytes or too long repetitions.
    """
    try:
        return re.compile(_Translator(pattern).translate())
    except re.error as error:
        raise ValueError(f"The pattern {pattern!r} is not valid in RE2: {error}") from error


@functools.cache
def category(name: str) -> Ranges:
    """The characters of a general category of Unicode: "L", "Nd", "Any"."""
    known = {unicodedata.category(chr(code)) for code in range(0x3000)} | {"Co", "Cs"}
    if name != "Any" and not any(c == name or c[0] == name for c in known):
        raise ValueError(f"Unicode class {name!r} is not known here; general categories are")
    ranges: list[tuple[int, int]] = []
    for code in range(sys.maxunicode + 1):
        if name == "Any" or unicodedata.category(chr(code)).startswith(name):
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1] = ranges[-1][0], code
            else:
                ranges.append((code, code))
    return tuple(ranges)


@dataclass(frozen=True, slots=True)
class _Flags:
    fold: bool = False
    lines: bool = False
    dot_all: bool = False

    def changed(self, on: str, off: str) -> _Flags:
        def value(letter: str, now: bool) -> bool:
            return letter not in off and (now or letter in on)

        return _Flags(value("i", self.fold), value("m", self.lines), value("s", self.dot_all))


class _Translator:
    """One walk over a pattern. Flags go to each atom, so none has to be set and reset."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.flags = _Flags()
        self.outer: list[_Flags] = []

    def translate(self) -> str:
        parts: list[str] = []
        while self.at < len(self.pattern):
            if not self._eat(_QUOTED, parts):
                parts.append(self._item())
        if self.outer:
            raise self._error("a ')' is missing")
        return "".join(parts)

    def _eat(self, quoted: re.Pattern[str], parts: list[str]) -> bool:
        if found := quoted.match(self.pattern, self.at):
            self.at = found.end()
            parts.extend(self._literal(ord(c)) for c in found[1])
        return found is not None

    def _item(self) -> str:
        char = self.pattern[self.at]
        if repeat := _REPEAT.match(self.pattern, self.at):
            return self._repeat(repeat)
        known = {
            "\\": self._escape,
            "[": self._set,
            "(": self._open,
            ")": self._close,
        }
        if char in known:
            return known[char]()
        self.at += 1
        return self._plain(char)

    def _plain(self, char: str) -> str:
        flags = self.flags
        symbols = {
            "|": "|",
            ".": "(?s:.)" if flags.dot_all else r"[^\n]",
            "^": "(?m:^)" if flags.lines else r"\A",
            "$": "(?m:$)" if flags.lines else r"\Z",
        }
        return symbols[char] if char in symbols else self._literal(ord(char))

    def _repeat(self, found: re.Match[str]) -> str:
        self.at = found.end()
        if _REPEAT.match(self.pattern, self.at):
            raise self._error("a repetition is repeated")
        if any(int(n) > MOST_REPEATS for n in found.groups() if n):
            raise self._error(f"more than {MOST_REPEATS} repetitions")
        return found[0]

    # -------------------------------------------------------------- groups

    def _open(self) -> str:
        if found := _GROUP.match(self.pattern, self.at):
            self.outer.append(self.flags)
        elif found := _FLAGS.match(self.pattern, self.at):
            if found[3] == ":":
                self.outer.append(self.flags)
            self.flags = self.flags.changed(found[1], found[2] or "")
        else:
            raise self._error("RE2 has no such group")
        self.at = found.end()
        return "" if found[0].endswith(")") else "(?:"

    def _close(self) -> str:
        if not self.outer:
            raise self._error("a '(' is missing")
        self.flags = self.outer.pop()
        self.at += 1
        return ")"

    # -------------------------------------------------------------- characters

    def _escape(self) -> str:
        letter = self.pattern[self.at + 1 : self.at + 2]
        if letter in ANCHORS:
            self.at += 2
            return ANCHORS[letter]
        named = self._named()
        if named is None:
            return self._literal(self._code())
        return self._folded(_spell(*named))

    def _named(self) -> Class | None:
        """The class of an escape such as \\d, \\S, \\pL or \\P{Nd}; None if it is no class."""
        letter = self.pattern[self.at + 1 : self.at + 2]
        if letter and letter.lower() in PERL:
            self.at += 2
            return PERL[letter.lower()], letter.isupper()
        if found := _PROPERTY.match(self.pattern, self.at):
            self.at = found.end()
            return category(found[3] or found[4]), (found[1] == "P") != bool(found[2])
        return None

    def _code(self) -> int:
        """The code point that an escape or a plain character stands for."""
        char = self.pattern[self.at]
        if char != "\\":
            self.at += 1
            return ord(char)
        if found := _CODE.match(self.pattern, self.at):
            code = int(found[3], 8) if found[3] else int(found[1] or found[2], 16)
            if code > sys.maxunicode:
                raise self._error(f"there is no character {code:#x}")
            self.at = found.end()
            return code
        letter = self.pattern[self.at + 1 : self.at + 2]
        if not letter or (letter.isalnum() and letter.isascii() and letter not in CONTROLS):
            raise self._error(f"RE2 has no escape '\\{letter}', or not with what follows")
        self.at += 2
        return CONTROLS.get(letter, ord(letter))

    def _literal(self, code: int) -> str:
        return self._folded(re.escape(chr(code)))

    def _folded(self, spelt: str) -> str:
        return f"(?i:{spelt})" if self.flags.fold else spelt

    def _set(self) -> str:
        self.at += 1
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        first = self.at
        members: list[Class] = []
        while self.at == first or not self.pattern.startswith("]", self.at):
            if self.at >= len(self.pattern):
                raise self._error("a ']' is missing")
            members.append(self._member())
        self.at += 1
        listed = tuple(r for ranges, others in members if not others for r in ranges)
        excluded = [ranges for ranges, others in members if others]
        if not excluded:
            return self._folded(_spell(listed, negated))
        # What a negated class within a set leaves out is folded before, so it stays apart.
        parts = "|".join([_spell(listed, False), *(_spell(ranges, True) for ranges in excluded)])
        return self._folded(f"(?:(?!{parts})(?s:.))" if negated else f"(?:{parts})")

    def _member(self) -> Class:
        """A class, a range or a character within brackets."""
        if found := _POSIX.match(self.pattern, self.at):
            if found[2] not in POSIX:
                raise self._error(f"RE2 has no class '{found[2]}'")
            self.at = found.end()
            return POSIX[found[2]], bool(found[1])
        if self.pattern[self.at] == "\\" and (named := self._named()) is not None:
            return named
        low = high = self._code()
        after = self.pattern[self.at + 1 : self.at + 2]
        if self.pattern.startswith("-", self.at) and after not in ("", "]"):
            self.at += 1
            high = self._code()
            if high < low:
                raise self._error("a range of characters is reversed")
        return ((low, high),), False

    def _error(self, reason: str) -> ValueError:
        return ValueError(
            f"The pattern {self.pattern!r} is not valid in RE2 at {self.at}: {reason}"
        )


def _spell(ranges: Ranges, negated: bool) -> str:
    if not ranges:
        return "(?s:.)" if negated else "(?!)"
    members = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)
    return f"[{'^' if negated else ''}{members}]"
