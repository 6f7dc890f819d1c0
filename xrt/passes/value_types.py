"""Types of values as plain data: compared, hashed and joined by the passes that infer them."""

from __future__ import annotations

import onnx_ir as ir

Dims = tuple[int | str | None, ...]
"""Dimensions: a number, a symbol's name, or None where nothing is known."""

ValueType = tuple[ir.TypeProtocol | None, Dims | None]
"""Type and dimensions of a value (of its elements, for a sequence); None where not known."""

UNKNOWN: ValueType = (None, None)


def dims_of(shape: ir.Shape | None) -> Dims | None:
    """The dimensions of `shape` as plain data."""
    if shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)


def type_of(value: ir.Value | None) -> ValueType:
    """What is known of the type of `value`."""
    return UNKNOWN if value is None else (value.type, dims_of(value.shape))


def set_type(value: ir.Value, value_type: ValueType) -> None:
    """Give `value` a type and dimensions."""
    value.type, dims = value_type
    value.shape = None if dims is None else ir.Shape(dims)


def join(left: ValueType, right: ValueType) -> ValueType:
    """What holds of a value that is of the type `left` or of the type `right`."""
    if left[0] is None or right[0] is None or left[0] != right[0]:
        return left[0] or right[0], None
    one, other = left[1], right[1]
    if one is None or other is None or len(one) != len(other):
        return left[0], None
    return left[0], tuple(a if a == b else None for a, b in zip(one, other, strict=True))


def contradicts(left: Dims, right: Dims) -> bool:
    """Whether no tensor has both dimensions."""
    return len(left) != len(right) or any(
        isinstance(one, int) and isinstance(other, int) and one != other
        for one, other in zip(left, right, strict=True)
    )
