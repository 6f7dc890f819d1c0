"""Normalizations and softmax."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, in_float32, normalize_axes, numpy_dtype, widen
from xrt.kernels.host.registry import kernel

# ONNX's defaults are float32 numbers.
EPSILON = float(np.float32(1e-5))
MOMENTUM = float(np.float32(0.9))
LRN_ALPHA = float(np.float32(1e-4))


@kernel("Softmax")
@in_float32
def softmax(x: Array, *, axis: int = -1) -> Array:
    """Exponentials along an axis, divided by their sum."""
    top = np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    result = np.asarray(x - top)
    np.exp(result, out=result)
    result /= np.sum(result, axis=axis, keepdims=True)
    return result


@kernel("LogSoftmax")
@in_float32
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """The logarithm of softmax."""
    shifted = np.asarray(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    shifted -= np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))
    return shifted


@kernel("Hardmax")
def hardmax(x: Array, *, axis: int = -1) -> Array:
    """1 at the first greatest element along an axis, else 0."""
    result = np.zeros_like(x)
    if not x.size:
        return result
    where = np.expand_dims(np.argmax(widen(x), axis=axis), axis)
    np.put_along_axis(result, where, np.ones((), x.dtype), axis)
    return result


@kernel("LayerNormalization")
def layer_normalization(
    x: Array,
    scale: Array,
    bias: Array | None = None,
    *,
    axis: int = -1,
    epsilon: float = EPSILON,
    stash_type: int = 1,
) -> tuple[Array, Array, Array]:
    """Normalize the dimensions from `axis` on; the mean and the inverse deviation come along."""
    (axis,) = normalize_axes((axis,), x.ndim)
    leading = x.shape[:axis]
    rows = widen(x).reshape(int(np.prod(leading)), int(np.prod(x.shape[axis:])))
    mean = rows.mean(axis=1, keepdims=True, dtype=rows.dtype)
    centered = rows - mean
    variance = np.einsum("ij,ij->i", centered, centered)[:, None] / rows.dtype.type(rows.shape[1])
    inverse = 1 / np.sqrt(variance + rows.dtype.type(epsilon))
    centered *= inverse
    result = _affine(centered.reshape(x.shape), scale, bias).astype(x.dtype, copy=False)
    stash = leading + (1,) * (x.ndim - axis)
    kind = numpy_dtype(stash_type)
    return result, mean.reshape(stash).astype(kind), inverse.reshape(stash).astype(kind)


def _affine(x: Array, scale: Array, bias: Array | None) -> Array:
    """x scale + bias, in the memory of `x`."""
    x *= widen(scale)
    if bias is not None:
        x += widen(bias)
    return x


@kernel("RMSNormalization")
@in_float32
def rms_normalization(
    x: Array, scale: Array, *, axis: int = -1, epsilon: float = EPSILON, stash_type: int = 1
) -> Array:
    """Divide by the root mean square over the dimensions from `axis` on."""
    axes = tuple(range(normalize_axes((axis,), x.ndim)[0], x.ndim))
    square = np.mean(np.square(x), axis=axes, keepdims=True)
    return x / np.sqrt(square + x.dtype.type(epsilon)) * scale


def _normalize_rows(x: Array, rows: tuple[int, ...], epsilon: float) -> Array:
    """`x` with each row of its view of shape (*rows, -1) brought to mean 0 and deviation 1."""
    flat = x.reshape(*rows, -1) if x.size else x.reshape(*rows, 0)
    centered = flat - flat.mean(axis=-1, keepdims=True)
    variance = np.square(centered).mean(axis=-1, keepdims=True)
    centered /= np.sqrt(variance + x.dtype.type(epsilon))
    return centered.reshape(x.shape)


def _per_channel(values: Array, rank: int) -> Array:
    return values.reshape(-1, *(1,) * (rank - 2))


@kernel("GroupNormalization")
@in_float32
def group_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    num_groups: int,
    epsilon: float = EPSILON,
    stash_type: int = 1,
) -> Array:
    """Normalize groups of channels."""
    result = _normalize_rows(x, (x.shape[0], num_groups), epsilon)
    return _affine(result, _per_channel(scale, x.ndim), _per_channel(bias, x.ndim))


@kernel("InstanceNormalization")
@in_float32
def instance_normalization(
    x: Array, scale: Array, bias: Array, *, epsilon: float = EPSILON
) -> Array:
    """Normalize each channel of each sample."""
    result = _normalize_rows(x, x.shape[:2], epsilon)
    return _affine(result, _per_channel(scale, x.ndim), _per_channel(bias, x.ndim))


@kernel("BatchNormalization")
def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = EPSILON,
    momentum: float = MOMENTUM,
    training_mode: int = 0,
) -> tuple[Array, ...]:
    """Normalize by running statistics, or by the batch's own, which then update those."""
    wide = widen(x)
    old_mean, old_variance = widen(mean), widen(variance)
    new_mean, new_variance = old_mean, old_variance
    if training_mode:
        axes = (0, *range(2, x.ndim))
        new_mean, new_variance = wide.mean(axis=axes), wide.var(axis=axes)
    factor = widen(scale) / np.sqrt(new_variance + new_variance.dtype.type(epsilon))
    offset = widen(bias) - new_mean * factor
    rank = max(x.ndim, 2)
    y = wide * _per_channel(factor, rank) + _per_channel(offset, rank)
    y = y.astype(x.dtype, copy=False)
    if not training_mode:
        return (y,)
    running_mean = old_mean * momentum + new_mean * (1 - momentum)
    running_variance = old_variance * momentum + new_variance * (1 - momentum)
    return y, running_mean.astype(mean.dtype), running_variance.astype(variance.dtype)


@kernel("LpNormalization")
@in_float32
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Divide by the norm along an axis; a row of norm 0 becomes 0."""
    norm = np.sum(np.abs(x) if p == 1 else np.square(x), axis=axis, keepdims=True)
    norm = norm if p == 1 else np.sqrt(norm)
    return np.where(norm == 0, 0, x / norm).astype(x.dtype, copy=False)


@kernel("MeanVarianceNormalization")
@in_float32
def mean_variance_normalization(x: Array, *, axes: tuple[int, ...] = (0, 2, 3)) -> Array:
    """Bring `axes` to mean 0 and deviation 1."""
    centered = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt(np.square(centered).mean(axis=axes, keepdims=True))
    return centered / (deviation + x.dtype.type(1e-9))


@kernel("LRN")
@in_float32
def lrn(
    x: Array, *, size: int, alpha: float = LRN_ALPHA, beta: float = 0.75, bias: float = 1.0
) -> Array:
    """Divide by a power of the sum of squares over neighbouring channels."""
    square = np.square(x)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    total = np.zeros_like(x)
    for shift in range(-before, after + 1):
        low, high = max(0, -shift), min(x.shape[1], x.shape[1] - shift)
        if low < high:
            total[:, low:high] += square[:, low + shift : high + shift]
    return x / np.power(bias + (alpha / size) * total, beta)
