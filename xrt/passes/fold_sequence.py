"""Replaces sequences of tensors that are taken apart at known places by the tensors themselves."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from xrt.graph import constant, is_standard
from xrt.passes.rewrite import Names, all_nodes, new_node, producer, replace_node, replace_value


class FoldSequencePass(ir.passes.InPlacePass):
    """SequenceAt(SplitToSequence(x, n), i) => Slice(x, i n, (i+1) n), where n and i are constants;
    SequenceAt(SequenceConstruct(a, b, ...), i) => a, b, ...

    Torch's exporter writes split() and chunk() so, and no engine takes sequences. Requires i to
    count from the front unless the length is known (a list of sizes, or a construction). Preserves
    the sequence for its other users.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold the sequences in all graphs of `model`."""
        modified = False
        names: Names | None = None
        for node in all_nodes(model):
            if is_standard(node, "SequenceAt"):
                names = names or Names(model)
                modified |= _fold(node, names)
        return ir.passes.PassResult(model, modified=modified)


def _fold(node: ir.Node, names: Names) -> bool:
    index = constant(node.inputs[1])
    if index is None:
        return False
    made = producer(node.inputs[0], "SequenceConstruct")
    if made is not None:
        return _take_element(node, made, int(index))
    split = producer(node.inputs[0], "SplitToSequence")
    return split is not None and _take_slice(node, split, int(index), names)


def _take_element(node: ir.Node, made: ir.Node, index: int) -> bool:
    if not -len(made.inputs) <= index < len(made.inputs):
        return False  # an error when it runs, and the host's to report
    element = made.inputs[index]
    return element is not None and replace_value(node.outputs[0], element)


def _take_slice(node: ir.Node, split: ir.Node, index: int, names: Names) -> bool:
    bounds = _bounds(split, index)
    if bounds is None:
        return False
    axis = split.attributes.get_int("axis", 0)
    keeps = len(split.inputs) > 1 and split.inputs[1] is not None
    keeps = keeps or bool(split.attributes.get_int("keepdims", 1))

    def numbers(label: str, value: int) -> ir.Value:
        return names.constant(node.graph, f"{node.outputs[0].name}_{label}", np.array([value]))

    axes = numbers("axis", axis)
    edges = [numbers("start", bounds[0]), numbers("end", bounds[1])]
    if keeps:
        replace_node(node, "Slice", [split.inputs[0], *edges, axes])
        return True
    name = names.fresh(f"{node.outputs[0].name}_slice")
    piece = new_node("Slice", [split.inputs[0], *edges, axes], before=node, name=name)
    replace_node(node, "Squeeze", [piece, axes])
    return True


def _bounds(split: ir.Node, index: int) -> tuple[int, int] | None:
    """Start and end of piece `index`, or None if they are not known."""
    sizes_value = split.inputs[1] if len(split.inputs) > 1 else None
    sizes = np.array(1) if sizes_value is None else constant(sizes_value)
    if sizes is None:
        return None
    if sizes.ndim == 0:
        size = int(sizes)
        return None if index < 0 else (index * size, (index + 1) * size)
    if not -len(sizes) <= index < len(sizes):
        return None
    edges = np.concatenate([[0], np.cumsum(sizes)])
    index %= len(sizes)
    return int(edges[index]), int(edges[index + 1])
