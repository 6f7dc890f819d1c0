"""Memory that the inputs of batches in flight are copied to: allocated once, used again.

It is aligned, so that XLA's CPU client reads it in place. Engines on a GPU copy from it to pinned
memory of their own (`xrt.kernels.cuda.staging`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xrt.runtime.memory import allocate

Array = np.ndarray[Any, Any]


class Staging:
    """Memory for the inputs of one batch. It grows to the largest batch that it has held.

    Whoever holds one has it alone: it goes to the next batch once nothing reads the last one.
    """

    def __init__(self) -> None:
        self._buffers: dict[int, Array] = {}

    def copy(self, arrays: Sequence[Any]) -> list[Any]:
        """Inputs as `runtime.arrays.take` gives them, those on the host copied to this memory."""
        return [self._copied(position, array) for position, array in enumerate(arrays)]

    def _copied(self, position: int, array: Any) -> Any:
        if isinstance(array, list):  # a sequence, of which nobody knows how many will come
            return [np.array(item) for item in array]
        if not isinstance(array, np.ndarray):
            return array  # on a device, or of JAX, where nothing changes in place
        if array.dtype.hasobject:
            return array.copy()
        place = self._place(position, array)
        np.copyto(place, array)
        return place

    def _place(self, position: int, array: Array) -> Array:
        buffer = self._buffers.get(position)
        if buffer is None or buffer.nbytes < array.nbytes:
            buffer = self._buffers[position] = allocate(array.nbytes)
        place: Array = buffer[: array.nbytes].view(array.dtype).reshape(array.shape)
        return place

    @property
    def nbytes(self) -> int:
        """Bytes that it holds."""
        return sum(buffer.nbytes for buffer in self._buffers.values())
