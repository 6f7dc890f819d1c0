"""Strategies of the operators that act on each element."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from tests.fuzz.case import Array, Case
from tests.fuzz.values import (
    BOOL,
    FLOATS,
    INTEGERS,
    NARROW,
    DType,
    Maker,
    Source,
    is_float,
    types,
)

Attributes = Callable[[Source], dict[str, Any]]


def _none(s: Source) -> dict[str, Any]:
    return {}


def _alpha(s: Source) -> dict[str, Any]:
    return {"alpha": s.maybe(s.number(0.1, 2))}


_UNARY: dict[str, tuple[str, Attributes]] = {
    "Abs": ("any", _none),
    "Acos": ("unit", _none),
    "Acosh": ("any", _none),
    "Asin": ("unit", _none),
    "Asinh": ("any", _none),
    "Atan": ("any", _none),
    "Atanh": ("unit", _none),
    "BitwiseNot": ("any", _none),
    "Ceil": ("any", _none),
    "Celu": ("any", _alpha),
    "Cos": ("nonfinite", _none),
    "Cosh": ("nonfinite", _none),
    "Elu": ("any", _alpha),
    "Erf": ("any", _none),
    "Exp": ("any", _none),
    "Floor": ("any", _none),
    "Gelu": ("finite", lambda s: {"approximate": s.pick([None, "none", "tanh"])}),
    "HardSigmoid": ("any", lambda s: {**_alpha(s), "beta": s.maybe(s.number(-1, 1))}),
    "HardSwish": ("finite", _none),
    "Identity": ("any", _none),
    "IsInf": ("any", lambda s: {"detect_negative": s.flag(), "detect_positive": s.flag()}),
    "IsNaN": ("any", _none),
    "LeakyRelu": ("any", _alpha),
    "Log": ("any", _none),
    "Mish": ("finite", _none),
    "Neg": ("any", _none),
    "Not": ("any", _none),
    "Reciprocal": ("any", _none),
    "Relu": ("any", _none),
    "Round": ("any", _none),
    "Selu": ("any", lambda s: {**_alpha(s), "gamma": s.maybe(s.number(0.5, 2))}),
    "Shrink": ("any", lambda s: {"bias": s.number(-1, 1), "lambd": s.number(0, 2)}),
    "Sigmoid": ("any", _none),
    "Sign": ("any", _none),
    "Sin": ("nonfinite", _none),
    "Sinh": ("nonfinite", _none),
    "Softplus": ("any", _none),
    "Softsign": ("any", _none),
    "Sqrt": ("any", _none),
    "Swish": ("finite", _alpha),
    "Tan": ("unit", _none),
    "Tanh": ("any", _none),
    "ThresholdedRelu": ("any", _alpha),
}
"""Operator -> domain of its input, attributes."""


def _unary(op: str, domain: str, attributes: Attributes) -> Maker:
    name = {"IsInf": "T1", "IsNaN": "T1", "Identity": "V"}.get(op, "T")

    def make(s: Source) -> Case:
        dtype = s.pick(types(op, name, narrow=op == "Identity"))
        # Shrink's parameters are no integers; large integers are not exact as what they are.
        kind = "tame" if op == "Shrink" and not is_float(dtype) else domain
        return Case(op, [s.array(s.shape(), dtype, kind)], attributes(s))

    return make


_BINARY: dict[str, tuple[str, str]] = {
    "Add": ("any", "any"),
    "And": ("any", "any"),
    "BitwiseAnd": ("any", "any"),
    "BitwiseOr": ("any", "any"),
    "BitwiseXor": ("any", "any"),
    "Div": ("any", "nonzero"),
    "Equal": ("any", "any"),
    "Greater": ("any", "any"),
    "GreaterOrEqual": ("any", "any"),
    "Less": ("any", "any"),
    "LessOrEqual": ("any", "any"),
    "Mul": ("any", "any"),
    "Or": ("any", "any"),
    "Sub": ("any", "any"),
    "Xor": ("any", "any"),
}
"""Operator -> domains of its inputs."""


def _binary(op: str, domains: tuple[str, str]) -> Maker:
    def make(s: Source) -> Case:
        dtype = s.pick(types(op))
        shapes = s.broadcast(2)
        pairs = zip(shapes, domains, strict=True)
        return Case(op, [s.array(shape, dtype, domain) for shape, domain in pairs])

    return make


def _variadic(op: str) -> Maker:
    domain = "nonfinite" if op in ("Sum", "Mean") else "any"

    def make(s: Source) -> Case:
        dtype = s.pick(types(op))
        shapes = s.broadcast(s.integer(1, 4))
        return Case(op, [s.array(shape, dtype, domain) for shape in shapes])

    return make


def _mod(s: Source) -> Case:
    dtype = s.pick(types("Mod"))
    fmod = 1 if is_float(dtype) else s.flag()
    low, high = s.broadcast(2)
    # Quotients beyond the precision of the type have no digits left to agree on.
    domain = "tame" if is_float(dtype) else "any"
    divisor = s.array(high, dtype, "positive" if is_float(dtype) else "nonzero")
    if is_float(dtype) and s.flag():
        divisor = -divisor
    return Case("Mod", [s.array(low, dtype, domain), divisor], {"fmod": fmod})


def _pow(s: Source) -> Case:
    base = s.pick(types("Pow"))
    exponent = s.pick(types("Pow", "T1"))
    if is_float(base) and is_float(exponent):
        domain, power = s.pick([("positive", "tame"), ("nonfinite", "nonfinite"), ("any", "tame")])
    else:
        # A root of a negative number is no integer, nor is anything else.
        domain, power = "positive" if is_float(exponent) else "tame", "positive"
    low, high = s.broadcast(2)
    inputs = [s.array(low, base, domain), s.array(high, exponent, power)]
    if is_float(base) and s.flag():  # exponents that have a fast way
        options = [2, 3, 0, 1, 4, 5] if exponent in INTEGERS else [2, 0.5, 0, 1, -1, -2, 4, 5]
        inputs[1] = np.asarray(s.pick(options), exponent)
    return Case("Pow", inputs, {}, constants=s.pick([(), (1,)]))


def _bit_shift(s: Source) -> Case:
    dtype = s.pick(types("BitShift"))
    low, high = s.broadcast(2)
    bits = dtype.itemsize * 8
    counts = np.abs(s.array(high, np.dtype(np.int8), "any").astype(np.int64)) % (bits + 2)
    inputs = [s.array(low, dtype), counts.astype(dtype)]
    return Case("BitShift", inputs, {"direction": s.pick(["LEFT", "RIGHT"])})


def _where(s: Source) -> Case:
    dtype = s.pick(types("Where"))
    one, two, three = s.broadcast(3)
    return Case("Where", [s.array(one, BOOL), s.array(two, dtype), s.array(three, dtype)])


def _clip(s: Source) -> Case:
    dtype = s.pick(types("Clip"))
    bounds = [s.maybe(s.array((), dtype)), s.maybe(s.array((), dtype))]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return Case("Clip", [s.array(s.shape(), dtype), *bounds])


def _prelu(s: Source) -> Case:
    dtype = s.pick(types("PRelu"))
    shape = s.shape()
    return Case("PRelu", [s.array(shape, dtype), s.array(s.smaller(shape), dtype)])


def _dropout(s: Source) -> Case:
    dtype = s.pick(types("Dropout"))
    inputs: list[Array | None] = [s.array(s.shape(), dtype)]
    if s.flag():
        inputs.append(s.maybe(np.asarray(0.25, np.float32)))
        inputs.append(np.asarray(False))
    constants = (2,) if len(inputs) > 2 else ()
    return Case("Dropout", inputs, {}, constants=constants, outputs=1 + s.flag())


_CASTABLE: tuple[DType, ...] = (*FLOATS, *INTEGERS, BOOL, *NARROW)


def _cast_pair(s: Source) -> tuple[Array, DType]:
    """An array and a type that it may be converted to without undefined values."""
    source, target = s.pick(_CASTABLE), s.pick(_CASTABLE)
    values = s.array(s.shape(), source)
    if is_float(source) and not is_float(target):
        values = _within(values, source, target)
    return values, target


def _within(values: Array, source: DType, target: DType) -> Array:
    """`values` without NaN and within what the integer type `target` holds."""
    wide = np.nan_to_num(values.astype(np.float64))
    if target != BOOL:
        info = ml_dtypes.iinfo(target)
        low, high = float(info.min), float(info.max)
        # The bounds of wide integers are not floats: stay clear of them.
        wide = np.clip(wide, low * 0.99, high * 0.99)
        # A float of few digits rounds to beyond them.
        rounded = wide.astype(source).astype(np.float64)
        wide = np.where((rounded < low) | (rounded > high), 0, wide)
    return np.asarray(wide.astype(source))


def _saturate(s: Source, target: DType) -> dict[str, Any]:
    return {"saturate": s.flag()} if target.name.startswith("float8") else {}


def _cast(s: Source) -> Case:
    values, target = _cast_pair(s)
    code = onnx.helper.np_dtype_to_tensor_dtype(target)
    return Case("Cast", [values], {"to": code, **_saturate(s, target)})


def _cast_like(s: Source) -> Case:
    values, target = _cast_pair(s)
    return Case("CastLike", [values, s.array((2,), target)], _saturate(s, target))


def _bit_cast(s: Source) -> Case:
    source = s.pick((*FLOATS, *INTEGERS))
    same = [d for d in (*FLOATS, *INTEGERS) if d.itemsize == source.itemsize]
    code = onnx.helper.np_dtype_to_tensor_dtype(s.pick(same))
    return Case("BitCast", [s.array(s.shape(), source)], {"to": code})


TABLE: dict[str, Maker] = {
    **{op: _unary(op, *how) for op, how in _UNARY.items()},
    **{op: _binary(op, domains) for op, domains in _BINARY.items()},
    **{op: _variadic(op) for op in ("Max", "Min", "Sum", "Mean")},
    "BitCast": _bit_cast,
    "BitShift": _bit_shift,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Dropout": _dropout,
    "Mod": _mod,
    "PRelu": _prelu,
    "Pow": _pow,
    "Where": _where,
}
