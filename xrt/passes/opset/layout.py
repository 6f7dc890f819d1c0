"""Upgrades of operators that move, cut, join or reduce data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.passes.opset.rules import Site, rank, upgrade


@upgrade("Concat", to=4)
def _concat_axis(site: Site) -> None:
    """The axis had a default."""
    if "axis" not in site.node.attributes:
        site.put(axis=1)


@upgrade("Reshape", to=5)
def _reshape_shape(site: Site) -> None:
    """The shape became an input."""
    shape = site.pop("shape", ())
    site.set_inputs(site.data, site.ints("shape", *shape))


@upgrade("Tile", to=6)
def _tile_repeats(site: Site) -> None:
    """One count along one axis became one count per axis."""
    tiles, axis = (
        site.op("Reshape", [site.op("Cast", [value], to=int(ir.DataType.INT64)), one_dimension])
        for one_dimension in [site.ints("flat", -1)]
        for value in (site.input(1), site.input(2))
    )
    dimensions = site.op("Shape", [site.op("Shape", [site.data])])
    ones = site.op("Expand", [site.ints("one", 1), dimensions])
    repeats = site.op("ScatterElements", [ones, axis, tiles], axis=0)
    site.set_inputs(site.data, repeats)


@upgrade("Pad", to=2)
def _rename_paddings(site: Site) -> None:
    """`paddings` was renamed."""
    site.put(pads=site.pop("paddings", ()))


@upgrade("Pad", to=11)
def _pad_inputs(site: Site) -> None:
    """Pads and the constant became inputs."""
    pads, value = site.pop("pads", ()), site.pop("value", 0.0)
    constant = site.scalar_like("value", value, site.data) if value else None
    site.set_inputs(site.data, site.ints("pads", *pads), constant)


@upgrade("Slice", to=10)
def _slice_inputs(site: Site) -> None:
    """Starts, ends and axes became inputs."""
    starts, ends, axes = (site.pop(name) for name in ("starts", "ends", "axes"))
    if starts is None or ends is None:
        site.refuse("it has no starts or no ends")
    inputs = [site.data, site.ints("starts", *starts), site.ints("ends", *ends)]
    site.set_inputs(*inputs, site.ints("axes", *axes) if axes else None)


@upgrade("TopK", to=10)
def _topk_input(site: Site) -> None:
    """K became an input."""
    site.set_inputs(site.data, site.ints("k", site.pop("k", 1)))


@upgrade("Scatter", to=11)
def _rename_scatter(site: Site) -> None:
    """Scatter was renamed."""
    site.node.op_type = "ScatterElements"


@upgrade("Squeeze", "Unsqueeze", "ReduceSum", to=13)
@upgrade(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSumSquare"),
    to=18,
)
def _axes_input(site: Site) -> None:
    """Axes became an input; none given still means all."""
    axes = site.pop("axes")
    if axes:
        site.set_inputs(site.data, site.ints("axes", *axes))


@upgrade("Split", to=13)
def _split_input(site: Site) -> None:
    """The lengths became an input (which they once were, in opset 1)."""
    lengths = site.pop("split")
    if lengths:
        site.set_inputs(site.data, site.ints("split", *lengths))


@upgrade("Split", to=18)
def _split_count(site: Site) -> None:
    """Without lengths, the number of parts must be told."""
    if site.input(1) is None:
        site.put(num_outputs=len(site.node.outputs))


@upgrade("Softmax", "LogSoftmax", "Hardmax", to=13)
def _softmax_axis(site: Site) -> None:
    """All dimensions from `axis` on were one; now it is `axis` alone, by default the last."""
    axis, op_type = site.pop("axis", 1), site.node.op_type
    single = _single_axis(site.data, axis)
    if single is not None:
        site.put(axis=single)
        return
    flat = site.op("Flatten", [site.data], axis=axis)
    result = site.op(op_type, [flat], axis=-1)
    # allowzero: a dimension of length zero stays zero instead of being looked up in `result`.
    site.become("Reshape", [result, site.op("Shape", [site.data])], allowzero=1)


def _single_axis(value: ir.Value, axis: int) -> int | None:
    """The one axis at or after `axis` that is not of length 1, if there is just one."""
    dimensions = rank(value)
    if axis == -1:
        return -1
    if dimensions is None or value.shape is None:
        return None
    first = axis % dimensions if axis < 0 else axis
    if first >= dimensions:
        return None
    wide = [index for index in range(first, dimensions) if value.shape[index] != 1]
    if len(wide) > 1:
        return None
    last = wide[0] if wide else dimensions - 1
    return -1 if last == dimensions - 1 else last


@upgrade("GridSample", to=20)
def _grid_sample_mode(site: Site) -> None:
    """Modes lost the prefix that names two dimensions."""
    mode = site.pop("mode", "bilinear")
    site.put(mode={"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@upgrade("DFT", to=20)
def _dft_axis(site: Site) -> None:
    """The axis became an input, and its default the last one."""

    axis = np.array(site.pop("axis", 1), np.int64)
    site.set_inputs(site.data, site.input(1), site.constant("axis", axis))
