"""Strategies of convolutions, poolings and resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import assume

from tests.fuzz.case import Array, Case
from tests.fuzz.values import Maker, Source, is_float, types

_AUTO_PADS = (None, None, None, "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")


def _geometry(s: Source, rank: int, *, pool: bool) -> tuple[list[int], dict[str, Any]]:
    """A kernel shape and attributes of a window over `rank` dimensions."""
    kernel = [s.integer(1, 3) for _ in range(rank)]
    auto_pad = s.pick(_AUTO_PADS)
    attributes: dict[str, Any] = {
        "strides": s.maybe([s.integer(1, 3) for _ in range(rank)]),
        "dilations": s.maybe([s.integer(1, 2) for _ in range(rank)]),
        "auto_pad": auto_pad,
    }
    if auto_pad in (None, "NOTSET"):
        # A pooling window must not lie in the padding alone.
        limits = [k - 1 if pool else 2 for k in kernel] * 2
        attributes["pads"] = s.maybe([s.integer(0, limit) for limit in limits])
    return kernel, attributes


def _spatial(s: Source, kernel: Sequence[int], attributes: dict[str, Any]) -> tuple[int, ...]:
    """Sizes of a tensor that the window fits into."""
    dilations = attributes.get("dilations") or [1] * len(kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    return tuple(s.integer(span, span + 5) for span in spans)


def _rank(s: Source) -> int:
    return s.pick([2, 1, 2, 3])


def conv_parts(s: Source) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """The shapes of input and weight of a convolution, and its attributes."""
    kernel, attributes = _geometry(s, _rank(s), pool=False)
    groups = s.pick([1, 1, 2, 3])
    c_in, c_out = groups * s.integer(1, 3), groups * s.integer(1, 3)
    shape = (s.integer(0, 2), c_in, *_spatial(s, kernel, attributes))
    attributes |= {"group": groups, "kernel_shape": s.maybe(kernel)}
    return shape, (c_out, c_in // groups, *kernel), attributes


def _conv(s: Source) -> Case:
    dtype = s.pick(types("Conv"))
    shape, weight, attributes = conv_parts(s)
    inputs: list[Array | None] = [s.array(shape, dtype, "tame"), s.array(weight, dtype, "unit")]
    if s.flag():
        inputs.append(s.array((weight[0],), dtype, "tame"))
    return Case("Conv", inputs, attributes, constants=s.pick([(1,), (), (1, 2)]))


def _conv_transpose(s: Source) -> Case:
    dtype = s.pick(types("ConvTranspose"))
    rank = _rank(s)
    kernel, attributes = _geometry(s, rank, pool=True)
    groups = s.pick([1, 1, 2])
    c_in, c_out = groups * s.integer(1, 2), groups * s.integer(1, 2)
    spatial = [s.integer(1, 5) for _ in range(rank)]
    steps = attributes["strides"] or [1] * rank
    spread = attributes["dilations"] or [1] * rank
    if s.flag() and attributes["auto_pad"] is None:
        attributes["output_padding"] = [
            s.integer(0, max(p) - 1) for p in zip(steps, spread, strict=True)
        ]
    sizes = _transposed_sizes(spatial, kernel, attributes)
    assume(all(size > 0 for size in sizes))
    x = s.array((s.integer(1, 2), c_in, *spatial), dtype, "tame")
    w = s.array((c_in, c_out // groups, *kernel), dtype, "unit")
    inputs: list[Array | None] = [x, w]
    if s.flag():
        inputs.append(s.array((c_out,), dtype, "tame"))
    attributes |= {"group": groups, "kernel_shape": s.maybe(kernel)}
    return Case("ConvTranspose", inputs, attributes, constants=s.pick([(1,), ()]))


def _transposed_sizes(
    spatial: Sequence[int], kernel: Sequence[int], attributes: dict[str, Any]
) -> list[int]:
    rank = len(spatial)
    pads = attributes.get("pads") or [0] * 2 * rank
    ones = [1] * rank
    return [
        (n - 1) * step + (k - 1) * d + 1 - low - high
        for n, step, k, d, low, high in zip(
            spatial,
            attributes["strides"] or ones,
            kernel,
            attributes["dilations"] or ones,
            pads[:rank],
            pads[rank:],
            strict=True,
        )
    ]


def _pool(op: str, domain: str) -> Maker:
    def make(s: Source) -> Case:
        dtype = s.pick(types(op))
        kernel, attributes = _geometry(s, _rank(s), pool=True)
        attributes |= {"kernel_shape": kernel, "ceil_mode": s.flag()}
        outputs = 1
        if op == "AveragePool":
            attributes["count_include_pad"] = s.flag()
        if op == "LpPool":
            attributes["p"] = s.pick([None, 1, 2, 3])
        if op == "MaxPool":
            outputs = 1 + s.flag()
            attributes["storage_order"] = s.flag() if outputs == 2 else None
        shape = (s.integer(0, 2), s.integer(1, 3), *_spatial(s, kernel, attributes))
        return Case(op, [s.array(shape, dtype, domain)], attributes, outputs=outputs)

    return make


def _global(op: str) -> Maker:
    def make(s: Source) -> Case:
        shape = (s.integer(0, 2), s.integer(1, 3), *s.sizes(_rank(s), low=1))
        attributes = {"p": s.pick([None, 1, 2, 3])} if op == "GlobalLpPool" else {}
        return Case(op, [s.array(shape, s.pick(types(op)), "finite")], attributes)

    return make


_COORDINATES = (
    None,
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)


def _resize(s: Source) -> Case:
    dtype = s.pick(types("Resize", "T1"))
    mode = s.pick([None, "nearest", "linear", "cubic"])
    rank = s.integer(1, 4)
    shape = s.sizes(rank, low=1, high=6)
    resized = [axis for axis in range(rank) if s.flag()] or [rank - 1]
    coordinates = s.pick(_COORDINATES)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if mode in (None, "nearest"):
        attributes["nearest_mode"] = s.pick(
            [None, "round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        )
    else:
        attributes["antialias"] = s.maybe(s.flag())
    if mode == "cubic":
        attributes["cubic_coeff_a"] = s.pick([None, -0.5])
        # Weights divided by their sum miss a tie between two integers by their rounding.
        attributes["exclude_outside"] = s.maybe(s.flag() and is_float(dtype))
    named = bool(s.flag())
    axes = resized if named else list(range(rank))
    attributes["axes"] = axes if named else None
    scales: Array | None = None
    sizes: Array | None = None
    factors = [s.pick([2.0, 0.5, 1.0, 1.5, 3.0, 0.6, 0.25, 2.7]) for _ in axes]
    factors = [f if axis in resized else 1.0 for f, axis in zip(factors, axes, strict=True)]
    assume(all(math.floor(shape[a] * f) > 0 for a, f in zip(axes, factors, strict=True)))
    if s.flag():
        scales = np.asarray(factors, np.float32)
    else:
        wanted = [max(1, int(shape[a] * f)) for a, f in zip(axes, factors, strict=True)]
        sizes = np.asarray(wanted, np.int64)
        if named:
            policies = [None, "stretch", "not_larger", "not_smaller"]
            attributes["keep_aspect_ratio_policy"] = s.pick(policies)
    roi: Array | None = None
    if coordinates == "tf_crop_and_resize":
        roi = np.asarray([0.25] * len(axes) + [0.75] * len(axes), np.float32)
        attributes["extrapolation_value"] = s.pick([None, 2.0])
    inputs = [s.array(shape, dtype, "tame"), roi, scales, sizes]
    while inputs[-1] is None:
        inputs.pop()
    return Case("Resize", inputs, attributes, constants=(1, 2, 3))


def _grid_sample(s: Source) -> Case:
    dtype, kind = s.pick(types("GridSample", "T1")), s.pick(types("GridSample", "T2"))
    rank = s.pick([2, 2, 3])
    mode = s.pick([None, "linear", "nearest"] + (["cubic"] if rank == 2 else []))
    if dtype == np.float64:
        kind = dtype  # what the grid does not resolve, the result cannot
    if not is_float(dtype):
        mode = "nearest"  # others round down where their weights do not add up to one
    n, c = s.integer(1, 2), s.integer(1, 2)
    x = s.array((n, c, *s.sizes(rank, low=1)), dtype, "tame")
    grid = s.rng().uniform(-1.5, 1.5, (n, *s.sizes(rank, low=1, high=4), rank)).astype(kind)
    attributes = {
        "mode": mode,
        "padding_mode": s.pick([None, "zeros", "border", "reflection"]),
        "align_corners": s.maybe(s.flag()),
    }
    return Case("GridSample", [x, grid], attributes)


def _affine_grid(s: Source) -> Case:
    rank = s.pick([2, 3])
    n = s.integer(1, 2)
    theta = s.array((n, rank, rank + 1), s.pick(types("AffineGrid", "T1")), "tame")
    size = np.asarray((n, s.integer(1, 3), *s.sizes(rank, low=1)), np.int64)
    return Case("AffineGrid", [theta, size], {"align_corners": s.flag()}, constants=(1,))


TABLE: dict[str, Maker] = {
    "AffineGrid": _affine_grid,
    "AveragePool": _pool("AveragePool", "finite"),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    **{op: _global(op) for op in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")},
    "GridSample": _grid_sample,
    "LpPool": _pool("LpPool", "finite"),
    "MaxPool": _pool("MaxPool", "nonfinite"),
    "Resize": _resize,
}
