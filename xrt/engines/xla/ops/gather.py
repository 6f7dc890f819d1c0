"""Reading by index: gathers, one-hot, top-k and reversal.

Negative indices count from the end; what ONNX leaves undefined beyond that is clamped, or NaN in
a training step, which must not learn from a wrong label.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.graph import Support


def wrapped(indices: Any, size: int) -> Any:
    """`indices` with negative ones counted from the end of `size`."""
    if isinstance(indices, np.ndarray):
        return np.where(indices < 0, indices + size, indices)
    # A weak Python scalar: the type of the indices stays.
    return jnp.where(indices < 0, indices + size, indices)


@lowering("Gather", layouts=True)
def gather(ctx: Context, x: Operand, indices: Operand, *, axis: int = 0) -> Operand:
    """Rows along an axis; a constant that selects one run of rows is a slice."""
    return _gather(x, indices, axis, "clip")


def gather_or_nan(ctx: Context, x: Operand, indices: Operand, *, axis: int = 0) -> Operand:
    """Rows along an axis, NaN (of integers the least) for an index that is out of range."""
    return _gather(x, indices, axis, "fill")


def _gather(x: Operand, indices: Operand, axis: int, mode: str) -> Operand:
    # A result with as many leading dimensions as before, or one fewer spatial one, keeps layout.
    spatial = axis % x.rank >= 2
    keeps = indices.rank == 1 or (indices.rank == 0 and spatial and x.rank > 3)
    if not (x.channels_last and keeps):
        x = Operand(x.plain())
    position = x.axis(axis)
    array = jnp.asarray(x.array)
    size = array.shape[position]
    rows = _rows(indices.plain(), size, mode)
    run = _run(wrapped(indices.plain(), size))
    if run is not None and run[1] <= size:
        part = lax.slice_in_dim(array, run[0], run[1], axis=position)
        shape = array.shape[:position] + np.shape(rows) + array.shape[position + 1 :]
        return Operand(jnp.reshape(part, shape), x.channels_last)
    return Operand(jnp.take(array, rows, axis=position, mode=mode), x.channels_last)


def _rows(indices: Any, size: int, mode: str) -> Any:
    """`indices` as JAX's functions that take rows want them: "fill" wraps negative ones itself."""
    return indices if mode == "fill" else wrapped(indices, size)


def _run(rows: Any) -> tuple[int, int] | None:
    """(first, behind last) if `rows` is a constant of consecutive indices."""
    if not isinstance(rows, np.ndarray) or rows.size == 0:
        return None
    flat = rows.reshape(-1)
    if flat[0] < 0 or (np.diff(flat) != 1).any():
        return None
    return int(flat[0]), int(flat[-1]) + 1


@lowering("GatherElements")
def gather_elements(ctx: Context, x: Any, indices: Any, *, axis: int = 0) -> Any:
    """One element for each index, along an axis."""
    return _gather_elements(x, indices, axis, "clip")


def gather_elements_or_nan(ctx: Context, x: Any, indices: Any, *, axis: int = 0) -> Any:
    """One element for each index, along an axis; as `gather_or_nan` out of range."""
    return _gather_elements(x, indices, axis, "fill")


def _gather_elements(x: Any, indices: Any, axis: int, mode: str) -> Any:
    x = jnp.asarray(x)
    axis %= x.ndim
    # The other dimensions of the indices may be smaller than the data's.
    limits = [size if dim == axis else np.shape(indices)[dim] for dim, size in enumerate(x.shape)]
    part = lax.slice(x, [0] * x.ndim, limits)
    rows = jnp.asarray(_rows(indices, x.shape[axis], mode))
    return jnp.take_along_axis(part, rows, axis=axis, mode=mode)


@lowering("GatherND")
def gather_nd(ctx: Context, x: Any, indices: Any, *, batch_dims: int = 0) -> Any:
    """A slice for each tuple of indices."""
    x = jnp.asarray(x)
    return x.at[index_tuple(x.shape, indices, batch_dims)].get(mode="clip")


def gather_nd_or_nan(ctx: Context, x: Any, indices: Any, *, batch_dims: int = 0) -> Any:
    """A slice for each tuple of indices, NaN where one is out of range."""
    x = jnp.asarray(x)
    rows = index_tuple(x.shape, indices, batch_dims)
    return x.at[rows].get(mode="fill", wrap_negative_indices=False)


def index_tuple(shape: tuple[int, ...], indices: Any, batch_dims: int = 0) -> tuple[Any, ...]:
    """The rows of `indices` as an advanced index into an array of `shape`."""
    leading = np.ndim(indices) - 1
    batch = tuple(
        np.arange(shape[dim]).reshape((-1,) + (1,) * (leading - dim - 1))
        for dim in range(batch_dims)
    )
    columns = tuple(
        wrapped(indices[..., column], shape[batch_dims + column])
        for column in range(np.shape(indices)[-1])
    )
    return (*batch, *columns)


@lowering("OneHot", static=(1,))
def one_hot(
    ctx: Context, indices: Any, depth: np.ndarray[Any, Any], values: Any, *, axis: int = -1
) -> Any:
    """values[1] where the class is the index, values[0] elsewhere."""
    count = int(np.asarray(depth).reshape(()))
    axis %= np.ndim(indices) + 1
    classes = wrapped(jnp.asarray(indices).astype(np.int64), count)
    shape = [1] * (np.ndim(indices) + 1)
    shape[axis] = count
    hit = jnp.expand_dims(classes, axis) == np.arange(count).reshape(shape)
    values = jnp.asarray(values)
    return jnp.where(hit, values[1], values[0])


_WHOLE = 5
"""TopK sorts everything if it wants more than one in so many elements. Milliseconds by selection
and by sorting, on one AVX-512 core: 1024 of 64x1024 8.5 and 2.3 (PyTorch 2.9), 128 of 64x1024 1.6
and 2.3 (.8), 50,000 of 100,000 10.6 and 5.8 (4.3), 300 of 8400 .08 and .37 (.05)."""


def _supports_top_k(node: ir.Node) -> Support:
    shape = G.static_shape(node.inputs[0]) or ()
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    k = G.constant(node.inputs[1])
    if shape and k is not None and int(k.reshape(-1)[0]) > shape[axis]:
        return Support.no(f"TopK asks for {int(k.reshape(-1)[0])} of {shape[axis]} elements")
    return Support.yes()


@lowering("TopK", static=(1,), supports=_supports_top_k)
def top_k(
    ctx: Context,
    x: Any,
    k: np.ndarray[Any, Any],
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,
) -> tuple[Any, Any]:
    """The k extremes in order; of equal ones, and of zeros of either sign, the first."""
    array = jnp.moveaxis(jnp.asarray(x), axis, -1)
    count = int(np.asarray(k).reshape(-1)[0])
    key = _rank_key(array, bool(largest))
    if _sorts_whole(key, count):
        places = _order(key)[..., :count]
    else:
        _, places = lax.top_k(key, count)
    values = jnp.take_along_axis(array, places, axis=-1, mode="clip")
    return (
        jnp.moveaxis(values, -1, axis),
        jnp.moveaxis(places, -1, axis).astype(np.int64),
    )


def _rank_key(array: Any, largest: bool) -> Any:
    """A key whose largest elements are the ones wanted, NaN being the largest value of all.

    In float32 if that holds every value: XLA selects the top k of that type and sorts all others.
    """
    if not jnp.issubdtype(array.dtype, jnp.floating):
        key = array if largest else ~array  # unlike negation, this cannot overflow
        return key.astype(np.float32) if array.dtype.itemsize <= 2 else key
    if array.dtype.itemsize <= 2:
        array = array.astype(np.float32)
    # XLA sorts by total order, where -0 < +0 and -NaN is the smallest.
    key = jnp.where(array == 0, jnp.zeros((), array.dtype), array)
    key = key if largest else -key
    nan = np.asarray(np.nan if largest else -np.nan, array.dtype)
    return jnp.where(jnp.isnan(array), nan, key)


def _sorts_whole(key: Any, count: int) -> bool:
    """Whether `_order` beats `lax.top_k`, on the CPU; see `_WHOLE`."""
    if D.device().platform != "cpu" or key.dtype.itemsize > 4:
        return False
    return bool(key.dtype != np.float32) or count * _WHOLE >= int(key.shape[-1])


def _order(key: Any) -> Any:
    """The places of `key`'s elements (of 32 bits) along the last axis, from largest to smallest.

    Value and place are packed into one integer, since XLA sorts single arrays several times faster
    than pairs.
    """
    if jnp.issubdtype(key.dtype, jnp.floating):
        bits = lax.bitcast_convert_type(key, np.int32)
        key = jnp.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)  # ordered as the floats are
    wide = key.astype(np.int64)
    if jnp.issubdtype(key.dtype, jnp.unsignedinteger):
        wide = wide - 2**31
    place = lax.broadcasted_iota(np.int64, key.shape, key.ndim - 1)
    packed = lax.sort((~wide << 32) | place, dimension=-1, is_stable=False)
    return packed & 0xFFFFFFFF


@lowering("ReverseSequence")
def reverse_sequence(
    ctx: Context, x: Any, lengths: Any, *, batch_axis: int = 1, time_axis: int = 0
) -> Any:
    """The first lengths[i] steps of sequence i backwards, the rest as they are."""
    x = jnp.asarray(x)
    shape = [1] * x.ndim
    shape[batch_axis] = x.shape[batch_axis]
    ends = jnp.reshape(lengths, shape)
    steps = lax.broadcasted_iota(np.int64, x.shape, time_axis)
    source = jnp.where(steps < ends, ends - 1 - steps, steps)
    return jnp.take_along_axis(x, source, axis=time_axis, mode="clip")


def _refuse_compress(node: ir.Node) -> Support:
    return Support.no("Compress: the size of its result depends on the data")


@lowering("Compress", supports=_refuse_compress)
def compress(ctx: Context, x: Any, condition: Any, *, axis: int | None = None) -> Any:
    """Refused; declared so that the refusal has its reason."""
    raise AssertionError("supports() refuses every Compress")
