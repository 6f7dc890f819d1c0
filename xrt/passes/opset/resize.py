"""Upgrades of Upsample and Resize."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.passes.opset.rules import Site, known, upgrade


@upgrade("Upsample", to=7)
def _upsample_scales(site: Site) -> None:
    """Scales of height and width became scales of all dimensions."""
    height, width = site.pop("height_scale", 1.0), site.pop("width_scale", 1.0)
    mode = site.pop("mode", "nearest")
    scales = [1.0, 1.0, float(height), float(width)]
    site.put(scales=scales, mode="linear" if mode == "bilinear" else mode)


@upgrade("Upsample", to=9)
def _upsample_scales_input(site: Site) -> None:
    """Scales became an input."""
    scales = site.constant("scales", np.array(site.pop("scales", ()), np.float32))
    site.set_inputs(site.data, scales)


@upgrade("Upsample", "Resize", to=11)
def _resize_coordinates(site: Site) -> None:
    """The defaults became those of images; before, coordinates were divided by the scale.

    The nearest neighbour was rounded down where a dimension grew and up where it shrank, so a node
    that does both is split into two.
    """
    mode, scales = site.pop("mode", "nearest"), site.input(1)
    if mode != "nearest":
        _asymmetric(site, site.data, scales, mode=mode)
        return
    factors = known(scales)
    shrinks = factors is not None and bool((factors < 1).any())
    if factors is None or not shrinks or not (factors > 1).any():
        rounding = "ceil" if shrinks else "floor"
        _asymmetric(site, site.data, scales, mode=mode, nearest_mode=rounding)
        return
    grow = site.constant("growing", np.maximum(factors, 1).astype(np.float32))
    shrink = site.constant("shrinking", np.minimum(factors, 1).astype(np.float32))
    grown = site.op(
        "Resize",
        [site.data, None, grow],
        coordinate_transformation_mode="asymmetric",
        mode=mode,
        nearest_mode="floor",
    )
    _asymmetric(site, grown, shrink, mode=mode, nearest_mode="ceil")


def _asymmetric(site: Site, data: ir.Value, scales: ir.Value | None, **attributes: str) -> None:
    attributes["coordinate_transformation_mode"] = "asymmetric"
    site.become("Resize", [data, None, scales], **attributes)


@upgrade("Resize", to=13)
def _resize_absent_inputs(site: Site) -> None:
    """Unused inputs, once empty tensors, are absent; a coordinate mode of TensorFlow 1 went."""
    data, roi, scales, sizes = (site.input(index) for index in range(4))
    if _is_empty(roi):
        roi = None
    if sizes is not None or _is_empty(scales):
        scales = None
    site.set_inputs(data, roi, scales, sizes)
    attributes = site.node.attributes
    if attributes.get_string("coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        if attributes.get_string("nearest_mode") != "floor":
            site.refuse(
                "coordinate mode tf_half_pixel_for_nn is known with nearest_mode floor only"
            )
        # floor((x + 0.5) / s) == floor(((x + 0.5) / s - 0.5) + 0.5)
        site.put(coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")


def _is_empty(value: ir.Value | None) -> bool:
    array = known(value)
    return array is not None and array.size == 0
