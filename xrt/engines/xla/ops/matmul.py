"""Matrix products: MatMul, Gemm, Einsum. Half precision accumulates in float32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.xla.lowering import Context, Prepared, lowering
from xrt.engines.xla.ops.numerics import dtype_of, wide_dtype


def product(a: Any, b: Any) -> Any:
    """The matrix product as `numpy.matmul` broadcasts it, in the dtype to accumulate in."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    accumulate = wide_dtype(dtype_of(a))
    if b.ndim != 2 or a.ndim < 3:
        return jnp.matmul(a, b, preferred_element_type=accumulate)
    # One matrix for all rows: one product of two matrices.
    rows = jnp.reshape(a, (int(np.prod(a.shape[:-1])), a.shape[-1]))
    result = jnp.matmul(rows, b, preferred_element_type=accumulate)
    return jnp.reshape(result, (*a.shape[:-1], b.shape[-1]))


@lowering("MatMul")
def matmul(ctx: Context, a: Any, b: Any) -> Any:
    """The matrix product, broadcast over leading dimensions."""
    return product(a, b).astype(a.dtype)


def _transposed_weight(node: ir.Node) -> Prepared | None:
    # XLA's CPU runs a product with few rows 2.5 times slower when it must read B by columns.
    transposed = node.attributes.get_int("transB", 0)
    return Prepared("transpose", lambda b: np.ascontiguousarray(b.T)) if transposed else None


@lowering("Gemm", prepare={1: _transposed_weight})
def gemm(
    ctx: Context,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    """alpha * A' B' + beta * C."""
    if transA:
        a = jnp.transpose(a)
    if transB and not ctx.prepared(1):
        b = jnp.transpose(b)
    result = _scaled(product(a, b), alpha)
    if c is not None:
        result = result + _scaled(jnp.asarray(c).astype(result.dtype), beta)
    return result.astype(a.dtype)


def _scaled(array: Any, factor: float) -> Any:
    """`array` times `factor`, in the array's dtype, integers included."""
    return array if factor == 1.0 else (array * factor).astype(array.dtype)


@lowering("Einsum")
def einsum(ctx: Context, *arrays: Any, equation: str) -> Any:
    """The sum of products that `equation` describes."""
    dtype = dtype_of(arrays[0])
    result = jnp.einsum(equation, *arrays, preferred_element_type=wide_dtype(dtype))
    return result.astype(dtype)
