"""Upgrades of elementwise operators, casts and matrix products."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.passes.opset.rules import Site, rank, upgrade

_LOWEST, _HIGHEST = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)


@upgrade(
    *("Abs", "Add", "BatchNormalization", "Ceil", "Clip", "Div", "Dropout", "Elu", "Exp", "Floor"),
    *("HardSigmoid", "InstanceNormalization", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mul"),
    *("Neg", "PRelu", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sqrt", "Sub", "Sum", "Tanh"),
    to=6,
)
@upgrade("Reshape", to=5)
def _drop_consumed_inputs(site: Site) -> None:
    """A hint for in-place execution, without effect on values."""
    site.pop("consumed_inputs")


@upgrade("Selu", to=6)
def _selu_defaults(site: Site) -> None:
    """The defaults got more digits."""
    for name, old in (("alpha", 1.6732), ("gamma", 1.0507)):
        if name not in site.node.attributes:
            site.put(**{name: old})


@upgrade("Cast", to=6)
def _cast_to(site: Site) -> None:
    """The target type was a string."""
    name = site.pop("to")
    if name is None or str(name).upper() not in ir.DataType.__members__:
        site.refuse(f"its target type {name!r} is unknown")
    site.put(to=int(ir.DataType[str(name).upper()]))


@upgrade(
    *("Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Pow", "Sub", "Xor"),
    to=7,
)
def _broadcast(site: Site) -> None:
    """B was aligned with the dimensions of A that start at `axis`; now with the last ones."""
    broadcast, axis = site.pop("broadcast", 0), site.pop("axis")
    right = site.input(1)
    if broadcast and axis is not None and right is not None:
        site.node.replace_input_with(1, _align(site, site.data, right, axis, rank(right)))


@upgrade("PRelu", to=7)
def _slope_per_channel(site: Site) -> None:
    """A slope of one dimension was along the channels; now it would be along the last one."""
    slope = site.input(1)
    if slope is not None and rank(slope) in (1, None):
        site.node.replace_input_with(1, _align(site, site.data, slope, 1, 1))


def _align(
    site: Site, left: ir.Value, right: ir.Value, axis: int, right_rank: int | None
) -> ir.Value:
    """`right` with ones appended to its shape, so that it lines up with `axis` of `left`."""
    left_rank = rank(left)
    if right_rank is not None and (axis < 0 or left_rank is not None):
        after = -axis if axis < 0 else (left_rank or 0) - axis
        count = after - right_rank
        if count <= 0:
            return right
        return site.op("Unsqueeze", [right], axes=list(range(right_rank, right_rank + count)))
    shape = site.op("Shape", [right])
    if axis < 0:
        remaining = site.ints("after_axis", -axis)
    else:
        whole = site.op("Shape", [site.op("Shape", [left])])
        remaining = site.op("Sub", [whole, site.ints("axis", axis)])
    missing = site.op("Sub", [remaining, site.op("Shape", [shape])])
    ones = site.op("Expand", [site.ints("one", 1), missing])
    return site.op("Reshape", [right, site.op("Concat", [shape, ones], axis=0)])


@upgrade("Gemm", to=7)
def _gemm_broadcast(site: Site) -> None:
    """C broadcasts by itself since."""
    site.pop("broadcast")


@upgrade("Clip", to=11)
def _clip_bounds(site: Site) -> None:
    """Bounds became inputs; a missing one still means the limit of the type."""
    low, high = site.pop("min"), site.pop("max")
    bounds = [
        None if value is None or value == limit else site.scalar_like(hint, value, site.data)
        for hint, value, limit in (("min", low, _LOWEST), ("max", high, _HIGHEST))
    ]
    site.set_inputs(site.data, *bounds)
