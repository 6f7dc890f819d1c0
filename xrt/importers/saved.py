"""How a loaded program is called: interfaces made again of what `Interface.to_plain` wrote."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from xrt.errors import InputError
from xrt.importers.interface import Interface, OnnxInterface
from xrt.importers.structure import Structure


def interface_from(plain: Mapping[str, Any], model: ir.Model) -> Interface:
    """The interface that was written down as `plain`, of `model`.

    Raises:
        ValueError: If it is none.
    """
    kind = plain.get("kind")
    if kind == "onnx":
        return OnnxInterface(model)
    names = [str(value.name) for value in model.graph.inputs]
    if kind == "module":
        return SavedModule(plain, names)
    if kind == "exported":
        return SavedExport(plain)
    raise ValueError(f"no model is called like {plain!r:.60}")


class _Shown:
    """Stands for a default that was not saved, but is shown."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class _SavedTorch(Interface):
    """What both have in common."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._plain = dict(plain)
        self._inputs = Structure.of(plain["inputs"])
        self._outputs = Structure.of(plain["outputs"])

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """What the model returned at the export, around these arrays."""
        return self._outputs.unflatten(iter(outputs))

    def to_plain(self) -> dict[str, Any]:
        """What it was made of."""
        return self._plain


class SavedModule(_SavedTorch):
    """Arguments as the forward() of a torch module took them, or by the names of the graph."""

    def __init__(self, plain: Mapping[str, Any], names: Sequence[str]) -> None:
        super().__init__(plain)
        self._names = list(names)
        self._signature = inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    getattr(inspect.Parameter, kind),
                    default=inspect.Parameter.empty if default is None else _Shown(default),
                )
                for name, kind, default in plain["parameters"]
            ]
        )

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments, in the order of the signature."""
        if kwargs and not args and set(kwargs) == set(self._names):
            return [kwargs[name] for name in self._names]
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(
                f"The model's forward{self._signature} cannot be called like this: {error}."
            ) from None
        given = {name: value for name, value in bound.arguments.items() if value is not None}
        return self._inputs.flatten(given)


class SavedExport(_SavedTorch):
    """Arguments as an exported program took them, or its tensors by position or by name."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        super().__init__(plain)
        self._names = list(plain["names"])

    def flatten(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The tensors among the arguments."""
        try:
            return self._inputs.flatten((args, dict(kwargs)))
        except InputError:
            if kwargs and not args and set(kwargs) == set(self._names):
                return [kwargs[name] for name in self._names]
            if not kwargs and len(args) == len(self._names) and all(map(_is_array, args)):
                return list(args)
            raise


def _is_array(leaf: object) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")
