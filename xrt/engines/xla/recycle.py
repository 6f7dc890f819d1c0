"""Clusters that compute results into memory that is given to them.

A result that only other clusters read would otherwise be in new memory at each launch, whose pages
the system first has to clear. An executable takes one more argument for each such result, donates
it, and XLA puts the result in its place. The results that have an argument are the function's first
ones, which is how JAX pairs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.engine import INNER
from xrt.engines.xla import device as D


def positions(body: ir.Graph) -> tuple[int, ...]:
    """The outputs of a cluster that are computed into memory given to it. None on a GPU, where
    memory costs nothing anew.
    """
    if D.device().platform != "cpu":
        return ()
    return tuple(
        position
        for position, value in enumerate(body.outputs)
        if INNER in value.metadata_props and G.static_shape(value) is not None
    )


def order(recycled: Sequence[int], count: int) -> tuple[int, ...]:
    """The `count` outputs of a cluster in the order in which the executable has them."""
    return (*recycled, *(number for number in range(count) if number not in recycled))


def reordered(
    function: Callable[..., tuple[Any, ...]], recycled: Sequence[int]
) -> Callable[..., tuple[Any, ...]]:
    """`function` with one more argument for each recycled output, and those outputs first."""

    def recycling(*arguments: Any) -> tuple[Any, ...]:
        results = function(*arguments[: len(arguments) - len(recycled)])
        return tuple(results[number] for number in order(recycled, len(results)))

    return recycling


def fresh(shape: Sequence[int], dtype: Any, target: jax.Device) -> jax.Array:
    """Memory for a result that nothing was left behind for, ready to be donated.

    XLA donates only what it owns, so it is made to copy an array that is not aligned.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    memory = np.empty(count * dtype.itemsize + 2 * D.ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % D.ALIGNMENT + dtype.itemsize
    array = memory[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
    placed: jax.Array = D.place(array, target).block_until_ready()
    return placed
