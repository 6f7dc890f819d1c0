"""RE2's syntax, by what ONNX Runtime (which links RE2) matches."""

from __future__ import annotations

import sys
import unicodedata

import numpy as np
import onnx
import pytest

from tests.kernels.host.peers import ort
from xrt.kernels.host import re2

TEXTS = [
    "", "a", "A", "aa", "aaa", "b", "ab", "aB", "AB", "abc", "a.b", "a\n", "a\nb", "\n", "1",
    "123", "٣", "é", "É", "ſ", "K", "straße", "STRASSE", "日本", "😀", " ", "\v", "\t", "_", "-",
    "]", "[", "^", "\\", "$", "{", "}", "x{,3}", "a{1", "a-z", "a b", "foo@bar.com", "aXb", "|",
    "[:alpha:]", "é ",
]  # fmt: skip
PATTERNS = [
    "", "a", "a*", "a+?", "a??", "(a|b)*", "a|b|", "()", "(|a)*", "a{2}", "a{2,}", "a{1,2}?",
    "(ab)+", ".", ".*", "(?s).*", "(?s:.)", "(?-s).", "a.b", "^a$", r"\Aa\z", "(?m)^a$\n^b$",
    "a$\n", "^", "$", r"\d", r"\d+", r"\D", r"\s", r"\S+", r"\w+", r"\W", r"\bab\b", r"\bé\b",
    r"é\b ", r"a\Bb", r"\ba", "(?i)ab", "a(?i)b", "a(?i)b|C", "(?i:a)B", "(?i)é", "(?i)s",
    "(?i)k", "(?i)[a-z]", "(?i)[^a]", "(?i)STRASSE", "(?i)straße", r"(?i)\w", r"(?i)\W",
    r"(?i)[\W_]", r"(?i)[^\W]", r"(?i)[^\w]", r"(?i)\p{Lu}", r"(?i)[\P{Lu}]", "(?i)[[:^lower:]]",
    r"[^\Da]", r"[\D1]", "((?i)a)B", "(?i)(?-i)a", "(?U)a+", "(?i-s:A.*)", "(?im)^A$", "[abc]",
    "[^abc]", "[a-c]+", "[]]", "[^]]", "[]a]+", "[a-]", "[-a]", "[a\\-z]+", r"[\d]+", r"[\D]",
    r"[^\d]", r"[\w.@]+", r"[\s\S]*", "[[:alpha:]]+", "[[:^alpha:]]", "[^[:alpha:]]",
    "[[:word:]]", "[[:punct:]]", "[[:space:]]", "[[:digit:][:upper:]]+", "[[]", "[&&a]", "[a||b]",
    "[^\\n]", "[.]", r"\pL", r"\PL", r"\p{L}+", r"\p{Lu}", r"\p{^Lu}", r"\P{^Lu}", r"\p{Nd}",
    r"[\p{L}\d]+", r"[^\pL]", r"[\PL]", r"\pN", r"\p{So}", r"\p{Any}", r"\x61", r"\x{1F600}",
    r"\101", r"\07", r"\n", r"\t", r"\v", r"\.", r"a\.b", r"\-", r"\\", r"\{", "{", "}", "x{,3}",
    "a{1", r"\Qa.b\E", r"\Qa.b", r"\Q\E", r"\Q|", r"\Qa\E+", r"[\x61-c]", r"(?P<x>a)(b)",
    "(?<name>a)b", "(?:a)(?:b)", "日本", "é", r"\^", r"[\^]",
]  # fmt: skip
INVALID = [
    r"(a)\1", "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", "(?>a)", "(?#c)", "(?P=n)",
    "(?P<n>a)(?P=n)", "a**", "a++", "a*+", "a{2}{3}", "a{1001}", "a{3,2}", "*a", "(", "a)", "[a",
    "[z-a]", "[[:foo:]]", "\\", r"\e", r"\8", r"\Z", r"\pX", r"\p{Nope}", "(?z)a", r"\x{110000}",
]  # fmt: skip


def _peer(pattern: str) -> list[bool]:
    (matches,) = ort(
        "RegexFullMatch",
        np.array(TEXTS, np.object_),
        outputs=[onnx.TensorProto.BOOL],
        pattern=pattern,
    )
    found: list[bool] = matches.tolist()
    return found


@pytest.mark.parametrize("pattern", PATTERNS)
def test_matches_are_those_of_re2(pattern: str) -> None:
    expression = re2.compile(pattern)
    got = [text for text in TEXTS if expression.fullmatch(text) is not None]
    assert got == [text for text, hit in zip(TEXTS, _peer(pattern), strict=True) if hit]


@pytest.mark.parametrize("pattern", INVALID)
def test_what_re2_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"RE2|Unicode class"):
        re2.compile(pattern)
    runtime = pytest.importorskip("onnxruntime")
    with pytest.raises(runtime.capi.onnxruntime_pybind11_state.Fail):
        _peer(pattern)


def test_scripts_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Unicode class 'Greek' is not known here"):
        re2.compile(r"\p{Greek}")


def test_categories_hold_every_character() -> None:
    ranges = re2.category("Zs")
    listed = {code for low, high in ranges for code in range(low, high + 1)}
    assert listed == {
        code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Zs"
    }
