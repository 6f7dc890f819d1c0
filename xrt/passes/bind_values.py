"""Gives the inputs that shapes depend on the contents of one call.

A graph may take sizes, axes or counts as inputs: the `axes` of a reduction, the `sizes` of a
Resize, the trip count of a Loop. While they are not known, neither are the shapes behind them, and
no engine takes what has them. Such an input, a *shape input*, is small and changes seldom, so a
program may be specialized for its contents as it is for the shapes of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import InputError, unknown
from xrt.graph import op_name
from xrt.passes.rewrite import Names, has_graphs, is_constant, is_pure

MOST_ELEMENTS = 64
"""An input with more elements than this is data, whatever it is used for."""

SHAPE_POSITIONS: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Dropout": (2,),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "Loop": (0, 1),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    **{
        f"Reduce{kind}": (1,)
        for kind in (
            *("L1", "L2", "LogSum", "LogSumExp", "Max"),
            *("Mean", "Min", "Prod", "Sum", "SumSquare"),
        )
    },
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
}
"""Operator -> positions of the inputs whose contents decide shapes, or what is computed at all."""

_DTYPES = frozenset(
    (
        *(ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL),
        *(ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16),
    )
)


_Roots = dict[ir.Value, frozenset[str] | None]
"""Value -> the shape inputs that its contents depend on; None if on something else too."""


def shape_inputs(graph: ir.Graph) -> frozenset[str]:
    """Names of the inputs of `graph` whose contents shapes depend on, and on no others.

    Followed back from the `SHAPE_POSITIONS` of operators, through what computes from contents: a
    shape that depends on an input that may be large, on random numbers or on control flow could not
    be known anyway, and then none of the inputs that it depends on counts.
    """
    known: _Roots = {
        value: frozenset({str(value.name)}) if _is_candidate(value) else None
        for value in graph.inputs
    }
    found: set[str] = set()
    for node in graph.all_nodes():
        for position in SHAPE_POSITIONS.get(op_name(node), ()):
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is not None:
                found |= _roots(value, known) or frozenset()
    return frozenset(found)


def _roots(value: ir.Value, known: _Roots) -> frozenset[str] | None:
    """What `value` depends on; everything met on the way goes to `known`."""
    pending = [value]
    while pending:  # a long chain of shape arithmetic would exceed Python's recursion limit
        current = pending[-1]
        waiting = [each for each in _sources(current) if each not in known]
        if current not in known and not waiting:
            known[current] = _join(current, known)
        if current in known:
            pending.pop()
        pending += waiting
    return known[value]


def _sources(value: ir.Value) -> list[ir.Value]:
    """The values whose contents make those of `value`."""
    node = value.producer()
    if node is None or not _computes(node):
        return []
    return [each for each in node.inputs if each is not None]


def _computes(node: ir.Node) -> bool:
    """Whether `node` makes contents from contents, as constant folding would."""
    return op_name(node) not in ("Shape", "Size") and not has_graphs(node) and is_pure(node)


def _join(value: ir.Value, known: _Roots) -> frozenset[str] | None:
    node = value.producer()
    if node is None:
        return frozenset() if is_constant(value) else None
    if op_name(node) in ("Shape", "Size"):
        return frozenset()
    if not _computes(node):
        return None
    parts = [known[each] for each in _sources(value)]
    whole = [part for part in parts if part is not None]
    return frozenset().union(*whole) if len(whole) == len(parts) else None


def _is_candidate(value: ir.Value) -> bool:
    if not isinstance(value.type, ir.TensorType) or value.dtype not in _DTYPES:
        return False
    return value.shape is not None and len(value.shape) <= 1


class BindValuesPass(ir.passes.InPlacePass):
    """y = f(x, axes) with input axes => y = f(x, [1]); axes stays an input that nothing uses.

    Requires contents of the input's type. Preserves the inputs and outputs of the model; an input
    that is an output too stays one.
    """

    def __init__(self, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Create the pass.

        Args:
            values: Contents by name of graph input.
        """
        super().__init__()
        self.values = dict(values)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bind the contents in `model`."""
        inputs = {str(value.name): value for value in model.graph.inputs}
        names = Names(model)
        modified = False
        for name, array in self.values.items():
            if name not in inputs:
                raise InputError(unknown("Input", name, inputs))
            value = inputs[name]
            uses = tuple(value.uses())
            if not uses:
                continue
            bound = names.constant(model.graph, f"{name}_bound", array)
            for user, index in uses:
                user.replace_input_with(index, bound)
            modified = True
        return ir.passes.PassResult(model, modified=modified)
