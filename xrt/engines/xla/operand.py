"""Values while a cluster is traced: an array, its layout, and the bytes behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Quantized:
    """The bytes that a value is made of: (array - zero) scale.

    Attributes:
        array: int8 or uint8, in the layout of the operand.
        zero: int32 that broadcasts to `array`, or None for 0. NumPy if known at compile time.
        scale: fp32: one, or one for each index of `axis`; None for a value that is bytes itself.
        axis: ONNX axis that scales run along; None for one scale.
    """

    array: Any
    zero: Any = None
    scale: Any = None
    axis: int | None = None


@dataclass(frozen=True)
class Operand:
    """A value while a cluster is traced.

    Attributes:
        array: The data: a JAX array or tracer, or a NumPy array for a small constant.
        channels_last: Whether axis 1 of the ONNX value is the last axis of `array`
            (N, spatial..., C). Rank 3 or more.
        quantized: The bytes behind it, where they are known. Who computes on them alone leaves
            `array` unused, and XLA drops what would have computed that.
    """

    array: Any
    channels_last: bool = False
    quantized: Quantized | None = None

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return int(np.ndim(self.array))

    def plain(self) -> Any:
        """The array in ONNX's axis order."""
        if not self.channels_last:
            return self.array
        return jnp.moveaxis(self.array, -1, 1)

    def last(self) -> Any:
        """The array in channels-last order; its rank is 3 or more."""
        if self.channels_last:
            return self.array
        return jnp.moveaxis(self.array, 1, -1)

    def axis(self, axis: int) -> int:
        """Where ONNX's `axis` (may be negative) lies in `array`."""
        axis %= self.rank
        if not self.channels_last or axis == 0:
            return axis
        return self.rank - 1 if axis == 1 else axis - 1


def is_float(operand: Operand) -> bool:
    """Whether `operand` holds floating-point numbers."""
    return bool(jnp.issubdtype(operand.array.dtype, jnp.floating))


def same_quantization(a: Quantized, b: Quantized) -> bool:
    """Whether the same bytes stand for the same values in both, as far as is known."""
    pairs = ((a.scale, b.scale), (a.zero, b.zero))
    same = all(x is y or (_is_known(x, y) and np.array_equal(x, y)) for x, y in pairs)
    return bool(same and a.axis == b.axis and a.array.dtype == b.array.dtype)


def _is_known(*arrays: Any) -> bool:
    return all(isinstance(array, np.ndarray | np.generic) for array in arrays)


def common_layout(operands: Sequence[Operand | None]) -> tuple[list[Any], bool]:
    """The arrays of `operands` in one layout that broadcasts like ONNX's, and whether that is
    channels-last.

    Channels-last wins if an operand of the result's rank has it.
    """
    rank = max((operand.rank for operand in operands if operand is not None), default=0)
    if not any(o is not None and o.channels_last and o.rank == rank for o in operands):
        return [None if o is None else o.plain() for o in operands], False
    return [None if o is None else broadcast_last(o, rank) for o in operands], True


def broadcast_last(operand: Operand, rank: int) -> Any:
    """`operand` aligned, for broadcasting, with channels-last arrays of `rank`."""
    if operand.rank == 0 or (operand.channels_last and operand.rank == rank):
        return operand.array
    array = operand.plain()
    array = jnp.reshape(array, (1,) * (rank - operand.rank) + np.shape(array))
    return jnp.moveaxis(array, 1, -1)
