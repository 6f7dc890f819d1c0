"""Quantization and integer products by XLA: the very numbers of the host, in both layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.engines.xla.ops_support import run_channels_last, run_node, support
from tests.kernels.host.support import run as run_on_host
from tests.kernels.host.test_quantization import (
    FLOAT8,
    INTEGERS,
    code,
    equal,
    floats,
    integers,
    scales,
)

RNG = np.random.default_rng(3)
NAN, INF = float("nan"), float("inf")
BYTES = [(np.int8, np.int8), (np.uint8, np.int8), (np.uint8, np.uint8)]
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]


def same(
    op: str,
    inputs: Sequence[Any],
    *,
    outputs: int = 1,
    constants: Sequence[int] = (),
    channels_last: bool = True,
    **attributes: Any,
) -> None:
    """Fail unless XLA gives the host's numbers, with any constants, in both layouts."""
    want = run_on_host(op, *inputs, output_count=outputs, **attributes)
    keywords = {"outputs": outputs, "constants": constants, **attributes}
    results = [run_node(op, inputs, **keywords)]
    if channels_last and not constants and np.ndim(inputs[0]) >= 3:
        results.append(run_channels_last(op, inputs, **keywords))
    for got in results:
        for one, other in zip(got, want, strict=True):
            equal(one, np.asarray(other))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_quantize_and_dequantize_every_integer(dtype: Any) -> None:
    high = int(ml_dtypes.iinfo(np.dtype(dtype)).max)
    x = floats(3, 4, 5, spread=high / 15)
    # jax.jit, which that layout is tested with, does not take packed arguments.
    both: dict[str, Any] = {"channels_last": high > 15}
    for scale, zero in ((scales(4), integers(dtype, 4)), (scales(1), integers(dtype, 1))):
        same("QuantizeLinear", [x, scale, zero], **both)
        same("DequantizeLinear", [integers(dtype, 3, 4, 5), scale, zero], **both)
    same("QuantizeLinear", [x, scales()], output_dtype=code(dtype), channels_last=False)


def test_values_half_way_between_integers_round_as_ieee_division_has_it() -> None:
    # XLA would multiply by the reciprocal of the scale, which moves some of these by one.
    scale = RNG.uniform(0.01, 1, 64).astype(np.float32)
    steps = np.arange(-40, 40, dtype=np.float32) + np.float32(0.5)
    x = steps[:, None] * scale
    for constants in ((), (1,), (1, 2)):
        same("QuantizeLinear", [x, scale, integers(np.int8, 64)], constants=constants)
    for one in scale[:4]:
        value = np.array(one, np.float32)
        same("QuantizeLinear", [steps * one, value], constants=(1,), output_dtype=code(np.int8))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ml_dtypes.int4])
def test_saturation_infinity_and_nan(dtype: Any) -> None:
    x = np.array([-INF, -3e38, -1e6, -0.0, 1e6, 3e38, INF, NAN], np.float32)
    same("QuantizeLinear", [x, np.array(1e-3, np.float32), np.array(1, dtype)])


@pytest.mark.parametrize("dtype", [*FLOAT8, ml_dtypes.float4_e2m1fn])
@pytest.mark.parametrize("saturate", [0, 1])
def test_narrow_floats(dtype: Any, saturate: int) -> None:
    x = np.array([0, -0.0, 1.1, -3.3, 448, 470, 1e6, -1e6, 6e4, INF, -INF, 1e-9], np.float32)
    for scale in FLOATS:
        same("QuantizeLinear", [x, np.array(0.25, scale), np.zeros((), dtype)], saturate=saturate)
    zero = np.array([0, 1], dtype)
    pair = [x.reshape(-1, 2), np.array([1, 3], np.float32), zero]
    same("QuantizeLinear", pair, saturate=saturate)
    same("DequantizeLinear", [floats(6, 2).astype(dtype), *pair[1:]])


@pytest.mark.parametrize("x_kind", [*FLOATS, np.int32])
@pytest.mark.parametrize("scale_kind", FLOATS)
def test_types_of_input_and_scale(x_kind: Any, scale_kind: Any) -> None:
    x = floats(5, 4, spread=9).astype(x_kind)
    scale, zero = scales(4).astype(scale_kind), integers(np.uint8, 4)
    same("QuantizeLinear", [x, scale, zero])
    same("QuantizeLinear", [x, scale, zero], precision=code(np.float32))
    same("QuantizeLinear", [x, scale, zero], precision=code(np.float16))
    if x_kind is not np.int32:
        same("DequantizeLinear", [zero, scale, zero], output_dtype=code(x_kind))


def test_scales_of_integers_and_of_exponents() -> None:
    x = RNG.integers(-(2**31), 2**31, 200).astype(np.int32)
    same("QuantizeLinear", [x, np.array(2**24 + 1, np.int32), np.zeros((), np.int8)])
    exponents = np.array([0.5, 2, 1], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    same("QuantizeLinear", [floats(4, 3, spread=9), exponents])
    kind: dict[str, Any] = {"output_dtype": code(np.float32)}
    same("DequantizeLinear", [integers(np.int8, 4, 3), exponents], **kind)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("block", [2, 3])
def test_blocks(axis: int, block: int) -> None:
    shape = [4, 6, 5]
    shape[axis] = -(-shape[axis] // block)
    scale, zero = scales(*shape), integers(np.int8, *shape)
    attributes: dict[str, Any] = {"axis": axis, "block_size": block}
    same("QuantizeLinear", [floats(4, 6, 5), scale, zero], **attributes)
    same("DequantizeLinear", [integers(np.int8, 4, 6, 5), scale, zero], **attributes)


def test_dequantize_int32() -> None:
    x = RNG.integers(-(2**31), 2**31, (4, 3, 2)).astype(np.int32)
    same("DequantizeLinear", [x, scales(3)])
    same("DequantizeLinear", [x, scales(3), np.array([0, 1, -1], np.int32)])


def test_negative_axes_and_vectors() -> None:
    same("QuantizeLinear", [floats(2, 3, 4, 5), scales(3), integers(np.int8, 3)], axis=-3)
    same("QuantizeLinear", [floats(4), scales(4)])
    same("QuantizeLinear", [floats(4), scales(2)], block_size=2)
    same("QuantizeLinear", [floats(), scales()])


def test_empty_tensors() -> None:
    same("QuantizeLinear", [np.zeros((0, 3), np.float32), scales(3)])
    same("DequantizeLinear", [np.zeros((0, 3), np.int8), scales(3), np.ones(3, np.int8)])
    same("DynamicQuantizeLinear", [np.zeros((2, 0), np.float32)], outputs=3)
    same("MatMulInteger", [np.zeros((4, 0), np.int8), np.zeros((0, 5), np.int8)])
    same("ConvInteger", [np.zeros((0, 2, 5, 5), np.uint8), np.ones((3, 2, 3, 3), np.int8)])


@pytest.mark.parametrize("offset", [-9.0, 0.0, 9.0])
def test_dynamic_quantization(offset: float) -> None:
    same("DynamicQuantizeLinear", [floats(3, 40) + np.float32(offset)], outputs=3)
    same("DynamicQuantizeLinear", [floats(3, 40) * 0], outputs=3)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [((4, 6), (6, 5)), ((2, 3, 4, 6), (6, 5)), ((2, 1, 4, 6), (3, 6, 5)), ((6,), (6, 5)),
     ((4, 6), (6,)), ((6,), (6,)), ((1, 300), (300, 7))],
)  # fmt: skip
def test_matmul_integer(left: Any, right: Any, a_shape: Any, b_shape: Any) -> None:
    a, b = integers(left, *a_shape), integers(right, *b_shape)
    zeros = [integers(left, 1), integers(right)]
    same("MatMulInteger", [a, b], channels_last=False)
    same("MatMulInteger", [a, b, *zeros], channels_last=False)
    same("MatMulInteger", [a, b, *zeros], constants=(1, 2, 3))


@pytest.mark.parametrize(("left", "right"), BYTES)
def test_zero_points_of_rows_and_columns(left: Any, right: Any) -> None:
    a, b = integers(left, 2, 3, 40), integers(right, 40, 50)
    each = [integers(left, 2, 3, 1), integers(right, 50)]
    for zeros in ([integers(left, 3), integers(right, 50)], each, [None, integers(right, 50)]):
        present = [i + 2 for i, zero in enumerate(zeros) if zero is not None]
        same("MatMulInteger", [a, b, *zeros], channels_last=False)
        same("MatMulInteger", [a, b, *zeros], constants=(1, *present))


def test_extreme_values_sum_exactly_and_wrap_beyond_32_bits() -> None:
    for value in (-128, 127):
        a, b = np.full((3, 768), value, np.int8), np.full((768, 8), -128, np.int8)
        same("MatMulInteger", [a, b])
    long = np.full((2, 40000), 255, np.uint8), np.full((40000, 2), 255, np.uint8)
    same("MatMulInteger", list(long))
    x, w = np.full((1, 64, 5, 5), -128, np.int8), np.full((8, 64, 3, 3), -128, np.int8)
    same("ConvInteger", [x, w], constants=(1,), pads=(1, 1, 1, 1))


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize(
    ("spatial", "kernel", "attributes"),
    [
        ((9,), (3,), {"pads": (1, 2)}),
        ((7, 8), (3, 3), {"pads": (1, 0, 2, 1), "strides": (2, 1)}),
        ((9, 8), (3, 2), {"dilations": (2, 3), "pads": (1, 1, 1, 1)}),
        ((7, 8), (1, 1), {"strides": (2, 3)}),
        ((4, 5, 3), (2, 3, 3), {"auto_pad": "SAME_UPPER"}),
        ((7, 8), (3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
        ((7, 8), (3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
    ],
)
def test_conv_integer(
    left: Any, right: Any, spatial: Any, kernel: Any, attributes: dict[str, Any]
) -> None:
    x = integers(left, 2, 4, *spatial)
    w = integers(right, 8, 4 // attributes.get("group", 1), *kernel)
    x_zero = integers(left)
    same("ConvInteger", [x, w, x_zero, integers(right, 8)], constants=(1, 2, 3), **attributes)
    same("ConvInteger", [x, w, x_zero, integers(right, 8)], constants=(1,), **attributes)
    same("ConvInteger", [x, w], constants=(1,), **attributes)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("group", [1, 2])
def test_conv_integer_of_a_weight_that_is_computed(left: Any, right: Any, group: int) -> None:
    x, w = integers(left, 1, 4, 6, 5), integers(right, 6, 4 // group, 3, 3)
    given = [x, w, integers(left), integers(right)]
    same("ConvInteger", given, group=group, pads=(1, 1, 1, 1))


@pytest.mark.parametrize("depth", [1, 3])
def test_conv_integer_of_few_channels(depth: int) -> None:
    x, w = integers(np.uint8, 1, depth, 9, 8), integers(np.int8, 5, depth, 3, 3)
    given = [x, w, integers(np.uint8), integers(np.int8, 5)]
    same("ConvInteger", given, constants=(1, 3), strides=(2, 2), pads=(1, 1, 1, 1))
    same("ConvInteger", given, strides=(2, 2), pads=(1, 1, 1, 1))
    # 3 x 21 x 21 products of 255 x 255 are beyond what fp32 holds.
    x, w = np.full((1, depth, 21, 21), 255, np.uint8), np.full((2, depth, 21, 21), 255, np.uint8)
    same("ConvInteger", [x, w], constants=(1,))


def test_groups_too_deep_for_fp32_stay_exact() -> None:
    x, w = np.full((1, 256, 4, 4), 255, np.uint8), np.full((2, 128, 3, 3), 127, np.int8)
    same("ConvInteger", [x, w], constants=(1,), group=2, pads=(1, 1, 1, 1))
    same("ConvInteger", [x, w], group=2, channels_last=False)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("channels", [(), (6,)])
@pytest.mark.parametrize("group", [1, 2])
def test_qlinear_conv(left: Any, right: Any, channels: tuple[int, ...], group: int) -> None:
    x, w = integers(left, 2, 4, 6, 7), integers(right, 6, 4 // group, 3, 3)
    head = [x, scales(1), integers(left, 1), w, scales(*channels), integers(right, *channels)]
    head += [np.array(3, np.float32), integers(left)]
    bias = RNG.integers(-5000, 5000, 6).astype(np.int32)
    attributes: dict[str, Any] = {"group": group, "pads": (1, 1, 1, 1)}
    same("QLinearConv", [*head, bias], constants=range(1, 9), **attributes)
    same("QLinearConv", [*head, bias], constants=(3,), **attributes)
    same("QLinearConv", head, **attributes)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("kind", FLOATS)
def test_qlinear_matmul(left: Any, right: Any, kind: Any) -> None:
    a, b = integers(left, 2, 3, 16), integers(right, 16, 20)
    for rows, columns in (((), (1,)), ((3,), (20,)), ((2, 3, 1), (1, 20))):
        sides = [a, scales(*rows).astype(kind), integers(left, *rows)]
        sides += [b, scales(*columns).astype(kind), integers(right, *columns)]
        given = [*sides, np.array(4, kind), integers(right)]
        same("QLinearMatMul", given, constants=range(1, 8))
        same("QLinearMatMul", given, channels_last=False)


@pytest.mark.parametrize("dtype", FLOAT8)
def test_qlinear_matmul_of_float8(dtype: Any) -> None:
    a, b = RNG.integers(-3, 4, (2, 3, 6)).astype(dtype), RNG.integers(-3, 4, (6, 5)).astype(dtype)
    one, zero = np.ones((), np.float32), np.zeros((), dtype)
    given = [a, one, zero, b, one / 4, zero, one * 2, zero]
    same("QLinearMatMul", [np.asarray(array) for array in given], channels_last=False)
    mixed = [a, one, zero, integers(np.uint8, 6, 5), one / 4, np.array(9, np.uint8), one * 2, zero]
    same("QLinearMatMul", [np.asarray(array) for array in mixed], constants=(3, 5))


def test_refusals() -> None:
    x = floats(2, 3)
    assert "'x1' of shape [4]" in support("QuantizeLinear", [x, scales(4)]).reason
    assert "block of 2" in support("QuantizeLinear", [x, scales(2, 3)], block_size=2).reason
    sixes = np.zeros(3, ml_dtypes.float6_e2m3fn)
    assert "FLOAT6E2M3" in support("QuantizeLinear", [x, scales(3), sixes]).reason
    assert "FLOAT8E5M2" in support("QuantizeLinear", [x, scales(3)], precision=19).reason
    four = [integers(np.int8, 1, 2, 3, 3, 3, 3), integers(np.int8, 1, 2, 1, 1, 1, 1)]
    assert "4 spatial dimensions" in support("ConvInteger", four).reason
