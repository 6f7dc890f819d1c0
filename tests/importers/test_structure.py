"""Structures that were written down; see tests/runtime/test_package.py for whole programs."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _pytree

from xrt.errors import InputError, XrtError
from xrt.importers.structure import Record, Structure, plain_tree

Point = namedtuple("Point", ["x", "y"])
A, B, C = (np.full(2, n) for n in range(3))


def written(tree: Any) -> Structure:
    leaves, spec = _pytree.tree_flatten(tree)
    plain = plain_tree(spec, leaves, [isinstance(leaf, np.ndarray) for leaf in leaves])
    read = Structure.of(json.loads(json.dumps(plain)))
    assert read.to_plain() == plain
    return read


@pytest.mark.parametrize(
    "tree",
    [
        A,
        [A, (B, [], ()), {}],
        {"a": A, 2: {"b": [B, None, 3, 0.5, True, "text"]}, None: ()},
        OrderedDict(b=A, a=B),
        Point(A, Point(B, 1)),
    ],
)
def test_a_structure_comes_back(tree):
    structure = written(tree)
    leaves = structure.flatten(tree)
    assert all(
        one is other
        for one, other in zip(
            leaves, (x for x in _pytree.tree_leaves(tree) if isinstance(x, np.ndarray)), strict=True
        )
    )
    made = structure.unflatten(iter(leaves))
    assert _pytree.tree_structure(made) == _pytree.tree_structure(tree)
    assert repr(made) == repr(tree)


def test_the_order_of_keys_is_the_structures():
    assert written({"a": A, "b": B}).flatten({"b": B, "a": A}) == [A, B]


@pytest.mark.parametrize(
    ("tree", "other", "message"),
    [
        ({"a": A}, {"b": A}, "is a dict of b where the program takes a dict of a"),
        ({"a": A}, [A], "is list of 1 where the program takes a dict of a"),
        ([A, B], [A], "is list of 1 where the program takes a list of 2"),
        ([A, B], (A, B), "is tuple of 2 where the program takes a list of 2"),
        (Point(A, B), (A, B), "takes a namedtuple of x, y"),
        ([A, 3], [A, 4], "The argument 4 is no tensor's and was 3"),
        ([A, 3], [A, B], "is no tensor's and was 3"),
        ([A], [{"a": A}], "takes an array"),
    ],
)
def test_another_structure_is_refused(tree, other, message):
    with pytest.raises(InputError, match=message):
        written(tree).flatten(other)


def test_a_class_that_is_not_imported_has_a_stand_in(monkeypatch):
    plain = written(Point(A, B)).to_plain()
    assert type(Structure.of(plain).unflatten(iter([A, B]))) is Point
    for name in ("absent:Point", "os:getcwd", "builtins:tuple", f"{__name__}:np"):
        made = Structure.of({**plain, "class": name}).unflatten(iter([A, B]))
        assert (made.x is A, made.y is B) == (True, True)
    assert "absent" not in sys.modules


def test_no_class_but_a_models_output_makes_a_record():
    plain = {"kind": "record", "keys": ["args"], "class": "subprocess:Popen",
             "items": [{"kind": "constant", "value": "true"}]}  # fmt: skip
    __import__("subprocess")
    made = Structure.of(plain).unflatten(iter([]))
    assert type(made) is Record
    assert made.args == made["args"] == made[0] == "true"
    assert made[:1] == made.to_tuple() == ("true",)
    with pytest.raises(AttributeError, match="has no 'logits', but args"):
        _ = made.logits


def test_results_of_torchs_operators_are_namedtuples():
    leaves, spec = _pytree.tree_flatten(torch.max(torch.ones(2, 2), 0))
    made = Structure.of(plain_tree(spec, leaves, [True, True])).unflatten(iter([A, B]))
    assert made.values is A
    assert made.indices is B


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({("a", 1): A}, r"a dict of it has the key \('a', 1\)"),
        ([A, torch.float32], "hold torch.float32, a dtype"),
        ([A, 1j], "hold 1j, a complex"),
    ],
)
def test_what_cannot_be_written_down_is_named(tree, message):
    with pytest.raises(XrtError, match=message):
        written(tree)


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {"kind": "riddle"},
        {"kind": "dict", "keys": ["a"], "items": []},
        {"kind": "list", "items": [3]},
        {"kind": "namedtuple", "keys": ["not a name"], "items": [{"kind": "tensor"}]},
    ],
)
def test_what_is_no_structure_is_refused(plain):
    with pytest.raises(ValueError, match=r"structure|keys|identifier"):
        Structure.of(plain)
