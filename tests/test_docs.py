from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

import xrt
from docs import generate

ROOT = Path(generate.__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def _blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_reference_is_fresh():
    assert generate.stale() == [], "run: python -m docs.generate"


def test_stale_pages_are_named_and_rewritten(tmp_path, capsys):
    assert generate.main(["--check"], tmp_path) == 1
    named = capsys.readouterr().err.count("is stale. Run: python -m docs.generate")
    assert named == len(generate.PAGES)
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    page = tmp_path / "options.md"
    page.write_text(page.read_text() + "more\n")
    assert generate.stale(tmp_path) == ["options.md"]
    assert generate.main(["--check"], tmp_path) == 1
    assert "options.md is stale" in capsys.readouterr().err


def test_every_operator_has_a_row():
    rows = generate.render("operators.md").splitlines()
    assert "| Conv | 22 | lowering | kernel |" in rows
    assert any(row.startswith("| TreeEnsemble | ") for row in rows)
    assert not any(row.startswith("| Upsample | ") for row in rows)  # deprecated


def test_every_option_is_documented():
    page = generate.render("options.md")
    for cls in (xrt.CompileOptions, xrt.XlaOptions):
        for field in fields(cls):
            assert f"| `{field.name}` | " in page


def test_every_public_name_is_documented():
    page = generate.render("api.md")
    for name in xrt.__all__:
        assert name == "__version__" or f"## xrt.{name}\n" in page
    assert "engine: str | Sequence[str] = 'auto'," in page
    assert "    *,\n" in page


def test_signatures_are_shown_as_written():
    def short(a, *b: int, c: str = "x", **d):
        """Nothing."""

    assert generate._signature(short) == "(a, *b: int, c: str = 'x', **d)"
    assert inspect.signature(short)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path = target.split("#")[0]
        if path and "://" not in path:
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_compile(page):
    if page.parent.name != "reference":  # its signatures are no statements
        for block in _blocks(page):
            compile(block, str(page), "exec")


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/guide/getting-started.md",
        "docs/guide/images.md",
        pytest.param("docs/guide/precision.md", marks=pytest.mark.slow),
        "docs/guide/explain-and-verify.md",
        "docs/guide/troubleshooting.md",
    ],
)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path / "cache"))
    names: dict[str, object] = {}
    for block in _blocks(ROOT / name):
        exec(compile(block, name, "exec"), names)
