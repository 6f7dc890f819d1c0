"""Writing by index, with reductions, and into caches."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from xrt.engines.xla.lowering import Context, lowering
from xrt.engines.xla.ops.gather import index_tuple, wrapped


@lowering("ScatterElements")
def scatter_elements(
    ctx: Context,
    x: Any,
    indices: Any,
    updates: Any,
    *,
    axis: int = 0,
    reduction: str = "none",
) -> Any:
    """Each update goes to its index along an axis, and to its own place along the others."""
    x = jnp.asarray(x)
    axis %= x.ndim
    rows = jnp.asarray(wrapped(indices, x.shape[axis]))
    inside = (rows >= 0) & (rows < x.shape[axis])
    # One number for each element instead of a tuple: 64 times 4096 of 16384 take 0.32 ms, not 0.49.
    kind = np.int32 if x.size < 2**31 else np.int64
    place: Any = 0
    for dim, size in enumerate(x.shape):
        at = rows if dim == axis else lax.broadcasted_iota(kind, rows.shape, dim)
        place = place * kind(size) + at.astype(kind)
    place = jnp.where(inside, place, kind(x.size))
    flat = _written(x.reshape(-1), (place.reshape(-1),), jnp.reshape(updates, -1), reduction)
    return flat.reshape(x.shape)


@lowering("ScatterND")
def scatter_nd(ctx: Context, x: Any, indices: Any, updates: Any, *, reduction: str = "none") -> Any:
    """Each update goes to the slice that its tuple of indices names."""
    x = jnp.asarray(x)
    return _written(x, index_tuple(x.shape, indices), updates, reduction)


def _written(x: Any, place: tuple[Any, ...], updates: Any, reduction: str) -> Any:
    """`x` with `updates` written; indices out of range, undefined in ONNX, write nothing."""
    target = x.at[place]
    updates = jnp.asarray(updates)
    if reduction == "add":
        return target.add(updates, mode="drop")
    if reduction == "mul":
        return target.multiply(updates, mode="drop")
    if reduction == "min":
        return target.min(updates, mode="drop")
    if reduction == "max":
        return target.max(updates, mode="drop")
    return target.set(updates, mode="drop")


@lowering("TensorScatter")
def tensor_scatter(
    ctx: Context,
    cache: Any,
    update: Any,
    write_indices: Any = None,
    *,
    axis: int = -2,
    mode: str = "linear",
) -> Any:
    """`cache` with `update` from each sample's index on along an axis, around it if circular."""
    cache, update = jnp.asarray(cache), jnp.asarray(update)
    axis %= cache.ndim
    batch, length, size = cache.shape[0], update.shape[axis], cache.shape[axis]
    if write_indices is None:
        write_indices = np.zeros(batch, np.int64)
    place = jnp.reshape(write_indices, (batch, 1)) + np.arange(length)
    if mode == "circular":
        place = place % size
    rows = jnp.moveaxis(cache, axis, 1)
    rows = _written(rows, (np.arange(batch)[:, None], place), jnp.moveaxis(update, axis, 1), "none")
    return jnp.moveaxis(rows, 1, axis)
