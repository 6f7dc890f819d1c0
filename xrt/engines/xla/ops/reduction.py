"""Reductions, arg-reductions and cumulative sums, in whichever layout the operand has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops.numerics import is_float, wide
from xrt.kernels.jax import elementwise

Axes = tuple[int, ...]


def _real(x: Any) -> Any:
    """x as a float wide enough to average, or to take roots and logarithms of, any dtype."""
    return wide(x) if is_float(x) else jnp.asarray(x).astype(jnp.float64)


def _sum(x: Any, axes: Axes) -> Any:
    return jnp.sum(x, axis=axes, keepdims=True, dtype=x.dtype)


def _extreme(function: Callable[..., Any], lowest: bool) -> Callable[[Any, Axes], Any]:
    def reduce(x: Any, axes: Axes) -> Any:
        if x.size:
            return function(x, axis=axes, keepdims=True)
        return function(x, axis=axes, keepdims=True, initial=_neutral(x.dtype, lowest))

    return reduce


def _neutral(dtype: Any, lowest: bool) -> Any:
    """What an empty maximum (minimum) gives: the lowest (highest) value of `dtype`."""
    if dtype == jnp.bool_:
        return not lowest
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return np.asarray(info.min if lowest else info.max, dtype)  # JAX reads an int as int64
    return -float("inf") if lowest else float("inf")


def _log_sum_exp(x: Any, axes: Axes) -> Any:
    x = _real(x)
    if not x.size:
        return jnp.log(_sum(x, axes))
    return jax.nn.logsumexp(x, axis=axes, keepdims=True)


def _mean(x: Any, axes: Axes) -> Any:
    summed = _sum(_real(x), axes)
    return elementwise.divide(summed, np.prod([x.shape[axis] for axis in axes], dtype=np.int64))


# Each takes the array and the axes, keeps the reduced axes as ones, and may return a wider dtype.
_REDUCTIONS: dict[str, Callable[[Any, Axes], Any]] = {
    "ReduceL1": lambda x, axes: _sum(jnp.abs(wide(x)), axes),
    "ReduceL2": lambda x, axes: jnp.sqrt(_sum(jnp.square(_real(x)), axes)),
    "ReduceLogSum": lambda x, axes: elementwise.log(_sum(_real(x), axes)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(jnp.max, lowest=True),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(jnp.min, lowest=False),
    "ReduceProd": lambda x, axes: jnp.prod(wide(x), axis=axes, keepdims=True, dtype=wide(x).dtype),
    "ReduceSum": lambda x, axes: _sum(wide(x), axes),
    "ReduceSumSquare": lambda x, axes: _sum(jnp.square(wide(x)), axes),
}


def _reduction(function: Callable[[Any, Axes], Any]) -> Callable[..., Operand]:
    def reduce(
        ctx: Context,
        data: Operand,
        axes: np.ndarray[Any, Any] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Operand:
        chosen = _axes(axes, data.rank, bool(noop_with_empty_axes))
        array = jnp.asarray(data.array)
        result = function(array, tuple(data.axis(axis) for axis in chosen)).astype(array.dtype)
        kept = Operand(result, data.channels_last)
        return kept if keepdims else squeeze(kept, chosen)

    return reduce


def _axes(axes: np.ndarray[Any, Any] | None, rank: int, noop: bool) -> Axes:
    """The axes to reduce, each once and not negative; all, or none, if none are given."""
    if axes is None or not axes.size:
        return () if noop else tuple(range(rank))
    return tuple(sorted({int(axis) % rank for axis in axes.reshape(-1)}))


def squeeze(operand: Operand, axes: Sequence[int]) -> Operand:
    """`operand` without `axes` (not negative, of size one), channels-last still where it can be."""
    array = jnp.squeeze(operand.array, tuple(operand.axis(axis) for axis in axes))
    if not operand.channels_last or 1 in axes or np.ndim(array) < 2:
        return Operand(array)
    if 0 not in axes:  # (N, C) reads the same in both layouts
        return Operand(array, np.ndim(array) > 2)
    return Operand(jnp.moveaxis(array, -1, 0))


def _register_table() -> None:
    for op_type, function in _REDUCTIONS.items():
        lowering(op_type, static=(1,), layouts=True)(_reduction(function))


_register_table()


def _arg_reduction(function: Callable[..., Any]) -> Callable[..., Operand]:
    def reduce(
        ctx: Context,
        data: Operand,
        *,
        axis: int = 0,
        keepdims: int = 1,
        select_last_index: int = 0,
    ) -> Operand:
        axis %= data.rank
        array, place = jnp.asarray(data.array), data.axis(axis)
        if select_last_index:
            array = jnp.flip(array, place)
        index = function(array, axis=place, keepdims=True).astype(jnp.int64)
        if select_last_index:
            index = array.shape[place] - 1 - index
        kept = Operand(index, data.channels_last)
        return kept if keepdims else squeeze(kept, (axis,))

    return reduce


lowering("ArgMax", layouts=True)(_arg_reduction(jnp.argmax))
lowering("ArgMin", layouts=True)(_arg_reduction(jnp.argmin))


def _cumulative(function: Callable[..., Any], neutral: int) -> Callable[..., Operand]:
    def accumulate(
        ctx: Context,
        x: Operand,
        axis: np.ndarray[Any, Any],
        *,
        exclusive: int = 0,
        reverse: int = 0,
    ) -> Operand:
        place = x.axis(int(axis.reshape(())))
        array = wide(x.array)
        if exclusive:
            array = _shift(array, place, neutral, bool(reverse))
        result = function(array, axis=place, reverse=bool(reverse))
        return Operand(result.astype(x.array.dtype), x.channels_last)

    return accumulate


def _shift(array: Any, axis: int, value: int, reverse: bool) -> Any:
    """`array` moved by one along `axis`, with `value` coming in and one element falling off."""
    if not array.shape[axis]:
        return array
    padding = [(0, 0, 0)] * array.ndim
    padding[axis] = (-1, 1, 0) if reverse else (1, -1, 0)
    return jax.lax.pad(array, jnp.asarray(value, array.dtype), padding)


lowering("CumSum", static=(1,), layouts=True)(_cumulative(jax.lax.cumsum, 0))
lowering("CumProd", static=(1,), layouts=True)(_cumulative(jax.lax.cumprod, 1))
