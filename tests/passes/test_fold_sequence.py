"""SequenceAt of a split or a construction becomes a Slice or the element."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import assert_close, model, run_reference
from xrt.passes import verify
from xrt.passes.fold_sequence import FoldSequencePass

X = {"x": np.arange(24, dtype=np.float32).reshape(4, 6)}


def fold(text: str, feeds=X) -> list[str]:
    """The operators after the pass; the values must not change."""
    before, after = model(text), model(text)
    FoldSequencePass()(after)
    verify(after)
    for got, want in zip(run_reference(after, feeds), run_reference(before, feeds), strict=True):
        assert_close(got, want)
    live, wanted = [], set(after.graph.outputs)
    for node in reversed(after.graph):
        if wanted & set(node.outputs):
            live.append(node.op_type)
            wanted.update(node.inputs)
    return live[::-1]


@pytest.mark.parametrize(("index", "rows"), [(0, 3), (1, 1)])
def test_equal_pieces_and_a_shorter_last_one(index, rows):
    assert fold(f"""
        g (float[4,6] x) => (float[{rows},6] y) <int64 n = {{3}}, int64 i = {{{index}}}> {{
          s = SplitToSequence<axis = 0>(x, n)
          y = SequenceAt(s, i)
        }}
    """) == ["Slice"]


@pytest.mark.parametrize("index", [1, -2])
def test_pieces_of_given_sizes(index):
    assert fold(f"""
        g (float[4,6] x) => (float[4,3] y) <int64[3] n = {{1, 3, 2}}, int64 i = {{{index}}}> {{
          s = SplitToSequence<axis = -1>(x, n)
          y = SequenceAt(s, i)
        }}
    """) == ["Slice"]


def test_pieces_of_one_without_their_axis():
    assert fold("""
        g (float[4,6] x) => (float[6] y) <int64 i = {2}> {
          s = SplitToSequence<axis = 0, keepdims = 0>(x)
          y = SequenceAt(s, i)
        }
    """) == ["Slice", "Squeeze"]


def test_an_element_of_a_construction():
    assert fold("""
        g (float[4,6] x) => (float[4,6] y) <int64 i = {-1}> {
          a = Relu(x)
          b = Neg(x)
          s = SequenceConstruct(a, b)
          e = SequenceAt(s, i)
          y = Abs(e)
        }
    """) == ["Neg", "Abs"]


def test_it_must_not_fire_without_a_known_place():
    text = """
        g (float[4,6] x, int64 i) => (float[N,6] y) <int64 n = {3}, int64 last = {-1}> {
          s = SplitToSequence<axis = 0>(x, n)
          a = SequenceAt(s, i)
          b = SequenceAt(s, last)
          y = Add(a, b)
        }
    """
    made = model(text)
    assert not FoldSequencePass()(made).modified
    assert [node.op_type for node in made.graph].count("SequenceAt") == 2


def test_constant_folding_leaves_sequences_alone():
    from xrt.kernels import host
    from xrt.passes import FoldConstantsPass

    made = model("""
        g (int64 i) => (float[N] y) <float[4] w = {1, 2, 3, 4}, int64 n = {2}> {
          s = SplitToSequence(w, n)
          y = SequenceAt(s, i)
        }
    """)
    FoldConstantsPass(evaluate=host.evaluate)(made)
    assert [node.op_type for node in made.graph] == ["SplitToSequence", "SequenceAt"]
