"""Shapes, indices, reductions, products, normalization, attention and resampling."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.kernels.host.support import assert_close, compare, run
from tests.kernels.host.test_windows import _ort
from xrt.errors import KernelError
from xrt.kernels.host.reduction import REDUCTIONS

RNG = np.random.default_rng(2)


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


# ------------------------------------------------------------------ shapes


def test_reshape_family() -> None:
    x = _x(2, 3, 4)
    for shape in ((6, 4), (0, -1), (-1,), (2, 1, 12)):
        compare("Reshape", x, _i(*shape))
    compare("Reshape", _x(0, 3), _i(3, 0), allowzero=1)
    for axis in (-3, -1, 0, 1, 2, 3):
        compare("Flatten", x, axis=axis)
    compare("Flatten", _x(), axis=0)
    for axes in ((0,), (-1,), (1, -2)):
        compare("Unsqueeze", x, _i(*axes))
    compare("Squeeze", _x(1, 3, 1), _i(0, -1))
    compare("Squeeze", _x(1, 3, 1))
    compare("Transpose", x)
    compare("Transpose", x, perm=[2, 0, 1])
    compare("Transpose", _x())


def test_joins_and_parts() -> None:
    x = _x(5, 4)
    for axis in (0, 1, -1):
        compare("Concat", x, x, axis=axis)
    compare("Concat", _x(0, 4), x, axis=0)
    compare("Split", x, _i(1, 4), axis=0, output_count=2)
    compare("Split", x, num_outputs=2, output_count=2)
    compare("Split", x, num_outputs=2, axis=-1, output_count=2)
    with pytest.raises(KernelError, match="add up"):
        run("Split", x, _i(1, 1), output_count=2)


@pytest.mark.parametrize("start", [-9, -2, 0, 3, 9])
@pytest.mark.parametrize("end", [np.iinfo(np.int64).min, -9, -1, 0, 4, np.iinfo(np.int64).max])
@pytest.mark.parametrize("step", [-2, -1, 1, 3])
def test_slice(start: int, end: int, step: int) -> None:
    (y,) = run("Slice", np.arange(5), _i(start), _i(end), _i(0), _i(step))
    # What ONNX says, spelled out: negative bounds count from the end, then both are clamped.
    low, high = (0, 5) if step > 0 else (-1, 4)
    first = min(max(start + 5 if start < 0 else start, max(low, 0)), high)
    last = min(max(end + 5 if end < 0 else end, low), 5)
    assert y.tolist() == list(range(first, last, step))


def test_creation() -> None:
    compare("Expand", _x(3, 1), _i(2, 1, 4))
    compare("Expand", _x(3, 4), _i(1))
    compare("Tile", _x(2, 3), _i(2, 2))
    compare("Tile", _x(2, 3), _i(0, 2))
    compare("Shape", _x(2, 3, 4), start=-2)
    compare("Size", _x(2, 0))
    for dtype in (np.int64, np.float32, np.float16):
        for bounds in ((1, 10, 3), (10, 1, -4), (1, 1, 1), (0, 7, 2)):
            compare("Range", *(np.array(v, dtype) for v in bounds))
    for upper, k in itertools.product((0, 1), (None, -1, 0, 2, 9)):
        compare("Trilu", _x(2, 3, 4), None if k is None else np.array(k), upper=upper)
    compare("EyeLike", _x(3, 4), k=1, dtype=7)
    for mode in ("DCR", "CRD"):
        compare("DepthToSpace", _x(1, 8, 2, 3), blocksize=2, mode=mode)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode: str) -> None:
    x = _x(3, 4)
    compare("Pad", x, _i(1, 2, 0, 1), mode=mode)
    compare("Pad", x, _i(1, 1), None, _i(-1), mode=mode)
    if mode == "constant":
        compare("Pad", x, _i(1, 0, 2, 0), np.array(7, np.float32))
        assert_close(run("Pad", x, _i(-1, 0, 0, 1))[0], np.pad(x[1:], ((0, 0), (0, 1))))


# ------------------------------------------------------------------ indices


def test_gathers() -> None:
    data = _x(3, 4, 5)
    for axis in (2, 0, 1):  # onnx.reference takes no negative axis for GatherElements
        compare("Gather", data, np.array([[0, -1], [2, 1]]), axis=axis)
        compare("Gather", data, np.array(1), axis=axis)
        compare("Gather", data, np.zeros((0,), np.int64), axis=axis)
        index = RNG.integers(-3, 3, [2 if a == axis % 3 else n for a, n in enumerate(data.shape)])
        compare("GatherElements", data, index, axis=axis)
    (y,) = run("GatherElements", data, np.array([[[0], [-1]]]), axis=2)
    assert y.tolist() == [[[data[0, 0, 0]], [data[0, 1, -1]]]]
    compare("GatherND", data, np.array([[0, 1], [2, -1]]))
    compare("GatherND", data, np.array([[[0], [1]], [[2], [3]], [[0], [-1]]]), batch_dims=1)
    with pytest.raises(KernelError, match="out of bounds"):
        run("Gather", data, np.array(3))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction: str) -> None:
    data = _x(3, 4)
    index = np.array([[0, 2, 1, -1], [1, 0, 2, 2]])
    compare("ScatterElements", data, index, _x(2, 4), axis=1, reduction=reduction)
    compare("ScatterND", data, np.array([[0], [-1]]), _x(2, 4), reduction=reduction)
    kept = data.copy()
    run("ScatterND", data, np.array([[0, 1], [2, 2]]), _x(2), reduction=reduction)
    assert (data == kept).all()


def test_searches() -> None:
    x = np.array([[3, 1, 3, 2], [0, 0, 0, 5]], np.float32)
    for op_type, axis, last in itertools.product(("ArgMax", "ArgMin"), (0, -1), (0, 1)):
        compare(op_type, x, axis=axis, select_last_index=last)
        compare(op_type, x, axis=axis, keepdims=0)
    for dtype, largest, axis in itertools.product((np.float32, np.int64, np.uint8), (0, 1), (0, 1)):
        count = _i(2)
        got = run("TopK", x.astype(dtype), count, axis=axis, largest=largest, output_count=2)
        order = np.argsort(-x if largest else x, axis=axis, kind="stable").take([0, 1], axis)
        assert (got[1] == order).all()
        assert got[0].dtype == dtype
    for largest, places in ((1, [1, 2, 0]), (0, [3, 0, 2])):  # NaN is the greatest
        found = run(
            "TopK", np.array([1, np.nan, 2, 0], "f4"), _i(3), largest=largest, output_count=2
        )
        assert found[1].tolist() == places
    compare("NonZero", np.array([[1, 0], [2, 3]], np.float32))
    compare("NonZero", np.zeros((2, 0), np.float32))
    compare(
        "OneHot", np.array([[0, -1], [5, 2]]), np.array(3), np.array([0, 1], np.float32), axis=1
    )
    for exclusive, reverse in itertools.product((0, 1), repeat=2):
        compare("CumSum", x, np.array(1), exclusive=exclusive, reverse=reverse)


# ------------------------------------------------------------------ reductions


@pytest.mark.parametrize("op_type", sorted(REDUCTIONS))
def test_reduction(op_type: str) -> None:
    x = RNG.uniform(0.5, 1.5, (2, 3, 4)).astype(np.float32)
    for axes, keepdims in itertools.product((None, (1,), (-1, 0), (0, 1, 2)), (0, 1)):
        compare(op_type, x, None if axes is None else _i(*axes), keepdims=keepdims)
    compare(op_type, x, noop_with_empty_axes=1)
    if op_type != "ReduceLogSumExp":  # onnx.reference fails on a scalar here
        compare(op_type, np.asarray(x[0, 0, 0]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_sums_of_narrow_floats_accumulate_in_float32(dtype: Any) -> None:
    ones = np.ones((1, 4096), dtype)
    (total,) = run("ReduceSum", ones, _i(1))
    assert total.dtype == dtype
    assert float(total[0, 0]) == 4096
    (product,) = run("MatMul", ones, ones.T)
    assert float(product[0, 0]) == 4096
    (weights,) = run("Softmax", ones)
    np.testing.assert_allclose(weights.astype(float), 1 / 4096, rtol=1e-3)
    heads = ones.reshape(1, 1, 4096, 1)
    (y, *_) = run("Attention", heads[:, :, :1], heads, heads, output_count=1)
    np.testing.assert_allclose(y.astype(float), 1, rtol=1e-2)


def test_reductions_of_nothing_and_of_integers() -> None:
    empty = _x(2, 0)
    for op_type, value in (("ReduceSum", 0), ("ReduceMax", -np.inf), ("ReduceProd", 1)):
        assert run(op_type, empty, _i(1), keepdims=0)[0].tolist() == [value] * 2
    x = np.array([[1, 2, 4]], np.int32)
    for op_type in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean"):
        (y,) = run(op_type, x, _i(1))
        assert y.dtype == np.int32


# ------------------------------------------------------------------ products


def test_products() -> None:
    for a, b in (((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (3, 4)), ((2, 1, 2, 3), (4, 3, 2))):
        compare("MatMul", _x(*a), _x(*b))
    compare("MatMul", _x(0, 2, 3), _x(3, 4))
    compare("MatMul", RNG.integers(0, 9, (2, 3)), RNG.integers(0, 9, (3, 2)))
    for trans_a, trans_b in itertools.product((0, 1), repeat=2):
        a, b = _x(*((4, 3) if trans_a else (3, 4))), _x(*((5, 4) if trans_b else (4, 5)))
        for c in (None, _x(5), _x(3, 1), _x()):
            compare("Gemm", a, b, c, transA=trans_a, transB=trans_b, alpha=0.5, beta=2.0)
    for equation, *shapes in (
        ("bqc,bchw->bqhw", (2, 3, 4), (2, 4, 5, 6)),
        ("...ij,...jk->...ik", (2, 3, 4), (4, 5)),
        ("i,i", (4,), (4,)),
        ("ii->i", (3, 3)),
        ("ij->", (3, 4)),
        ("bhqk, bhkd -> bqhd", (1, 2, 3, 4), (1, 2, 4, 5)),
    ):
        compare("Einsum", *(_x(*shape) for shape in shapes), equation=equation)


# ------------------------------------------------------------------ normalization, attention


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax(op_type: str) -> None:
    for axis in (0, 1, -1):
        compare(op_type, _x(2, 3, 4) * 9, axis=axis)
    (y,) = run(op_type, np.array([0, 1000], np.float32))
    assert np.isfinite(y).all()


def test_normalizations() -> None:
    x = _x(2, 6, 4, 5)
    for axis in (1, -1, 3):
        shape = x.shape[axis:]
        got = run("LayerNormalization", x, _x(*shape), _x(*shape) * 0, axis=axis, output_count=3)
        assert [g.shape for g in got][1:] == [x.shape[:axis] + (1,) * len(shape)] * 2
        scale, bias = _x(*shape), _x(*shape)
        compare("LayerNormalization", x, scale, bias, axis=axis, output_count=3)
        compare("RMSNormalization", x, scale, axis=axis)
    compare("LayerNormalization", x, _x(5), None)
    compare("GroupNormalization", x, _x(6), _x(6), num_groups=3)
    compare("InstanceNormalization", x, _x(6), _x(6))
    moments = (_x(6), np.abs(_x(6)))
    compare("BatchNormalization", x, _x(6), _x(6), *moments)
    compare(
        "BatchNormalization",
        x,
        _x(6),
        _x(6),
        *moments,
        training_mode=1,
        momentum=0.7,
        output_count=3,
    )
    for p in (1, 2):
        want = _ort("LpNormalization", x, axis=1, p=p)[0]
        assert_close(run("LpNormalization", x, axis=1, p=p)[0], want)
    for size in (3, 5):  # onnx.reference walks the batch where it means the channels
        assert_close(run("LRN", x, size=size)[0], _ort("LRN", x, size=size)[0])


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention(causal: int, softcap: float) -> None:
    q, k, v = _x(2, 4, 3, 8), _x(2, 2, 5, 8), _x(2, 2, 5, 6)
    for mask in (None, _x(3, 5), _x(2, 1, 3, 5), RNG.random((3, 5)) > 0.4):
        for scale in ({}, {"scale": 0.3}):
            attributes: dict[str, Any] = {"is_causal": causal, "softcap": softcap, **scale}
            # With softcap the fourth output of onnx.reference is not the raw product, as it must.
            count = 3 if softcap else 4
            compare("Attention", q, k, v, mask, output_count=count, **attributes)
    past = (_x(2, 2, 7, 8), _x(2, 2, 7, 6))
    compare("Attention", q, k, v, None, *past, output_count=3, is_causal=causal)
    flat = {"q_num_heads": 4, "kv_num_heads": 2, "is_causal": causal}
    compare("Attention", _x(2, 3, 32), _x(2, 5, 16), _x(2, 5, 12), output_count=3, **flat)


def test_attention_row_without_keys_is_zero() -> None:
    q = k = v = _x(1, 1, 2, 4)
    y, *_ = run("Attention", q, k, v, np.array([[False, False], [True, True]]))
    assert (y[0, 0, 0] == 0).all()
    assert (y[0, 0, 1] != 0).all()


# ------------------------------------------------------------------ resampling


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "transform",
    ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"],
)
def test_resize(mode: str, transform: str) -> None:
    x = _x(1, 2, 5, 6)
    for sizes in ((1, 2, 10, 12), (1, 2, 3, 4), (1, 2, 7, 1)):
        attributes = {"mode": mode, "coordinate_transformation_mode": transform}
        compare("Resize", x, None, None, _i(*sizes), **attributes)
    for scales in ((1, 1, 2, 1.5), (1, 1, 0.6, 0.5)):
        compare("Resize", x, None, np.array(scales, np.float32), **attributes)
    compare("Resize", x, None, None, _i(8, 4), axes=[2, 3], **attributes)
    if mode == "nearest":
        for rule in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            compare("Resize", x, None, None, _i(1, 2, 10, 4), nearest_mode=rule, **attributes)
    else:
        compare("Resize", x, None, None, _i(1, 2, 3, 4), antialias=1, **attributes)
    if mode == "cubic":
        compare("Resize", x, None, None, _i(1, 2, 9, 9), exclude_outside=1, **attributes)


def test_resize_keeps_integers() -> None:
    x = RNG.integers(0, 255, (1, 1, 4, 4)).astype(np.uint8)
    for mode in ("nearest", "linear"):
        (y,) = run("Resize", x, None, None, _i(1, 1, 8, 8), mode=mode)
        assert y.dtype == np.uint8


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align_corners", [0, 1])
def test_grid_sample(mode: str, padding_mode: str, align_corners: int) -> None:
    grid = RNG.uniform(-1.6, 1.6, (2, 7, 8, 2)).astype(np.float32)
    attributes = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    x = _x(2, 3, 5, 6)
    assert_close(
        run("GridSample", x, grid, **attributes)[0], _ort("GridSample", x, grid, **attributes)[0]
    )


def test_hardmax_of_nothing() -> None:
    x = np.empty((2, 0), np.float32)
    assert_close(run("Hardmax", x)[0], x)


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_cubic_grid_sample_of_a_single_element(padding_mode: str) -> None:
    x, grid = np.full((1, 1, 1, 1), 3, np.float32), np.zeros((1, 1, 1, 2), np.float32)
    attributes = {"mode": "cubic", "padding_mode": padding_mode, "align_corners": 1}
    assert_close(run("GridSample", x, grid, **attributes)[0], x)


def test_grid_sample_interpolates_integers() -> None:
    x = np.arange(16, dtype=np.int64).reshape(1, 1, 4, 4)
    grid = RNG.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)
    (got,) = run("GridSample", x, grid, mode="linear")
    (want,) = run("GridSample", x.astype(np.float32), grid, mode="linear")
    assert_close(got, want.astype(np.int64))
