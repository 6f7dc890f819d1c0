"""Pooling, channels-last: x [N, *spatial, C], one to three spatial dimensions.

`pads` holds all beginnings, then all ends, in ONNX's order. With `ceil_mode` the last window may
hang over the padded input, but, as ONNX and torch have it, must start in the input or its left pad.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def max_pool(
    x: jax.Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Return the maximum of each window [N, *spatial', C]; padding never wins; NaN propagates."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        lowest = np.asarray(-np.inf, x.dtype)
    else:
        lowest = np.asarray(jnp.iinfo(x.dtype).min, x.dtype)
    return _windows(x, lowest, lax.max, kernel, strides, pads, dilations, ceil_mode)


def average_pool(
    x: jax.Array,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> jax.Array:
    """Return the mean of each window [N, *spatial', C], in fp32 or better inside.

    The divisor counts the input's elements, and with `count_include_pad` the explicit pads too, but
    never what `ceil_mode` hangs over.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    total: jax.Array = _windows(
        y, np.zeros((), y.dtype), lax.add, kernel, strides, pads, dilations, ceil_mode
    )
    rank = len(kernel)
    steps = dilations or (1,) * rank
    # The counts depend on shapes only, and factor by axis: constants, computed here.
    counts: np.ndarray = np.ones((1,) * (rank + 2), y.dtype)
    for axis in range(rank):
        size, begin, end = x.shape[axis + 1], pads[axis], pads[axis + rank]
        low, high = (-begin, size + end) if count_include_pad else (0, size)
        starts = np.arange(total.shape[axis + 1]) * strides[axis] - begin
        reads = starts[:, None] + np.arange(kernel[axis]) * steps[axis]
        inside = ((reads >= low) & (reads < high)).sum(1).astype(y.dtype)
        shape = [1] * (rank + 2)
        shape[axis + 1] = -1
        counts = counts * inside.reshape(shape)
    same = bool((counts == counts.flat[0]).all())
    mean = total * (1 / counts).flat[0] if same else total / counts
    return jnp.asarray(mean, x.dtype)


def lp_pool(
    x: jax.Array,
    *,
    p: int = 2,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Return (sum |x|^p)^(1/p) of each window [N, *spatial', C], in fp32 or better inside."""
    y = jnp.abs(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    y = y if p == 1 else y**p
    total: jax.Array = _windows(
        y, np.zeros((), y.dtype), lax.add, kernel, strides, pads, dilations, ceil_mode
    )
    roots = {1: lambda t: t, 2: jnp.sqrt}
    return jnp.asarray(roots.get(p, lambda t: t ** (1 / p))(total), x.dtype)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Return the mean over all spatial dimensions, kept: [N, 1, ..., C]; fp32 or better inside."""
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return y.mean(tuple(range(1, x.ndim - 1)), keepdims=True).astype(x.dtype)


def global_max_pool(x: jax.Array) -> jax.Array:
    """Return the maximum over all spatial dimensions, kept: [N, 1, ..., C]."""
    return x.max(tuple(range(1, x.ndim - 1)), keepdims=True)


def out_size(
    size: int, kernel: int, stride: int, begin: int, end: int, dilation: int, ceil_mode: bool
) -> int:
    """Return how many windows one axis has."""
    room = size + begin + end - dilation * (kernel - 1) - 1
    count = (math.ceil(room / stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + begin:
        count -= 1
    return max(0, count)


def _windows(
    x: jax.Array,
    start: np.ndarray,
    combine: object,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None,
    ceil_mode: bool,
) -> jax.Array:
    """Reduce the windows with `combine`, from `start`, over x as padded."""
    rank = len(kernel)
    steps = tuple(dilations or (1,) * rank)
    margins = []
    for axis in range(rank):
        size, k, stride = x.shape[axis + 1], kernel[axis], strides[axis]
        begin, end = pads[axis], pads[axis + rank]
        count = out_size(size, k, stride, begin, end, steps[axis], ceil_mode)
        reach = (count - 1) * stride + steps[axis] * (k - 1) + 1
        margins.append((begin, max(end, reach - size - begin)))
    reduced: jax.Array = lax.reduce_window(
        x,
        start,
        combine,  # type: ignore[arg-type]
        (1, *kernel, 1),
        (1, *strides, 1),
        ((0, 0), *margins, (0, 0)),
        window_dilation=(1, *steps, 1),
    )
    return reduced
