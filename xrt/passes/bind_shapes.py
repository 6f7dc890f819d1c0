"""Gives the inputs of a graph the shapes of one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from xrt.errors import InputError, unknown
from xrt.graph import nested_graphs

OPEN = -1
"""As the size of a dimension: it stays symbolic."""


class BindShapesPass(ir.passes.InPlacePass):
    """x: float[batch, 3, 2*batch] => x: float[8, 3, 16], in every value that names `batch`.

    Requires the shapes to fit the declared ones: InputError names the input, the dimension, what
    was got and what was expected. Preserves all but shapes. Inputs that are not listed keep theirs.
    A dimension that is an expression of symbols is computed; what stays symbolic names symbols that
    no input binds, or that are left open (`OPEN`).
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Create the pass.

        Args:
            shapes: Shapes by name of graph input; `OPEN` leaves a dimension as it is declared.
        """
        super().__init__()
        self.shapes = {name: tuple(map(int, shape)) for name, shape in shapes.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Bind the shapes in `model`."""
        inputs = {str(value.name): value for value in model.graph.inputs}
        for name in self.shapes:
            if name not in inputs:
                raise InputError(unknown("Input", name, inputs))
        bindings: dict[str, tuple[int, str]] = {}
        for name, shape in self.shapes.items():
            _check(inputs[name], shape, bindings)
        numbers = {symbol: size for symbol, (size, _) in bindings.items()}
        modified = False
        for name, shape in self.shapes.items():
            value = inputs[name]
            bound = _bound(value, shape)
            modified |= value.shape is None or value.shape != bound
            value.shape = bound
        if numbers:
            for value in _values(model.graph):
                modified |= _substitute(value, numbers)
        return ir.passes.PassResult(model, modified=modified)


def _check(value: ir.Value, shape: tuple[int, ...], bindings: dict[str, tuple[int, str]]) -> None:
    """Hold `shape` against the declared one, and add the symbols that it binds."""
    name, declared = value.name, value.shape
    _check_open(value, shape)
    if declared is None:
        return
    if len(declared) != len(shape):
        raise InputError(
            f"Input {name!r} has rank {len(shape)} (shape {list(shape)}); "
            f"expected rank {len(declared)} (shape {_text(declared)})."
        )
    for axis, (want, got) in enumerate(zip(declared, shape, strict=True)):
        if got == OPEN:
            continue
        if isinstance(want, int):
            if want != got:
                raise InputError(
                    f"Input {name!r} has {got} at dimension {axis} (shape {list(shape)}); "
                    f"expected {want} (shape {_text(declared)})."
                )
        elif want.value is not None and want.value.isidentifier():
            known, where = bindings.setdefault(want.value, (got, f"dimension {axis} of {name!r}"))
            if known != got:
                raise InputError(
                    f"Input {name!r} has {got} at dimension {axis} (shape {list(shape)}); "
                    f"expected {known}, since {want.value!r} is {known} by {where}."
                )


def _check_open(value: ir.Value, shape: tuple[int, ...]) -> None:
    """What is left open must be symbolic."""
    name, declared = value.name, value.shape
    if any(size < OPEN for size in shape):
        raise InputError(f"Input {name!r} cannot have the negative dimension of {list(shape)}.")
    if OPEN in shape and declared is None:
        raise InputError(f"Input {name!r} declares no dimensions that could stay open.")
    for axis, (want, got) in enumerate(zip(declared or (), shape, strict=False)):
        if got == OPEN and isinstance(want, int):
            raise InputError(f"Dimension {axis} of input {name!r} is {want}, and never open.")


def _bound(value: ir.Value, shape: tuple[int, ...]) -> ir.Shape:
    if OPEN not in shape or value.shape is None:
        return ir.Shape(shape)
    return ir.Shape(
        [old if new == OPEN else new for old, new in zip(value.shape, shape, strict=True)]
    )


def _text(shape: ir.Shape) -> str:
    return "[" + ", ".join(str(d if isinstance(d, int) else d.value or "?") for d in shape) + "]"


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """All values of `graph` and the graphs in it."""
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
        for inner in nested_graphs(node):
            yield from _values(inner)


def _substitute(value: ir.Value, numbers: Mapping[str, int]) -> bool:
    """Put numbers for symbols in the shape of `value`; whether that changed it."""
    if value.shape is None or all(isinstance(dim, int) for dim in value.shape):
        return False
    dims: list[int | ir.SymbolicDim | str | None] = []
    for dim in value.shape:
        if isinstance(dim, int) or dim.value is None:
            dims.append(dim)
        elif dim.value in numbers:
            dims.append(numbers[dim.value])
        elif dim.value.isidentifier():
            dims.append(dim)
        else:
            dims.append(_evaluate(dim, numbers))
    changed = dims != list(value.shape)
    value.shape = ir.Shape(dims)
    return changed


def _evaluate(dim: ir.SymbolicDim, numbers: Mapping[str, int]) -> int | ir.SymbolicDim | None:
    """The value of an expression such as `2*batch`; unknown where it cannot be computed."""
    try:
        return dim.evaluate(numbers)
    except Exception:  # not an expression: exporters put any text here
        return None
