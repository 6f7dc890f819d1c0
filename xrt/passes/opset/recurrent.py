"""Upgrades of recurrent operators and loops."""

from __future__ import annotations

import onnx_ir as ir

from xrt.passes.opset.rules import Names, Site, upgrade


@upgrade("RNN", "GRU", "LSTM", to=7)
def _drop_output_sequence(site: Site) -> None:
    """The presence of the first output tells whether the whole sequence is wanted."""
    site.pop("output_sequence")


@upgrade("Scan", to=9)
def _scan_without_batch(site: Site) -> None:
    """The batch, once the first axis of everything, is scanned by a loop around the loop."""
    if site.input(0) is not None:
        site.refuse("sequence lengths per batch item are gone")
    body, scans = site.pop("body"), site.pop("num_scan_inputs", 1)
    directions = site.pop("directions", ())
    outer = site.node.inputs[1:]
    inputs = [_item(value, f"{site.node.op_type}_item", site.names) for value in outer]
    outputs = [_item(value, f"{value.name}_item", site.names) for value in site.node.outputs]
    attributes = {"body": body, "num_scan_inputs": scans}
    if directions:
        attributes["scan_input_directions"] = list(directions)
    scan = ir.node("Scan", inputs, attributes=attributes, outputs=outputs, name=site.node.name)
    per_item = ir.Graph(inputs, outputs, nodes=[scan], name="batch")
    site.become("Scan", outer, body=per_item, num_scan_inputs=len(inputs))


def _item(value: ir.Value | None, hint: str, names: Names) -> ir.Value:
    """A value for one item of the batch of `value`."""
    shape = ir.Shape(value.shape[1:]) if value is not None and value.shape else None
    item = ir.val(names.fresh(hint), shape=shape)
    item.type = value.type if value is not None else None
    return item
