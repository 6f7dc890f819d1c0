"""Products of quantized integers: MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv.

Sums of products are exact in int32 (see `xrt.kernels.jax.integer`). A convolution in groups has no
fast integer form in XLA, nor has one of fewer than four channels where convolutions are no products
of patches; it runs as a floating-point one, in a type that holds every sum exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, Prepared, attributes, lowering
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.conv import Geometry, convolve, prepared_weight
from xrt.engines.xla.ops.numerics import is_float
from xrt.graph import Support
from xrt.kernels.jax import integer as kernels
from xrt.kernels.jax import integer_conv as convolution
from xrt.kernels.jax.elementwise import divide

Array = np.ndarray[Any, Any]

_EXACT = 1 << 24
"""fp32 holds every integer up to this one."""
_LARGEST = 255
"""The largest |x - zero| of 8 bits."""
_NARROW = 4
"""Convolutions of fewer channels are faster in fp32 where they are not products of patches."""


@dataclass(frozen=True)
class _Positions:
    """Where the operators have the inputs of a convolution."""

    x: int
    x_zero: int
    w: int
    w_zero: int


_CONV_INTEGER = _Positions(0, 2, 1, 3)
_QLINEAR_CONV = _Positions(0, 2, 3, 5)


def _constant(node: ir.Node, position: int) -> Array | None:
    """The constant input at `position`, or None."""
    value = node.inputs[position] if position < len(node.inputs) else None
    tensor = None if value is None else value.const_value
    return None if tensor is None else tensor.numpy()


def _known_zero(node: ir.Node, position: int) -> Array | None:
    """The zero point at `position`, 0 if the node has none; None if it is computed."""
    if position >= len(node.inputs) or node.inputs[position] is None:
        return np.zeros((), np.int8)
    return _constant(node, position)


def _input_dtype(node: ir.Node, position: int) -> np.dtype[Any]:
    value = node.inputs[position]
    assert value is not None
    assert value.dtype is not None
    return value.dtype.numpy()


def _geometry(node: ir.Node, at: _Positions) -> Geometry:
    """The geometry of a convolution; its dtype is the one to compute in, int8 or a float."""
    x, w, y = (
        G.static_shape(value) for value in (node.inputs[at.x], node.inputs[at.w], node.outputs[0])
    )
    assert x is not None
    assert w is not None
    assert y is not None
    given = attributes(node)
    window = windows.resolve(
        x[2:],
        y[2:],
        w[2:],
        given.get("strides"),
        given.get("dilations"),
        given.get("pads"),
        given.get("auto_pad", "NOTSET"),
    )
    pads = (*(low for low, _ in window.pads), *(high for _, high in window.pads))
    groups = int(given.get("group", 1))
    dtype = "int8"
    if groups > 1 or (x[1] < _NARROW and not D.integer_form().columns):
        exact = _float_type(_constant(node, at.w), _known_zero(node, at.w_zero), w)
        dtype = exact if groups > 1 or exact == "float32" else "int8"
    return Geometry(
        x[0],
        x[2:],
        x[1],
        w[0],
        w[2:],
        window.strides,
        pads,
        window.dilations,
        groups,
        dtype,
    )


def _float_type(w: Array | None, zero: Array | None, shape: tuple[int, ...]) -> str:
    """The type that holds every sum of products with a weight of `shape`, `w` if constant."""
    largest = _LARGEST * math.prod(shape[1:])
    if w is not None and zero is not None and w.size:
        centred = np.abs(_centred(w, zero))
        largest = int(centred.reshape(len(centred), -1).sum(axis=1).max())
    return "float32" if largest * _LARGEST < _EXACT else "float64"


def _centred(w: Any, zero: Any) -> Any:
    """An OI... weight less its zero point, one for all or one for each output channel."""
    if zero is None:
        return w.astype(np.int32)
    return w.astype(np.int32) - zero.astype(np.int32).reshape(-1, *(1,) * (w.ndim - 1))


def _prepare(at: _Positions) -> Any:
    def prepare(node: ir.Node) -> Prepared | None:
        geometry = _geometry(node, at)
        if geometry.dtype == "int8":
            return Prepared("integer conv", convolution.conv_weight)
        zero = _known_zero(node, at.w_zero)
        if zero is None:
            return None
        layout = (geometry.algorithm.name, geometry.planar is None, geometry.groups)
        key = f"integer conv {layout} {geometry.strides} {geometry.dtype} less {zero.tolist()}"
        return Prepared(
            key, lambda w: prepared_weight(geometry, _centred(w, zero).astype(geometry.dtype))
        )

    return prepare


def _convolution(
    ctx: Context, at: _Positions, x: Operand, x_zero: Any, w: Operand, w_zero: Any
) -> Any:
    """The convolution of a node in int32, channels last."""
    geometry = _geometry(ctx.node, at)
    shape = (geometry.n, *geometry.output, geometry.c_out)
    if 0 in shape or 0 in geometry.spatial or geometry.c_in == 0:
        return jnp.zeros(shape, jnp.int32)
    prepared = ctx.prepared(at.w)
    x_zero = None if x_zero is None else x_zero.reshape(())
    if geometry.dtype != "int8":
        return _in_floats(geometry, x, x_zero, w, w_zero, prepared)
    constant = _constant(ctx.node, at.w)
    weight = convolution.conv_weight(w.plain()) if not prepared else w.array
    known = None if constant is None else kernels.sums(constant, range(1, constant.ndim))
    return convolution.integer_conv(
        x.last(),
        x_zero,
        weight,
        kernels.signed_zero(_input_dtype(ctx.node, at.w), w_zero),
        strides=geometry.strides,
        pads=geometry.pads,
        dilations=geometry.dilations,
        w_sums=known,
        form=D.integer_form(),
    )


def _in_floats(
    geometry: Geometry, x: Operand, x_zero: Any, w: Operand, w_zero: Any, prepared: bool
) -> Any:
    data = jnp.asarray(x.last()).astype(geometry.dtype)
    if x_zero is not None:
        data = data - x_zero.astype(geometry.dtype)
    weight = w.array
    if not prepared:
        weight = _centred(jnp.asarray(w.plain()), w_zero).astype(geometry.dtype)
    return convolve(geometry, data, weight, prepared=prepared).astype(jnp.int32)


def _supports_conv(node: ir.Node) -> Support:
    return windows.check_rank(node)


@lowering(
    "ConvInteger", supports=_supports_conv, layouts=True, prepare={1: _prepare(_CONV_INTEGER)}
)
def conv_integer(
    ctx: Context,
    x: Operand,
    w: Operand,
    x_zero_point: Operand | None = None,
    w_zero_point: Operand | None = None,
    **_: Any,
) -> Operand:
    """Convolution of integers in int32; takes and gives channels-last."""
    zeros = [None if zero is None else zero.plain() for zero in (x_zero_point, w_zero_point)]
    return Operand(_convolution(ctx, _CONV_INTEGER, x, zeros[0], w, zeros[1]), True)


@lowering(
    "QLinearConv", supports=_supports_conv, layouts=True, prepare={3: _prepare(_QLINEAR_CONV)}
)
def qlinear_conv(
    ctx: Context,
    x: Operand,
    x_scale: Operand,
    x_zero_point: Operand,
    w: Operand,
    w_scale: Operand,
    w_zero_point: Operand,
    y_scale: Operand,
    y_zero_point: Operand,
    bias: Operand | None = None,
    **_: Any,
) -> Operand:
    """Convolution of integers, quantized again; takes and gives channels-last."""
    acc = _convolution(ctx, _QLINEAR_CONV, x, x_zero_point.plain(), w, w_zero_point.plain())
    if bias is not None:
        acc = acc + bias.plain()
    scale = combined_scale(x_scale.plain(), w_scale.plain(), y_scale.plain())
    zero = y_zero_point.plain().reshape(())
    return Operand(kernels.requantize(acc, scale, zero, ctx.output_dtype()), True)


def combined_scale(x: Any, w: Any, y: Any) -> Any:
    """x w / y in fp32: the accumulator's unit in the output's. Arrays of one element broadcast."""
    x, w, y = (_scalar(scale.astype(np.float32)) for scale in (x, w, y))
    product = x * w
    return product / y if _on_host(product, y) else divide(product, y)


def _on_host(*arrays: Any) -> bool:
    return all(isinstance(array, np.ndarray | np.generic) for array in arrays)


def _scalar(array: Any) -> Any:
    """An array of one element as a scalar, others as they are."""
    return array.reshape(()) if array.size == 1 else array


def _rows(value: Any) -> Any:
    """Parameters of a left operand, one for all or one for each row, shaped [..., M, 1]."""
    if value is None or value.size == 1:
        return None if value is None else value.reshape(())
    return value[:, None] if value.ndim == 1 else value


def _columns(value: Any) -> Any:
    """Parameters of a right operand, one for all or one for each column, shaped [..., 1, N]."""
    return None if value is None else _scalar(value)


def _matrices(a: Any, b: Any) -> tuple[Any, Any]:
    """Vectors as the matrices of one row and one column that a product takes them for."""
    a = jnp.asarray(a)
    return a[None, :] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b


def _column_sums(node: ir.Node, position: int) -> Any:
    """The sums of a constant right operand over its rows, or None."""
    constant = _constant(node, position)
    if constant is None or constant.ndim < 2 or constant.dtype.itemsize > 1:
        return None
    return kernels.sums(constant, (-2,))


def _real(x: Any, zero: Any) -> Any:
    """x - zero in fp32."""
    x = jnp.asarray(x).astype(jnp.float32)
    return x if zero is None else x - zero.astype(np.float32)


def _prepare_matrix(position: int) -> Any:
    def prepare(node: ir.Node) -> Prepared | None:
        value = node.inputs[position]
        is_unsigned = value is not None and value.dtype == ir.DataType.UINT8
        return Prepared("signed", kernels.signed) if is_unsigned else None

    return prepare


def _product(ctx: Context, a: Any, b: Any, a_zero: Any, b_zero: Any, position: int) -> Any:
    """The product of integer matrices in int32; `b` is the node's input at `position`."""
    if ctx.prepared(position):
        b_zero = kernels.signed_zero(np.uint8, b_zero)
    known = _column_sums(ctx.node, position)
    return kernels.integer_dot(
        a, b, _rows(a_zero), _columns(b_zero), b_sums=known, form=D.integer_form()
    )


@lowering("MatMulInteger", prepare={1: _prepare_matrix(1)})
def matmul_integer(
    ctx: Context, a: Any, b: Any, a_zero_point: Any = None, b_zero_point: Any = None
) -> Any:
    """Matrix product of integers in int32; zero points for each row of a and column of b."""
    a, b = _matrices(a, b)
    result = _product(ctx, a, b, a_zero_point, b_zero_point, 1)
    return jnp.reshape(result, ctx.output_shape())


@lowering("QLinearMatMul", prepare={3: _prepare_matrix(3)})
def qlinear_matmul(
    ctx: Context,
    a: Any,
    a_scale: Any,
    a_zero_point: Any,
    b: Any,
    b_scale: Any,
    b_zero_point: Any,
    y_scale: Any,
    y_zero_point: Any,
) -> Any:
    """Matrix product of quantized values, quantized again; float8 ones accumulate in fp32."""
    a, b = _matrices(a, b)
    if is_float(a) or is_float(b):
        if ctx.prepared(3):
            b_zero_point = kernels.signed_zero(np.uint8, b_zero_point)
        acc = jnp.matmul(_real(a, _rows(a_zero_point)), _real(b, _columns(b_zero_point)))
    else:
        acc = _product(ctx, a, b, a_zero_point, b_zero_point, 3)
    scale = combined_scale(_rows(a_scale), _columns(b_scale), y_scale)
    result = kernels.requantize(acc, scale, _scalar(y_zero_point), ctx.output_dtype())
    return jnp.reshape(result, ctx.output_shape())
