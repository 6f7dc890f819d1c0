"""Observers: from the values that a tensor takes to the range that int8 is to cover.

Quantization is symmetric, so an observer looks at magnitudes and answers with one threshold: the
magnitude that the largest integer stands for. What lies beyond it is clipped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from xrt.errors import OptionError, unknown

Array = np.ndarray[Any, Any]

BINS = 4096
"""Bins of a histogram; at least half of them are in use, whatever the range turned out to be."""

LEVELS = 128
"""Magnitudes that a signed byte tells apart, zero included."""


class Observer(ABC):
    """Sees batches of a tensor, one after the other.

    Attributes:
        count: Elements seen.
    """

    count: int = 0

    @abstractmethod
    def update(self, magnitudes: Array) -> None:
        """Take in one batch: non-negative float32 values, of any shape."""

    @abstractmethod
    def threshold(self) -> float:
        """The magnitude that the largest integer shall stand for; 0 if only zeros were seen."""


class MinMax(Observer):
    """The largest magnitude: nothing is clipped."""

    def __init__(self) -> None:
        self._largest = 0.0

    def update(self, magnitudes: Array) -> None:
        """Take in one batch."""
        self.count += magnitudes.size
        if magnitudes.size:
            self._largest = max(self._largest, float(magnitudes.max()))

    def threshold(self) -> float:
        """The largest magnitude."""
        return self._largest


class HistogramObserver(Observer):
    """A histogram of magnitudes whose range doubles, two bins into one, as larger ones come.

    The counts are exact for any order of batches, up to the width of a bin.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.histogram: Array = np.zeros(bins, np.int64)
        self.range = 0.0
        self._largest = 0.0

    def update(self, magnitudes: Array) -> None:
        """Take in one batch."""
        self.count += magnitudes.size
        largest = float(magnitudes.max(initial=0.0))
        self._largest = max(self._largest, largest)
        if largest == 0.0:
            self.histogram[0] += magnitudes.size
            return
        self._cover(largest)
        bins = len(self.histogram)
        places = (magnitudes.reshape(-1) * np.float32(bins / self.range)).astype(np.int32)
        np.minimum(places, bins - 1, out=places)
        self.histogram += np.bincount(places, minlength=bins)

    def _cover(self, largest: float) -> None:
        wanted = 2.0 ** np.ceil(np.log2(largest))
        if self.range == 0.0:
            self.range = wanted
        while self.range < wanted:
            pairs = self.histogram.reshape(-1, 2).sum(axis=1)
            self.histogram[: len(pairs)] = pairs
            self.histogram[len(pairs) :] = 0
            self.range *= 2

    @property
    def centers(self) -> Array:
        """The magnitude in the middle of each bin."""
        return (np.arange(len(self.histogram)) + 0.5) * self.width

    @property
    def width(self) -> float:
        """The width of a bin."""
        return self.range / len(self.histogram)

    def threshold(self) -> float:
        """The threshold, never beyond the largest magnitude seen."""
        return min(self._best(), self._largest) if self._largest else 0.0

    @abstractmethod
    def _best(self) -> float:
        """The threshold by the histogram, which is not empty."""


class Percentile(HistogramObserver):
    """The magnitude that a given share of the values does not exceed."""

    def __init__(self, percentile: float = 99.99, bins: int = BINS) -> None:
        super().__init__(bins)
        self._share = percentile / 100

    def _best(self) -> float:
        total = np.cumsum(self.histogram)
        last = int(np.searchsorted(total, self._share * total[-1]))
        before = float(total[last - 1]) if last else 0.0
        inside = (self._share * float(total[-1]) - before) / max(float(self.histogram[last]), 1.0)
        return (last + min(max(inside, 0.0), 1.0)) * self.width


class MeanSquaredError(HistogramObserver):
    """The threshold with the least mean squared error of quantization, of 256 candidates."""

    def _best(self) -> float:
        candidates = self._largest * np.linspace(1 / 256, 1, 256)
        return float(candidates[int(np.argmin([self._error(c) for c in candidates]))])

    def _error(self, threshold: float) -> float:
        scale = threshold / (LEVELS - 1)
        rounded = np.clip(np.round(self.centers / scale), 0, LEVELS - 1) * scale
        return float(np.sum(self.histogram * np.square(self.centers - rounded)))


class Entropy(HistogramObserver):
    """The threshold with the least loss of information.

    The Kullback-Leibler divergence between the clipped histogram and the same in 128 levels, over
    all candidate thresholds a level apart; from S. Migacz, "8-bit Inference with TensorRT", GTC
    2017. With few bins there would be few candidates: 128 bins leave a single one.
    """

    def _best(self) -> float:
        used = int(np.ceil(self._largest / self.width))
        step = max(used // LEVELS, 1)
        candidates = (*range(min(LEVELS, used), used, step), used)
        return float(min(candidates, key=self._divergence) * self.width)

    def _divergence(self, bins: int) -> float:
        counts = self.histogram.astype(np.float64)
        # After a Relu half of all values are zeros, which every threshold represents exactly; as a
        # spike in the first bin they would drown the rest.
        counts[0] = counts[1]
        reference = counts[:bins].copy()
        reference[-1] += counts[bins:].sum()
        # Each level spreads its count evenly over those of its bins that hold anything.
        level = np.arange(bins) * LEVELS // bins
        filled = counts[:bins] > 0
        per_level = np.bincount(level, counts[:bins], minlength=LEVELS)
        spread = np.bincount(level, filled, minlength=LEVELS)
        quantized = np.where(filled, (per_level / np.maximum(spread, 1))[level], 0.0)
        return _kl(reference, quantized)


def _kl(reference: Array, quantized: Array) -> float:
    """The divergence of two histograms; where only the first has counts, of a small share."""
    p, q = reference / reference.sum(), quantized / max(quantized.sum(), 1.0)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-9))))


OBSERVERS: dict[str, Callable[[], Observer]] = {
    "entropy": Entropy,
    "minmax": MinMax,
    "mse": MeanSquaredError,
    "percentile": Percentile,
}
"""Observers by the name that options use."""


def make_observer(name: str, *, percentile: float = 99.99) -> Observer:
    """A new observer.

    Args:
        name: One of `OBSERVERS`.
        percentile: For "percentile".

    Raises:
        OptionError: If the name is unknown.
    """
    if name not in OBSERVERS:
        raise OptionError(unknown("Observer", name, OBSERVERS))
    return Percentile(percentile) if name == "percentile" else OBSERVERS[name]()
