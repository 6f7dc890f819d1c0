"""Upgrades of normalization, dropout and pooling."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.passes.opset.rules import Site, in_use, rank, upgrade


@upgrade("Dropout", to=12)
def _dropout_inputs(site: Site) -> None:
    """Ratio and mode became inputs; the mode was an attribute in opset 6 and "no" from 7 to 11."""
    ratio = site.pop("ratio", 0.5)
    testing = site.pop("is_test", 0 if site.start < 7 else 1)
    training = None if testing else site.constant("training_mode", np.array(True))
    site.set_inputs(site.data, site.constant("ratio", np.array(ratio, np.float32)), training)
    if site.start < 10 and len(site.node.outputs) > 1:
        _cast_mask(site)


def _cast_mask(site: Site) -> None:
    """Before opset 10 the mask had the type of the data, not bool."""
    mask = site.node.outputs[1]
    if not in_use(mask):
        site.node.resize_outputs(1)
        return
    cast = ir.val(str(mask.name), type=mask.type, shape=mask.shape)
    ir.convenience.replace_all_uses_with(mask, cast, replace_graph_outputs=True)
    mask.name = site.names.fresh(f"{cast.name}_bool")
    mask.type = ir.TensorType(ir.DataType.BOOL)
    site.node.append(ir.node("CastLike", [mask, site.data], outputs=[cast]))


@upgrade("BatchNormalization", to=7)
def _drop_is_test(site: Site) -> None:
    """The outputs alone tell the mode; with `is_test` those of training were not filled."""
    if site.pop("is_test", 0):
        _drop_outputs(site, 1)


@upgrade("BatchNormalization", to=9)
def _batchnorm_per_element(site: Site) -> None:
    """Statistics per element instead of per channel went: written out as arithmetic."""
    spatial = site.pop("spatial", 1)
    if spatial or rank(site.data) == 2:
        return
    _drop_outputs(site, 1)
    epsilon = site.pop("epsilon", 1e-5)
    data, scale, bias, mean, variance = site.node.inputs
    assert variance is not None
    stabilized = site.op("Add", [variance, site.scalar_like("epsilon", epsilon, variance)])
    centered = site.op("Sub", [data, mean])
    normalized = site.op("Div", [centered, site.op("Sqrt", [stabilized])])
    site.become("Add", [site.op("Mul", [normalized, scale]), bias])


@upgrade("BatchNormalization", to=14)
def _batchnorm_mode(site: Site) -> None:
    """Training was told by the outputs and is now by an attribute; saved statistics went."""
    if any(value.name for value in site.node.outputs[1:]):
        _drop_outputs(site, 3)
        site.put(training_mode=1)
    else:
        _drop_outputs(site, 1)


def _drop_outputs(site: Site, count: int) -> None:
    """Keep the first `count` outputs; refuse if a later one is read."""
    for value in site.node.outputs[count:]:
        if in_use(value):
            site.refuse(f"its output {value.name!r} is gone")
    site.node.resize_outputs(min(count, len(site.node.outputs)))


@upgrade("GroupNormalization", to=21)
def _group_scale_per_channel(site: Site) -> None:
    """Scale and bias were per group."""
    data, scale, bias = site.node.inputs[:3]
    groups = int(site.node.attributes.get_int("num_groups", 1))
    channels = data.shape[1] if data is not None and data.shape is not None else None
    lengths = scale.shape if scale is not None else None
    if lengths is not None and lengths[0] == channels:
        return  # one channel a group, or a model that follows the corrected definition
    if isinstance(channels, int):
        repeats = site.ints("per_group", 1, channels // groups)
    else:
        length = site.op("Shape", [data], start=1, end=2)
        per_group = site.op("Div", [length, site.ints("groups", groups)])
        repeats = site.op("Concat", [site.ints("one", 1), per_group], axis=0)
    column, flat = site.ints("column", -1, 1), site.ints("flat", -1)
    widened = [
        site.op(
            "Reshape", [site.op("Expand", [site.op("Reshape", [value, column]), repeats]), flat]
        )
        for value in (scale, bias)
    ]
    site.set_inputs(data, *widened)


@upgrade("GlobalLpPool", "LpPool", to=2)
def _integer_norm(site: Site) -> None:
    """The order of the norm was a float."""
    order = site.pop("p", 2.0)
    if order != int(order):
        site.refuse(f"p = {order} is not a whole number")
    if site.node.op_type == "LpPool" and "kernel_shape" not in site.node.attributes:
        site.refuse("it has no kernel_shape")
    site.put(p=int(order))


@upgrade("RoiAlign", to=16)
def _roi_align_offset(site: Site) -> None:
    """The default shifts by half a pixel since."""
    site.put(coordinate_transformation_mode="output_half_pixel")
