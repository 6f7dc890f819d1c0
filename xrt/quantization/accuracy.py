"""How far a program with narrow numbers is from the same program in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Comparison:
    """Outputs beside those of fp32, on the same inputs.

    Attributes:
        predictions: Predictions compared: one a row of scores, see `predictions`.
        mismatches: Predictions that differ from fp32's: the measure of the published tables.
        signal_to_noise: Of the first floating-point output, in decibels; infinite if all is equal.
    """

    predictions: int
    mismatches: int
    signal_to_noise: float

    @property
    def agreement(self) -> float:
        """The share of predictions that agree with fp32's: top-1 agreement."""
        return 1.0 - self.mismatches / self.predictions if self.predictions else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Everything as numbers, fit for JSON."""
        return {**asdict(self), "agreement": self.agreement}


def main_output(outputs: Sequence[Any]) -> Array | None:
    """The first output that is a tensor of floating-point numbers, or None."""
    for output in outputs:
        if output is not None and not isinstance(output, list):
            array = np.asarray(output)
            if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
                return array
    return None


def predictions(scores: Array) -> Array:
    """The class of the largest score: along the last axis, or along axis 1 of images of scores
    (rank 4 and up). Scores of rank 0 and 1 are one prediction."""
    if scores.ndim == 0:
        return np.zeros(1, np.int64)
    return np.atleast_1d(scores.argmax(axis=1 if scores.ndim > 3 else -1))


def compare(reference: Sequence[Sequence[Any]], got: Sequence[Sequence[Any]]) -> Comparison:
    """Compare the outputs of batches, batch by batch, by their main output."""
    total, differing, signal, noise = 0, 0, 0.0, 0.0
    for ours, theirs in zip(got, reference, strict=True):
        mine, want = main_output(ours), main_output(theirs)
        if mine is None or want is None or not want.size:
            continue
        mine, want = mine.astype(np.float64), want.astype(np.float64)
        chosen, expected = predictions(mine), predictions(want)
        total += expected.size
        differing += int(np.sum(chosen != expected))
        signal += float(np.sum(np.square(want)))
        noise += float(np.sum(np.square(want - mine)))
    return Comparison(total, differing, decibels(signal, noise))


def decibels(signal: float, noise: float) -> float:
    """The ratio of two energies in decibels."""
    if noise == 0.0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else -float("inf")


def signal_to_noise(reference: Any, got: Any) -> float:
    """The ratio of the energy of an array to that of its error, in decibels."""
    want = np.asarray(reference).astype(np.float64)
    error = want - np.asarray(got).astype(np.float64)
    return decibels(float(np.sum(np.square(want))), float(np.sum(np.square(error))))
