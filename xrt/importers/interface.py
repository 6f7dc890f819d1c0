"""How a user calls a program: from arguments to a flat list of arrays, and back to a structure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from xrt.errors import InputError


class Interface(ABC):
    """A model's calling convention."""

    @abstractmethod
    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arrays of a call, in the order of the graph's inputs.

        Raises:
            InputError: If names, count or structure do not fit.
        """

    @abstractmethod
    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The model's own output structure around the graph's outputs."""

    @abstractmethod
    def to_plain(self) -> dict[str, Any]:
        """What `importers.saved.interface_from` makes the interface of again; fit for JSON.

        Raises:
            XrtError: If it holds what cannot be written down.
        """


@dataclass(frozen=True)
class Imported:
    """A model in the graph IR, at the opset of xrt, and how it is called.

    Attributes:
        model: The graph IR; passes work on clones of it.
        interface: The calling convention.
        shape_inputs: Names of the inputs whose contents shapes depend on.
        ranges: Least and largest size of symbolic dimensions, where the model says.
        seconds: What importing took, by stage; filled in by who imports.
    """

    model: ir.Model
    interface: Interface
    shape_inputs: frozenset[str] = frozenset()
    ranges: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def match(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any] | None:
        """The arrays of a call that has this model's structure, ranks and fixed dimensions."""
        try:
            leaves = self.interface.flatten(args, kwargs)
        except InputError:
            return None
        return leaves if all(map(_fits, leaves, self.model.graph.inputs)) else None


def _fits(leaf: Any, value: ir.Value) -> bool:
    shape = getattr(leaf, "shape", None)
    if shape is None or value.shape is None:
        return True
    return len(shape) == len(value.shape) and all(
        got == want for got, want in zip(shape, value.shape, strict=True) if isinstance(want, int)
    )


class OnnxInterface(Interface):
    """Inputs by position or by name; one output comes back bare, several as a tuple."""

    def __init__(self, model: ir.Model) -> None:
        self.names = tuple(str(value.name) for value in model.graph.inputs)
        self.output_count = len(model.graph.outputs)

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The inputs in the graph's order; a single mapping counts as inputs by name."""
        if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
            kwargs, args = args[0], ()
        expected = f"This model takes {len(self.names)}: {', '.join(self.names) or 'none'}."
        if len(args) > len(self.names):
            raise InputError(f"Got {len(args)} inputs by position. {expected}")
        given = dict(zip(self.names, args, strict=False))
        for name, value in kwargs.items():
            if name not in self.names:
                raise InputError(f"Input {name!r} is unknown. {expected}")
            if name in given:
                raise InputError(f"Input {name!r} was given by position and by name. {expected}")
            given[name] = value
        missing = [name for name in self.names if name not in given]
        if missing:
            raise InputError(f"Input {', '.join(map(repr, missing))} is missing. {expected}")
        return [given[name] for name in self.names]

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """The one output, or a tuple of them."""
        return outputs[0] if self.output_count == 1 else tuple(outputs)

    def to_plain(self) -> dict[str, Any]:
        """Nothing: the graph says it all."""
        return {"kind": "onnx"}
