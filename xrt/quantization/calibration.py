"""Calibration: what the activations of a network look like on real inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from xrt.errors import CalibrationError
from xrt.quantization.observers import Observer, make_observer

Array = np.ndarray[Any, Any]


class Calibration:
    """Observers of the values of a graph, by name.

    Attributes:
        batches: Batches seen.
    """

    def __init__(self, observer: str = "percentile", *, percentile: float = 99.99) -> None:
        """Create one that has seen nothing.

        Args:
            observer: Name of the observer for all values.
            percentile: For the observer "percentile".
        """
        self.batches = 0
        self._observer, self._percentile = observer, percentile
        self._observers: dict[str, Observer] = {}
        self._known: dict[str, float] = {}
        self._means: dict[str, Array] = {}

    @property
    def settings(self) -> tuple[str, float]:
        """What the thresholds depend on besides the values: observer and percentile."""
        return self._observer, self._percentile

    def observe(self, values: Mapping[str, Array], channels: Mapping[str, int] = {}) -> None:
        """Take in the values of one batch, and the means along the axes of channels, by name.

        Raises:
            CalibrationError: If a value is NaN or infinite; nothing of the batch is taken in.
        """
        magnitudes = {
            name: np.abs(np.asarray(array), dtype=np.float32) for name, array in values.items()
        }
        for name, array in magnitudes.items():
            if array.size and not np.isfinite(array.max()):
                raise CalibrationError(
                    f"Calibration batch {self.batches} makes {name!r} NaN or infinite. "
                    "Check the batch, or whether the network itself overflows on it."
                )
        for name, array in magnitudes.items():
            if name not in self._observers:
                self._observers[name] = make_observer(self._observer, percentile=self._percentile)
            self._observers[name].update(array)
        for name, axis in channels.items():
            array = np.asarray(values[name], np.float64)
            others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
            mean = array.mean(axis=others) if array.size else 0.0
            self._means[name] = self._means.get(name, np.zeros(1)) + mean
        self.batches += 1

    def means(self) -> dict[str, Array]:
        """The mean of every channel of the values that were watched for it, by name."""
        return {name: total / max(self.batches, 1) for name, total in self._means.items()}

    def thresholds(self) -> dict[str, float]:
        """The magnitude that int8 is to cover, by name, of every value that had elements."""
        if not self._known:
            self._known = {n: o.threshold() for n, o in self._observers.items() if o.count}
        return self._known

    def to_json(self) -> bytes:
        """What `from_json` reads."""
        content = {
            "observer": self._observer,
            "percentile": self._percentile,
            "batches": self.batches,
            "thresholds": self.thresholds(),
            "means": {name: mean.tolist() for name, mean in self.means().items()},
        }
        return json.dumps(content, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Calibration:
        """The calibration that `to_json` wrote: it knows thresholds and takes in nothing more.

        Raises:
            CalibrationError: If the data is none.
        """
        try:
            content = json.loads(data)
            found = cls(content["observer"], percentile=content["percentile"])
            found.batches = int(content["batches"])
            found._means = {
                str(name): np.array(mean) * found.batches for name, mean in content["means"].items()
            }
            found._known = {str(n): float(t) for n, t in content["thresholds"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CalibrationError(f"Not a calibration: {type(error).__name__}: {error}") from error
        return found


def data_digest(batches: Iterable[Iterable[Any]]) -> str:
    """Hexadecimal digest of the arrays of batches: dtypes, shapes and contents."""
    state = hashlib.blake2b(digest_size=16)
    for batch in batches:
        state.update(b"batch")
        for leaf in batch:
            array = np.ascontiguousarray(leaf)
            state.update(f"{array.dtype}{array.shape}".encode())
            state.update(array.view(np.uint8).data if array.size else b"")
    return state.hexdigest()
