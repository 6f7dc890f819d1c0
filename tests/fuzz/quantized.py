"""Strategies of quantization and of integer products."""

from __future__ import annotations

import numpy as np

from tests.fuzz.case import Array, Case
from tests.fuzz.values import Maker, Source, types
from tests.fuzz.windows import conv_parts

INT8 = (np.dtype(np.int8), np.dtype(np.uint8))
SINGLE = np.dtype(np.float32)


def _per(s: Source, shape: tuple[int, ...]) -> tuple[int | None, tuple[int, ...]]:
    """An axis, and the shape of scales along it: one for all, or one for each element of it."""
    if not shape or s.flag():
        return None, s.pick([(), (1,)])
    axis = s.axis(len(shape))
    return axis, (shape[axis],)


def _quantize(s: Source) -> Case:
    dtype = s.pick(types("QuantizeLinear", "T1"))
    if dtype == np.int32:
        dtype = SINGLE
    shape = s.shape(least=1)
    axis, per = _per(s, shape)
    scale_type = dtype if s.flag() else SINGLE
    inputs = [s.array(shape, dtype, "tame"), s.array(per, scale_type, "positive")]
    target = s.pick(types("QuantizeLinear", "T3", narrow=True))
    if s.flag() or target.name.startswith("float8"):
        domain = "any" if target.kind in "iu" else "tame"
        zero = s.array(per, target, domain)
        inputs.append(np.zeros_like(zero) if target.kind not in "iu" else zero)
    return Case("QuantizeLinear", inputs, {"axis": axis}, constants=s.pick([(), (1, 2)]))


def _dequantize(s: Source) -> Case:
    source = s.pick(types("DequantizeLinear", "T1", narrow=True))
    shape = s.shape(least=1)
    axis, per = _per(s, shape)
    scale = s.array(per, s.pick(types("DequantizeLinear", "T2")), "positive")
    domain = "any" if source.kind in "iu" and source.itemsize == 1 else "tame"
    inputs = [s.array(shape, source, domain), scale]
    if s.flag() and source != np.int32:
        zero = s.array(per, source, domain)
        inputs.append(zero if source.kind in "iu" else np.zeros_like(zero))
    return Case("DequantizeLinear", inputs, {"axis": axis}, constants=s.pick([(), (1, 2)]))


def _dynamic(s: Source) -> Case:
    array = s.array(s.shape(1, least=1), SINGLE, "tame")
    return Case("DynamicQuantizeLinear", [array], outputs=3)


def _matmul_integer(s: Source) -> Case:
    m, k, n = s.sizes(3, low=1)
    a = s.array((*s.sizes(s.integer(0, 2), low=1), m, k), s.pick(INT8))
    b = s.array((k, n), s.pick(INT8))
    inputs: list[Array | None] = [a, b]
    if s.flag():
        inputs.append(s.array((), a.dtype))
        if s.flag():
            inputs.append(s.array(s.pick([(), (n,)]), b.dtype))
    return Case("MatMulInteger", inputs, constants=s.pick([(), (1,), (1, 3)]))


def _conv_integer(s: Source) -> Case:
    shape, weight, attributes = conv_parts(s)
    x, w = s.array(shape, s.pick(INT8)), s.array(weight, s.pick(INT8))
    inputs: list[Array | None] = [x, w]
    if s.flag():
        inputs.append(s.array((), x.dtype))
    return Case("ConvInteger", inputs, attributes, constants=s.pick([(), (1,)]))


def _scale(s: Source, shape: tuple[int, ...] = ()) -> Array:
    return np.asarray(s.rng().uniform(0.01, 0.2, shape), np.float32)


def _qlinear_matmul(s: Source) -> Case:
    m, k, n = s.sizes(3, low=1)
    a = s.array((*s.sizes(s.integer(0, 1), low=1), m, k), s.pick(INT8))
    b = s.array((k, n), s.pick(INT8))
    out = s.pick(INT8)
    inputs = [a, _scale(s), s.array((), a.dtype), b, _scale(s), s.array((), b.dtype)]
    return Case("QLinearMatMul", [*inputs, _scale(s), s.array((), out)])


def _qlinear_conv(s: Source) -> Case:
    shape, weight, attributes = conv_parts(s)
    x, w, out = s.array(shape, s.pick(INT8)), s.array(weight, s.pick(INT8)), s.pick(INT8)
    per: tuple[int, ...] = s.pick([(), (weight[0],)])
    inputs: list[Array | None] = [x, _scale(s), s.array((), x.dtype), w, _scale(s, per)]
    inputs += [np.zeros(per, w.dtype), _scale(s), s.array((), out)]
    if s.flag():
        inputs.append(s.rng().integers(-50, 50, weight[0]).astype(np.int32))
    return Case("QLinearConv", inputs, attributes, constants=s.pick([(), (3, 4, 5)]))


TABLE: dict[str, Maker] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
