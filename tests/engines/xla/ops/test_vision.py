"""Regions of interest, deformable convolution, folding and unpooling.

Against PyTorch, ONNX Runtime, onnx.reference and plain loops.
"""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from tests.engines.xla.ops_support import (
    check,
    node_model,
    run_channels_last,
    run_node,
    run_reference,
    support,
)
from tests.support import assert_close

RNG = np.random.default_rng(0)


def _f(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(dtype)


def _i(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


def _runtime(op: str, opset: int, inputs: Any, **keywords: Any) -> list[Any]:
    model = node_model(op, inputs, **keywords)
    model.opset_import[0].version = opset
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, {f"x{i}": a for i, a in enumerate(inputs)}))


# ------------------------------------------------------------------ Col2Im


@pytest.mark.parametrize(
    ("image", "block", "strides", "dilations", "pads"),
    [
        ((8, 7), (2, 3), (1, 1), (1, 1), (0, 0)),
        ((8, 8), (4, 4), (4, 4), (1, 1), (0, 0)),
        ((9, 8), (3, 2), (2, 3), (1, 1), (1, 0)),
        ((9, 10), (3, 3), (2, 1), (2, 3), (2, 1)),
        ((7, 7), (2, 2), (3, 3), (1, 1), (0, 1)),
    ],
)
def test_col2im(image: Any, block: Any, strides: Any, dilations: Any, pads: Any) -> None:
    options = {"stride": strides, "dilation": dilations, "padding": pads}
    blocks = F.unfold(torch.zeros(1, 1, *image), block, **options).shape[2]
    x = _f(2, 3 * block[0] * block[1], blocks)
    want = F.fold(torch.from_numpy(x), image, block, **options).numpy()
    attributes = {"strides": strides, "dilations": dilations, "pads": [*pads, *pads]}
    inputs = [x, _i(*image), _i(*block)]
    check("Col2Im", inputs, want=[want], constants=(1, 2), **attributes)


def test_col2im_in_three_dimensions_with_uneven_pads() -> None:
    attributes = {"strides": [2, 1, 1], "pads": [1, 0, 0, 0, 2, 1]}
    x = _f(1, 2 * 2 * 2 * 3, 2 * 5 * 3)
    inputs = [x, _i(4, 4, 4), _i(2, 2, 3)]
    check("Col2Im", inputs, constants=(1, 2), layouts=False, **attributes)


def test_col2im_of_integers_wraps() -> None:
    inputs = [np.full((1, 4, 4), 100, np.int8), _i(3, 3), _i(2, 2)]
    (y,) = run_node("Col2Im", inputs, constants=(1, 2))
    np.testing.assert_array_equal(y[0, 0, 1], np.array([-56, -112, -56], np.int8))


def test_col2im_adds_halves_in_single() -> None:
    x = np.ones((1, 4, 4), np.float16)
    x[0, 0, 3], x[0, 1, 2], x[0, 2, 1] = 2048, 1, 1  # the four that meet in the middle
    (y,) = run_node("Col2Im", [x, _i(3, 3), _i(2, 2)], constants=(1, 2))
    assert y[0, 0, 1, 1] == np.float16(2051)


# ------------------------------------------------------------------ MaxUnpool


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "pads"),
    [((2, 3, 8), 2, 2, 0), ((2, 3, 7, 9), 3, 2, 1), ((1, 2, 4, 6, 6), 2, 2, 0)],
)
def test_max_unpool(shape: Any, kernel: int, strides: int, pads: int) -> None:
    rank = len(shape) - 2
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    unpool = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)[rank - 1]
    values, places = pool(torch.from_numpy(_f(*shape)), kernel, strides, pads, return_indices=True)
    want = unpool(values, places, kernel, strides, pads).numpy()
    images = np.arange(shape[0] * shape[1]).reshape(*shape[:2], *(1,) * rank)
    indices = places.numpy() + images * np.prod(want.shape[2:])
    attributes = {"kernel_shape": [kernel] * rank, "strides": [strides] * rank}
    check(
        "MaxUnpool",
        [values.numpy(), indices],
        want=[want],
        which=(0, 1),
        pads=[pads] * (2 * rank),
        **attributes,
    )


def test_max_unpool_into_a_larger_output() -> None:
    x = _f(2, 2, 2, 3)
    indices = np.stack([RNG.permutation(48)[:6] + 48 * n for n in range(4)]).reshape(2, 2, 2, 3)
    indices %= 24 * 4
    want = [np.zeros((2, 2, 7, 6), np.float32)]
    attributes: Any = {"kernel_shape": [2, 2], "strides": [2, 2]}
    inputs = [x, np.arange(24).reshape(x.shape) * 4, _i(2, 2, 7, 6)]
    (want,) = run_reference("MaxUnpool", inputs, declared=want, constants=(2,), **attributes)
    keywords = {"declared": [want], "constants": (2,), "layouts": False, **attributes}
    check("MaxUnpool", inputs, want=[want], **keywords)
    smaller = [x, inputs[1], _i(2, 2, 3, 6)]
    answer = support("MaxUnpool", smaller, declared=[want[:, :, :3]], constants=(2,), **attributes)
    assert "into an output of [3, 6]" in answer.reason


# ------------------------------------------------------------------ RoiAlign

ROIS = np.array(
    [
        [0, 0, 9, 9],
        [2.3, 1.1, 7.9, 5.2],
        [-3, -2, 4, 12],
        [5, 5, 5, 5],
        [8.5, 8.5, 30, 20],
        [20, 20, 25, 30],
        [7, 8, 3, 2],
    ],
    np.float32,
)
"""Whole, inside, over the edges, empty, over the far edges, outside, inverted."""
IMAGES = np.array([0, 1, 0, 1, 1, 0, 0])


@pytest.mark.parametrize("half", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(half: str, ratio: int, mode: str) -> None:
    attributes: Any = {
        "coordinate_transformation_mode": half,
        "mode": mode,
        "output_height": 2,
        "output_width": 3,
        "sampling_ratio": ratio,
        "spatial_scale": 0.75,
    }
    check("RoiAlign", [_f(2, 3, 10, 8), ROIS, IMAGES], **attributes)


def test_roi_align_equals_onnx_runtime() -> None:
    x, low = _f(2, 8, 25, 34), RNG.uniform(-5, 25, (40, 2))
    rois = np.concatenate([low, low + RNG.uniform(0.1, 30, (40, 2))], 1).astype(np.float32)
    inputs = [x, rois, RNG.integers(0, 2, 40)]
    for ratio in (0, 2):
        attributes = {"output_height": 7, "output_width": 7, "sampling_ratio": ratio}
        want = _runtime("RoiAlign", 16, inputs, **attributes)
        assert_close(run_node("RoiAlign", inputs, **attributes), want)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("roi", [(-40, -30, 45, 60), (-900, 1, 20, 4), (2, 3, 300, 400)])
def test_roi_align_of_a_region_much_larger_than_the_image(mode: str, roi: Any) -> None:
    rois = np.array([roi, (1, 1, 4, 5)], np.float32)
    attributes = {"mode": mode, "output_height": 3, "output_width": 2}
    for shift in (0, -10):  # where all is negative, the zeros outside win the maximum
        inputs = [_f(1, 2, 5, 6) + np.float32(shift), rois, _i(0, 0)]
        check("RoiAlign", inputs, layouts=False, **attributes)


def test_roi_align_of_an_endless_region_ends() -> None:
    rois = np.array([[0, 0, 1e30, 1e30], [0, 0, np.nan, 3], [0, 0, 3, 3]], np.float32)
    inputs = [np.ones((1, 1, 4, 4), np.float32), rois, _i(0, 0, 0)]
    (y,) = run_node("RoiAlign", inputs, coordinate_transformation_mode="output_half_pixel")
    assert np.isnan(y[1]).all()
    assert y[2].item() == 1


@pytest.mark.parametrize("width", [35, 57, 41, 49])
def test_roi_align_counts_samples_without_rounding_up(width: int) -> None:
    # 1 / 7 as a factor would make some multiples of seven a little more than whole.
    rois = np.array([[0, 0, width, width]], np.float32)
    inputs = [_f(1, 1, 60, 60), rois, _i(0)]
    attributes: Any = {"output_height": 7, "output_width": 7}
    want = run_reference("RoiAlign", inputs, **attributes)
    assert_close(run_node("RoiAlign", inputs, **attributes), want)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_of_roi_align(dtype: Any) -> None:
    x, rois = _f(2, 3, 10, 8, dtype=dtype), ROIS.astype(dtype)
    attributes = {"output_height": 2, "output_width": 2, "sampling_ratio": 2}
    inputs = [x.astype(np.float64), rois.astype(np.float64), IMAGES]
    (want,) = run_reference("RoiAlign", inputs, **attributes)
    check("RoiAlign", [x, rois, IMAGES], want=[want.astype(dtype)], **attributes)


def test_no_regions() -> None:
    x = _f(1, 2, 4, 4)
    (y,) = run_node("RoiAlign", [x, np.zeros((0, 4), np.float32), np.zeros(0, np.int64)])
    assert y.shape == (0, 2, 1, 1)
    (y,) = run_node("MaxRoiPool", [x, np.zeros((0, 5), np.float32)], pooled_shape=[2, 2])
    assert y.shape == (0, 2, 2, 2)


# ------------------------------------------------------------------ MaxRoiPool


def _boxes(count: int) -> np.ndarray[Any, Any]:
    low, size = RNG.uniform(-10, 50, (count, 2)), RNG.uniform(0, 60, (count, 2))
    image = RNG.integers(0, 2, (count, 1))
    return np.concatenate([image, low, low + size], axis=1).astype(np.float32)


@pytest.mark.parametrize("pooled", [(7, 7), (1, 1), (3, 11)])
@pytest.mark.parametrize("scale", [1.0, 0.53])
def test_max_roi_pool(pooled: Any, scale: float) -> None:
    inputs = [_f(2, 3, 40, 50), _boxes(60)]
    attributes = {"pooled_shape": pooled, "spatial_scale": scale}
    want = _runtime("MaxRoiPool", 1, inputs, **attributes)
    check("MaxRoiPool", inputs, want=want, **attributes)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_max_roi_pool_selects_the_same_elements_in_every_dtype(dtype: Any) -> None:
    x, boxes = _f(2, 3, 40, 50, dtype=dtype), np.round(_boxes(20)).astype(dtype)
    inputs = [x.astype(np.float32), boxes.astype(np.float32)]
    (want,) = _runtime("MaxRoiPool", 1, inputs, pooled_shape=[4, 4])
    (got,) = run_node("MaxRoiPool", [x, boxes], pooled_shape=[4, 4])
    np.testing.assert_array_equal(got.astype(np.float32), want)


def test_max_roi_pool_propagates_nan() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 2] = np.nan
    boxes = np.array([[0, 0, 0, 3, 3]], np.float32)
    (y,) = run_node("MaxRoiPool", [x, boxes], pooled_shape=[2, 2])
    np.testing.assert_array_equal(y[0, 0], np.array([[0, np.nan], [0, 0]], np.float32))


# ------------------------------------------------------------------ DeformConv


def _deform_conv(
    x: Any, w: Any, offset: Any, b: Any, mask: Any, strides: Any, pads: Any, dilations: Any,
    group: int, offset_group: int,
) -> Any:  # fmt: skip
    """DeformConv as loops over output elements and taps, in float64."""
    rank, kernel, out = x.ndim - 2, w.shape[2:], offset.shape[2:]
    result = np.zeros((len(x), len(w), *out))
    shifts = offset.reshape(len(x), offset_group, *kernel, rank, *out)
    shares = None if mask is None else mask.reshape(len(x), offset_group, *kernel, *out)
    for n, c in np.ndindex(*x.shape[:2]):
        og = c * offset_group // x.shape[1]
        filters = range(len(w) // group * (c * group // x.shape[1]), len(w))[: len(w) // group]
        for tap in np.ndindex(*kernel):
            for point in np.ndindex(*out):
                base = zip(point, strides, pads, tap, dilations, strict=False)
                at = np.array([p * s - lo + t * d for p, s, lo, t, d in base], float)
                at += shifts[(n, og, *tap, slice(None), *point)]
                value = 1 if shares is None else shares[(n, og, *tap, *point)]
                value = value * _sample(x[n, c], at)
                for m in filters:
                    inner = c % w.shape[1]
                    result[(n, m, *point)] += value * w[(m, inner, *tap)]
    return result if b is None else result + b.reshape(-1, *(1,) * rank)


def _sample(image: Any, at: Any) -> float:
    total = 0.0
    for corner in itertools.product(*([np.floor(a), np.floor(a) + 1] for a in at)):
        if all(0 <= c < n for c, n in zip(corner, image.shape, strict=True)):
            weight = np.prod([1 - abs(a - c) for a, c in zip(at, corner, strict=True)])
            total += weight * image[tuple(int(c) for c in corner)]
    return total


@pytest.mark.parametrize(
    ("spatial", "kernel", "strides", "pads", "dilations", "group", "offset_group"),
    [
        ((7, 6), (3, 2), (1, 1), (0, 0, 0, 0), (1, 1), 1, 1),
        ((7, 6), (3, 3), (2, 1), (1, 1, 1, 2), (1, 2), 2, 1),
        ((5, 5), (2, 3), (1, 2), (1, 0, 1, 1), (2, 1), 2, 4),
        ((5, 1), (2, 1), (1, 1), (1, 1, 0, 1), (1, 1), 4, 2),
        ((9,), (3,), (2,), (1, 1), (2,), 1, 2),
        ((4, 3, 4), (2, 2, 2), (1, 1, 2), (1, 0, 0, 0, 1, 1), (1, 1, 1), 2, 2),
    ],
)
@pytest.mark.parametrize("full", [False, True])
def test_deform_conv(
    spatial: Any, kernel: Any, strides: Any, pads: Any, dilations: Any, group: int,
    offset_group: int, full: bool,
) -> None:  # fmt: skip
    rank = len(spatial)
    out = tuple(
        (n + pads[i] + pads[i + rank] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, n in enumerate(spatial)
    )
    taps = int(np.prod(kernel))
    x, w = _f(2, 4, *spatial), _f(8, 4 // group, *kernel)
    offset = 2 * _f(2, offset_group * taps * rank, *out)
    b, mask = (_f(8), _f(2, offset_group * taps, *out)) if full else (None, None)
    want = _deform_conv(x, w, offset, b, mask, strides, pads, dilations, group, offset_group)
    inputs = [x, w, offset, b, mask] if full else [x, w, offset]
    attributes = {
        "strides": strides, "pads": pads, "dilations": dilations, "group": group,
        "offset_group": offset_group,
    }  # fmt: skip
    got = run_node("DeformConv", inputs, constants=(1,), **attributes)
    assert_close(got, [want.astype(np.float32)])
    if full:
        got = run_channels_last("DeformConv", inputs, which=(0, 2, 4), **attributes)
        assert_close(got, [want.astype(np.float32)])


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_deform_conv_without_offsets_is_a_convolution(dtype: Any) -> None:
    x, w, b = _f(2, 4, 8, 8, dtype=dtype), _f(6, 2, 3, 3, dtype=dtype), _f(6, dtype=dtype)
    arrays = [torch.from_numpy(a.astype(np.float64)) for a in (x, w, b)]
    want = F.conv2d(*arrays, padding=1, groups=2).numpy().astype(dtype)
    offset = np.zeros((2, 18, 8, 8), dtype)
    check("DeformConv", [x, w, offset, b], want=[want], pads=[1] * 4, group=2)


def test_what_is_refused() -> None:
    empty = np.zeros((1, 2, 0, 4), np.float32)
    rois, first = np.zeros((1, 4), np.float32), _i(0)
    assert "without elements" in support("RoiAlign", [empty, rois, first]).reason
