"""Geometry of sliding windows, for convolution and pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xrt.kernels.host.common import Array


@dataclass(frozen=True)
class Windows:
    """How windows lie over the spatial dimensions of a tensor.

    Attributes:
        kernel: Elements of a window per dimension.
        strides: Steps between windows.
        dilations: Steps between the elements of a window.
        pads: Elements added before and after each dimension.
        out: Number of windows per dimension.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    out: tuple[int, ...]

    def extents(self) -> tuple[int, ...]:
        """Elements that a window spans per dimension."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def needed_pads(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """`pads`, with as much more behind as the last window needs (ceil_mode)."""
        spans = zip(self.pads, self.out, self.strides, self.extents(), size, strict=True)
        return tuple(
            (lo, max(hi, (out - 1) * stride + extent - lo - n))
            for (lo, hi), out, stride, extent, n in spans
        )

    def tap(self, offset: Sequence[int]) -> tuple[slice, ...]:
        """The element at `offset` of every window, as slices of the padded spatial dimensions."""
        parts = zip(offset, self.dilations, self.strides, self.out, strict=True)
        return tuple(slice(o * d, o * d + (n - 1) * s + 1, s) for o, d, s, n in parts)


def windows(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Windows:
    """The windows that attributes of ONNX describe, over spatial dimensions of `size`."""
    rank = len(size)
    steps = tuple(strides or (1,) * rank)
    spread = tuple(dilations or (1,) * rank)
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    if auto_pad.startswith("SAME"):
        out = [-(-n // s) for n, s in zip(size, steps, strict=True)]
        totals = [
            max((o - 1) * s + e - n, 0)
            for o, s, e, n in zip(out, steps, extents, size, strict=True)
        ]
        edges = tuple(_halves(total, auto_pad == "SAME_UPPER") for total in totals)
    else:
        edges = pad_pairs(None if auto_pad == "VALID" else pads, rank)
        out = [
            _count(n, edge, e, s, ceil_mode)
            for n, edge, e, s in zip(size, edges, extents, steps, strict=True)
        ]
    if any(n < 0 for n in out):
        raise ValueError(
            f"a window of {tuple(extents)} does not fit into {tuple(size)} padded by {edges}"
        )
    return Windows(tuple(kernel), steps, spread, edges, tuple(out))


def _count(size: int, pads: tuple[int, int], extent: int, stride: int, ceil_mode: int) -> int:
    room = size + sum(pads) - extent
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    # A window that would start in the padding behind is left out.
    if ceil_mode and (count - 1) * stride >= size + pads[0]:
        count -= 1
    return count


def _halves(total: int, more_behind: bool) -> tuple[int, int]:
    less, more = total // 2, total - total // 2
    return (less, more) if more_behind else (more, less)


def pad_pairs(pads: Sequence[int] | None, rank: int) -> tuple[tuple[int, int], ...]:
    """ONNX's (begin..., end...) as one pair for each dimension."""
    if not pads:
        return ((0, 0),) * rank
    return tuple(zip(pads[:rank], pads[rank:], strict=True))


def window_view(padded: Array, w: Windows) -> Array:
    """A read-only view of shape (batch, channels, *kernel, *out) on a padded tensor."""
    batch, channel, *spatial = padded.strides
    shape = (*padded.shape[:2], *w.kernel, *w.out)
    within = tuple(s * d for s, d in zip(spatial, w.dilations, strict=True))
    between = tuple(s * step for s, step in zip(spatial, w.strides, strict=True))
    strides = (batch, channel, *within, *between)
    return np.lib.stride_tricks.as_strided(padded, shape, strides, writeable=False)
