"""Regions of interest, deformable convolution, folding and unpooling."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.engines.xla.ops.test_vision import IMAGES, ROIS, _boxes, _deform_conv, _runtime
from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(4)


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _i(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("block", "strides", "dilations", "pads"),
    [
        ((2, 3), (1, 1), (1, 1), (0, 0)),
        ((3, 3), (3, 3), (1, 1), (0, 0)),
        ((3, 2), (2, 1), (1, 3), (2, 1)),
    ],
)
def test_col2im(block: Any, strides: Any, dilations: Any, pads: Any) -> None:
    options = {"stride": strides, "dilation": dilations, "padding": pads}
    blocks = F.unfold(torch.zeros(1, 1, 9, 12), block, **options).shape[2]
    x = _x(2, 3 * block[0] * block[1], blocks)
    want = F.fold(torch.from_numpy(x), (9, 12), block, **options).numpy()
    attributes = {"strides": strides, "dilations": dilations, "pads": [*pads, *pads]}
    assert_close(run("Col2Im", x, _i(9, 12), _i(*block), **attributes)[0], want)


def test_col2im_in_three_dimensions() -> None:
    attributes = {"strides": [2, 1, 1], "pads": [1, 0, 0, 0, 2, 1]}
    compare("Col2Im", _x(1, 24, 30), _i(4, 4, 4), _i(2, 2, 3), **attributes)
    with pytest.raises(KernelError, match="blocks of"):
        run("Col2Im", _x(1, 24, 31), _i(4, 4), _i(2, 2))


def test_max_unpool() -> None:
    x = torch.from_numpy(_x(2, 3, 7, 9))
    values, places = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    want = F.max_unpool2d(values, places, 3, 2, 1).numpy()
    indices = places.numpy() + np.arange(6).reshape(2, 3, 1, 1) * want[0, 0].size
    attributes: Any = {"kernel_shape": [3, 3], "strides": [2, 2]}
    inputs = (values.numpy(), indices)
    assert_close(run("MaxUnpool", *inputs, pads=[1] * 4, **attributes)[0], want)
    compare("MaxUnpool", *inputs, _i(2, 3, 11, 12), **attributes)
    with pytest.raises(KernelError, match="indices from"):
        run("MaxUnpool", inputs[0], inputs[1] * 2, pads=[1] * 4, **attributes)


@pytest.mark.parametrize("half", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(half: str, ratio: int, mode: str) -> None:
    compare(
        "RoiAlign",
        _x(2, 3, 10, 8),
        ROIS,
        IMAGES,
        coordinate_transformation_mode=half,
        mode=mode,
        output_height=2,
        output_width=3,
        sampling_ratio=ratio,
        spatial_scale=0.75,
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_of_roi_align(dtype: Any) -> None:
    x, rois = _x(2, 3, 10, 8).astype(dtype), ROIS.astype(dtype)
    attributes = {"output_height": 2, "output_width": 2}
    (want,) = run("RoiAlign", x.astype(np.float64), rois.astype(np.float64), IMAGES, **attributes)
    assert_close(run("RoiAlign", x, rois, IMAGES, **attributes)[0], want.astype(dtype))


def test_roi_align_of_an_undefined_region() -> None:
    rois = np.array([[0, 0, np.nan, 3], [0, 0, 3, 3]], np.float32)
    for mode in ("avg", "max"):
        (y,) = run("RoiAlign", np.ones((1, 1, 4, 4), np.float32), rois, _i(0, 0), mode=mode)
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()


@pytest.mark.parametrize("scale", [1.0, 0.53])
def test_max_roi_pool(scale: float) -> None:
    inputs = (_x(2, 3, 40, 50), _boxes(40))
    attributes = {"pooled_shape": [7, 3], "spatial_scale": scale}
    (want,) = _runtime("MaxRoiPool", 1, inputs, **attributes)
    assert_close(run("MaxRoiPool", *inputs, **attributes)[0], want)


@pytest.mark.parametrize(
    ("spatial", "out", "attributes"),
    [
        ((6, 5), (4, 4), {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1]}),
        ((6, 5), (3, 3), {"strides": [2, 1], "pads": [1, 1, 1, 0], "dilations": [1, 3]}),
        ((8,), (3,), {"strides": [2], "pads": [1, 0], "dilations": [2]}),
        ((4, 3, 3), (2, 2, 2), {"strides": [1] * 3, "pads": [0] * 6, "dilations": [2, 1, 1]}),
    ],
)
def test_deform_conv(spatial: Any, out: Any, attributes: Any) -> None:
    kernel = {1: (3,), 2: (3, 2), 3: (2, 2, 2)}[len(spatial)]
    taps, rank = int(np.prod(kernel)), len(spatial)
    x, w, b = _x(2, 4, *spatial), _x(6, 2, *kernel), _x(6)
    offset, mask = 2 * _x(2, 4 * taps * rank, *out), _x(2, 4 * taps, *out)
    want = _deform_conv(x, w, offset, b, mask, *attributes.values(), 2, 4)
    groups = {"group": 2, "offset_group": 4}
    (got,) = run("DeformConv", x, w, offset, b, mask, **attributes, **groups)
    assert_close(got, want.astype(np.float32))
    with pytest.raises(KernelError, match="offsets of shape"):
        run("DeformConv", x, w, offset[:, 1:], **attributes, **groups)
