"""Matrix products."""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import numpy as np

from xrt.kernels.host.common import Array, contiguous, in_float32, product, widen
from xrt.kernels.host.registry import kernel


@kernel("MatMul")
@in_float32
def matmul(a: Array, b: Array) -> Array:
    """Matrix product as `numpy.matmul`."""
    if a.ndim > 2 and b.ndim == 2 and a.flags.c_contiguous:
        # One large product is faster than one per batch.
        return np.matmul(a.reshape(product(a.shape[:-1]), a.shape[-1]), b).reshape(
            *a.shape[:-1], b.shape[1]
        )
    return np.matmul(a, b)


@kernel("Gemm")
@in_float32
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """alpha A' B' + beta C."""
    result = np.matmul(a.T if transA else a, b.T if transB else b)
    if alpha != 1:
        result = (result * alpha).astype(a.dtype, copy=False)
    if c is not None and beta != 0:
        result = result + (c if beta == 1 else (c * beta).astype(c.dtype, copy=False))
    return result.astype(a.dtype, copy=False)


@kernel("Einsum")
@in_float32
def einsum(*inputs: Array, equation: str) -> Array:
    """Einstein summation."""
    result: Array = np.einsum(equation.replace(" ", ""), *inputs, optimize=True)
    # Without a contraction NumPy answers with a view of its input.
    return contiguous(np.asarray(result))


@kernel("Det")
def det(x: Array) -> Array:
    """Determinants of the last two dimensions."""
    return np.asarray(np.linalg.det(widen(x))).astype(x.dtype)
