"""Normalizations and softmax. Statistics are in float32 at least, whatever the operand's dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrt.engines.xla.lowering import Context, Operand, broadcast_last, lowering
from xrt.engines.xla.ops.numerics import single, wide
from xrt.kernels.jax import elementwise as kernels


def softmax(x: Any, axis: int) -> Any:
    """Softmax of a float array in the dtype to compute in, shifted by the maximum."""
    return kernels.softmax(wide(x), axis)


def _per_channel(vector: Operand, like: Operand) -> Any:
    """A vector over ONNX's axis 1, shaped to broadcast with `like`, in the dtype to compute in."""
    shape = [1] * like.rank
    if like.rank > 1:
        shape[like.axis(1)] = -1
    return jnp.reshape(wide(vector.array), shape)


def _spatial(x: Operand) -> tuple[int, ...]:
    """Where the spatial axes of x lie in its array."""
    return tuple(x.axis(axis) for axis in range(2, x.rank))


def _standardize(x: Any, axes: Sequence[int], epsilon: float) -> tuple[Any, Any, Any]:
    """(x - mean) / sqrt(variance + epsilon) over `axes`; that mean; that reciprocal root."""
    axes = tuple(axes)
    mean = jnp.mean(x, axis=axes, keepdims=True)
    centered = x - mean
    # Two passes: the mean of squares less the square of the mean cancels.
    variance = jnp.mean(jnp.square(centered), axis=axes, keepdims=True)
    inverse = jax.lax.rsqrt(variance + epsilon)
    return centered * inverse, mean, inverse


@lowering("BatchNormalization", layouts=True)
def batch_normalization(
    ctx: Context,
    x: Operand,
    scale: Operand,
    bias: Operand,
    mean: Operand,
    variance: Operand,
    *,
    epsilon: float = single(1e-5),
    momentum: float = single(0.9),
    training_mode: int = 0,
) -> Operand | tuple[Operand, ...]:
    """Normalize each channel by given statistics, or in training mode by those of the batch."""
    array = wide(x.array)
    used_mean, used_variance = _per_channel(mean, x), _per_channel(variance, x)
    running: tuple[Operand, ...] = ()
    if training_mode:
        axes = tuple(axis for axis in range(x.rank) if axis != x.axis(1))
        used_mean = jnp.mean(array, axis=axes, keepdims=True)
        used_variance = jnp.mean(jnp.square(array - used_mean), axis=axes, keepdims=True)
        running = (
            _running(mean, used_mean, momentum),
            _running(variance, used_variance, momentum),
        )
    factor = _per_channel(scale, x) * jax.lax.rsqrt(used_variance + epsilon)
    result = (array - used_mean) * factor + _per_channel(bias, x)
    return (Operand(result.astype(x.array.dtype), x.channels_last), *running)


def _running(old: Operand, new: Any, momentum: float) -> Operand:
    result = wide(old.array) * momentum + jnp.reshape(new, old.array.shape) * (1 - momentum)
    return Operand(result.astype(old.array.dtype))


@lowering("InstanceNormalization", layouts=True)
def instance_normalization(
    ctx: Context, x: Operand, scale: Operand, bias: Operand, *, epsilon: float = single(1e-5)
) -> Operand:
    """Normalize each channel of each instance over the spatial axes."""
    normal, _, _ = _standardize(wide(x.array), _spatial(x), epsilon)
    result = normal * _per_channel(scale, x) + _per_channel(bias, x)
    return Operand(result.astype(x.array.dtype), x.channels_last)


@lowering("GroupNormalization", layouts=True)
def group_normalization(
    ctx: Context,
    x: Operand,
    scale: Operand,
    bias: Operand,
    *,
    num_groups: int,
    epsilon: float = single(1e-5),
    stash_type: int = 1,
) -> Operand:
    """Normalize each group of channels over the group and the spatial axes."""
    array = wide(x.array)
    shape = array.shape
    place = x.axis(1)
    grouped = (*shape[:place], num_groups, shape[place] // num_groups, *shape[place + 1 :])
    axes = [axis for axis in range(1, len(grouped)) if axis != place]
    normal, _, _ = _standardize(jnp.reshape(array, grouped), axes, epsilon)
    result = jnp.reshape(normal, shape) * _per_channel(scale, x) + _per_channel(bias, x)
    return Operand(result.astype(x.array.dtype), x.channels_last)


def _trailing(x: Operand, axis: int) -> tuple[int, ...]:
    """Where ONNX's axes from `axis` on lie in the array of x."""
    return tuple(x.axis(one) for one in range(axis % x.rank, x.rank))


def _like(operand: Operand, x: Operand) -> Any:
    """`operand`, which broadcasts to x, in the layout of x and the dtype to compute in."""
    return wide(broadcast_last(operand, x.rank) if x.channels_last else operand.plain())


@lowering("LayerNormalization", layouts=True)
def layer_normalization(
    ctx: Context,
    x: Operand,
    scale: Operand,
    bias: Operand | None = None,
    *,
    axis: int = -1,
    epsilon: float = single(1e-5),
    stash_type: int = 1,
) -> tuple[Operand, ...]:
    """Normalize over the axes from `axis` on; also the mean and the reciprocal deviation."""
    normal, mean, inverse = _standardize(wide(x.array), _trailing(x, axis), epsilon)
    result = normal * _like(scale, x)
    if bias is not None:
        result = result + _like(bias, x)
    results = [result.astype(x.array.dtype)]
    for index, statistic in enumerate((mean, inverse), start=1):
        if index < ctx.output_count:
            dtype = ctx.node.outputs[index].dtype
            results.append(statistic.astype(dtype.numpy()) if dtype else statistic)
    return tuple(Operand(array, x.channels_last) for array in results)


@lowering("RMSNormalization", layouts=True)
def rms_normalization(
    ctx: Context,
    x: Operand,
    scale: Operand,
    *,
    axis: int = -1,
    epsilon: float = single(1e-5),
    stash_type: int = 1,
) -> Operand:
    """Divide by the root mean square over the axes from `axis` on."""
    array = wide(x.array)
    square = jnp.mean(jnp.square(array), axis=_trailing(x, axis), keepdims=True)
    result = array * jax.lax.rsqrt(square + epsilon) * _like(scale, x)
    return Operand(result.astype(ctx.output_dtype()), x.channels_last)


@lowering("MeanVarianceNormalization", layouts=True)
def mean_variance_normalization(
    ctx: Context, x: Operand, *, axes: Sequence[int] = (0, 2, 3)
) -> Operand:
    """Zero mean and unit variance over `axes`."""
    array = wide(x.array)
    places = tuple(x.axis(axis) for axis in axes)
    centered = array - jnp.mean(array, axis=places, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(jnp.square(centered), axis=places, keepdims=True))
    # ONNX's definition adds 1e-9 to the deviation, not to the variance.
    return Operand((centered / (deviation + 1e-9)).astype(x.array.dtype), x.channels_last)


@lowering("LpNormalization", layouts=True)
def lp_normalization(ctx: Context, x: Operand, *, axis: int = -1, p: int = 2) -> Operand:
    """Divide by the Lp norm along `axis`; a vector of norm zero stays zero."""
    array, place = wide(x.array), x.axis(axis)
    if p == 1:
        norm = jnp.sum(jnp.abs(array), axis=place, keepdims=True)
    else:
        norm = jnp.sqrt(jnp.sum(jnp.square(array), axis=place, keepdims=True))
    result = jnp.where(norm == 0, 0, kernels.divide(array, jnp.where(norm == 0, 1, norm)))
    return Operand(result.astype(x.array.dtype), x.channels_last)


@lowering("LRN", layouts=True)
def local_response_normalization(
    ctx: Context,
    x: Operand,
    *,
    size: int,
    alpha: float = single(1e-4),
    beta: float = 0.75,
    bias: float = 1.0,
) -> Operand:
    """Divide by a power of the sum of squares over `size` neighbouring channels."""
    array, place = wide(x.array), x.axis(1)
    window, padding = [1] * x.rank, [(0, 0)] * x.rank
    window[place], padding[place] = size, ((size - 1) // 2, size // 2)
    zero = np.zeros((), array.dtype)
    squares = jax.lax.reduce_window(
        jnp.square(array), zero, jax.lax.add, window, [1] * x.rank, padding
    )
    result = array * jnp.power(bias + alpha / size * squares, -beta)
    return Operand(result.astype(x.array.dtype), x.channels_last)


@lowering("Softmax", layouts=True)
def softmax_along(ctx: Context, x: Operand, *, axis: int = -1) -> Operand:
    """Exponentials along `axis`, scaled to sum to one."""
    result = softmax(x.array, x.axis(axis))
    return Operand(result.astype(x.array.dtype), x.channels_last)


@lowering("LogSoftmax", layouts=True)
def log_softmax(ctx: Context, x: Operand, *, axis: int = -1) -> Operand:
    """The logarithm of softmax."""
    array = wide(x.array)
    result = jax.nn.log_softmax(array, axis=x.axis(axis)) if array.size else array
    return Operand(result.astype(x.array.dtype), x.channels_last)


@lowering("Hardmax", layouts=True)
def hardmax(ctx: Context, x: Operand, *, axis: int = -1) -> Operand:
    """One at the first maximum along `axis`, zero elsewhere."""
    array, place = jnp.asarray(x.array), x.axis(axis)
    if not array.size:
        return x
    best = jnp.argmax(array, axis=place, keepdims=True)
    index = jax.lax.broadcasted_iota(best.dtype, array.shape, place)
    return Operand((index == best).astype(array.dtype), x.channels_last)
