"""Activation functions, one element at a time; half precision computes in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from xrt.engines.xla.lowering import Context, lowering
from xrt.engines.xla.ops.numerics import is_float, single, widened
from xrt.kernels.jax import elementwise


def _relu(x: Any) -> Any:
    return jnp.maximum(x, 0)


def _leaky_relu(x: Any, *, alpha: float = single(0.01)) -> Any:
    return jnp.where(x < 0, alpha * x, x)


def _thresholded_relu(x: Any, *, alpha: float = 1.0) -> Any:
    return jnp.where(x > alpha, x, 0)


# The exponentials below never see a positive number: where() would let their overflow through to
# the gradient.


def _elu(x: Any, *, alpha: float = 1.0) -> Any:
    return jnp.where(x < 0, alpha * jnp.expm1(jnp.minimum(x, 0)), x)


def _celu(x: Any, *, alpha: float = 1.0) -> Any:
    return jnp.where(x < 0, alpha * jnp.expm1(jnp.minimum(x, 0) / alpha), x)


def _selu(
    x: Any, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Any:
    return gamma * _elu(x, alpha=alpha)


def _gelu(x: Any, *, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1 + jnp.tanh(inner))
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _mish(x: Any) -> Any:
    return x * jnp.tanh(elementwise.softplus(x))


def _swish(x: Any, *, alpha: float = 1.0) -> Any:
    return x * elementwise.sigmoid(alpha * x)


def _hard_sigmoid(x: Any, *, alpha: float = single(0.2), beta: float = 0.5) -> Any:
    return jnp.maximum(jnp.minimum(alpha * x + beta, 1), 0)


def _hard_swish(x: Any) -> Any:
    return x * _hard_sigmoid(x, alpha=1 / 6, beta=0.5)


def _softsign(x: Any) -> Any:
    return x / (1 + jnp.abs(x))


_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "Celu": widened(_celu),
    "Elu": widened(_elu),
    "Gelu": widened(_gelu),
    "HardSigmoid": widened(_hard_sigmoid),
    "HardSwish": widened(_hard_swish),
    "LeakyRelu": widened(_leaky_relu),
    "Mish": widened(_mish),
    "Relu": _relu,
    "Selu": widened(_selu),
    "Sigmoid": widened(elementwise.sigmoid),
    "Softplus": widened(elementwise.softplus),
    "Softsign": widened(_softsign),
    "Swish": widened(_swish),
    "Tanh": widened(jnp.tanh),
    "ThresholdedRelu": _thresholded_relu,
}


def _register_table() -> None:
    for op_type, activation in _ACTIVATIONS.items():
        lowering(op_type, elementwise=True)(
            lambda ctx, x, _f=activation, **keywords: _f(x, **keywords)
        )


_register_table()


@lowering("PRelu", elementwise=True)
def prelu(ctx: Context, x: Any, slope: Any) -> Any:
    """x, times `slope` where it is negative."""
    return jnp.where(x < 0, slope * x, x)


@lowering("Shrink", elementwise=True)
def shrink(ctx: Context, x: Any, *, bias: float = 0.0, lambd: float = 0.5) -> Any:
    """Zero within [-lambd, lambd], and `bias` nearer to zero outside."""
    dtype = x.dtype
    if not is_float(x):
        x = jnp.asarray(x).astype(jnp.float64)
    return jnp.where(x < -lambd, x + bias, jnp.where(x > lambd, x - bias, 0)).astype(dtype)
