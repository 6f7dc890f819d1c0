"""Operators on strings."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.kernels.host.peers import ort
from tests.kernels.host.support import run
from xrt.errors import KernelError


def _s(*values: str) -> Any:
    return np.array(values, np.object_)


def _same(got: Any, want: Any) -> None:
    assert got.dtype == np.object_
    assert got.shape == np.shape(want)
    assert got.tolist() == np.asarray(want, np.object_).tolist()
    assert all(type(text) is str for text in got.reshape(-1))


def test_concat_broadcasts() -> None:
    (y,) = run("StringConcat", _s("a", "é").reshape(2, 1), _s("x", "", "日本"))
    _same(y, [["ax", "a", "a日本"], ["éx", "é", "é日本"]])
    (y,) = run("StringConcat", np.array("a", np.object_), np.array("b", np.object_))
    assert y.shape == ()
    assert y.item() == "ab"
    (y,) = run("StringConcat", np.zeros((0, 2), np.object_), _s("x"))
    assert y.shape == (0, 2)


def test_strings_of_any_kind_are_understood() -> None:
    for kind in (np.array(["ab", "c"]), np.array([b"ab", b"c"]), _s("ab", "c")):
        (y,) = run("StringConcat", kind, _s("!"))
        _same(y, ["ab!", "c!"])
    with pytest.raises(KernelError, match="strings are needed, got float32"):
        run("StringConcat", np.zeros(2, np.float32), _s("x"))


def test_split_by_a_delimiter() -> None:
    y, counts = run("StringSplit", _s("a.b.c", ".", "", "d"), output_count=2, delimiter=".")
    _same(y, [["a", "b", "c"], ["", "", ""], ["", "", ""], ["d", "", ""]])
    assert counts.tolist() == [3, 2, 1, 1]
    assert counts.dtype == np.int64
    y, counts = run("StringSplit", _s("a--b--c", "d--"), output_count=2, delimiter="--", maxsplit=1)
    _same(y, [["a", "b--c"], ["d", ""]])
    assert counts.tolist() == [2, 2]
    y, counts = run("StringSplit", _s("a.b"), output_count=2, delimiter=".", maxsplit=0)
    _same(y, [["a.b"]])


@pytest.mark.parametrize("attributes", [{}, {"delimiter": ""}])
def test_split_by_runs_of_whitespace(attributes: dict[str, Any]) -> None:
    x = _s("  hello \t world ", "one", "", "a b c").reshape(2, 2)
    y, counts = run("StringSplit", x, output_count=2, **attributes)
    _same(y, [[["hello", "world", ""], ["one", "", ""]], [["", "", ""], ["a", "b", "c"]]])
    assert counts.tolist() == [[2, 1], [0, 3]]
    y, counts = run("StringSplit", _s("  a  b  c "), output_count=2, maxsplit=1, **attributes)
    assert y.tolist() == [["a", "b  c "]]


def test_split_of_nothing() -> None:
    y, counts = run("StringSplit", np.zeros((0, 3), np.object_), output_count=2)
    assert (y.shape, counts.shape) == ((0, 3, 0), (0, 3))
    y, counts = run("StringSplit", np.array("a b", np.object_), output_count=2)
    assert (y.tolist(), counts.tolist()) == (["a", "b"], 2)


@pytest.mark.parametrize("sensitive", [0, 1])
@pytest.mark.parametrize("action", ["NONE", "LOWER", "UPPER"])
def test_normalizer(action: str, sensitive: int) -> None:
    x = _s("Monday", "tuesday", "monday", "", "Wednesday Monday", "Ünder")
    attributes = {
        "case_change_action": action,
        "is_case_sensitive": sensitive,
        "stopwords": ["monday", "TUESDAY"],
    }
    (y,) = run("StringNormalizer", x, **attributes)
    change = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}[action]
    # Whole elements are removed, not words within them.
    kept = [x[0], x[1]] if sensitive else []
    _same(y, [change(text) for text in (*kept, *x[3:].tolist())])
    (row,) = run("StringNormalizer", x[None], **attributes)
    _same(row, [y.tolist()])
    (peer,) = ort(
        "StringNormalizer",
        x,
        outputs=[onnx.TensorProto.STRING],
        **attributes,
        locale="C.UTF-8",
    )
    assert y[:-1].tolist() == peer[:-1].tolist()


def test_normalizer_without_survivors_leaves_an_empty_string() -> None:
    (y,) = run("StringNormalizer", _s("a", "A"), stopwords=["a"])
    _same(y, [""])
    (y,) = run("StringNormalizer", _s("a", "A")[None], stopwords=["a"])
    _same(y, [[""]])
    (y,) = run("StringNormalizer", np.zeros(0, np.object_))
    _same(y, [""])


def test_normalizer_refuses_other_shapes_and_actions() -> None:
    with pytest.raises(KernelError, match=r"\[C\] or \[1, C\] is needed, got \[2, 1\]"):
        run("StringNormalizer", _s("a", "b").reshape(2, 1))
    with pytest.raises(KernelError, match="'TITLE' is unknown; known: LOWER, NONE, UPPER"):
        run("StringNormalizer", _s("a"), case_change_action="TITLE")


def test_full_match() -> None:
    x = _s("a@gmail.com", "b@x.org", "", "ab@gmail.com\n").reshape(2, 2)
    (y,) = run("RegexFullMatch", x, pattern=r"[\w.]+@gmail\.com")
    assert y.dtype == np.bool_
    assert y.tolist() == [[True, False], [False, False]]
    (y,) = run("RegexFullMatch", np.zeros((2, 0), np.object_), pattern="a")
    assert y.shape == (2, 0)
    (peer,) = ort(
        "RegexFullMatch", x, outputs=[onnx.TensorProto.BOOL], pattern=r"[\w.]+@gmail\.com"
    )
    assert peer.tolist() == [[True, False], [False, False]]


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(KernelError, match=r"not valid in RE2 at 3: RE2 has no escape"):
        run("RegexFullMatch", _s("aa"), pattern=r"(a)\1")
    with pytest.raises(KernelError, match="needs a pattern"):
        run("RegexFullMatch", _s("aa"))
