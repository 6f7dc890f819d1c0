"""Operators that act on each element, or on elements paired by broadcasting."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_blocks, in_float32, is_float, numpy_dtype
from xrt.kernels.host.registry import KERNELS, kernel

UNARY: dict[str, Callable[[Array], Array]] = {
    "Abs": np.abs,
    "BitwiseNot": np.invert,
    "Ceil": np.ceil,
    "Exp": np.exp,
    "Floor": np.floor,
    "IsNaN": np.isnan,
    "Log": np.log,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Reciprocal": np.reciprocal,
    "Round": np.rint,
    "Sign": np.sign,
    "Sqrt": np.sqrt,
    "Tanh": np.tanh,
    **{name: getattr(np, f"arc{name[1:].lower()}") for name in ("Acos", "Asin", "Atan")},
    **{name: getattr(np, f"arc{name[1:].lower()}") for name in ("Acosh", "Asinh", "Atanh")},
    **{name: getattr(np, name.lower()) for name in ("Cos", "Cosh", "Sin", "Sinh", "Tan")},
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": np.add,
    "And": np.logical_and,
    "BitwiseAnd": np.bitwise_and,
    "BitwiseOr": np.bitwise_or,
    "BitwiseXor": np.bitwise_xor,
    "Equal": np.equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Mul": np.multiply,
    "Or": np.logical_or,
    "Sub": np.subtract,
    "Xor": np.logical_xor,
}
KERNELS.update(UNARY)
KERNELS.update(BINARY)


@kernel("Identity")
def identity(x: Any) -> Any:
    """A tensor, sequence or optional, as it is."""
    return x


@kernel("Div")
def div(a: Array, b: Array) -> Array:
    """Division; that of integers truncates toward zero."""
    if a.dtype.kind in "iu":
        # Subtracting the remainder makes the division exact, so that flooring it does not matter.
        return np.asarray((a - np.fmod(a, b)) // b, dtype=a.dtype)
    return np.true_divide(a, b, dtype=a.dtype) if a.dtype.kind == "f" else a / b


@kernel("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """Remainder with the sign of the divisor, or of the dividend if `fmod`."""
    function = np.fmod if fmod else np.mod
    if is_float(a.dtype) and a.dtype.kind != "f":
        return function(a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    return np.asarray(function(a, b))


@kernel("Pow")
def power(x: Array, y: Array) -> Array:
    """`x` to the power `y`, in the dtype of `x`."""
    if y.size == 1 and y.ndim <= x.ndim and (exponent := float(y.reshape(()))) in (0.5, 2.0):
        if exponent == 2.0:
            return x * x
        if is_float(x.dtype):
            return np.sqrt(x)
    if x.dtype.kind in "iu" and y.dtype.kind == "i" and bool((y < 0).any()):
        return np.power(x.astype(np.float64), y).astype(x.dtype)
    if x.dtype.kind in "iuf" and y.dtype.kind in "iuf":
        return np.asarray(np.power(x, y)).astype(x.dtype)
    # NumPy's own types with float32, which holds all others.
    wide = np.result_type(np.float32, *(each.dtype for each in (x, y) if each.dtype.kind in "iuf"))
    return np.asarray(np.power(x.astype(wide), y.astype(wide))).astype(x.dtype)


@kernel("BitShift")
def bit_shift(x: Array, y: Array, *, direction: str) -> Array:
    """Shift bits; a count that is negative or too large leaves only copies of the sign bit."""
    bits = x.dtype.itemsize * 8
    inside = (y >= 0) & (y < bits)
    counts = np.where(inside, y, 0).astype(y.dtype)
    if direction == "LEFT":
        return np.where(inside, np.left_shift(x, counts), 0).astype(x.dtype)
    overflow = np.where(x < 0, -1, 0).astype(x.dtype)  # int64 and uint64 would meet in float64
    return np.where(inside, np.right_shift(x, counts), overflow).astype(x.dtype)


@kernel("IsInf")
def is_inf(x: Array, *, detect_negative: int = 1, detect_positive: int = 1) -> Array:
    """Where `x` is infinite, of the signs asked for."""
    found = np.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    if not detect_positive:
        found = found & (x < 0)
    return found


@kernel("Where")
def where(condition: Array, x: Array, y: Array) -> Array:
    """Elements of `x` where `condition` holds, else of `y`."""
    return np.where(condition, x, y)


@kernel("Max")
def maximum(*inputs: Array) -> Array:
    """The greatest of the inputs; NaN wins."""
    return functools.reduce(np.maximum, inputs)


@kernel("Min")
def minimum(*inputs: Array) -> Array:
    """The least of the inputs; NaN wins."""
    return functools.reduce(np.minimum, inputs)


@kernel("Sum")
@in_float32
def add_n(*inputs: Array) -> Array:
    """The sum of the inputs."""
    return functools.reduce(np.add, inputs)


@kernel("Mean")
@in_float32
def mean(*inputs: Array) -> Array:
    """The mean of the inputs."""
    return functools.reduce(np.add, inputs) / inputs[0].dtype.type(len(inputs))


@kernel("Clip")
def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """`x` limited to a range; where the range is empty, its upper end."""
    if low is not None:
        x = np.maximum(x, low)
    if high is not None:
        x = np.minimum(x, high)
    return x


@kernel("Cast")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """`x` as another type; `saturate` and `round_mode` concern floats of 8 bits."""
    if to == 8:  # STRING
        return x.astype(np.str_).astype(object)
    return _cast(x, numpy_dtype(to), bool(saturate), round_mode)


@kernel("CastLike")
def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """`x` in the type of `like`."""
    if like.dtype.kind in "OUS":
        return x.astype(np.str_).astype(object)
    return _cast(x, like.dtype, bool(saturate), round_mode)


def _cast(x: Array, dtype: np.dtype[Any], saturate: bool, round_mode: str) -> Array:
    if dtype.itemsize == 1 and is_float(dtype):
        from onnx import numpy_helper  # slow to import, and only these rare types need it

        if dtype.name == "float8_e8m0fnu":
            return numpy_helper.to_float8e8m0(x, saturate, round_mode).astype(dtype)
        if saturate and dtype.name.startswith("float8"):
            return numpy_helper.saturate_cast(x, dtype)
    if x.dtype.name in _PACKED and dtype.name in _PACKED:
        x = x.astype(np.int8)  # ml_dtypes converts none of these types to another one
    return x.astype(dtype)


_PACKED = ("int2", "uint2", "int4", "uint4")


@kernel("BitCast")
def bit_cast(x: Array, *, to: int) -> Array:
    """The bits of `x` read as another type of the same width."""
    dtype = numpy_dtype(to)
    if dtype.itemsize != x.dtype.itemsize:
        raise ValueError(f"the width of {x.dtype} differs from that of {dtype}")
    return contiguous(x).view(dtype)


def _erf32(x: Array, out: Array) -> None:
    """Rational approximation x P(x^2) / Q(x^2) of erf on [-4, 4].

    The coefficients are Eigen's (generic_fast_erf_float, also XLA's ErfImpl32). Relative error
    7e-8 when evaluated in float64 as here; rounding in float32 would raise it to 4e-7.
    """
    x = np.clip(x.astype(np.float64), -4.0, 4.0)
    square = x * x
    p = _horner(square, _ERF_P)
    p *= x
    p /= _horner(square, _ERF_Q)
    out[...] = p


def _horner(x: Array, coefficients: tuple[float, ...]) -> Array:
    result = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        result += coefficient
        result *= x
    result += coefficients[-1]
    return result


_ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
_ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
_erf64 = np.frompyfunc(math.erf, 1, 1)


@kernel("Erf")
@in_float32
def erf(x: Array) -> Array:
    """The error function; integers round toward zero."""
    if x.dtype == np.float32:
        return in_blocks(_erf32, x)
    return np.asarray(_erf64(x)).astype(x.dtype)


@kernel("Gelu")
@in_float32
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """x times the normal distribution function of x, or its approximation by tanh."""
    if approximate == "tanh":
        return in_blocks(_gelu_tanh, x)
    if x.dtype != np.float32:
        return 0.5 * x * (1 + erf(x * x.dtype.type(math.sqrt(0.5))))
    return in_blocks(_gelu32, x)


def _gelu32(x: Array, out: Array) -> None:
    _erf32(x * np.float32(math.sqrt(0.5)), out)
    out += 1
    out *= x
    out *= 0.5


def _gelu_tanh(x: Array, out: Array) -> None:
    np.multiply(x, x, out=out)
    out *= 0.044715
    out += 1
    out *= x
    out *= math.sqrt(2 / math.pi)
    np.tanh(out, out=out)
    out += 1
    out *= x
    out *= 0.5


@kernel("Relu")
def relu(x: Array) -> Array:
    """max(x, 0)."""
    return np.maximum(x, np.zeros((), x.dtype))


@kernel("LeakyRelu")
@in_float32
def leaky_relu(x: Array, *, alpha: float = float(np.float32(0.01))) -> Array:
    """x where it is positive, else alpha x."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@kernel("PRelu")
@in_float32
def prelu(x: Array, slope: Array) -> Array:
    """x where it is positive, else slope x; `slope` broadcasts to x."""
    return np.where(x < 0, x * slope, x).astype(x.dtype)


@kernel("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where it exceeds alpha, else 0."""
    return np.where(x > np.asarray(alpha, x.dtype), x, np.zeros((), x.dtype))


@kernel("Shrink")
@in_float32
def shrink(x: Array, *, bias: float = 0.0, lambd: float = 0.5) -> Array:
    """x moved toward zero by bias where it is beyond lambd, else 0."""
    moved = np.where(x > lambd, x - bias, 0)
    return np.where(x < -lambd, x + bias, moved).astype(x.dtype)


@kernel("Elu")
@in_float32
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where it is positive, else alpha (e^x - 1)."""
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@kernel("Celu")
@in_float32
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """x where it is positive, else alpha (e^(x / alpha) - 1)."""
    return np.maximum(x, 0) + np.minimum(alpha * np.expm1(x / alpha), 0)


@kernel("Selu")
@in_float32
def selu(
    x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.0507010221481323
) -> Array:
    """The self-normalizing exponential linear unit."""
    return gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


@kernel("Sigmoid")
@in_float32
def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x)."""
    result = np.exp(-x)
    result += 1
    return np.reciprocal(result, out=result) if isinstance(result, np.ndarray) else 1 / result


@kernel("HardSigmoid")
@in_float32
def hard_sigmoid(x: Array, *, alpha: float = float(np.float32(0.2)), beta: float = 0.5) -> Array:
    """alpha x + beta, limited to [0, 1]."""
    return np.clip(x * alpha + beta, 0, 1)


@kernel("HardSwish")
@in_float32
def hard_swish(x: Array) -> Array:
    """x times the hard sigmoid of slope 1/6."""
    return x * np.clip(x / 6 + 0.5, 0, 1)


@kernel("Swish")
@in_float32
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """x times the sigmoid of alpha x."""
    return x / (1 + np.exp(-alpha * x))


@kernel("SwiGLU")
@in_float32
def swiglu(a: Array, b: Array, *, alpha: float = 1.0) -> Array:
    """swish(a) b."""
    return swish(a, alpha=alpha) * b


@kernel("Mish")
@in_float32
def mish(x: Array) -> Array:
    """x tanh(softplus(x))."""
    return x * np.tanh(softplus(x))


@kernel("Softplus")
@in_float32
def softplus(x: Array) -> Array:
    """log(1 + e^x), without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


@kernel("Softsign")
@in_float32
def softsign(x: Array) -> Array:
    """x / (1 + |x|)."""
    return x / (1 + np.abs(x))
