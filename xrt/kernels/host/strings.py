"""Operators on strings, which are Python strings in arrays of objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xrt.kernels.host import re2
from xrt.kernels.host.common import Array
from xrt.kernels.host.registry import kernel

CASES: dict[str, Callable[[str], str]] = {"LOWER": str.lower, "NONE": str, "UPPER": str.upper}


def texts(x: Array) -> list[str]:
    """All elements as Python strings; bytes are UTF-8."""
    if x.dtype.kind not in "OUST":
        raise TypeError(f"strings are needed, got {x.dtype}")
    return [e.decode() if isinstance(e, bytes) else str(e) for e in x.reshape(-1).tolist()]


def objects(values: Iterable[str], shape: Sequence[int]) -> Array:
    """Strings as an array of objects."""
    listed = list(values)
    result = np.empty(len(listed), np.object_)
    result[:] = listed
    return result.reshape(shape)


@kernel("StringConcat")
def string_concat(x: Array, y: Array) -> Array:
    """x followed by y, elementwise, with broadcasting."""
    left, right = objects(texts(x), x.shape), objects(texts(y), y.shape)
    return np.asarray(left + right, np.object_)


@kernel("StringSplit")
def string_split(
    x: Array, *, delimiter: str | None = None, maxsplit: int | None = None
) -> tuple[Array, Array]:
    """The parts of each string along a new last axis, padded with "", and their numbers.

    Without a delimiter runs of whitespace part strings, and those at the ends are dropped.
    """
    most = -1 if maxsplit is None else maxsplit
    parts = [text.split(delimiter or None, most) for text in texts(x)]
    width = max(map(len, parts), default=0)
    padded = [part for found in parts for part in found + [""] * (width - len(found))]
    counts = np.array([len(found) for found in parts], np.int64)
    return objects(padded, (*x.shape, width)), counts.reshape(x.shape)


@kernel("StringNormalizer")
def string_normalizer(
    x: Array,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str | None = None,
    stopwords: Sequence[str] = (),
) -> Array:
    """[C] or [1, C] strings without the stop words, in another case; [""] if none is left.

    Case changes are Unicode's own, whatever the locale.
    """
    if x.ndim not in (1, 2) or (x.ndim == 2 and len(x) != 1):
        raise ValueError(f"a shape of [C] or [1, C] is needed, got {list(x.shape)}")
    if case_change_action not in CASES:
        raise ValueError(
            f"case_change_action {case_change_action!r} is unknown; known: {', '.join(CASES)}"
        )
    change = CASES[case_change_action]
    fold = CASES["NONE" if is_case_sensitive else "LOWER"]
    stops = {fold(word) for word in stopwords}
    kept = [change(text) for text in texts(x) if fold(text) not in stops] or [""]
    return objects(kept, (*x.shape[:-1], len(kept)))


@kernel("RegexFullMatch")
def regex_full_match(x: Array, *, pattern: str | None = None) -> Array:
    """Whether all of each string matches a regular expression of RE2."""
    if pattern is None:
        raise ValueError("RegexFullMatch needs a pattern")
    matches = re2.compile(pattern).fullmatch
    return np.array([matches(text) is not None for text in texts(x)], np.bool_).reshape(x.shape)
