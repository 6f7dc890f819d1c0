"""What a caller passes as the inputs of a graph: arrays, lists for sequences, None for no optional.

A *leaf* is what one graph input gets, and a signature describes the leaves of a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from xrt.errors import InputError
from xrt.passes.bind_shapes import OPEN
from xrt.passes.bind_values import MOST_ELEMENTS
from xrt.runtime import arrays

Entry: TypeAlias = tuple[tuple[int, ...] | None, str, bytes | None]
"""Shape, dtype name and bound contents of an input. The shape of a sequence, and of an optional
that is empty, is None; the dtype is that of the elements, "" if there are none. Contents are bound,
as the bytes of the array, for inputs that shapes depend on; None leaves them open."""

Signature: TypeAlias = tuple[Entry, ...]
"""An entry for every input."""


def leaf_for(given: Any, value: ir.Value) -> Any:
    """What `value`, an input of the graph, gets for what the caller passed.

    Raises:
        InputError: If it is of another kind than the type of `value`.
    """
    return _leaf(given, value.type, str(value.name))


def _leaf(given: Any, kind: ir.TypeProtocol | None, name: str) -> Any:
    if isinstance(kind, ir.OptionalType):
        return None if given is None else _leaf(given, kind.elem_type, name)
    if isinstance(kind, ir.SequenceType):
        if not isinstance(given, (list, tuple)):
            raise InputError(f"Input {name!r} is a sequence: pass a list. Got {given!r:.50}.")
        return [_leaf(item, kind.elem_type, name) for item in given]
    if given is None:
        raise InputError(f"Input {name!r} is None; only an optional input can be.")
    given = _array(given, name)
    return given if kind is None else arrays.widen(given, kind.dtype)


def _array(given: Any, name: str) -> Any:
    if not (hasattr(given, "shape") and hasattr(given, "dtype")):
        try:
            given = np.asarray(given) if isinstance(given, list) else arrays.take(given)
        except (TypeError, ValueError) as error:
            raise InputError(f"Input {name!r} is no array, but {given!r:.50}: {error}") from None
    if isinstance(given, np.ndarray) and given.dtype.kind == "U":
        return given.astype(object)  # which is what a tensor of strings is everywhere in xrt
    return given


def entry_for(leaf: Any, value: ir.Value, *, bind: bool = False) -> Entry:
    """The signature's entry for a leaf of `value`, with its contents if `bind` asks for them.

    Raises:
        InputError: If the elements of a sequence differ in dtype.
    """
    if not isinstance(leaf, (list, type(None))):
        shape = tuple(leaf.shape)
        bound = bind and prod(shape) <= MOST_ELEMENTS
        contents = arrays.on_host(arrays.take(leaf)).tobytes() if bound else None
        return shape, arrays.dtype_name(leaf), contents
    names = sorted({arrays.dtype_name(array) for array in tensors_of(leaf)})
    if len(names) > 1:
        raise InputError(f"The elements of input {value.name!r} differ in dtype: {names}.")
    return None, "".join(names), None


def contents_of(entry: Entry) -> np.ndarray[Any, Any] | None:
    """The array that an entry binds, if it binds one."""
    shape, dtype, contents = entry
    if contents is None or shape is None:
        return None
    return np.frombuffer(contents, arrays.numpy_dtype(dtype)).reshape(shape)


def unbound(signature: Signature) -> Signature:
    """`signature` with all contents left open."""
    return tuple((shape, dtype, None) for shape, dtype, _ in signature)


def admits(opened: Signature, signature: Signature) -> bool:
    """Whether `signature` is `opened`, whatever its sizes where that leaves dimensions open."""
    return len(opened) == len(signature) and all(
        entry[1:] == given[1:] and _admits(entry[0], given[0])
        for entry, given in zip(opened, signature, strict=True)
    )


def _admits(opened: tuple[int, ...] | None, shape: tuple[int, ...] | None) -> bool:
    if opened is None or shape is None or len(opened) != len(shape):
        return opened == shape
    return all(want in (OPEN, size) for want, size in zip(opened, shape, strict=True))


def tensors_of(leaf: Any) -> Iterator[Any]:
    """The arrays in a leaf."""
    if isinstance(leaf, list):
        for item in leaf:
            yield from tensors_of(item)
    elif leaf is not None:
        yield leaf
