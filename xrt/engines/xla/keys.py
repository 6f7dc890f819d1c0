"""Keys of random numbers: what makes a cluster's draws differ from call to call.

A cluster that draws takes a key, two 32-bit words, as its last argument. Each node folds its place
in the cluster into it, so nodes are independent of each other; the executable never gives out one
key twice. All draws are JAX's Threefry, whatever generator the user's JAX is set to.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import jax
import numpy as np

WORDS = (2,)
"""Shape of a key's data, of dtype uint32."""

_GENERATOR = "threefry2x32"


class KeySource:
    """Gives a key for each call; safe to share between threads."""

    def __init__(self) -> None:
        self._first = int.from_bytes(os.urandom(8), "little")
        self._calls = itertools.count()  # whose next() is atomic

    def __call__(self) -> np.ndarray[Any, Any]:
        """The data of a key that this source has not given before."""
        number = (self._first + next(self._calls)) % 2**64
        return np.array([number >> 32, number % 2**32], np.uint32)


def from_data(words: Any) -> Any:
    """The JAX key that `words` (uint32[2]) hold."""
    return jax.random.wrap_key_data(jax.numpy.asarray(words), impl=_GENERATOR)


def to_data(key: Any) -> Any:
    """The words of a JAX key."""
    return jax.random.key_data(key)
