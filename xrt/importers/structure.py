"""Nested structures of arrays, written down: what torch's pytrees do, without torch.

A structure is plain data, and what reads it imports nothing and calls nothing that it names: a
saved program can be called by who has neither torch nor the library that its model came from.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from xrt.errors import InputError, XrtError

_PLAIN = (bool, int, float, str, type(None))
_KINDS = ("tensor", "constant", "dict", "OrderedDict", "list", "tuple", "namedtuple", "record")


class Record(OrderedDict[str, Any]):
    """A model's output in place of its own class, which was not imported when it was loaded.

    Like transformers' ModelOutput: by name, as an attribute, or by position.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The output has no {name!r}, but {', '.join(self)}.") from None

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The values."""
        return tuple(self.values())


def plain_tree(spec: Any, values: Sequence[Any], is_tensor: Sequence[bool]) -> dict[str, Any]:
    """The structure that a torch TreeSpec and its leaves describe, fit for JSON.

    Args:
        spec: A torch.utils._pytree.TreeSpec.
        values: Its leaves; those that are no tensors are part of the structure.
        is_tensor: Which are tensors.

    Raises:
        XrtError: If it has a container or a constant that cannot be written down.
    """
    leaves = iter(zip(values, is_tensor, strict=True))
    return _plain(spec, leaves)


def _plain(spec: Any, leaves: Iterator[tuple[Any, bool]]) -> dict[str, Any]:
    if spec.is_leaf():
        value, is_tensor = next(leaves)
        if is_tensor:
            return {"kind": "tensor"}
        if not isinstance(value, _PLAIN):
            raise XrtError(
                f"This program cannot be saved: its arguments or results hold {value!r:.60}, a "
                f"{type(value).__qualname__}. Tensors, numbers, texts and None can be saved."
            )
        return {"kind": "constant", "value": value}
    kind, keys, name = _container(spec.type, spec.context)
    plain: dict[str, Any] = {"kind": kind}
    if keys is not None:
        plain["keys"] = keys
    if name:
        plain["class"] = name
    return {**plain, "items": [_plain(child, leaves) for child in spec.children()]}


def _container(kind: Any, context: Any) -> tuple[str, list[Any] | None, str]:
    """Kind, keys and class of a container that torch knows by its type and context."""
    if kind is namedtuple:
        return "namedtuple", list(context._fields), _class_name(context)
    if issubclass(kind, OrderedDict) and kind is not OrderedDict:
        return "record", _keys(context), _class_name(kind)
    if issubclass(kind, dict) and kind.__name__ in ("dict", "OrderedDict", "immutable_dict"):
        return "OrderedDict" if kind is OrderedDict else "dict", _keys(context), ""
    if issubclass(kind, tuple) and hasattr(kind, "n_sequence_fields"):  # of torch.return_types
        return "namedtuple", list(kind.__match_args__), _class_name(kind)
    if issubclass(kind, tuple):
        return "tuple", None, ""
    if kind.__name__ in ("list", "immutable_list"):
        return "list", None, ""
    raise XrtError(
        f"This program cannot be saved: its arguments or results hold a {_class_name(kind)}. "
        "Tensors in dicts, lists, tuples, namedtuples and transformers' outputs can be saved."
    )


def _keys(context: Any) -> list[Any]:
    for key in context:
        if not isinstance(key, _PLAIN):
            raise XrtError(f"This program cannot be saved: a dict of it has the key {key!r:.60}.")
    return list(context)


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclass(frozen=True)
class Structure:
    """A structure that was written down.

    Attributes:
        kind: "tensor", "constant", or a kind of container.
        value: Of a constant.
        keys: Of a dict or record, or the fields of a namedtuple.
        items: What a container holds.
        make: Makes the container of its items.
    """

    kind: str
    value: Any = None
    keys: tuple[Any, ...] = ()
    items: tuple[Structure, ...] = ()
    make: Callable[[Sequence[Any]], Any] = list
    name: str = ""

    @classmethod
    def of(cls, plain: Any) -> Structure:
        """Read what `plain_tree` gave.

        Raises:
            ValueError: If it is none.
        """
        if not isinstance(plain, dict) or plain.get("kind") not in _KINDS:
            raise ValueError(f"{plain!r:.60} is no structure")
        kind = plain["kind"]
        if kind in ("tensor", "constant"):
            return cls(kind, plain.get("value"))
        items = tuple(map(cls.of, plain["items"]))
        keys = tuple(plain.get("keys", ()))
        if kind not in ("list", "tuple") and len(keys) != len(items):
            raise ValueError(f"a {kind} of {len(items)} items has {len(keys)} keys")
        name = str(plain.get("class", ""))
        return cls(kind, None, keys, items, _maker(kind, keys, name), name)

    def to_plain(self) -> dict[str, Any]:
        """What `of` reads."""
        if self.kind == "tensor":
            return {"kind": "tensor"}
        if self.kind == "constant":
            return {"kind": "constant", "value": self.value}
        plain: dict[str, Any] = {"kind": self.kind}
        if self.kind not in ("list", "tuple"):
            plain["keys"] = list(self.keys)
        if self.name:
            plain["class"] = self.name
        return {**plain, "items": [item.to_plain() for item in self.items]}

    def flatten(self, tree: Any) -> list[Any]:
        """The tensors in `tree`, in order.

        Raises:
            InputError: If it is not of this structure, or a constant in it is another.
        """
        found: list[Any] = []
        self._flatten(tree, found)
        return found

    def _flatten(self, tree: Any, found: list[Any]) -> None:
        if self.kind == "tensor":
            if isinstance(tree, (Mapping, list, tuple)):
                raise InputError(f"Got {tree!r:.50} where the program takes an array.")
            found.append(tree)
        elif self.kind == "constant":
            if hasattr(tree, "shape") or tree != self.value:
                raise InputError(
                    f"The argument {tree!r:.50} is no tensor's and was {self.value!r:.50} when "
                    "the model was exported; compile the model again for other values."
                )
        else:
            for item, part in zip(self.items, self._parts(tree), strict=True):
                item._flatten(part, found)

    def _parts(self, tree: Any) -> list[Any]:
        """The items of a container, if it is one of this kind."""
        is_mapping = isinstance(tree, Mapping)
        if self.kind in ("dict", "OrderedDict", "record"):
            if is_mapping and set(tree) == set(self.keys):
                return [tree[key] for key in self.keys]
        elif self.kind == "namedtuple":
            if getattr(tree, "_fields", None) == self.keys:
                return list(tree)
        elif type(tree).__name__ == self.kind and len(tree) == len(self.items):
            return list(tree)
        got = f"a dict of {', '.join(map(str, tree))}" if is_mapping else type(tree).__qualname__
        if isinstance(tree, (list, tuple)):
            got += f" of {len(tree)}"
        raise InputError(f"The structure of the inputs is {got} where the program takes {self}.")

    def unflatten(self, tensors: Iterator[Any]) -> Any:
        """The structure around tensors."""
        if self.kind == "tensor":
            return next(tensors)
        if self.kind == "constant":
            return self.value
        return self.make([item.unflatten(tensors) for item in self.items])

    def __str__(self) -> str:
        if self.kind in ("tensor", "constant"):
            return "an array" if self.kind == "tensor" else repr(self.value)
        listed = ", ".join(map(str, self.keys))
        return f"a {self.kind} of {listed}" if self.keys else f"a {self.kind} of {len(self.items)}"


def _maker(kind: str, keys: tuple[Any, ...], name: str) -> Callable[[Sequence[Any]], Any]:
    if kind in ("list", "tuple"):
        return list if kind == "list" else tuple
    if kind in ("dict", "OrderedDict"):
        mapping = dict if kind == "dict" else OrderedDict
        return lambda items: mapping(zip(keys, items, strict=True))
    known: Any = _imported(name)
    if kind == "record":
        record = known if _is_model_output(known, keys) else Record
        return lambda items: record(**dict(zip(keys, items, strict=True)))
    if getattr(known, "_fields", None) != keys or not issubclass(known, tuple):
        make: Any = namedtuple  # which mypy wants literals for
        known = make(name.rpartition(".")[2].rpartition(":")[2] or "Output", keys)
    return lambda items: tuple.__new__(known, items)


def _imported(name: str) -> Any:
    """The class of that name, if its module is imported already; a file makes nothing be."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None


def _is_model_output(known: type | None, keys: tuple[Any, ...]) -> bool:
    """Whether `known` is one of transformers' outputs, which nothing but its fields makes."""
    if known is None or not is_dataclass(known):
        return False
    bases = {_class_name(base) for base in known.mro()}
    names = {field.name for field in fields(known)}
    return "transformers.utils.generic:ModelOutput" in bases and names.issuperset(keys)
