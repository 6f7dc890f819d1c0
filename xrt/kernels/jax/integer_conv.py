"""Convolutions of int8 and uint8, exact in int32.

As products of patches where the device has fast products of uint8 by int8, else by XLA's own. In
microseconds on two cores with VNNI, with the requantization of the input before and of the output
behind; on a shared machine, medians or lower quartiles::

    3x3, batch 1           fp32    XLA's int8   patches and product
    56 px, 64 -> 64        830     955          670
    28 px, 128 -> 128      800     1010         420
    14 px, 256 -> 256      690     1190         430
    7 px, 512 -> 512       1300    1490         440
    35 px, 192 -> 64               1130         760
    73 px, 80 -> 192               12800        2500
    7x7 / 2, 3 -> 64       1140    24000        860

What bounds it is the memory of the patches: at 224 px, 64 -> 64 they take 28 MB, which the system
maps and clears anew in every call, and XLA's own is three times faster (`Form.patch_bytes`: VGG-16
takes 0.43 of its time in fp32 with 16 MB, 0.48 with 24 and 0.64 with 64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from xrt.kernels.jax.integer import (
    SIGNED,
    Form,
    product,
    recoded,
    recoded_zero,
    signed,
    signed_zero,
    sums,
)

_LANES = 4
"""Products that one VNNI instruction adds up: YNNPACK wants channels in whole fours."""
_NARROW, _PATIENCE = 16, 8
"""Channels below which XLA's own convolution is so slow that patches may be larger, by a factor."""

_LONG_RUN = 128
"""Bytes from which a copy of each tap of a patch by itself is as fast as one of longer runs."""


def conv_weight(w: Any) -> Any:
    """An OI... weight as `integer_conv` likes it best: int8 [*kernel, I, O], I padded to fours.

    Works on NumPy and on traced arrays; the zero point has to be shifted as `signed` does.
    """
    numpy: Any = np if isinstance(w, np.ndarray) else jnp
    w = numpy.moveaxis(signed(w), (0, 1), (-1, -2))
    missing = -w.shape[-2] % _LANES if math.prod(w.shape[:-2]) > 1 else 0
    widths = [(0, 0)] * (w.ndim - 2) + [(0, missing), (0, 0)]
    w = numpy.pad(w, widths)
    return np.ascontiguousarray(w) if numpy is np else w


def integer_conv(
    x: Any,
    x_zero: Any,
    w: Any,
    w_zero: Any = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    w_sums: Any = None,
    form: Form,
) -> Any:
    """Convolution of x - x_zero with w - w_zero in int32, exact, channels last, one group.

    Args:
        x: int8 or uint8 [N, *spatial, C], one to three spatial dimensions.
        x_zero: Zero point of x, a scalar; None for 0. What is padded counts as 0 = zero - zero.
        w: int8 or uint8 [*kernel, C, O]; an int8 one may have more channels, of zeros, see
            `conv_weight`.
        w_zero: Zero point of w, a scalar or one for each output channel; None for 0.
        strides: Strides.
        pads: All beginnings, then all ends, as ONNX has them; negative ones crop.
        dilations: Dilations of the kernel.
        w_sums: `sums` of w over all but its last axis, if known at compile time.
        form: The products to use.

    Returns:
        int32 [N, *out, O].
    """
    product, excess = conv_terms(
        x,
        x_zero,
        w,
        w_zero,
        strides=strides,
        pads=pads,
        dilations=dilations,
        w_sums=w_sums,
        form=form,
    )
    return product if excess is None else product - excess


def conv_terms(
    x: Any,
    x_zero: Any,
    w: Any,
    w_zero: Any = None,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    w_sums: Any = None,
    form: Form,
) -> tuple[Any, Any]:
    """`integer_conv` as a difference: int32 [N, *out, O], and what it exceeds the result by.

    The second is None for nothing, or broadcasts, and is known at compile time if `w_sums` and
    `x_zero` are: scaled, it can join a bias.
    """
    kernel, channels = w.shape[:-2], x.shape[-1]
    windows = Windows(kernel, tuple(strides), tuple(dilations))
    patches = windows.patch_size(x.shape, pads) * w.shape[-2]
    most = form.patch_bytes * (_PATIENCE if channels < _NARROW else 1)
    if not form.columns or (math.prod(kernel) > 1 and patches > most):
        form = Form(SIGNED.left, columns=math.prod(kernel) == 1)
    x_zero = recoded_zero(x_zero, x.dtype, form.left)
    if x_zero is not None and w_sums is None:
        w_sums = sums(w, range(w.ndim - 1))
    w_zero = signed_zero(w.dtype, w_zero)
    w = signed(w)
    x = _padded(recoded(x, form.left), x_zero, pads, w.shape[-2] - channels)
    result = _columns(x, w, windows) if form.columns else _direct(x, w, windows)
    if w_zero is not None:
        result = result - w_zero * _window_sums(x[..., :channels], windows)
        if x_zero is not None:
            w_sums = w_sums - np.int32(math.prod(kernel) * channels) * w_zero
    return result, None if x_zero is None else x_zero * w_sums


@dataclass(frozen=True)
class Windows:
    """The windows of a convolution on an input that is padded already."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    def output(self, axis: int, size: int) -> int:
        """How many windows there are along a spatial axis of `size`."""
        return (size - (self.kernel[axis] - 1) * self.dilations[axis] - 1) // self.strides[axis] + 1

    def patch_size(self, shape: Sequence[int], pads: Sequence[int]) -> int:
        """Elements of one channel of all patches, of an input [N, *spatial, C] not padded yet."""
        rank = len(self.kernel)
        sizes = [
            self.output(axis, shape[axis + 1] + pads[axis] + pads[axis + rank])
            for axis in range(rank)
        ]
        return math.prod((shape[0], *sizes, *self.kernel))


def _padded(x: Any, zero: Any, pads: Sequence[int], channels: int) -> Any:
    """x with its zero point around it, so that every window is full and corrected alike.

    And with further channels of anything, for a weight that has zeros there.
    """
    x = jnp.asarray(x)
    if not any(pads) and not channels:
        return x
    rank = len(pads) // 2
    value = jnp.asarray(0 if zero is None else zero).astype(x.dtype)
    config = [(low, high, 0) for low, high in zip(pads[:rank], pads[rank:], strict=True)]
    padded = lax.pad(x, value, [(0, 0, 0), *config, (0, channels, 0)])
    # Without the barrier it is fused into every tap, as a compare and a select there.
    return lax.optimization_barrier(padded)  # type: ignore[no-untyped-call]


def _direct(x: Any, w: Any, windows: Windows) -> Any:
    """XLA's own convolution of int8."""
    names = "DHW"[3 - len(windows.kernel) :]
    return lax.conv_general_dilated(
        x,
        jnp.asarray(w),
        window_strides=windows.strides,
        padding="VALID",
        rhs_dilation=windows.dilations,
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
        preferred_element_type=jnp.int32,
    )


def _columns(x: Any, w: Any, windows: Windows) -> Any:
    """The convolution as one product of patches.

    Those of few channels are gathered one axis after the other: the last brings its taps together
    in runs of bytes that the others copy.
    """
    matrix = jnp.reshape(jnp.asarray(w), (-1, w.shape[-1]))
    rank = len(windows.kernel)
    if x.shape[-1] >= _LONG_RUN or sum(taps > 1 for taps in windows.kernel) < 2:
        return product(_taps(x, range(rank), windows), matrix)
    for axis in reversed(range(rank)):
        x = lax.optimization_barrier(_taps(x, [axis], windows))  # type: ignore[no-untyped-call]
    return product(x, matrix)


def _taps(x: Any, axes: Sequence[int], windows: Windows) -> Any:
    """x with the taps of each window along spatial axes side by side, in its last dimension."""
    parts = [x]
    for axis in axes:
        taps, stride = windows.kernel[axis], windows.strides[axis]
        if taps == stride == 1:
            continue
        span = (windows.output(axis, x.shape[axis + 1]) - 1) * stride + 1
        starts = [tap * windows.dilations[axis] for tap in range(taps)]
        parts = [
            lax.slice_in_dim(part, start, start + span, stride, axis=axis + 1)
            for part in parts
            for start in starts
        ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def _window_sums(x: Any, windows: Windows) -> Any:
    """The sums [N, *out, 1] of padded x over each window and all channels, in int32."""
    pixels = jnp.sum(x, axis=-1, keepdims=True, dtype=jnp.int32)
    return lax.reduce_window(
        pixels,
        np.int32(0),
        lax.add,
        window_dimensions=(1, *windows.kernel, 1),
        window_strides=(1, *windows.strides, 1),
        padding="VALID",
        window_dilation=(1, *windows.dilations, 1),
    )
