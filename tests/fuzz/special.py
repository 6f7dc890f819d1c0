"""Strategies of recurrent networks, signal processing and the vision operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from tests.fuzz.case import Array, Case
from tests.fuzz.values import INDICES, Maker, Source, types


def _recurrent(op: str, gates: int) -> Maker:
    def make(s: Source) -> Case:
        dtype = s.pick(types(op))
        length, batch, inner, hidden = (s.integer(1, 3) for _ in range(4))
        direction = s.pick([None, "forward", "reverse", "bidirectional"])
        ways = 2 if direction == "bidirectional" else 1
        layout = s.pick([None, 0, 0, 1])
        first = (batch, length) if layout else (length, batch)
        state = (batch, ways, hidden) if layout else (ways, batch, hidden)
        inputs: list[Array | None] = [
            s.array((*first, inner), dtype, "unit"),
            s.array((ways, gates * hidden, inner), dtype, "unit"),
            s.array((ways, gates * hidden, hidden), dtype, "unit"),
            s.maybe(s.array((ways, 2 * gates * hidden), dtype, "unit")),
            None,
            s.maybe(s.array(state, dtype, "unit")),
        ]
        if op == "LSTM":
            inputs.append(s.maybe(s.array(state, dtype, "unit")))
            inputs.append(s.maybe(s.array((ways, 3 * hidden), dtype, "unit")))
        while inputs[-1] is None:
            inputs.pop()
        attributes: dict[str, Any] = {
            "hidden_size": hidden,
            "direction": direction,
            "layout": layout,
            "clip": s.pick([None, None, 0.5]),
        }
        if op == "GRU":
            attributes["linear_before_reset"] = s.maybe(s.flag())
        if op == "LSTM":
            attributes["input_forget"] = s.maybe(s.flag())
        return Case(op, inputs, attributes, outputs=3 if op == "LSTM" else 2)

    return make


def _window(op: str) -> Maker:
    def make(s: Source) -> Case:
        size = np.asarray(s.integer(2, 12), s.pick(INDICES))
        wanted = [None, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16]
        attributes = {"periodic": s.maybe(s.flag()), "output_datatype": s.pick(wanted)}
        return Case(op, [size], attributes, constants=(0,))

    return make


def _dft(s: Source) -> Case:
    dtype = s.pick(types("DFT", "T1"))
    shape = s.shape(2, 3, least=1)
    inverse, onesided = s.pick([(0, 0), (1, 0), (0, 1)])
    parts = 1 if onesided else s.pick([1, 2])
    axis = s.integer(0, len(shape) - 1)
    inputs: list[Array | None] = [s.array((*shape, parts), dtype, "unit")]
    inputs.append(s.maybe(np.asarray(s.integer(1, 7), np.int64)))
    inputs.append(np.asarray(axis - (len(shape) + 1) * s.flag(), np.int64))
    attributes = {"inverse": inverse, "onesided": onesided}
    return Case("DFT", inputs, attributes, constants=(1, 2))


def _stft(s: Source) -> Case:
    dtype = s.pick(types("STFT", "T1"))
    frame = s.integer(2, 6)
    length = frame + s.integer(0, 8)
    onesided = s.flag()
    signal = s.array((s.integer(1, 2), length, 1 if onesided else s.pick([1, 2])), dtype, "unit")
    step, size = np.asarray(s.integer(1, 4), np.int64), np.asarray(frame, np.int64)
    window = s.array((frame,), dtype, "unit") if s.flag() else None
    return Case(
        "STFT", [signal, step, window, size], {"onesided": onesided}, constants=(1, 3), scale=5.0
    )


def _mel(s: Source) -> Case:
    bins, length, rate = s.integer(1, 8), s.integer(8, 32), s.integer(4000, 16000)
    counts = [np.asarray(n, s.pick(INDICES[:1])) for n in (bins, length, rate)]
    edges = [np.asarray(e, np.float32) for e in (s.integer(0, 500), rate / 2)]
    return Case("MelWeightMatrix", [*counts, *edges], constants=(0, 1, 2, 3, 4))


def _det(s: Source) -> Case:
    size = s.integer(1, 4)
    shape = (*s.sizes(s.integer(0, 2)), size, size)
    return Case("Det", [s.array(shape, s.pick(types("Det")), "unit")])


def _col2im(s: Source) -> Case:
    rank = s.pick([2, 1, 3])
    block = [s.integer(1, 3) for _ in range(rank)]
    strides = [s.integer(1, 2) for _ in range(rank)]
    dilations = [s.integer(1, 2) for _ in range(rank)]
    pads = [s.integer(0, 1) for _ in range(2 * rank)]
    counts, image = [], []
    for axis in range(rank):
        span = (block[axis] - 1) * dilations[axis] + 1
        size = span + s.integer(0, 4)
        image.append(size)
        counts.append((size + pads[axis] + pads[axis + rank] - span) // strides[axis] + 1)
    columns = int(np.prod(block)) * s.integer(1, 2)
    dtype = s.pick(types("Col2Im"))
    x = s.array((s.integer(1, 2), columns, int(np.prod(counts))), dtype, "tame")
    attributes = {"strides": strides, "dilations": dilations, "pads": pads}
    shapes = [np.asarray(image, np.int64), np.asarray(block, np.int64)]
    return Case("Col2Im", [x, *shapes], attributes, constants=(1, 2))


def _rois(s: Source, count: int, size: Sequence[int], scale: float, dtype: Any) -> Array:
    """Boxes (x1, y1, x2, y2) in an image of (height, width)."""
    rng = s.rng()
    low = rng.uniform(0, 0.5, (count, 2))
    high = low + rng.uniform(0.2, 0.5, (count, 2))
    limits = np.asarray([size[1], size[0]]) / scale
    return np.concatenate([low * limits, high * limits], axis=1).astype(dtype)


def _roi_align(s: Source) -> Case:
    dtype = s.pick(types("RoiAlign", "T1"))
    n, c, h, w = s.integer(1, 2), s.integer(1, 2), s.integer(2, 6), s.integer(2, 6)
    count, scale = s.integer(1, 3), s.pick([1.0, 0.5])
    rois = _rois(s, count, (h, w), scale, dtype)
    batch = s.rng().integers(0, n, count).astype(np.int64)
    attributes = {
        "mode": s.pick([None, "avg", "max"]),
        "output_height": s.pick([None, 2]),
        "output_width": s.pick([None, 3]),
        "sampling_ratio": s.pick([None, 1, 2]),
        "spatial_scale": scale,
        "coordinate_transformation_mode": s.pick([None, "half_pixel", "output_half_pixel"]),
    }
    return Case("RoiAlign", [s.array((n, c, h, w), dtype, "tame"), rois, batch], attributes)


def _max_roi_pool(s: Source) -> Case:
    dtype = s.pick(types("MaxRoiPool"))
    n, c, h, w = s.integer(1, 2), s.integer(1, 2), s.integer(2, 6), s.integer(2, 6)
    count = s.integer(1, 3)
    boxes = np.floor(_rois(s, count, (h, w), 1.0, np.float32))
    batch = s.rng().integers(0, n, (count, 1))
    rois = np.concatenate([batch, boxes], axis=1).astype(dtype)
    attributes = {"pooled_shape": [s.integer(1, 3), s.integer(1, 3)]}
    return Case("MaxRoiPool", [s.array((n, c, h, w), dtype, "tame"), rois], attributes)


def _max_unpool(s: Source) -> Case:
    dtype = s.pick(types("MaxUnpool", "T1"))
    rank = s.pick([2, 1, 3])
    kernel = [s.integer(1, 3) for _ in range(rank)]
    small = s.sizes(rank, low=1, high=3)
    n, c = s.integer(1, 2), s.integer(1, 2)
    large = [k * size for k, size in zip(kernel, small, strict=True)]
    total, count = n * c * int(np.prod(large)), n * c * int(np.prod(small))
    places = s.rng().permutation(total)[:count].reshape(n, c, *small).astype(np.int64)
    x = s.array((n, c, *small), dtype, "tame")
    return Case("MaxUnpool", [x, places], {"kernel_shape": kernel, "strides": kernel})


def _tensor_scatter(s: Source) -> Case:
    dtype = s.pick(types("TensorScatter"))
    batch, heads, most, size = s.integer(1, 3), s.integer(1, 2), s.integer(1, 5), s.integer(1, 3)
    length = s.integer(1, most)
    mode = s.pick([None, "linear", "circular"])
    last = most - 1 if mode == "circular" else most - length
    starts = s.rng().integers(0, last + 1, batch).astype(np.int64)
    inputs: list[Array | None] = [s.array((batch, heads, most, size), dtype)]
    inputs.append(s.array((batch, heads, length, size), dtype))
    if s.flag():
        inputs.append(starts)
    return Case("TensorScatter", inputs, {"mode": mode, "axis": s.pick([None, 2, -2])})


def _deform_conv(s: Source) -> Case:
    dtype = s.pick(types("DeformConv"))
    kernel = [s.integer(1, 3), s.integer(1, 3)]
    groups, shifts = s.pick([1, 2]), s.pick([1, 2])
    n, c_in, c_out = s.integer(1, 2), groups * shifts, groups * s.integer(1, 2)
    strides, pads = [s.integer(1, 2) for _ in kernel], [s.integer(0, 1) for _ in range(4)]
    size = [k + s.integer(0, 3) for k in kernel]
    out = [(size[i] + pads[i] + pads[i + 2] - kernel[i]) // strides[i] + 1 for i in range(2)]
    taps = kernel[0] * kernel[1]
    inputs: list[Array | None] = [
        s.array((n, c_in, *size), dtype, "unit"),
        s.array((c_out, c_in // groups, *kernel), dtype, "unit"),
        s.array((n, shifts * taps * 2, *out), dtype, "unit"),
        s.maybe(s.array((c_out,), dtype, "unit")),
        s.maybe(s.array((n, shifts * taps, *out), dtype, "unit")),
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes = {
        "group": groups,
        "offset_group": shifts,
        "strides": strides,
        "pads": pads,
        "kernel_shape": kernel,
    }
    return Case("DeformConv", inputs, attributes)


def _center_crop_pad(s: Source) -> Case:
    shape = s.shape(1, 3)
    axes = [axis for axis in range(len(shape)) if s.flag()] or [0]
    wanted = np.asarray([s.integer(1, 6) for _ in axes], np.int64)
    named = [axis - len(shape) * s.flag() for axis in axes]
    array = s.array(shape, s.pick(types("CenterCropPad")))
    return Case("CenterCropPad", [array, wanted], {"axes": named}, constants=(1,))


def _swiglu(s: Source) -> Case:
    dtype, shape = s.pick(types("SwiGLU")), s.shape()
    attributes = {"alpha": s.pick([None, 0.5])}
    return Case("SwiGLU", [s.array(shape, dtype, "tame") for _ in range(2)], attributes)


def _non_zero(s: Source) -> Case:
    return Case("NonZero", [s.array(s.shape(1), s.pick(types("NonZero")), "finite")])


TABLE: dict[str, Maker] = {
    **{op: _window(op) for op in ("BlackmanWindow", "HammingWindow", "HannWindow")},
    **{op: _recurrent(op, gates) for op, gates in (("GRU", 3), ("LSTM", 4), ("RNN", 1))},
    "CenterCropPad": _center_crop_pad,
    "Col2Im": _col2im,
    "DFT": _dft,
    "DeformConv": _deform_conv,
    "Det": _det,
    "MaxRoiPool": _max_roi_pool,
    "MaxUnpool": _max_unpool,
    "MelWeightMatrix": _mel,
    "NonZero": _non_zero,
    "RoiAlign": _roi_align,
    "STFT": _stft,
    "SwiGLU": _swiglu,
    "TensorScatter": _tensor_scatter,
}
