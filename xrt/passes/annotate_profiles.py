"""Tells engines that build for ranges of shapes which shapes a value takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from xrt.graph import static_shape
from xrt.passes.bind_shapes import BindShapesPass
from xrt.passes.evaluate import Evaluate, evaluate
from xrt.passes.fold_constants import FoldConstantsPass

KEY = "xrt.profile"
"""Key of a value's metadata that holds its profile."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The shapes that a value takes while the symbols of its model run through their ranges.

    Attributes:
        least: The shape where every symbol is at the lower end of its range.
        usual: The shape that is met most, for which an engine optimizes.
        most: The shape where every symbol is at the upper end.
    """

    least: Shape
    usual: Shape
    most: Shape

    @classmethod
    def of(cls, value: ir.Value) -> Profile | None:
        """The profile that `AnnotateProfilesPass` gave to `value`; None if it has none."""
        text = value.metadata_props.get(KEY)
        return None if text is None else cls(*(tuple(shape) for shape in json.loads(text)))


class AnnotateProfilesPass(ir.passes.InPlacePass):
    """x: float[batch, 3] => x: float[batch, 3], with its `Profile` in the metadata.

    Every value of the main graph whose shape is not static gets one, if all of its dimensions are
    known once the inputs are bound; no other keeps one. Requires unique names; preserves everything
    but the metadata.
    The shapes between are taken to lie between: what grows with its input does so monotonically.
    """

    def __init__(
        self, shapes: Sequence[Mapping[str, Sequence[int]]], evaluate: Evaluate = evaluate
    ) -> None:
        """Create the pass.

        Args:
            shapes: Shapes by name of graph input: the least, the usual and the largest ones.
            evaluate: Runs a node on arrays, in place of the reference.
        """
        super().__init__()
        self.shapes = tuple(shapes)
        self.evaluate = evaluate

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate the values of `model`."""
        open_values = [value for value in _values(model.graph) if static_shape(value) is None]
        found = [self._shapes(model, bound) for bound in self.shapes] if open_values else []
        profiles = {}
        for value in open_values:
            corners = [shapes.get(str(value.name)) for shapes in found]
            if all(corner is not None for corner in corners):
                profiles[value] = json.dumps(corners)
        modified = False
        for value in _values(model.graph):
            text = profiles.get(value)
            modified |= value.metadata_props.pop(KEY, None) != text
            if text is not None:
                value.metadata_props[KEY] = text
        return ir.passes.PassResult(model, modified=modified)

    def _shapes(self, model: ir.Model, bound: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """The static shapes of values of `model`, by name, for inputs of the shapes `bound`."""
        copy = model.clone()
        BindShapesPass(bound)(copy)
        # Folding takes values out of the graph, or renames them, but tells their shapes first.
        values = [(str(value.name), value) for value in _values(copy.graph)]
        FoldConstantsPass(self.evaluate)(copy)
        values += [(str(value.name), value) for value in _values(copy.graph)]
        shapes = ((name, static_shape(value)) for name, value in values)
        return {name: shape for name, shape in shapes if shape is not None}


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]
