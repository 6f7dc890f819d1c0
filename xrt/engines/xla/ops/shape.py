"""Views and generated tensors: reshapes, transposes, and values made from shapes alone.

Reshapes and transposes keep a channels-last operand where it is whenever the result is the same
memory: flattening the spatial dimensions and the permutes around a LayerNorm move no data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.graph import Support


@lowering("Reshape", "Flatten", "Squeeze", "Unsqueeze", layouts=True, carries=True)
def reshape(ctx: Context, x: Operand, *_: Any, **__: Any) -> Operand:
    """The same elements under the inferred shape, which covers the attributes and axes."""
    return reshaped(x, ctx.output_shape())


def reshaped(x: Operand, shape: tuple[int, ...]) -> Operand:
    """`x` under another ONNX shape; channels-last while the first two dimensions stay."""
    if x.channels_last and len(shape) > 2:
        array_shape = np.shape(x.array)
        kept = shape[:2] == (array_shape[0], array_shape[-1])
        if kept and (0 not in shape or shape[2:] == array_shape[1:-1]):
            return Operand(jnp.reshape(x.array, (shape[0], *shape[2:], shape[1])), True)
    return Operand(jnp.reshape(x.plain(), shape))


@lowering("Transpose", layouts=True, carries=True)
def transpose(ctx: Context, x: Operand, *, perm: Sequence[int] | None = None) -> Operand:
    """A permutation; none at all where it only changes between ONNX's layout and channels-last."""
    rank = x.rank
    order = list(perm) if perm is not None else list(range(rank))[::-1]
    stored = _stored_axes(rank, x.channels_last)
    if order == stored:
        return Operand(x.array)
    if rank > 2 and [order[axis] for axis in _stored_axes(rank, True)] == stored:
        return Operand(x.array, True)
    return Operand(jnp.transpose(x.array, [stored.index(axis) for axis in order]))


def _stored_axes(rank: int, channels_last: bool) -> list[int]:
    """The ONNX axis that each axis of the array holds."""
    return [0, *range(2, rank), 1] if channels_last else list(range(rank))


@lowering("Expand", carries=True)
def expand(ctx: Context, x: Any, shape: Any) -> Any:
    """Broadcast to the inferred shape."""
    return jnp.broadcast_to(x, ctx.output_shape())


@lowering("Tile", static=(1,), carries=True)
def tile(ctx: Context, x: Any, repeats: np.ndarray[Any, Any]) -> Any:
    """Repeat along each axis."""
    return jnp.tile(x, [int(count) for count in repeats])


@lowering("Shape", layouts=True)
def shape_of(ctx: Context, x: Operand, *, start: int = 0, end: int | None = None) -> Operand:
    """The static shape."""
    sizes = np.shape(x.array)
    if x.channels_last:
        sizes = (sizes[0], sizes[-1], *sizes[1:-1])
    # ONNX clamps like a Python slice, except that a start past the end gives nothing, as here.
    return Operand(np.asarray(sizes[start:end], np.int64))


@lowering("Size", layouts=True)
def size_of(ctx: Context, x: Operand) -> Operand:
    """The static number of elements."""
    return Operand(np.asarray(math.prod(np.shape(x.array)), np.int64))


@lowering("ConstantOfShape")
def constant_of_shape(ctx: Context, shape: Any, *, value: Any = None) -> Any:
    """One value everywhere."""
    fill = np.zeros((), np.float32) if value is None else np.asarray(value).reshape(())
    return jnp.full(ctx.output_shape(), fill, ctx.output_dtype())


def _supports_constant(node: ir.Node) -> Support:
    if "sparse_value" in node.attributes:
        return Support.no("Constant holds a sparse tensor, which XLA lacks")
    return Support.yes()


@lowering("Constant", supports=_supports_constant)
def constant(ctx: Context, **attributes: Any) -> Any:
    """The attribute that is given."""
    (value,) = attributes.values()
    return jnp.asarray(np.asarray(value, ctx.output_dtype()))


@lowering("Range")
def range_(ctx: Context, start: Any, limit: Any, delta: Any, *, stash_type: int = 1) -> Any:
    """start + i * delta; only the number of elements must be known."""
    dtype = ctx.output_dtype()
    (count,) = ctx.output_shape()
    wide: Any = np.float64 if jnp.issubdtype(dtype, jnp.floating) else dtype
    if np.dtype(dtype).itemsize < 4 and stash_type == 1 and wide is np.float64:
        wide = np.float32
    steps = lax.iota(np.int64, count).astype(wide)
    first, step = (jnp.reshape(v, ()).astype(wide) for v in (start, delta))
    return (first + steps * step).astype(dtype)


@lowering("EyeLike")
def eye_like(ctx: Context, x: Any, *, dtype: int | None = None, k: int = 0) -> Any:
    """Ones on diagonal `k` of a matrix of the input's shape."""
    return jnp.equal(_column_minus_row(ctx.output_shape()), k).astype(ctx.output_dtype())


@lowering("Trilu")
def trilu(ctx: Context, x: Any, k: Any = None, *, upper: int = 1) -> Any:
    """The upper or lower triangle from diagonal `k`."""
    offset = 0 if k is None else jnp.reshape(k, ())
    distance = _column_minus_row(np.shape(x)[-2:])
    keep = distance >= offset if upper else distance <= offset
    return jnp.where(keep, x, jnp.zeros((), ctx.output_dtype()))


def _column_minus_row(shape: Sequence[int]) -> Any:
    columns = lax.broadcasted_iota(np.int64, tuple(shape), 1)
    return columns - lax.broadcasted_iota(np.int64, tuple(shape), 0)


def _supports_blocks(node: ir.Node) -> Support:
    shape = G.static_shape(node.inputs[0]) or ()
    if len(shape) != 4:
        return Support.no(f"{node.op_type} of rank {len(shape)}; it is defined for rank 4")
    return Support.yes()


@lowering("DepthToSpace", supports=_supports_blocks, layouts=True, carries=True)
def depth_to_space(ctx: Context, x: Operand, *, blocksize: int, mode: str = "DCR") -> Operand:
    """Blocks of channels become blocks of pixels."""
    array, block = x.last(), blocksize
    n, h, w, c = np.shape(array)
    depth = c // (block * block)
    if mode == "DCR":
        parts = jnp.reshape(array, (n, h, w, block, block, depth))
        parts = jnp.transpose(parts, (0, 1, 3, 2, 4, 5))
    else:
        parts = jnp.reshape(array, (n, h, w, depth, block, block))
        parts = jnp.transpose(parts, (0, 1, 4, 2, 5, 3))
    return Operand(jnp.reshape(parts, (n, h * block, w * block, depth)), True)


@lowering("SpaceToDepth", supports=_supports_blocks, layouts=True, carries=True)
def space_to_depth(ctx: Context, x: Operand, *, blocksize: int, mode: str = "DCR") -> Operand:
    """Blocks of pixels become blocks of channels."""
    array, block = x.last(), blocksize
    n, h, w, c = np.shape(array)
    parts = jnp.reshape(array, (n, h // block, block, w // block, block, c))
    order = (0, 1, 3, 2, 4, 5) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = jnp.transpose(parts, order)
    return Operand(jnp.reshape(parts, (n, h // block, w // block, c * block * block)), True)
