"""Reductions, cumulative operators, and searches along an axis."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_float32, ints, is_float, normalize_axes
from xrt.kernels.host.registry import KERNELS, kernel

Reduce = Callable[[Array, tuple[int, ...], bool], Any]


def _reduction(function: Reduce) -> Callable[..., Array]:
    @in_float32
    def reduce(
        data: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Array:
        if axes is not None and axes.size:
            where = normalize_axes(ints(axes), data.ndim)
        else:
            where = () if noop_with_empty_axes else tuple(range(data.ndim))
        result = function(data, where, bool(keepdims))
        return np.asarray(result).astype(data.dtype, copy=False)

    return reduce


def _log_sum_exp(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype.kind != "f":
        x = x.astype(np.float64)
    top = np.max(x, axis=axes, keepdims=True, initial=-np.inf)
    shift = np.where(np.isfinite(top), top, 0)
    total = np.log(np.sum(np.exp(x - shift), axis=axes, keepdims=True)) + shift
    return total if keepdims else np.squeeze(total, axes)


def _least(x: Array) -> Any:
    """The value that a maximum of nothing has."""
    if x.dtype.kind == "b":
        return False
    return -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min


def _greatest(x: Array) -> Any:
    if x.dtype.kind == "b":
        return True
    return np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).max


def _mean(x: Array, axes: tuple[int, ...], keepdims: bool) -> Any:
    if x.dtype.kind == "f":
        return np.mean(x, axis=axes, keepdims=keepdims)
    count = np.prod([x.shape[a] for a in axes], dtype=np.int64)
    return np.trunc(np.sum(x, axis=axes, keepdims=keepdims, dtype=np.float64) / count)


REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": lambda x, a, k: np.sum(np.abs(x), axis=a, keepdims=k, dtype=x.dtype),
    "ReduceL2": lambda x, a, k: np.sqrt(np.sum(np.square(x), axis=a, keepdims=k, dtype=x.dtype)),
    "ReduceLogSum": lambda x, a, k: np.log(np.sum(x, axis=a, keepdims=k, dtype=x.dtype)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": lambda x, a, k: np.max(x, axis=a, keepdims=k, initial=_least(x)),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, a, k: np.min(x, axis=a, keepdims=k, initial=_greatest(x)),
    "ReduceProd": lambda x, a, k: np.prod(x, axis=a, keepdims=k, dtype=x.dtype),
    "ReduceSum": lambda x, a, k: np.sum(x, axis=a, keepdims=k, dtype=x.dtype),
    "ReduceSumSquare": lambda x, a, k: np.sum(np.square(x), axis=a, keepdims=k, dtype=x.dtype),
}
KERNELS.update({name: _reduction(function) for name, function in REDUCTIONS.items()})


def _arg(function: Callable[..., Any], x: Array, axis: int, keepdims: int, last: int) -> Array:
    if last:
        found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis, keepdims=bool(keepdims))
    else:
        found = function(x, axis=axis, keepdims=bool(keepdims))
    return np.asarray(found, dtype=np.int64)


@kernel("ArgMax")
def arg_max(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the greatest element along an axis."""
    return _arg(np.argmax, _comparable(data), axis, keepdims, select_last_index)


@kernel("ArgMin")
def arg_min(data: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the least element along an axis."""
    return _arg(np.argmin, _comparable(data), axis, keepdims, select_last_index)


def _comparable(x: Array) -> Array:
    """`x`, in float32 if its dtype is a float NumPy cannot search or sort by itself."""
    return x.astype(np.float32) if is_float(x.dtype) and x.dtype.kind != "f" else x


@kernel("TopK")
def top_k(
    x: Array, k: Array, *, axis: int = -1, largest: int = 1, sorted: int = 1
) -> tuple[Array, Array]:
    """The k greatest or least elements along an axis, with indices; ties go to the lower index."""
    count = int(k.reshape(()))
    if count > x.shape[axis]:
        raise ValueError(f"k is {count} but axis {axis} has {x.shape[axis]} elements")
    keys = _comparable(x)
    if largest:
        # Backwards twice: ties keep their order, and NaN, which sorts last, comes first.
        order = np.argsort(np.flip(keys, axis), axis=axis, kind="stable")
        order = x.shape[axis] - 1 - np.flip(order, axis)
    else:
        order = np.argsort(keys, axis=axis, kind="stable")
    chosen = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(x, chosen, axis), chosen.astype(np.int64)


def _cumulative(
    function: Any, start: int, x: Array, axis: int, exclusive: int, reverse: int
) -> Array:
    (axis,) = normalize_axes((axis,), x.ndim)
    if reverse:
        x = np.flip(x, axis)
    result: Array = function.accumulate(x, axis=axis, dtype=x.dtype)
    if exclusive and x.shape[axis]:
        edge = list(x.shape)
        edge[axis] = 1
        kept = np.take(result, np.arange(x.shape[axis] - 1), axis=axis)
        result = np.concatenate([np.full(edge, start, x.dtype), kept], axis=axis)
    return contiguous(np.flip(result, axis)) if reverse else result


@kernel("CumSum")
@in_float32
def cum_sum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sums along an axis."""
    return _cumulative(np.add, 0, x, ints(axis)[0], exclusive, reverse)


@kernel("CumProd")
@in_float32
def cum_prod(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running products along an axis."""
    return _cumulative(np.multiply, 1, x, ints(axis)[0], exclusive, reverse)
