"""Constants that a saved program holds as an engine prepared them for its device.

A loaded program offers them while it lives; equal keys mean equal content.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeAlias

import numpy as np

PreparedKey: TypeAlias = tuple[str, str]
"""Digest of a constant, and the engine's name for what was done to it."""

_OFFERED: weakref.WeakValueDictionary[tuple[str, PreparedKey], np.ndarray[Any, Any]] = (
    weakref.WeakValueDictionary()
)


def offer(engine: str, key: PreparedKey, array: np.ndarray[Any, Any]) -> None:
    """Let `find` give `array`, which never changes, for as long as somebody else holds it."""
    _OFFERED[engine, key] = array


def find(engine: str, key: PreparedKey) -> np.ndarray[Any, Any] | None:
    """What is offered to an engine under `key`, or None."""
    return _OFFERED.get((engine, key))
