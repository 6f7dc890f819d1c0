"""TfIdfVectorizer by the standard's words in plain loops, and against its peers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.kernels.host.peers import ort
from tests.kernels.host.support import compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(29)
OP = "TfIdfVectorizer"


def _pool(alphabet: Sequence[Any], longest: int) -> dict[str, Any]:
    """A pool of some n-grams of each length, in an order of their own."""
    starts, pool, count = [], [], 0
    for n in range(1, longest + 1):
        starts.append(len(pool))
        grams = list(itertools.product(alphabet, repeat=n))
        chosen = RNG.permutation(len(grams))[: 4 + n]
        pool += [token for i in chosen for token in grams[i]]
        count += len(chosen)
    key = "pool_strings" if isinstance(alphabet[0], str) else "pool_int64s"
    return {key: pool, "ngram_counts": starts, "ngram_indexes": list(range(count))}


def _brute_force(x: Any, attributes: dict[str, Any]) -> Any:
    """Every n-gram of the pool, looked for at every place and distance."""
    pool = attributes.get("pool_strings") or attributes.get("pool_int64s")
    starts, indexes = attributes["ngram_counts"], attributes["ngram_indexes"]
    grams = []
    for n, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        grams += [tuple(pool[i : i + n]) for i in range(start, end, n)]
    rows = [x.tolist()] if x.ndim == 1 else x.tolist()
    y = np.zeros((len(rows), max(indexes) + 1), np.float32)
    for row, i in itertools.product(range(len(rows)), range(len(grams))):
        gram, count = grams[i], 0
        if not attributes["min_gram_length"] <= len(gram) <= attributes["max_gram_length"]:
            continue
        for gap in range(1, 2 if len(gram) == 1 else attributes["max_skip_count"] + 2):
            for place in range(len(rows[row]) - (len(gram) - 1) * gap):
                count += tuple(rows[row][place : place + len(gram) * gap : gap]) == gram
        weight = attributes.get("weights", [1.0] * len(grams))[i]
        if attributes["mode"] == "TF":
            value = float(count)
        else:
            value = weight * (min(count, 1) if attributes["mode"] == "IDF" else count)
        y[row, indexes[i]] += value
    return y if x.ndim == 2 else y[0]


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize("skips", [0, 3])
@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 3)])
@pytest.mark.parametrize("alphabet", [("a", "b", "é"), (3, -1, 7)])
def test_counts(alphabet: Sequence[Any], least: int, most: int, skips: int, mode: str) -> None:
    attributes = {
        **_pool(alphabet, 3),
        "mode": mode,
        "min_gram_length": least,
        "max_gram_length": most,
        "max_skip_count": skips,
    }
    # Tokens that the pool does not hold are among the input.
    strings = isinstance(alphabet[0], str)
    tokens = [*alphabet, "other"] if strings else [*alphabet, 99]
    kinds = (np.object_,) if strings else (np.int32, np.int64)
    weights = RNG.uniform(0.1, 2, len(attributes["ngram_indexes"])).astype(np.float32).tolist()
    for kind, shape in itertools.product(kinds, ((11,), (3, 8), (2, 1))):
        x = RNG.choice(np.array(tokens, kind), shape)
        for extra in ({}, {"weights": weights}):
            (y,) = run(OP, x, **attributes, **extra)
            assert y.dtype == np.float32
            np.testing.assert_allclose(y, _brute_force(x, attributes | extra), rtol=1e-6)
            (peer,) = ort(OP, x, **attributes, **extra)
            np.testing.assert_allclose(y, peer, rtol=1e-6)
        compare(OP, x, **attributes, weights=weights)


def test_weights_belong_to_the_n_grams_whatever_their_coordinates() -> None:
    attributes = {
        "mode": "TFIDF",
        "min_gram_length": 1,
        "max_gram_length": 2,
        "max_skip_count": 0,
        "pool_int64s": [5, 6, 5, 6],
        "ngram_counts": [0, 2],
        "ngram_indexes": [4, 1, 4],
        "weights": [2.0, 3.0, 10.0],
    }
    x = np.array([5, 6, 5])
    (y,) = run(OP, x, **attributes)
    # Two n-grams share coordinate 4: [5] occurs twice, [5, 6] once.
    assert y.tolist() == [0, 3, 0, 0, 2 * 2 + 10]
    np.testing.assert_array_equal(y, _brute_force(x, attributes))


def test_rows_of_nothing() -> None:
    attributes = {
        "mode": "TF",
        "min_gram_length": 1,
        "max_gram_length": 1,
        "max_skip_count": 0,
        "pool_strings": ["a"],
        "ngram_counts": [0],
        "ngram_indexes": [2],
    }
    for shape, wanted in (((0,), (3,)), ((2, 0), (2, 3)), ((0, 4), (0, 3))):
        (y,) = run(OP, np.zeros(shape, np.object_), **attributes)
        assert y.shape == wanted
        assert not y.any()


def test_unknown_modes_and_shapes_are_refused() -> None:
    attributes = {
        "min_gram_length": 1,
        "max_gram_length": 1,
        "max_skip_count": 0,
        "pool_int64s": [1],
        "ngram_counts": [0],
        "ngram_indexes": [0],
    }
    with pytest.raises(KernelError, match="'DF' is unknown; known: IDF, TF, TFIDF"):
        run(OP, np.array([1]), mode="DF", **attributes)
    with pytest.raises(KernelError, match=r"\[C\] or \[N, C\] is needed, got \[1, 1, 1\]"):
        run(OP, np.array([[[1]]]), mode="TF", **attributes)
