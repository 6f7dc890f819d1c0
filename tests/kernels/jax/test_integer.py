"""Integer products and rounding, against NumPy's 64-bit integers and IEEE division."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from xrt.kernels.jax import integer, integer_conv

RNG = np.random.default_rng(5)
FORMS = {
    "signed": integer.SIGNED,
    "VNNI": integer.VNNI,
    "large patches": replace(integer.VNNI, patch_bytes=0),
    "GPU": integer.GPU,
}
BYTES = [(np.int8, np.int8), (np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8)]


def integers(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def wide(x: Any, zero: Any) -> Any:
    return x.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, jnp.int4, jnp.uint4])
@pytest.mark.parametrize("traced", [False, True])
def test_requantize(dtype: Any, traced: bool) -> None:
    acc = RNG.integers(-(2**24), 2**24, (40, 6)).astype(np.int32)
    acc[0], acc[1] = 2**31 - 1, -(2**31)
    limits = jnp.iinfo(dtype)
    scale = RNG.uniform(0.5, 2, 6).astype(np.float32) * np.float32(int(limits.max) / 2**24)
    zero = np.array([1, 0, 1, 0, 1, 1]).astype(dtype)
    want = np.rint(acc.astype(np.float32) * scale) + zero.astype(np.float32)
    want = np.clip(want, int(limits.min), int(limits.max))
    if traced:
        got = jax.jit(integer.requantize, static_argnums=3)(acc, scale, zero, dtype)
    else:
        got = jax.jit(lambda acc: integer.requantize(acc, scale, zero, dtype))(acc)
    assert got.dtype == dtype
    np.testing.assert_array_equal(np.asarray(got).astype(np.float32), want)


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("zeros", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("form", FORMS)
def test_dot(left: Any, right: Any, zeros: tuple[bool, bool], rows: int, form: str) -> None:
    a, b = integers(left, rows, 21), integers(right, 21, 10)
    a_zero = integers(left, rows, 1) if zeros[0] else None
    b_zero = integers(right, 10) if zeros[1] else None
    want = wide(a, a_zero) @ wide(b, b_zero)
    dot = functools.partial(integer.integer_dot, form=FORMS[form])
    got = jax.jit(dot)(a, b, a_zero, b_zero)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)
    known = integer.sums(b, (-2,))
    static = jax.jit(lambda a: dot(a, b, a_zero, b_zero, b_sums=known))
    np.testing.assert_array_equal(static(a), want)


GEOMETRIES = {
    "3x3": ((7, 8), (3, 3), (1, 1), (1, 0, 2, 1), (1, 1)),
    "strided, dilated": ((9, 11), (3, 2), (2, 3), (1, 1, 1, 1), (2, 3)),
    "1x1": ((6, 5), (1, 1), (2, 1), (0, 0, 0, 0), (1, 1)),
    "one dimension": ((9,), (4,), (2,), (1, 2), (1,)),
    "three dimensions": ((4, 5, 3), (2, 3, 1), (1, 2, 1), (1, 0, 0, 0, 1, 1), (1, 1, 1)),
}


@pytest.mark.parametrize(("left", "right"), BYTES)
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prepared", [False, True])
def test_convolution(left: Any, right: Any, name: str, form: str, prepared: bool) -> None:
    spatial, kernel, strides, pads, dilations = GEOMETRIES[name]
    x, w = integers(left, 2, *spatial, 5), integers(right, 6, 5, *kernel)
    x_zero, w_zero = integers(left), integers(right, 6)
    want = reference(x, x_zero, w, w_zero, strides, pads, dilations)
    weight, zero = np.moveaxis(w, (0, 1), (-1, -2)), w_zero
    known = None
    if prepared:
        known = integer.sums(w, range(1, w.ndim))
        weight, zero = integer_conv.conv_weight(w), integer.signed_zero(w.dtype, w_zero)
    function = jax.jit(
        lambda x, w: integer_conv.integer_conv(
            x,
            x_zero,
            w,
            zero,
            strides=strides,
            pads=pads,
            dilations=dilations,
            w_sums=known,
            form=FORMS[form],
        )
    )
    got = function(x, weight)
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, want)


def reference(
    x: Any, x_zero: Any, w: Any, w_zero: Any, strides: Any, pads: Any, dilations: Any
) -> Any:
    """By torch in float64, which holds every sum exactly."""
    rank = len(strides)
    data = torch.from_numpy(np.moveaxis(wide(x, x_zero), -1, 1).astype(np.float64))
    around = [
        p for pair in zip(pads[rank - 1 :: -1], pads[: -rank - 1 : -1], strict=True) for p in pair
    ]
    data = torch.nn.functional.pad(data, around)
    centred = wide(w, w_zero.reshape(-1, *(1,) * (rank + 1))).astype(np.float64)
    function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
    result = function(data, torch.from_numpy(centred), stride=strides, dilation=dilations)
    return np.moveaxis(result.numpy(), 1, -1)
