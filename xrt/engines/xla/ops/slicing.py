"""Cutting, joining and padding, in whichever layout the operands have."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.graph import Support


@lowering("Concat", layouts=True, carries=True)
def concat(ctx: Context, *operands: Operand, axis: int) -> Operand:
    """Join along an axis, channels-last as soon as one operand is."""
    channels_last = any(operand.channels_last for operand in operands)
    arrays = [o.last() if channels_last else o.plain() for o in operands]
    position = Operand(arrays[0], channels_last).axis(axis)
    return Operand(jnp.concatenate(arrays, axis=position), channels_last)


@lowering("Split", static=(1,), layouts=True, carries=True)
def split(
    ctx: Context,
    x: Operand,
    split: np.ndarray[Any, Any] | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
) -> tuple[Operand, ...]:
    """Cut into the inferred sizes along an axis."""
    results, start = [], 0
    for index in range(ctx.output_count):
        size = _output_size(ctx, index, axis, split)
        part = lax.slice_in_dim(x.array, start, start + size, axis=x.axis(axis))
        results.append(Operand(part, x.channels_last))
        start += size
    return tuple(results)


def _output_size(ctx: Context, index: int, axis: int, sizes: Any) -> int:
    # An output that nobody uses may lack a shape; its size is in `sizes` then.
    return int(sizes[index]) if sizes is not None else ctx.output_shape(index)[axis]


@lowering("Slice", static=(1, 2, 3, 4), layouts=True, carries=True)
def slice_(
    ctx: Context,
    x: Operand,
    starts: np.ndarray[Any, Any],
    ends: np.ndarray[Any, Any],
    axes: np.ndarray[Any, Any] | None = None,
    steps: np.ndarray[Any, Any] | None = None,
) -> Operand:
    """A strided part along each given axis."""
    if axes is None:
        axes = np.arange(len(starts))
    if steps is None:
        steps = np.ones(len(starts), np.int64)
    array = x.array
    low, high, stride = [0] * x.rank, list(np.shape(array)), [1] * x.rank
    reverse = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        position = x.axis(int(axis))
        # Python's rules for clamping are ONNX's, including ends of -2**63 for a negative step;
        # but backwards from before the first element starts at the first.
        begin = 0 if step < 0 and start < -high[position] else int(start)
        taken = slice(begin, int(end), int(step)).indices(high[position])
        picked = range(*taken)
        if step < 0:
            reverse.append(position)
            picked = picked[::-1]
        stride[position] = abs(int(step))
        low[position], high[position] = (picked[0], picked[-1] + 1) if picked else (0, 0)
    part = lax.slice(jnp.asarray(array), low, high, stride)
    return Operand(lax.rev(part, reverse) if reverse else part, x.channels_last)


_PAD_MODES = ("constant", "reflect", "edge", "wrap")


def _supports_pad(node: ir.Node) -> Support:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    if mode not in _PAD_MODES:
        return Support.no(f"Pad mode {mode!r} is unknown. Known modes: {', '.join(_PAD_MODES)}")
    shape = G.static_shape(node.inputs[0]) or ()
    if mode != "constant" and 0 in shape:
        return Support.no(f"Pad in mode {mode!r} of a tensor without elements: {list(shape)}")
    return Support.yes()


@lowering("Pad", static=(1, 3), supports=_supports_pad, layouts=True)
def pad(
    ctx: Context,
    x: Operand,
    pads: np.ndarray[Any, Any],
    constant_value: Operand | None = None,
    axes: np.ndarray[Any, Any] | None = None,
    *,
    mode: str = "constant",
) -> Operand:
    """Add a border, or cut one off where `pads` is negative."""
    array = jnp.asarray(x.array)
    widths = [(0, 0)] * x.rank
    chosen = range(x.rank) if axes is None else [int(axis) for axis in axes]
    for index, axis in enumerate(chosen):
        widths[x.axis(axis)] = (int(pads[index]), int(pads[index + len(chosen)]))
    if mode == "constant":
        value: Any = np.zeros((), array.dtype)
        if constant_value is not None:
            value = jnp.reshape(constant_value.array, ()).astype(array.dtype)
        padded = lax.pad(array, value, [(low, high, 0) for low, high in widths])
        return Operand(padded, x.channels_last)
    cropped = lax.pad(
        array, np.zeros((), array.dtype), [(min(low, 0), min(high, 0), 0) for low, high in widths]
    )
    grown = [(max(low, 0), max(high, 0)) for low, high in widths]
    return Operand(jnp.pad(cropped, grown, mode=mode), x.channels_last)
