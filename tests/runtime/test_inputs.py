"""Sequences, optionals and strings as inputs and outputs of programs."""

from __future__ import annotations

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import xrt
from tests.support import assert_close, model
from xrt.runtime.inputs import admits

IDENTITY = "g ({kind} x) => ({kind} y) {{ y = Identity (x) }}"
LENGTH = "g (seq(float[N]) x) => (int64 n) { n = SequenceLength (x) }"
VECTORS = [np.ones(3, np.float32), np.zeros(1, np.float32)]


def identity(kind: str) -> xrt.Program:
    return xrt.compile(model(IDENTITY.format(kind=kind)))


@pytest.mark.parametrize("elements", [VECTORS, VECTORS[:1], []])
def test_a_sequence_is_a_list(elements):
    program = xrt.compile(model(LENGTH))
    assert program(elements) == len(elements)
    assert program(tuple(elements)) == len(elements)
    assert "x: " in str(program.explain())
    assert program.explain().to_dict()["inputs"][0]["shape"] is None


def test_elements_that_are_given_back_share_no_memory_with_those_that_came():
    (given,) = VECTORS[:1]
    (got,) = identity("seq(float[N])")([given])
    got[:] = 7
    assert not (given == 7).any()


@pytest.mark.parametrize("kind", [torch.from_numpy, jax.numpy.asarray])
def test_elements_may_be_of_any_library_and_come_back_in_it(kind):
    got = identity("seq(float[N])")([kind(vector) for vector in VECTORS])
    assert all(type(item) is type(kind(VECTORS[0])) for item in got)
    assert_close([np.asarray(item) for item in got], VECTORS)


def test_sequences_nest():
    nested = [VECTORS, []]
    assert_close(identity("seq(seq(float[N]))")(nested), nested)


def test_an_optional_may_be_none():
    program = xrt.compile(
        model("g (optional(float[N]) x) => (bool y) { y = OptionalHasElement (x) }")
    )
    assert not program(None)
    assert program(VECTORS[0])
    assert identity("optional(float[N])")(None) is None


def test_the_shape_of_an_optional_that_is_given_is_static():
    text = """g (optional(float[N]) x) => (float[M] y) {
        a = OptionalGetElement (x)
        b = Add (a, a)
        y = Exp (b)
    }"""
    program = xrt.compile(model(text))
    assert_close(program(VECTORS[0]), np.exp(2 * VECTORS[0]))
    assert [len(cluster.nodes) for cluster in program.clusters] == [2]


def test_strings_may_be_of_any_dtype_or_a_list():
    program = xrt.compile(model("g (string[N] x) => (string[N] y) { y = StringConcat (x, x) }"))
    for words in (np.array(["ab", "c"]), np.array(["ab", "c"], object), ["ab", "c"]):
        got = program(words)
        assert got.dtype == object
        assert got.tolist() == ["abab", "cc"]


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (LENGTH, VECTORS[0], "'x' is a sequence: pass a list"),
        (LENGTH, None, "'x' is a sequence"),
        (LENGTH, [None], "'x' is None"),
        (LENGTH, [VECTORS[0], np.ones(2)], "differ in dtype"),
        (LENGTH, [np.ones(2)], "dtype float64; the model takes float32"),
        ("g (float[N] x) => (float[N] y) { y = Neg (x) }", None, "'x' is None; only an optional"),
        ("g (float[N] x) => (float[N] y) { y = Neg (x) }", [[1.0], [2.0, 3.0]], "is no array"),
    ],
)
def test_what_does_not_fit_is_refused(text, given, message):
    program = xrt.compile(model(text))
    with pytest.raises(xrt.XrtError, match=message):
        program(given)


def test_narrow_floats_keep_their_dtype():
    for kind, dtype in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        x = np.arange(3).astype(dtype)
        assert_close(identity(f"seq({kind}[N])")([x]), [x])


def test_open_dimensions_admit_any_size():
    opened = (((-1, 3), "float32", None), (None, "", None))
    assert admits(opened, (((7, 3), "float32", None), (None, "", None)))
    assert not admits(opened, (((7, 4), "float32", None), (None, "", None)))
    assert not admits(opened, (((7, 3), "float64", None), (None, "", None)))
    assert not admits(opened, (((7,), "float32", None), (None, "", None)))
    assert not admits(opened, (((7, 3), "float32", None),))
