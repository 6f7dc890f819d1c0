"""Random operators and dropout.

Without a seed a node draws with the key that its cluster gets anew at each call. With one its
numbers are the same at every call and, since they are those of the host's kernels, wherever the
node runs: they are drawn while the cluster is traced and become constants of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops.numerics import dtype_of, wide, wide_dtype
from xrt.graph import Support
from xrt.kernels.portable import random as portable

SEEDED_LIMIT = 1 << 20
"""So many numbers a node may draw by a seed, as constants of the program; the host draws more."""

Draw = Callable[..., Any]


def _seed(node: ir.Node) -> float | None:
    attribute = node.attributes.get("seed")
    return None if attribute is None else float(attribute.value)


def _is_fresh(node: ir.Node) -> bool:
    return not portable.is_seeded(_seed(node))


def _count(shape: Sequence[int] | None, seed: float | None) -> Support:
    """Whether a node may draw `shape` with `seed`."""
    count = math.prod(shape or ())
    if portable.is_seeded(seed) and count > SEEDED_LIMIT:
        return Support.no(
            f"{count} numbers drawn by a fixed seed would be constants of the program; "
            f"XLA takes up to {SEEDED_LIMIT}",
            "leave out the attribute 'seed' if the numbers may differ from call to call",
        )
    return Support.yes()


def _supports_count(node: ir.Node) -> Support:
    return _count(G.static_shape(node.outputs[0]), _seed(node))


def _uniform(ctx: Context, shape: Sequence[int], seed: float | None, dtype: Any) -> Any:
    """Numbers in [0, 1): fresh ones in `dtype`, those of a seed in float64, as on the host."""
    if portable.is_seeded(seed):
        return portable.uniform(shape, seed)
    return jax.random.uniform(ctx.key, tuple(shape), dtype)


@lowering("RandomUniform", "RandomUniformLike", supports=_supports_count, draws=_is_fresh)
def random_uniform(
    ctx: Context,
    *_: Any,
    low: float = 0.0,
    high: float = 1.0,
    seed: float | None = None,
    **__: Any,
) -> Any:
    """Numbers of [low, high), all equally likely, in the inferred shape and dtype."""
    dtype = ctx.output_dtype()
    unit = _uniform(ctx, ctx.output_shape(), seed, wide_dtype(dtype))
    return jnp.asarray(portable.stretch(unit, low, high, dtype, jnp))


@lowering("RandomNormal", "RandomNormalLike", supports=_supports_count, draws=_is_fresh)
def random_normal(
    ctx: Context,
    *_: Any,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    **__: Any,
) -> Any:
    """Numbers of a normal distribution, in the inferred shape and dtype."""
    shape, dtype = ctx.output_shape(), ctx.output_dtype()
    unit: Any
    if portable.is_seeded(seed):
        unit = portable.normal(shape, seed)
    else:
        unit = jax.random.normal(ctx.key, shape, wide_dtype(dtype))
    return jnp.asarray((mean + scale * unit).astype(dtype))


@lowering("Bernoulli", supports=_supports_count, draws=_is_fresh)
def bernoulli(ctx: Context, p: Any, *, seed: float | None = None, dtype: int | None = None) -> Any:
    """1 with probability `p`, else 0."""
    unit = _uniform(ctx, np.shape(p), seed, wide_dtype(dtype_of(p)))
    return jnp.less(unit, jnp.asarray(p).astype(unit.dtype)).astype(ctx.output_dtype())


@lowering("Multinomial", supports=_supports_count, draws=_is_fresh)
def multinomial(
    ctx: Context, logits: Any, *, sample_size: int = 1, seed: float | None = None, dtype: int = 6
) -> Any:
    """Indices of classes, by inverting the cumulative distribution of each row."""
    unit = _uniform(ctx, ctx.output_shape(), seed, np.dtype(np.float64))
    sums, last = portable.cumulative(jnp.asarray(logits).astype(np.float64), jnp)
    search: Any = jax.vmap(lambda row, wanted: jnp.searchsorted(row, wanted, side="right"))
    return jnp.minimum(search(sums, unit * sums[:, -1:]), last).astype(ctx.output_dtype())


def _may_drop(node: ir.Node) -> bool:
    """Whether a Dropout may drop anything, as far as is known at compile time."""
    given = [*node.inputs, None, None]
    if given[2] is None:
        return False
    ratio, training = G.constant(given[1]), G.constant(given[2])
    return (training is None or bool(training.any())) and (ratio is None or bool(ratio.any()))


def _supports_dropout(node: ir.Node) -> Support:
    return _supports_count(node) if _may_drop(node) else Support.yes()


@lowering(
    "Dropout",
    layouts=True,
    supports=_supports_dropout,
    draws=lambda node: _may_drop(node) and _is_fresh(node),
)
def dropout(
    ctx: Context,
    x: Operand,
    ratio: Operand | None = None,
    training_mode: Operand | None = None,
    *,
    seed: int | None = None,
) -> Any:
    """x * mask / (1 - ratio) in training mode, else `x`; and the mask of what is kept."""
    if training_mode is None or not _may_drop(ctx.node):
        kept = Operand(jnp.ones(np.shape(x.array), bool), x.channels_last)
        return (x, kept) if ctx.output_count > 1 else x
    training = _scalar(training_mode.array).astype(bool)
    share = _scalar(np.array(0.5, np.float32) if ratio is None else ratio.array)
    array = wide(x.array)
    # Drawn in ONNX's order: the numbers must not depend on the layout.
    unit = _uniform(ctx, ctx.output_shape(), seed, array.dtype)
    mask = (unit >= share.astype(unit.dtype)) | ~training
    if x.channels_last:
        mask = jnp.moveaxis(mask, 1, -1)
    share = jnp.where(training, share, 0).astype(array.dtype)
    scale = jnp.where(share < 1, 1 / (1 - share), 0)
    result = Operand((array * mask * scale).astype(x.array.dtype), x.channels_last)
    return (result, Operand(jnp.asarray(mask), x.channels_last)) if ctx.output_count > 1 else result


def _scalar(array: Any) -> Any:
    """`array` of one element as a scalar; still NumPy's if it is a constant."""
    return array.reshape(()) if isinstance(array, np.ndarray) else jnp.reshape(array, ())
