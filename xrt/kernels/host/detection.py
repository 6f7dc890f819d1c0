"""Operators of object detection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array
from xrt.kernels.host.registry import kernel

SHARED_BOXES = 2048
"""Most boxes of which each is compared with each, for all classes at once."""

FIRST_CHUNK = 64
"""Boxes of a class to begin with where there are more."""

BLOCK_ELEMENTS = 1 << 15
"""Pairs of boxes to compare at a time: what fits the second level of the cache."""


@kernel("NonMaxSuppression")
def non_max_suppression(
    boxes: Array,
    scores: Array,
    max_output_boxes_per_class: Array | None = None,
    iou_threshold: Array | None = None,
    score_threshold: Array | None = None,
    *,
    center_point_box: int = 0,
) -> Array:
    """(batch, class, box) of the boxes that overlap no better one of their class too much.

    Boxes are (batch, box, 4), scores (batch, class, box). Per batch and class they come by falling
    score, equal scores by rising index. A score must exceed its threshold to count, an overlap
    must exceed its threshold to suppress.
    """
    if boxes.shape[:2] != (scores.shape[0], scores.shape[2]):
        raise ValueError(
            f"boxes {boxes.shape} and scores {scores.shape} differ in batches or number of boxes"
        )
    most = max(0, int(_scalar(max_output_boxes_per_class, 0)))
    limit = np.maximum(np.float32(_scalar(iou_threshold, 0)), np.float32(0))
    floor = None if score_threshold is None else np.float32(_scalar(score_threshold, 0))
    classes = scores.shape[1]
    kept: list[Array] = []
    for corners, by_class in zip(boxes, scores, strict=True):
        orders = [_by_score(row, floor) if most else np.zeros(0, np.int64) for row in by_class]
        kept.extend(_suppress(_Boxes.of(corners, center_point_box), orders, limit, most))
    counts = [len(indices) for indices in kept]
    result = np.empty((sum(counts), 3), np.int64)
    result[:, 0] = np.repeat(np.arange(len(counts)) // max(classes, 1), counts)
    result[:, 1] = np.repeat(np.arange(len(counts)) % max(classes, 1), counts)
    result[:, 2] = np.concatenate(kept) if kept else 0
    return result


def _scalar(value: Array | None, default: float) -> float:
    """The one element of a tensor, or a default where it is absent or empty."""
    return default if value is None or not value.size else value.reshape(-1)[0]


def _by_score(scores: Array, floor: np.float32 | None) -> Array:
    """Indices of the boxes that count, by falling score."""
    found = np.arange(len(scores)) if floor is None else np.flatnonzero(scores > floor)
    # The bits of floats sort as the floats do, but for the sign: those below 0 sort backward. With
    # the index behind them one fast sort suffices, which need not be stable.
    values = scores[found] + np.float32(0)
    bits = values.view(np.uint32)
    falling = np.where(bits >> 31, bits, 0x7FFFFFFF - bits)
    falling[np.isnan(values)] = 0xFFFFFFFF
    keys = falling.astype(np.uint64) << 32 | found.astype(np.uint64)
    keys.sort()
    return (keys & 0xFFFFFFFF).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Boxes:
    """Boxes by their sides."""

    left: Array
    top: Array
    right: Array
    bottom: Array
    area: Array

    @classmethod
    def of(cls, boxes: Array, center_point_box: int) -> _Boxes:
        """From (box, 4): two opposite corners, or the centre and the size."""
        first, second = boxes[:, :2].T, boxes[:, 2:].T
        if center_point_box:
            half = second / second.dtype.type(2)
            first, second = first - half, first + half
        else:
            first, second = np.minimum(first, second), np.maximum(first, second)
        width, height = second - first
        return cls(first[0], first[1], second[0], second[1], width * height)

    def __getitem__(self, index: Any) -> _Boxes:
        return _Boxes(
            self.left[index],
            self.top[index],
            self.right[index],
            self.bottom[index],
            self.area[index],
        )

    def overlap(self, others: _Boxes, limit: np.float32) -> Array:
        """(box, other): whether they share more of their union than `limit`."""
        result = np.empty((len(self.area), len(others.area)), np.bool_)
        step = max(1, BLOCK_ELEMENTS // max(1, len(others.area)))
        for start in range(0, len(result), step):
            rows = slice(start, start + step)
            box = self[rows, None]
            width = np.minimum(box.right, others.right)
            width -= np.maximum(box.left, others.left)
            height = np.minimum(box.bottom, others.bottom)
            height -= np.maximum(box.top, others.top)
            shared = np.maximum(width, 0, out=width)
            shared *= np.maximum(height, 0, out=height)
            union = np.add(box.area, others.area, out=height)
            union -= shared
            # Boxes without area overlap nothing; 0 / 0 is NaN, which compares as false.
            shared /= union
            np.greater(shared, limit, out=result[rows])
        return result


def _suppress(boxes: _Boxes, orders: list[Array], limit: np.float32, most: int) -> list[Array]:
    """For each class the boxes that are kept, in its order."""
    counted = np.zeros(len(boxes.area), np.bool_)
    for order in orders:
        counted[order] = True
    used = np.flatnonzero(counted)
    if len(used) > SHARED_BOXES:
        return [_suppress_in_chunks(boxes, order, limit, most) for order in orders]
    # All classes share the boxes, and so what overlaps.
    chosen = boxes[used]
    rows = _as_bits(chosen.overlap(chosen, limit))
    place = np.cumsum(counted) - 1
    return [used[_greedy(place[order].tolist(), rows, most)] for order in orders]


def _suppress_in_chunks(boxes: _Boxes, order: Array, limit: np.float32, most: int) -> Array:
    """The boxes of one class that are kept, found without comparing each with each."""
    kept, start, size = order[:0], 0, FIRST_CHUNK
    while start < len(order) and len(kept) < most:
        chunk = order[start : start + size]
        chunk = chunk[~boxes[chunk].overlap(boxes[kept], limit).any(axis=1)]
        inside = boxes[chunk]
        rows = _as_bits(inside.overlap(inside, limit))
        chunk = chunk[_greedy(range(len(chunk)), rows, most - len(kept))]
        kept = np.concatenate([kept, chunk])
        start, size = start + size, min(2 * size, SHARED_BOXES)
    return kept


def _as_bits(matrix: Array) -> list[int]:
    """Each row as an int; NumPy spends more on a call than on so few bits."""
    packed = np.packbits(matrix, axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _greedy(order: Iterable[int], rows: list[int], most: int) -> list[int]:
    """The first of `order` that no earlier one of them suppresses, `most` at most."""
    kept: list[int] = []
    suppressed = 0
    for box in order:
        if not suppressed >> box & 1:
            kept.append(box)
            if len(kept) == most:
                break
            suppressed |= rows[box]
    return kept
