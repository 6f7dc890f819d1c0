"""In which precision lowerings compute, shared by the operator families."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


def single(value: float) -> float:
    """`value` as ONNX stores it in an attribute: rounded to float32."""
    return float(np.float32(value))


def dtype_of(array: Any) -> np.dtype[Any]:
    """The dtype of a NumPy array, JAX array or tracer."""
    dtype: np.dtype[Any] = np.dtype(array.dtype)
    return dtype


def is_float(array: Any) -> bool:
    """Whether `array` is of a floating-point dtype, the small ones included."""
    return bool(jnp.issubdtype(array.dtype, jnp.floating))


def wide_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype to compute in for values of `dtype`: float32 for floats narrower than that."""
    if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4:
        return np.dtype(np.float32)
    return dtype


def wide(array: Any) -> Any:
    """`array` in the dtype to compute in."""
    return jnp.asarray(array).astype(wide_dtype(dtype_of(array)))


def widened(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one array, computed in float32 where the array is of half precision."""

    @functools.wraps(function)
    def run(array: Any, **keywords: Any) -> Any:
        return function(wide(array), **keywords).astype(array.dtype)

    return run
