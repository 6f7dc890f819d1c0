"""The house: a room imports only from rooms below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import xrt

ROOT = Path(xrt.__file__).parent
DOORS = ("__init__", "cli", "onnx_backend")
"""What stands before the house, and may use all of it."""
ROOMS = (
    *("load", "training", "compile", "runtime", "engines", "kernels", "quantization", "passes"),
    *("importers", "custom", "graph", "data", "options", "process", "errors", "progress"),
)
"""From top to bottom."""


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Rooms of xrt that the code imports, at whatever depth, and the lines."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "xrt":
            names = [f"xrt.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [str(node.module)]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "xrt" and rest:
                yield rest.split(".")[0], node.lineno


def test_every_room_has_its_place():
    assert {room_of(path) for path in files()} <= {*DOORS, *ROOMS}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_rooms_below(path):
    room = room_of(path)
    if room in DOORS:
        return
    below = {room, *ROOMS[ROOMS.index(room) :]}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    upwards = [f"line {line}: {each}" for each, line in imported_rooms(tree) if each not in below]
    assert not upwards, f"{path.relative_to(ROOT)} imports from above {room}: {upwards}"


def test_imports_are_absolute():
    for path in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}"
