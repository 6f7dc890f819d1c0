"""Products of values whose bytes are known: DequantizeLinear, product, then QuantizeLinear.

    sum (a - az) sa (b - bz) sb  =  (sum a b - excess) sa sb

The sum is exact in int32. What zero points add to it, `excess`, is scaled and taken out of the bias
at compile time: as an int32 subtraction of its own it costs as much as the product (3136 x 64 x 256
on two cores with VNNI: product 104 us, with scale, bias, Relu and rounding 140, with that 233).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla.lowering import dequantized_constant

Array = np.ndarray[Any, Any]

_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_MOST_TERMS = (1 << 31) // (255 * 128)
"""Products of uint8 and int8 whose sum int32 holds, whatever they are."""


@dataclass(frozen=True)
class Levels:
    """A dequantized constant: (array - zero) scale.

    Attributes:
        array: Integers.
        scale: fp32, one or one for each index of `axis`.
        zero: Of the type of `array`, shaped as `scale`; None for 0.
        axis: Axis of the scales; None for one.
    """

    array: Array
    scale: Array
    zero: Array | None
    axis: int | None

    @property
    def digest(self) -> str:
        """Names scale and zero point."""
        parts = (self.scale.tobytes(), b"" if self.zero is None else self.zero.tobytes(), self.axis)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def values(self) -> Array:
        """The dequantized values in fp32, as the operator computes them."""
        shape = [1] * self.array.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        centred = self.array.astype(np.int64)
        if self.zero is not None:
            centred = centred - self.zero.astype(np.int64).reshape(shape)
        result: Array = centred.astype(np.float32) * self.scale.reshape(shape)
        return result


def levels(value: ir.Value | None) -> Levels | None:
    """The integers behind `value`, if it is a dequantized constant in fp32 without blocks."""
    node = dequantized_constant(value)
    if node is None or not _is_single(value) or node.attributes.get_int("block_size", 0) != 0:
        return None
    array, scale, zero = (*map(_constant, node.inputs), None)[:3]
    assert array is not None
    assert scale is not None
    if scale.dtype != np.float32 or array.dtype not in (np.int8, np.uint8, np.int32):
        return None
    zero = None if zero is None or not zero.any() else zero
    if scale.size == 1:
        return Levels(array, scale.reshape(()), None if zero is None else zero.reshape(()), None)
    axis = node.attributes.get_int("axis", 1) % array.ndim if array.ndim > 1 else 0
    return Levels(array, scale, zero, axis)


def is_bytes(value: ir.Value | None) -> bool:
    """Whether `value` is dequantized from bytes of one scale, in fp32."""
    node = value.producer() if value is not None else None
    if node is None or not G.is_standard(node, "DequantizeLinear") or not _is_single(value):
        return False
    x, *parameters = node.inputs
    shapes = [G.static_shape(each) for each in parameters if each is not None]
    single = all(shape in ((), (1,)) for shape in shapes)
    return x is not None and x.dtype in _BYTES and single


def fits(terms: int) -> bool:
    """Whether int32 holds any sum of `terms` products."""
    return 0 < terms <= _MOST_TERMS


def known(value: ir.Value | None) -> Array | None:
    """`value` as a NumPy array, if it is constant or dequantized from constants."""
    if value is None or value.const_value is not None:
        return _constant(value)
    found = levels(value)
    return None if found is None else found.values()


def scaled(product: Any, excess: Any, scale: Any, bias: Any = None) -> Any:
    """(product - excess) scale + bias in fp32; the parameters broadcast to `product`, int32."""
    offset = bias
    if excess is not None:
        # In float64 if all of it is known: it may nearly cancel with the product.
        wide = np.float64 if isinstance(excess * scale, np.ndarray | np.generic) else np.float32
        offset = (0 if bias is None else bias) - excess.astype(wide) * scale
    result = product.astype(jnp.float32) * scale
    return result if offset is None else result + offset.astype(np.float32)


def _constant(value: ir.Value | None) -> Array | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _is_single(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT
