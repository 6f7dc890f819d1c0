"""Conversions of element type: Cast, CastLike, BitCast."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import onnx_ir as ir

from xrt.engines.xla.lowering import Context, lowering
from xrt.graph import Support

_FLOAT8 = tuple(
    np.dtype(name)
    for name in (
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
    )
)
_PACKED_INTEGERS = tuple(
    np.dtype(name) for name in (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4)
)
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)


@lowering("Cast", elementwise=True)
def cast(ctx: Context, x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    """Convert to the type `to`."""
    return convert(x, ctx.output_dtype(), saturate=bool(saturate), round_mode=round_mode)


@lowering("CastLike", elementwise=True)
def cast_like(ctx: Context, x: Any, like: Any, *, saturate: int = 1, round_mode: str = "up") -> Any:
    """Convert to the type of the second input, whose values do not matter."""
    return convert(x, ctx.output_dtype(), saturate=bool(saturate), round_mode=round_mode)


def convert(x: Any, dtype: np.dtype[Any], *, saturate: bool = True, round_mode: str = "up") -> Any:
    """`x` as `dtype` by the rules of ONNX's Cast."""
    x = jnp.asarray(x)
    if dtype == jnp.bool_:
        return x != 0
    if dtype == _E8M0:
        return _to_e8m0(x, saturate, round_mode)
    if dtype in _PACKED_INTEGERS:
        return x.astype(jnp.int32).astype(dtype)  # keeps the low bits, as for all integers
    if dtype in _FLOAT8 and saturate:
        limit = float(ml_dtypes.finfo(dtype).max)
        x = jnp.clip(x.astype(jnp.float32), -limit, limit)
    return x.astype(dtype)


def _to_e8m0(x: Any, saturate: bool, round_mode: str) -> Any:
    """The exponent of x, rounded; NaN, infinity and overflow are the code 255."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    exponent, rest = (bits >> 23) & 0xFF, bits & 0x7FFFFF
    if round_mode == "up":
        up = rest > 0
    elif round_mode == "nearest":  # ties go up, except among subnormal numbers
        up = jnp.where(exponent == 0, rest > 0x400000, rest >= 0x400000)
    else:
        up = jnp.zeros(x.shape, bool)
    code = jnp.minimum(exponent + up, 0xFE) if saturate else exponent + up
    code = jnp.where(exponent == 0xFF, 0xFF, code)
    return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), _E8M0)


def _same_width(node: ir.Node) -> Support:
    source, target = node.inputs[0], node.outputs[0]
    assert source is not None
    assert source.dtype is not None
    assert target.dtype is not None
    if source.dtype.bitwidth != target.dtype.bitwidth:
        return Support.no(f"BitCast from {source.dtype} to {target.dtype} changes the bit width")
    return Support.yes()


@lowering("BitCast", elementwise=True, supports=_same_width)
def bit_cast(ctx: Context, x: Any, *, to: int) -> Any:
    """The same bits as another type; a boolean is a byte of 0 or 1."""
    x = jnp.asarray(x)
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    dtype = ctx.output_dtype()
    if dtype == jnp.bool_:
        return jax.lax.bitcast_convert_type(x, jnp.uint8) != 0
    return jax.lax.bitcast_convert_type(x, dtype)
