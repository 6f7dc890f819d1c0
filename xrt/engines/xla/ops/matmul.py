"""Matrix products: MatMul, Gemm, Einsum. Half precision accumulates in float32."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, Prepared, lowering
from xrt.engines.xla.ops import quantized as Q
from xrt.engines.xla.ops.numerics import dtype_of, wide_dtype
from xrt.kernels.jax import integer


def factor_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype in which the device holds a constant factor of products of `dtype`.

    XLA's CPU backend has no product of float16: it widens both factors, in every call. For a weight
    that costs more than the product (ResNet-50 at batch 1: 5 times its time in float32), so it is
    done once. The results are the same, since sums of products are in float32 either way.
    """
    narrow = dtype == np.float16 and D.device().platform == "cpu"
    return np.dtype(np.float32) if narrow else dtype


def product(a: Any, b: Any) -> Any:
    """The matrix product as `numpy.matmul` broadcasts it, in the dtype to accumulate in.

    One factor may be wider than the other: see `factor_dtype`.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    accumulate = wide_dtype(dtype_of(a))
    if b.ndim != 2 or a.ndim < 2:
        return jnp.matmul(a, b, preferred_element_type=accumulate)
    # One matrix for all rows: one product of two matrices.
    count = int(np.prod(a.shape[:-1]))
    rows = jnp.reshape(a, (count, a.shape[-1]))
    if count == 1 and dtype_of(b).itemsize < 4 and D.device().platform == "cpu":
        # XLA's CPU widens all of a narrow matrix for one row: 77 ms for 4096x4096 in bfloat16,
        # where the product of two rows takes 12.
        rows = jnp.pad(rows, ((0, 1), (0, 0)))
    result = jnp.matmul(rows, b, preferred_element_type=accumulate)[:count]
    return jnp.reshape(result, (*a.shape[:-1], b.shape[-1]))


def _prepare_weight(node: ir.Node) -> Prepared | None:
    # XLA's CPU runs a product with few rows 2.5 times slower when it must read B by columns.
    transposed = bool(node.attributes.get_int("transB", 0))
    weight = node.inputs[1]
    assert weight is not None
    assert weight.dtype is not None
    dtype = weight.dtype.numpy()
    wide = factor_dtype(dtype)
    if wide == dtype:
        return Prepared("transpose", _transposed) if transposed else None
    if transposed:
        return Prepared(f"transpose {wide}", lambda b: _transposed(b).astype(wide))
    return Prepared(f"{wide}", lambda b: b.astype(wide))


def _transposed(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(matrix.T)


def _prepare_levels(node: ir.Node) -> Prepared | None:
    weight = Q.levels(node.inputs[1])
    if weight is None or not _multiplies_bytes(node):
        return None
    if node.attributes.get_int("transB", 0):
        return Prepared("signed transpose", lambda b: _transposed(integer.signed(b)))
    return Prepared("signed", integer.signed)


def _multiplies_bytes(node: ir.Node) -> bool:
    """Whether the bytes behind the factors of a node are multiplied; follows from the graph."""
    a, b = (G.static_shape(value) for value in node.inputs[:2])
    if a is None or b is None or min(len(a), len(b)) < 2 or 0 in (*a, *b):
        return False
    weight, transposed = Q.levels(node.inputs[1]), bool(node.attributes.get_int("transB", 0))
    axes = (None, len(b) - (2 if transposed else 1))
    if weight is None:
        right = Q.is_bytes(node.inputs[1])
    else:
        right = weight.axis in axes and weight.array.dtype.itemsize == 1
    return right and Q.is_bytes(node.inputs[0]) and Q.fits(b[-1] if transposed else b[-2])


def _of_bytes(ctx: Context, a: Operand, b: Operand, *, left: bool, right: bool) -> Any:
    """The product of the bytes behind two operands, each transposed if so said, dequantized."""
    first, second = a.quantized, b.quantized
    assert first is not None
    weight = Q.levels(ctx.node.inputs[1]) if ctx.levels(1) else None
    bytes_a = _turned(Operand(first.array, a.channels_last).plain(), left)
    if weight is None:
        assert second is not None
        bytes_b = _turned(Operand(second.array, b.channels_last).plain(), right)
        zero, scale, known = second.zero, second.scale, None
    else:
        bytes_b, scale = b.array, weight.scale
        zero = integer.signed_zero(weight.array.dtype, weight.zero)
        known = integer.sums(_turned(weight.array, right), (-2,))
    form = D.integer_form()
    terms = integer.dot_terms(bytes_a, bytes_b, first.zero, zero, b_sums=known, form=form)
    return Q.scaled(*terms, first.scale * scale)


def _turned(matrix: Any, transposed: bool) -> Any:
    return matrix.T if transposed else matrix


@lowering("MatMul", layouts=True, prepare={1: _prepare_weight}, levels={1: _prepare_levels})
def matmul(ctx: Context, a: Operand, b: Operand) -> Operand:
    """The matrix product, broadcast over leading dimensions."""
    if _multiplies_bytes(ctx.node):
        return Operand(_of_bytes(ctx, a, b, left=False, right=False))
    return Operand(product(a.plain(), b.plain()).astype(a.array.dtype))


@lowering("Gemm", layouts=True, prepare={1: _prepare_weight}, levels={1: _prepare_levels})
def gemm(
    ctx: Context,
    a: Operand,
    b: Operand,
    c: Operand | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Operand:
    """alpha * A' B' + beta * C."""
    if _multiplies_bytes(ctx.node):
        result = _of_bytes(ctx, a, b, left=bool(transA), right=bool(transB))
    else:
        right = _turned(b.plain(), bool(transB) and not ctx.prepared(1))
        result = product(_turned(a.plain(), bool(transA)), right)
    result = _scaled(result, alpha)
    if c is not None:
        result = result + _scaled(jnp.asarray(c.plain()).astype(result.dtype), beta)
    return Operand(result.astype(a.array.dtype))


def _scaled(array: Any, factor: float) -> Any:
    """`array` times `factor`, in the array's dtype, integers included."""
    return array if factor == 1.0 else (array * factor).astype(array.dtype)


@lowering("Einsum")
def einsum(ctx: Context, *arrays: Any, equation: str) -> Any:
    """The sum of products that `equation` describes."""
    dtype = dtype_of(arrays[0])
    result = jnp.einsum(equation, *arrays, preferred_element_type=wide_dtype(dtype))
    return result.astype(dtype)
