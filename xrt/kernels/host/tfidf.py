"""Counts of n-grams."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrt.kernels.host.common import Array
from xrt.kernels.host.registry import kernel
from xrt.kernels.host.strings import texts

Token = int | str


@kernel("TfIdfVectorizer")
def tf_idf_vectorizer(
    x: Array,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> Array:
    """How often each n-gram of a pool is in each row of [C] or [N, C], by its coordinate.

    The elements of an n-gram lie 1 to `max_skip_count` + 1 apart. With mode "IDF" an n-gram counts
    once; "IDF" and "TFIDF" multiply by the weight of the n-gram, which is by its place in the pool.
    """
    if x.ndim > 2:
        raise ValueError(f"a shape of [C] or [N, C] is needed, got {list(x.shape)}")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ValueError(f"mode {mode!r} is unknown; known: IDF, TF, TFIDF")
    starts = tuple(ngram_counts)
    pool = _pool(tuple(pool_strings or pool_int64s), starts, min_gram_length, max_gram_length)
    rows = x if x.ndim == 2 else x.reshape(1, -1)
    tokens = pool.tokens(rows)
    counts = np.zeros((len(rows), len(ngram_indexes)), np.float32)
    for gap in range(1, max_skip_count + 2):
        # Elements of a unigram are no distance apart: they count only once.
        _count(tokens, pool, gap, 1 if gap == 1 else 2, counts)
    if mode == "IDF":
        counts = np.minimum(counts, 1)
    if mode != "TF" and weights:
        counts = counts * np.array(weights, np.float32)
    # Rows of `y` are coordinates here: several n-grams may share one.
    y = np.zeros((max(ngram_indexes) + 1, len(rows)), np.float32)
    np.add.at(y, np.array(ngram_indexes, np.int64), counts.T)
    return np.ascontiguousarray(y.T) if x.ndim == 2 else y[:, 0]


@dataclass(frozen=True, slots=True)
class _Pool:
    """A pool of n-grams as a trie: nodes by depth, found by (parent, token).

    Attributes:
        vocabulary: Token to its number.
        keys: For each depth the sorted numbers parent * len(vocabulary) + token.
        grams: For each depth, in the order of `keys`, the n-gram that ends there, or -1.
    """

    vocabulary: dict[Token, int]
    keys: tuple[Array, ...]
    grams: tuple[Array, ...]

    def tokens(self, rows: Array) -> Array:
        """The number of each element, -1 if no n-gram holds it."""
        values = texts(rows) if rows.dtype.kind in "OUST" else rows.reshape(-1).tolist()
        numbers = [self.vocabulary.get(value, -1) for value in values]
        return np.array(numbers, np.int64).reshape(rows.shape)


@functools.lru_cache(maxsize=64)
def _pool(elements: tuple[Token, ...], starts: tuple[int, ...], least: int, most: int) -> _Pool:
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(elements))}
    numbers = np.array([vocabulary[token] for token in elements], np.int64)
    base = len(vocabulary)
    parts = [numbers[a:b] for a, b in zip(starts, (*starts[1:], len(numbers)), strict=True)]
    grams = [part.reshape(-1, n) for n, part in enumerate(parts[:most], 1)]
    offsets = np.cumsum([0, *(len(g) for g in grams)])
    # Nodes that the rows of each length of n-gram have reached; shorter ones are done.
    reached = [np.zeros(len(g), np.int64) for g in grams]
    keys, ends = [], []
    for depth in range(len(grams)):
        for n in range(depth, len(grams)):
            reached[n] = reached[n] * base + grams[n][:, depth]
        found = np.unique(np.concatenate(reached[depth:]))
        end = np.full(len(found), -1, np.int64)
        for n in range(depth, len(grams)):
            reached[n] = np.searchsorted(found, reached[n])
        if depth + 1 >= least:
            end[reached[depth]] = np.arange(offsets[depth], offsets[depth + 1])
        keys.append(found)
        ends.append(end)
    return _Pool(vocabulary, tuple(keys), tuple(ends))


def _count(tokens: Array, pool: _Pool, gap: int, least: int, counts: Array) -> None:
    """Add to counts[row, n-gram] what n-grams of elements `gap` apart, `least` or more, occur."""
    base = len(pool.vocabulary)
    row, place = (i.reshape(-1) for i in np.indices(tokens.shape))
    node = np.zeros(len(row), np.int64)
    for depth, (keys, grams) in enumerate(zip(pool.keys, pool.grams, strict=True)):
        at = place + depth * gap
        inside = at < tokens.shape[1]
        row, place, node, at = row[inside], place[inside], node[inside], at[inside]
        token = tokens[row, at]
        wanted = node * base + token
        found = np.searchsorted(keys, wanted)
        hit = (token >= 0) & (found < len(keys))
        hit[hit] = keys[found[hit]] == wanted[hit]
        row, place, node = row[hit], place[hit], found[hit]
        if depth + 1 >= least:
            gram = grams[node]
            ends = gram >= 0
            np.add.at(counts, (row[ends], gram[ends]), 1)
