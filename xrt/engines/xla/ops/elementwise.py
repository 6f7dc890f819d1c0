"""Arithmetic, comparison, logic and the like, one element at a time.

JAX must not promote: Python scalars are weakly typed and keep the array's dtype, NumPy scalars of
float64 would not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrt.engines.xla.lowering import Context, Operand, lowering
from xrt.engines.xla.ops.numerics import dtype_of, is_float, wide, wide_dtype, widened
from xrt.kernels.jax import elementwise


def _erf(x: Any) -> Any:
    # ONNX takes integers too, and truncates what comes out.
    return jax.lax.erf(x if is_float(x) else jnp.asarray(x).astype(jnp.float64))


_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": jnp.abs,
    "Acos": widened(jnp.arccos),
    "Acosh": widened(jnp.arccosh),
    "Asin": widened(jnp.arcsin),
    "Asinh": widened(jnp.arcsinh),
    "Atan": widened(jnp.arctan),
    "Atanh": widened(jnp.arctanh),
    "BitwiseNot": jnp.bitwise_not,
    "Ceil": jnp.ceil,
    "Cos": widened(jnp.cos),
    "Cosh": widened(jnp.cosh),
    "Erf": widened(_erf),
    "Exp": widened(elementwise.exp),
    "Floor": jnp.floor,
    "IsNaN": jnp.isnan,
    "Log": widened(elementwise.log),
    "Neg": jnp.negative,
    "Not": jnp.logical_not,
    "Reciprocal": widened(lambda x: 1 / x),
    "Round": jnp.round,  # half to even
    "Sign": jnp.sign,
    "Sin": widened(jnp.sin),
    "Sinh": widened(jnp.sinh),
    "Sqrt": widened(jnp.sqrt),
    "Tan": widened(jnp.tan),
}

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": jnp.add,
    "And": jnp.logical_and,
    "BitwiseAnd": jnp.bitwise_and,
    "BitwiseOr": jnp.bitwise_or,
    "BitwiseXor": jnp.bitwise_xor,
    "Equal": jnp.equal,
    "Greater": jnp.greater,
    "GreaterOrEqual": jnp.greater_equal,
    "Less": jnp.less,
    "LessOrEqual": jnp.less_equal,
    "Mul": jnp.multiply,
    "Or": jnp.logical_or,
    "Sub": jnp.subtract,
    "Xor": jnp.logical_xor,
}


def _register_tables() -> None:
    for op_type, unary in _UNARY.items():
        lowering(op_type, elementwise=True)(lambda ctx, x, _f=unary: _f(x))
    for op_type, binary in _BINARY.items():
        lowering(op_type, elementwise=True)(lambda ctx, a, b, _f=binary: _f(a, b))


_register_tables()


@lowering("Identity", layouts=True)
def identity(ctx: Context, x: Operand) -> Operand:
    """Pass the value on, in the layout it has."""
    return x


@lowering("Div", elementwise=True)
def div(ctx: Context, a: Any, b: Any) -> Any:
    """Divide; integers truncate toward zero."""
    if is_float(a):
        return elementwise.divide(a, b)
    return jax.lax.div(*jnp.broadcast_arrays(a, b))


@lowering("Mod", elementwise=True)
def mod(ctx: Context, a: Any, b: Any, *, fmod: int = 0) -> Any:
    """The remainder with the sign of `a` (fmod) or of `b`."""
    if fmod:
        return jnp.fmod(a, b)
    result = jnp.mod(a, b)
    if is_float(a):  # a zero takes the sign of b
        result = jnp.where(result == 0, jnp.copysign(result, b), result)
    return result


@lowering("Pow", elementwise=True)
def power(ctx: Context, x: Any, y: Any) -> Any:
    """x to the power of y, in the dtype of x."""
    dtype = dtype_of(x)
    if not is_float(x):
        if is_float(y):
            x, y = jnp.asarray(x).astype(jnp.float64), jnp.asarray(y).astype(jnp.float64)
        return jnp.power(x, y).astype(dtype)
    exponent = _small_integer(y)
    if exponent is not None and np.ndim(y) <= np.ndim(x):
        return jax.lax.integer_pow(wide(x), exponent).astype(dtype)
    compute = wide_dtype(dtype)
    return jnp.power(wide(x), jnp.asarray(y).astype(compute)).astype(dtype)


def _small_integer(y: Any) -> int | None:
    """The value of a constant exponent for which multiplications are exact enough and fast."""
    if not isinstance(y, np.ndarray) or y.size != 1:
        return None
    value = float(y.reshape(()))
    return int(value) if value.is_integer() and abs(value) <= 4 else None


@lowering("BitShift", elementwise=True)
def bit_shift(ctx: Context, a: Any, b: Any, *, direction: str) -> Any:
    """Shift; a count outside the width of the type shifts every bit out."""
    a, b = jnp.broadcast_arrays(a, b)
    bits = dtype_of(a).itemsize * 8
    inside = (b >= 0) & (b < bits)
    count = jnp.where(inside, b, 0)
    if direction == "LEFT":
        return jnp.where(inside, jnp.left_shift(a, count), 0).astype(a.dtype)
    # jnp's shift keeps the sign of signed integers and brings in zeros for unsigned ones.
    return jnp.where(inside, jnp.right_shift(a, count), jnp.where(a < 0, -1, 0).astype(a.dtype))


@lowering("IsInf", elementwise=True)
def is_inf(ctx: Context, x: Any, *, detect_negative: int = 1, detect_positive: int = 1) -> Any:
    """Where x is infinite, of the signs asked for."""
    if detect_negative and detect_positive:
        return jnp.isinf(x)
    if not (detect_negative or detect_positive):
        return jnp.zeros(np.shape(x), bool)
    return jnp.isinf(x) & ((x < 0) if detect_negative else (x > 0))


@lowering("Where", elementwise=True)
def where(ctx: Context, condition: Any, x: Any, y: Any) -> Any:
    """x where the condition holds, else y."""
    return jnp.where(condition, x, y)


@lowering("Max", elementwise=True)
def maximum(ctx: Context, *arrays: Any) -> Any:
    """The greatest of the inputs; NaN wins."""
    return functools.reduce(jnp.maximum, arrays)


@lowering("Min", elementwise=True)
def minimum(ctx: Context, *arrays: Any) -> Any:
    """The least of the inputs; NaN wins."""
    return functools.reduce(jnp.minimum, arrays)


@lowering("Sum", elementwise=True)
def total(ctx: Context, *arrays: Any) -> Any:
    """The sum of the inputs."""
    return functools.reduce(jnp.add, map(wide, arrays)).astype(arrays[0].dtype)


@lowering("Mean", elementwise=True)
def mean(ctx: Context, *arrays: Any) -> Any:
    """The mean of the inputs."""
    summed = functools.reduce(jnp.add, map(wide, arrays))
    return elementwise.divide(summed, len(arrays)).astype(arrays[0].dtype)


@lowering("Clip", elementwise=True)
def clip(ctx: Context, x: Any, low: Any = None, high: Any = None) -> Any:
    """x within [low, high]; NaN stays, and `high` wins where the bounds cross."""
    # Exporters write bounds of shape [1] too, which must not raise the rank of a scalar.
    if low is not None:
        x = jnp.maximum(x, jnp.reshape(low, ()))
    if high is not None:
        x = jnp.minimum(x, jnp.reshape(high, ()))
    return x
