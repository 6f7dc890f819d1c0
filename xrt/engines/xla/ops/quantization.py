"""Linear quantization: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, Quantized, lowering
from xrt.engines.xla.operand import same_quantization
from xrt.engines.xla.ops.numerics import dtype_of, wide_dtype
from xrt.graph import Support
from xrt.kernels.jax.elementwise import divide
from xrt.kernels.jax.integer import dequantized, quantized, recoded, recoded_zero

_DIVISIONS = (
    ir.DataType.UNDEFINED,
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
)

_COLUMNS = 256

_BYTES = (np.int8, np.uint8)


_SIX_BITS = (ir.DataType.FLOAT6E2M3, ir.DataType.FLOAT6E3M2)
"""Types that JAX knows and XLA's compilers do not."""


def _supports(node: ir.Node) -> Support:
    """Whether scale and zero point fit the input's shape, and XLA has the types."""
    for value in (node.inputs[0], node.outputs[0]):
        if value is not None and value.dtype in _SIX_BITS:
            return Support.no(f"{node.op_type}: XLA does not compile type {value.dtype}")
    shape = G.static_shape(node.inputs[0])
    assert shape is not None
    axis, block = node.attributes.get_int("axis", 1), node.attributes.get_int("block_size", 0)
    for value in node.inputs[1:]:
        given = G.static_shape(value) if value is not None else None
        if given is None or fits(given, shape, axis, block):
            continue
        assert value is not None
        return Support.no(
            f"{node.op_type}: {value.name!r} of shape {list(given)} is neither one value, nor one "
            f"for each of axis {axis} of {list(shape)}, nor one for each block of {block} there"
        )
    precision = node.attributes.get_int("precision", 0)
    if precision not in _DIVISIONS:
        return Support.no(f"{node.op_type}: XLA cannot divide in type {ir.DataType(precision)}")
    return Support.yes()


def fits(given: tuple[int, ...], shape: tuple[int, ...], axis: int, block: int) -> bool:
    """Whether scales of shape `given` are those of a tensor, an axis or blocks of `shape`."""
    if given in ((), (1,)):
        return True
    rank = len(shape)
    if rank == 1:
        axis = 0  # the standard's default, 1, does not exist there
    if not -rank <= axis < rank:
        return False
    axis %= rank
    if block and len(given) == rank:
        blocks = list(shape)
        blocks[axis] = -(-shape[axis] // block)
        return list(given) == blocks
    return given == (shape[axis],)


def aligned(value: Operand | None, x: Operand, axis: int, block: int) -> Any:
    """Scales or zero points shaped, and repeated if blocked, to broadcast with `x.array`.

    Those known at compile time stay NumPy arrays.
    """
    if value is None:
        return None
    array = value.plain()
    if np.shape(array) in ((), (1,)):
        return array.reshape(())
    axis = 0 if x.rank == 1 else axis % x.rank
    if not block or value.rank != x.rank:
        shape = [1] * x.rank
        shape[x.axis(axis)] = array.size
        return array.reshape(shape)
    numpy: Any = np if isinstance(array, np.ndarray) else jnp
    size = x.array.shape[x.axis(axis)]
    array = numpy.repeat(array, block, axis=axis)
    array = array[(slice(None),) * axis + (slice(size),)]
    return numpy.moveaxis(array, 1, -1) if x.channels_last else array


@lowering("QuantizeLinear", supports=_supports, layouts=True)
def quantize_linear(
    ctx: Context,
    x: Operand,
    y_scale: Operand,
    y_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Operand:
    """round(x / y_scale) + y_zero_point, limited to the range of the output type."""
    scale = aligned(y_scale, x, axis, block_size)
    narrow = ir.DataType(precision).numpy() if precision else dtype_of(scale)
    zero = aligned(y_zero_point, x, axis, block_size)
    dtype = ctx.output_dtype()
    if dtype in _BYTES and narrow == np.float32 and np.ndim(scale) == _rank(zero) == 0:
        return _to_bytes(ctx, x, scale, zero)
    quotient = _quotient(jnp.asarray(x.array), jnp.asarray(scale), narrow)
    result = quantized(quotient, zero, dtype, saturate=bool(saturate))
    return Operand(result, x.channels_last)


def _rank(zero: Any) -> int:
    return 0 if zero is None else np.ndim(zero)


def _to_bytes(ctx: Context, x: Operand, scale: Any, zero: Any) -> Operand:
    """`x` as int8 or uint8 of one scale, and the same in the type that products want."""
    dtype, left = ctx.output_dtype(), D.integer_form().left
    shifted = recoded_zero(zero, dtype, left)
    array = _behind(x, scale, shifted)
    if array is None:
        array = quantized(_rough_quotient(ctx, x.array, scale), shifted, left)
        if len(ctx.node.outputs[0].uses()) > 1:
            # One array for all: without the barrier each fusion that reads it would compute it.
            array = lax.optimization_barrier(array)  # type: ignore[no-untyped-call]
    behind = Quantized(array, shifted)
    return Operand(recoded(array, dtype), x.channels_last, behind)


def _behind(x: Operand, scale: Any, zero: Any) -> Any:
    """The bytes that `x` was dequantized from, if quantizing it gives just those, or None."""
    if x.quantized is None:
        return None
    left, source = D.integer_form().left, x.quantized.array
    moved = recoded_zero(x.quantized.zero, source.dtype, left)
    array = recoded(source, left)
    found, wanted = Quantized(array, moved, x.quantized.scale), Quantized(array, zero, scale)
    return array if x.quantized.axis is None and same_quantization(found, wanted) else None


def _rough_quotient(ctx: Context, x: Any, scale: Any) -> Any:
    """x / scale in fp32; a value that was computed, and rounded then, is not divided exactly."""
    x = jnp.asarray(x)
    value = ctx.node.inputs[0]
    assert value is not None
    is_known = isinstance(scale, np.ndarray | np.generic) and 1e-30 < float(scale) < 1e30
    if is_known and value.producer() is not None and x.dtype == jnp.float32:
        return x * (np.float32(1) / scale)
    return _quotient(x, jnp.asarray(scale), np.dtype(np.float32))


def _quotient(x: Any, scale: Any, dtype: np.dtype[Any]) -> Any:
    """x / scale, rounded to `dtype`, in fp32 or wider."""
    if dtype == np.int32:  # float64 holds both, and their quotient to more than one half
        return divide(x.astype(jnp.float64), scale.astype(jnp.float64))
    if dtype == jnp.float8_e8m0fnu:  # a power of two, which is no precision
        dtype = np.dtype(np.float32)
    wide = wide_dtype(dtype)
    quotient = divide(x.astype(dtype).astype(wide), scale.astype(dtype).astype(wide))
    return quotient.astype(dtype).astype(wide)


@lowering("DequantizeLinear", supports=_supports, layouts=True)
def dequantize_linear(
    ctx: Context,
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Operand:
    """(x - x_zero_point) x_scale; half precision computes in fp32."""
    scale = aligned(x_scale, x, axis, block_size)
    zero = aligned(x_zero_point, x, axis, block_size)
    if x.array.dtype not in _BYTES:
        return Operand(dequantized(x.array, zero, scale, ctx.output_dtype()), x.channels_last)
    array = x.array if x.quantized is None else x.quantized.array
    zero = recoded_zero(zero, x.array.dtype, array.dtype)
    result = dequantized(array, zero, scale, ctx.output_dtype())
    behind = None
    if scale.dtype == np.float32 and (scale.ndim == 0 or not block_size):
        behind = _quantized(x, array, zero, x_scale.plain(), axis)
    return Operand(result, x.channels_last, behind)


def _quantized(x: Operand, array: Any, zero: Any, scale: Any, axis: int) -> Quantized:
    if scale.size == 1:
        return Quantized(array, zero, scale.reshape(()))
    return Quantized(array, zero, scale, 0 if x.rank == 1 else axis % x.rank)


@lowering("DynamicQuantizeLinear", layouts=True)
def dynamic_quantize_linear(ctx: Context, x: Operand) -> tuple[Operand, Operand, Operand]:
    """Quantize to uint8 with the range of `x` itself, which is widened to hold 0."""
    array = jnp.asarray(x.array)
    low, high = _range(array)
    scale = divide(high - low, np.float32(255))
    # A scale of 0 is that of zeros alone; 0 / 0 then quantizes to the lowest value, which is 0.
    zero = quantized(divide(-low, scale), None, np.uint8)
    y = quantized(divide(array, scale), zero, np.uint8)
    return Operand(y, x.channels_last), Operand(scale), Operand(zero)


def _range(x: Any) -> tuple[Any, Any]:
    """The smallest and the largest of 0 and the elements of x that are not NaN.

    XLA's own minimum looks for NaN, and its CPU backend does not vectorise that: 300 microseconds
    for 128 x 768 values, where a comparison takes 16.
    """
    missing = -x.size % _COLUMNS
    rows = jnp.reshape(
        lax.pad(jnp.ravel(x), np.zeros((), x.dtype), [(0, missing, 0)]), (-1, _COLUMNS)
    )
    zero = np.zeros((), x.dtype)
    low = lax.reduce(rows, zero, lambda a, b: jnp.where(b < a, b, a), (0,))
    high = lax.reduce(rows, zero, lambda a, b: jnp.where(b > a, b, a), (0,))
    return jnp.min(low), jnp.max(high)
