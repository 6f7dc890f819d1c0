"""Pooling: windows that slide, and global ones.

Small windows are computed as one strided slice for each tap, combined elementwise; XLA's own
reduce_window is 3 to 9 times slower on the CPU as soon as something fuses into it (measured on a
3x3/2 pooling of 8x112x112x64 behind a Relu: 2.9 ms against 19 ms). Large windows are reduced one
axis after the other, each by a reduce_window. Milliseconds on one AVX-512 core, behind a Relu::

  ==============================  =============  =======  ===========  =================
  channels-last                   reduce_window  slices   axis by axis PyTorch (NCHW)
  ==============================  =============  =======  ===========  =================
  max 3x3/2, 112 px, 64           1.09           .19      .21          5.4
  average 3x3/1, 35 px, 192       .65            .09      .10          1.8
  max 5x5/1, 20 px, 256           1.67           .26      .09          4.8
  max 9x9/1, 19 px, 512           16.9           2.7      .31          16.4
  max 13x13/1, 19 px, 512         35.6                    .48          22.4
  average 10x10/10, 60 px, 512    3.6            .60      .42          .76
  ==============================  =============  =======  ===========  =================
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.memory import pinned
from xrt.engines.xla.ops.windows import Window
from xrt.graph import Support

_MOST_SLICES = 9
"""Taps up to which a window is a combination of slices."""
_MOST_INDEXED = 64
"""Taps up to which a maximum is found with its index; above, compile time grows too much."""


def _supports(node: ir.Node) -> Support:
    return windows.check_rank(node)


def _supports_max(node: ir.Node) -> Support:
    kernel = node.attributes["kernel_shape"].as_ints()
    if len(node.outputs) > 1 and math.prod(kernel) > _MOST_INDEXED:
        return Support.no(f"MaxPool with indices over a window of {math.prod(kernel)} elements")
    return _supports(node)


@lowering("MaxPool", supports=_supports_max, layouts=True, carries=True)
def max_pool(
    ctx: Context,
    x: Operand,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    storage_order: int = 0,
) -> tuple[Operand, ...]:
    """Maximum over each window; NaN wins, as in torch."""
    array = jnp.asarray(x.last())
    window = _window(ctx, array, kernel_shape, strides, dilations, pads, auto_pad)
    lowest = _lowest(array.dtype)
    if ctx.has_output(1):
        values, indices = _max_with_indices(array, window, lowest, storage_order)
        return Operand(values, True), Operand(indices, True)
    return (Operand(_reduce(array, window, lax.max, lowest), True),)


@lowering("AveragePool", supports=_supports, layouts=True)
def average_pool(
    ctx: Context,
    x: Operand,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
) -> Operand:
    """Mean over each window, without the padding unless `count_include_pad`."""
    array = jnp.asarray(x.last())
    window = _window(ctx, array, kernel_shape, strides, dilations, pads, auto_pad)
    counts = _counts(array.shape[1:-1], window, bool(count_include_pad))
    wide = _accumulator(array.dtype)
    total = _reduce(array.astype(wide), window, lax.add, 0)
    # A NumPy array of the accumulator's type: multiplying by reciprocals would round twice.
    mean = total / counts.astype(wide)
    return Operand(mean.astype(array.dtype), True)


@lowering("LpPool", supports=_supports, layouts=True)
def lp_pool(
    ctx: Context,
    x: Operand,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    p: int = 2,
) -> Operand:
    """The p-norm of each window."""
    array = jnp.asarray(x.last())
    window = _window(ctx, array, kernel_shape, strides, dilations, pads, auto_pad)
    total = _reduce(_power(array, p), window, lax.add, 0)
    return Operand(_root(total, p).astype(array.dtype), True)


def _global(*op_types: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a pooling over all spatial dimensions, written on (array, axes)."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @lowering(*op_types, layouts=True)
        @functools.wraps(function)
        def pool(ctx: Context, x: Operand, **attributes: Any) -> Operand:
            axes = tuple(x.axis(axis) for axis in range(2, x.rank))
            array = jnp.asarray(x.array)
            result = function(array, axes, **attributes)
            return Operand(result.astype(array.dtype), x.channels_last)

        return pool

    return register


@_global("GlobalAveragePool")
def global_average_pool(array: Any, axes: tuple[int, ...]) -> Any:
    """Mean over the spatial dimensions."""
    return jnp.mean(array.astype(_accumulator(array.dtype)), axis=axes, keepdims=True)


@_global("GlobalMaxPool")
def global_max_pool(array: Any, axes: tuple[int, ...]) -> Any:
    """Maximum over the spatial dimensions."""
    return jnp.max(array, axis=axes, keepdims=True, initial=_lowest(array.dtype))


@_global("GlobalLpPool")
def global_lp_pool(array: Any, axes: tuple[int, ...], *, p: int = 2) -> Any:
    """The p-norm over the spatial dimensions."""
    return _root(jnp.sum(_power(array, p), axis=axes, keepdims=True), p)


def _window(
    ctx: Context,
    array: Any,
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Window:
    output = ctx.output_shape()[2:]
    return windows.resolve(array.shape[1:-1], output, kernel, strides, dilations, pads, auto_pad)


def _reduce(array: Any, window: Window, combine: Callable[..., Any], neutral: Any) -> Any:
    """`combine` over each window of a channels-last array."""
    if window.kernel == array.shape[1:-1] and set(window.pads) == {(0, 0)}:
        reducer = jnp.max if combine is lax.max else jnp.sum
        return reducer(array, axis=tuple(range(1, array.ndim - 1)), keepdims=True)
    if math.prod(window.kernel) <= _MOST_SLICES:
        padded = _padded(array, window, neutral)
        return functools.reduce(combine, (tap for _, tap in _taps(padded, window)))
    result = _padded(pinned(array), window, neutral)
    sizes = zip(window.kernel, window.strides, window.dilations, strict=True)
    for axis, (taps, stride, dilation) in enumerate(sizes, start=1):
        result = lax.reduce_window(
            result,
            np.asarray(neutral, array.dtype),
            combine,
            window_dimensions=_along(axis, taps, array.ndim),
            window_strides=_along(axis, stride, array.ndim),
            padding=[(0, 0)] * array.ndim,
            window_dilation=_along(axis, dilation, array.ndim),
        )
    return result


def _along(axis: int, value: int, rank: int) -> tuple[int, ...]:
    """`value` for one axis and 1 for the others."""
    return tuple(value if dim == axis else 1 for dim in range(rank))


def _padded(array: Any, window: Window, value: Any) -> Any:
    """`array` padded, or cropped at its end, to exactly what the windows cover."""
    config = [(0, 0, 0)]
    for size, out, span, stride, (low, _) in zip(
        array.shape[1:-1], window.output, window.spans, window.strides, window.pads, strict=True
    ):
        config.append((low, (out - 1) * stride + span - size - low, 0))
    config.append((0, 0, 0))
    if all(item == (0, 0, 0) for item in config):
        return array
    return lax.pad(array, np.asarray(value, array.dtype), config)


def _taps(padded: Any, window: Window) -> Iterator[tuple[tuple[int, ...], Any]]:
    """For each tap, its place in the window and the elements of all windows there."""
    for tap in itertools.product(*map(range, window.kernel)):
        starts = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        limits = [
            start + (out - 1) * stride + 1
            for start, out, stride in zip(starts, window.output, window.strides, strict=True)
        ]
        yield (
            tap,
            lax.slice(
                padded,
                (0, *starts, 0),
                (padded.shape[0], *limits, padded.shape[-1]),
                (1, *window.strides, 1),
            ),
        )


def _max_with_indices(
    array: Any, window: Window, lowest: Any, storage_order: int
) -> tuple[Any, Any]:
    """The maximum of each window and where it lies in the flattened ONNX input, the first wins."""
    spatial = array.shape[1:-1]
    strides = _element_strides(spatial, storage_order)
    best: Any = jnp.full((array.shape[0], *window.output, array.shape[-1]), lowest, array.dtype)
    place: Any = jnp.full(best.shape, -1, np.int64)
    for tap, candidate in _taps(_padded(array, window, lowest), window):
        position, valid = _positions(spatial, window, tap, strides)
        wins = (candidate > best) | ((place < 0) | (candidate != candidate)) & (best == best)
        wins = wins & valid
        best = jnp.where(wins, candidate, best)
        place = jnp.where(wins, position, place)
    images = np.arange(array.shape[0] * array.shape[-1], dtype=np.int64)
    images = images.reshape(array.shape[0], *(1,) * len(spatial), array.shape[-1])
    return best, place + images * math.prod(spatial)


def _element_strides(spatial: Sequence[int], storage_order: int) -> list[int]:
    sizes = list(spatial)
    if storage_order:
        return [math.prod(sizes[:axis]) for axis in range(len(sizes))]
    return [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]


def _positions(
    spatial: Sequence[int], window: Window, tap: tuple[int, ...], strides: Sequence[int]
) -> tuple[Any, Any]:
    """Of one tap: the flat position in the image and whether it is inside, for every window."""
    rank = len(spatial)
    position: Any = np.zeros((1,) * (rank + 2), np.int64)
    valid: Any = np.ones((1,) * (rank + 2), bool)
    for axis in range(rank):
        start = tap[axis] * window.dilations[axis] - window.pads[axis][0]
        at = start + np.arange(window.output[axis], dtype=np.int64) * window.strides[axis]
        shape = (1,) * (axis + 1) + (-1,) + (1,) * (rank - axis)
        position = position + (at * strides[axis]).reshape(shape)
        valid = valid & ((at >= 0) & (at < spatial[axis])).reshape(shape)
    return position, valid


def _counts(spatial: Sequence[int], window: Window, include_pad: bool) -> np.ndarray[Any, Any]:
    """How many elements each window averages, as an array that broadcasts channels-last.

    With padding included, what lies beyond it (as `ceil_mode` makes windows do) still is not.
    """
    result: Any = np.ones((1,), np.int64)
    for axis, size in enumerate(spatial):
        low, high = window.pads[axis]
        first, behind = (-low, size + high) if include_pad else (0, size)
        starts = np.arange(window.output[axis]) * window.strides[axis] - low
        at = starts[:, None] + np.arange(window.kernel[axis]) * window.dilations[axis]
        inside = ((at >= first) & (at < behind)).sum(axis=1)
        result = result[..., None] * inside
    counted: np.ndarray[Any, Any] = result.reshape(1, *window.output, 1)
    return counted


def _lowest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return -np.inf
    return jnp.iinfo(dtype).min


def _accumulator(dtype: Any) -> Any:
    """The type that sums of `dtype` are formed in."""
    return np.float32 if np.dtype(dtype).itemsize < 4 else dtype


def _power(array: Any, p: int) -> Any:
    wide = jnp.abs(array.astype(_accumulator(array.dtype)))
    return wide if p == 1 else wide * wide if p == 2 else wide**p


def _root(total: Any, p: int) -> Any:
    if p == 1:
        return total
    return jnp.sqrt(total) if p == 2 else total ** (1.0 / p)
