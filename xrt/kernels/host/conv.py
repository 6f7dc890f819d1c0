"""Convolutions."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_float32, pad_constant
from xrt.kernels.host.registry import kernel
from xrt.kernels.host.spatial import Windows, pad_pairs, window_view, windows

COLUMN_ELEMENTS = 1 << 20
"""Most elements of a column matrix: what fits the last level of the cache."""

BLOCK_ELEMENTS = 1 << 15
"""Elements of a block of a depthwise convolution: what fits the second level."""


@kernel("Conv")
@in_float32
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of any number of spatial dimensions.

    Columns of a few output rows at a time are gathered and multiplied by the weights; a depthwise
    convolution adds up shifted copies instead.
    """
    if x.shape[1] != w.shape[1] * group:
        raise ValueError(
            f"the input has {x.shape[1]} channels; weights of shape {w.shape} in {group} groups "
            f"need {w.shape[1] * group}"
        )
    plan = windows(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    padded = contiguous(pad_constant(x, ((0, 0), (0, 0), *plan.needed_pads(x.shape[2:]))))
    result = np.empty((x.shape[0], w.shape[0], *plan.out), x.dtype)
    if not result.size:
        return result
    if w.shape[1] == 1 and group > 1:
        _depthwise(padded, w, plan, result)
    else:
        _by_columns(padded, w, plan, group, result)
    if b is not None:
        result += b.reshape(-1, *(1,) * (x.ndim - 2))
    return result


def _by_columns(padded: Array, w: Array, plan: Windows, group: int, result: Array) -> None:
    depth = w[0].size
    filters = w.reshape(group, w.shape[0] // group, depth)
    view = window_view(padded, plan)
    spatial = len(plan.out)
    per_row = math.prod(plan.out[1:])
    pointwise = math.prod(plan.kernel) == 1
    rows = plan.out[0]
    if not pointwise:
        rows = min(rows, max(1, COLUMN_ELEMENTS // max(1, depth * group * per_row)))
    for sample, target in zip(view, result, strict=True):
        flat = target.reshape(group, filters.shape[1], -1)
        for start in range(0, plan.out[0], rows):
            stop = min(start + rows, plan.out[0])
            piece = sample[(slice(None),) * (1 + spatial) + (slice(start, stop),)]
            columns = piece.reshape(group, depth, (stop - start) * per_row)
            np.matmul(filters, columns, out=flat[:, :, start * per_row : stop * per_row])


def _depthwise(padded: Array, w: Array, plan: Windows, result: Array) -> None:
    """One filter or several for each channel, as a sum over the taps of the window."""
    multiplier = w.shape[0] // padded.shape[1]
    step = max(1, BLOCK_ELEMENTS // max(1, math.prod(plan.out)))
    accumulate = _flat_taps if all(s == 1 for s in plan.strides) else _strided_taps
    for sample, target in zip(padded, result, strict=True):
        for start in range(0, w.shape[0], step):
            channels = slice(start, min(start + step, w.shape[0]))
            if multiplier == 1:
                block = sample[channels]
            else:
                block = sample[np.arange(channels.start, channels.stop) // multiplier]
            accumulate(block, w[channels, 0], plan, target[channels])


def _strided_taps(block: Array, w: Array, plan: Windows, out: Array) -> None:
    scratch = np.empty_like(out)
    out[...] = 0
    expand = (slice(None),) + (None,) * len(plan.out)
    for offset in np.ndindex(*plan.kernel):
        taps = block[(slice(None), *plan.tap(offset))]
        np.multiply(taps, w[(slice(None), *offset)][expand], out=scratch)
        out += scratch


def _flat_taps(block: Array, w: Array, plan: Windows, out: Array) -> None:
    """As `_strided_taps` at stride 1, where a tap is one run of the flattened input.

    The runs also cover what lies between the rows of the output; that is computed and cropped,
    which is much faster than a loop over short rows.
    """
    shape = block.shape[1:]
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    length = sum((n - 1) * s for n, s in zip(plan.out, steps, strict=True)) + 1
    flat = block.reshape(block.shape[0], -1)
    wide = np.zeros((block.shape[0], plan.out[0] * steps[0]), block.dtype)
    total, scratch = wide[:, :length], np.empty((block.shape[0], length), block.dtype)
    for offset in np.ndindex(*plan.kernel):
        start = sum(o * d * s for o, d, s in zip(offset, plan.dilations, steps, strict=True))
        np.multiply(flat[:, start : start + length], w[(slice(None), *offset, None)], out=scratch)
        total += scratch
    crop = (slice(None), *(slice(n) for n in plan.out))
    out[...] = wide.reshape(block.shape[0], plan.out[0], *shape[1:])[crop]


@kernel("ConvTranspose")
@in_float32
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Transposed convolution: each input element adds its multiple of the filter to the output."""
    rank = x.ndim - 2
    steps = tuple(strides or (1,) * rank)
    spread = tuple(dilations or (1,) * rank)
    extra = tuple(output_padding or (0,) * rank)
    full = tuple(
        (n - 1) * s + (k - 1) * d + 1
        for n, s, k, d in zip(x.shape[2:], steps, w.shape[2:], spread, strict=True)
    )
    wanted = output_shape[-rank:] if output_shape else None
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = tuple(n * s for n, s in zip(x.shape[2:], steps, strict=True))
    if wanted is None:
        edges = pad_pairs(None if auto_pad == "VALID" else pads, rank)
        wanted = tuple(f + e - lo - hi for f, e, (lo, hi) in zip(full, extra, edges, strict=True))
        before = tuple(lo for lo, _ in edges)
    else:
        totals = [max(f + e - n, 0) for f, e, n in zip(full, extra, wanted, strict=True)]
        before = tuple(t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals)

    plan = Windows(w.shape[2:], steps, spread, ((0, 0),) * rank, x.shape[2:])
    canvas = [max(f, lo + n) for f, lo, n in zip(full, before, wanted, strict=True)]
    result = np.zeros((x.shape[0], w.shape[1] * group, *canvas), x.dtype)
    if x.size:
        _scatter_taps(x, w, plan, group, result)
    crop = tuple(slice(lo, lo + n) for lo, n in zip(before, wanted, strict=True))
    result = result[(slice(None), slice(None), *crop)]
    if b is not None:
        result += b.reshape(-1, *(1,) * rank)
    return contiguous(result)


def _scatter_taps(x: Array, w: Array, plan: Windows, group: int, result: Array) -> None:
    inner = w.shape[0] // group
    filters = w.reshape(group, inner, -1).swapaxes(1, 2)
    for sample, target in zip(x, result, strict=True):
        taps = np.matmul(filters, sample.reshape(group, inner, -1))
        taps = taps.reshape(result.shape[1], *plan.kernel, *x.shape[2:])
        for offset in np.ndindex(*plan.kernel):
            target[(slice(None), *plan.tap(offset))] += taps[(slice(None), *offset)]
