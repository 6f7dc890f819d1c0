"""The order in which arrays lie in memory, which is XLA's to choose unless it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from jax.experimental.layout import Layout, with_layout_constraint

from xrt.engines.xla import device as D

_PARTITIONED: ContextVar[bool] = ContextVar("xrt_partitioned", default=False)


@contextlib.contextmanager
def partitioned() -> Iterator[None]:
    """While a program is traced that XLA will share out among devices: nothing is pinned in it.

    The partitioner does not cut what has a layout constraint; every device would gather all of it.
    """
    token = _PARTITIONED.set(True)
    try:
        yield
    finally:
        _PARTITIONED.reset(token)


def pinned(array: Any) -> Any:
    """`array`, which lies in memory in the order of its axes, the last one innermost.

    On the CPU XLA else propagates the order of a program's inputs and outputs inwards, through
    transposes, up to gathers that then read single elements where whole rows are wanted: GridSample
    of 8x32x64x64 at 21,504 points takes 27 ms, and pinned 7 ms (one AVX-512 core).
    """
    if D.device().platform != "cpu" or _PARTITIONED.get():
        return array
    order = Layout(tuple(range(array.ndim)))
    return with_layout_constraint(array, order)  # type: ignore[no-untyped-call]
