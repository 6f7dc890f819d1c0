"""Writing by index, with reductions."""

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
    shape = np.shape(indices)
    place = tuple(
        jnp.asarray(wrapped(indices, size))
        if dim == axis
        else lax.broadcasted_iota(np.int64, shape, dim)
        for dim, size in enumerate(x.shape)
    )
    return _written(x, place, updates, reduction)


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
