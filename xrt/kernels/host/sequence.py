"""Sequences, which are lists, and optionals, which are the value or None."""

from __future__ import annotations

from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, contiguous, ints
from xrt.kernels.host.registry import kernel

Sequence = list[Any]


@kernel("SequenceConstruct")
def sequence_construct(*inputs: Array) -> Sequence:
    """A sequence of the inputs."""
    return list(inputs)


@kernel("SequenceEmpty")
def sequence_empty(*, dtype: int = 1) -> Sequence:
    """A sequence of nothing."""
    return []


@kernel("SequenceLength")
def sequence_length(sequence: Sequence) -> Array:
    """Number of elements."""
    return np.array(len(sequence), np.int64)


@kernel("SequenceAt")
def sequence_at(sequence: Sequence, position: Array) -> Any:
    """The element at a position, which may count from the end."""
    return sequence[_position(position, len(sequence), 0)]


@kernel("SequenceInsert")
def sequence_insert(sequence: Sequence, tensor: Array, position: Array | None = None) -> Sequence:
    """A copy of the sequence with one more element."""
    at = len(sequence) if position is None else _position(position, len(sequence), 1)
    return [*sequence[:at], tensor, *sequence[at:]]


@kernel("SequenceErase")
def sequence_erase(sequence: Sequence, position: Array | None = None) -> Sequence:
    """A copy of the sequence with one element less."""
    at = len(sequence) - 1 if position is None else _position(position, len(sequence), 0)
    return [*sequence[:at], *sequence[at + 1 :]]


def _position(position: Array, length: int, room: int) -> int:
    (at,) = ints(position)
    if not -length <= at < length + room:
        raise IndexError(f"position {at} is outside a sequence of {length}")
    return at + length if at < 0 else at


@kernel("ConcatFromSequence")
def concat_from_sequence(sequence: Sequence, *, axis: int, new_axis: int = 0) -> Array:
    """The elements joined along an axis, a new one if `new_axis`."""
    return np.stack(sequence, axis) if new_axis else np.concatenate(sequence, axis)


@kernel("SplitToSequence")
def split_to_sequence(
    x: Array, split: Array | None = None, *, axis: int = 0, keepdims: int = 1
) -> Sequence:
    """Parts along an axis: of given sizes, of one size, or single slices."""
    length = x.shape[axis]
    if split is None:
        parts = np.split(x, range(1, length), axis)
        return [part if keepdims else np.squeeze(part, axis) for part in parts]
    if split.ndim == 0:
        bounds = list(range(int(split), length, int(split)))
    else:
        bounds = np.cumsum(split)[:-1].tolist()
    return [contiguous(part) for part in np.split(x, bounds, axis)]


@kernel("Optional")
def optional(x: Any = None, *, type: Any = None) -> Any:
    """An optional that holds `x`, or nothing."""
    return x


@kernel("OptionalHasElement")
def optional_has_element(x: Any = None) -> Array:
    """Whether the optional holds something."""
    return np.array(x is not None)


@kernel("OptionalGetElement")
def optional_get_element(x: Any) -> Any:
    """What the optional holds."""
    if x is None:
        raise ValueError("the optional is empty")
    return x
