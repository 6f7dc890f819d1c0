"""The geometry that convolutions and poolings share: kernel, strides, dilations and padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from xrt import graph as G
from xrt.graph import Support


@dataclass(frozen=True)
class Window:
    """A sliding window with everything resolved; one entry for each spatial dimension.

    Attributes:
        kernel: Number of taps.
        strides: Step from one window to the next.
        dilations: Step from one tap to the next.
        pads: (before, after); may be negative, which crops.
        output: Number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    output: tuple[int, ...]

    @property
    def spans(self) -> tuple[int, ...]:
        """Distance from a window's first tap to behind its last."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))


def resolve(
    spatial: Sequence[int],
    output: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Window:
    """The window that ONNX's attributes describe, for known input and output sizes."""
    rank = len(spatial)
    strides = tuple(strides or (1,) * rank)
    dilations = tuple(dilations or (1,) * rank)
    flat = tuple(pads or (0,) * (2 * rank))
    pairs = tuple(zip(flat[:rank], flat[rank:], strict=True))
    if auto_pad == "VALID":
        pairs = ((0, 0),) * rank
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pairs = tuple(
            same_pads((o - 1) * s + (k - 1) * d + 1 - i, auto_pad)
            for i, o, k, s, d in zip(spatial, output, kernel, strides, dilations, strict=True)
        )
    return Window(tuple(kernel), strides, dilations, pairs, tuple(output))


def same_pads(total: int, auto_pad: str) -> tuple[int, int]:
    """`total` cells of padding as (before, after) under SAME_UPPER or SAME_LOWER."""
    total = max(total, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def check_rank(node: ir.Node, low: int = 1, high: int = 3) -> Support:
    """Whether the first input has `low` to `high` spatial dimensions."""
    shape = G.static_shape(node.inputs[0])
    rank = len(shape or ()) - 2
    if low <= rank <= high:
        return Support.yes()
    return Support.no(
        f"{node.op_type} over {rank} spatial dimensions; XLA's lowering takes {low} to {high}"
    )
