"""The cases of `benchmarks.ops.algorithms`: operators at sizes that networks give them.

A case is an ONNX node and the call of PyTorch that means the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Function = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """An operator on data.

    Attributes:
        name: Operator and what is special, unique.
        where: A network, or kind of network, that does this.
        op: ONNX's operator.
        arrays: Its inputs by position, which the model takes at run time.
        peer: The same in PyTorch, on `arrays` in order.
        constants: Its inputs by position that are constants.
        attributes: Its attributes.
        outputs: Number of its outputs.
        between: Whether to measure it between two 1x1 convolutions too.
    """

    name: str
    where: str
    op: str
    arrays: dict[int, Array]
    peer: Function
    constants: dict[int, Array] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    between: bool = False


_RNG = np.random.default_rng(0)


def _f(*shape: int) -> Array:
    return _RNG.standard_normal(shape, np.float32)


def _distinct(count: int, most: int) -> Array:
    """`count` different numbers below `most`, in random order."""
    return _RNG.permutation(most)[:count].astype(np.int64)


def cases() -> Iterator[Case]:
    """All cases, one family after the other."""
    for family in (_resize, _grid_sample, _scatter, _gather, _top_k, _transposed, _pooling):
        yield from family()


# (where, shape, output size, mode, PyTorch's mode, further keywords of PyTorch's interpolate)
_RESIZES: list[tuple[str, tuple[int, ...], int, str, str, dict[str, Any]]] = [
    ("Segformer-B0", (1, 256, 16, 16), 128, "linear", "bilinear", {}),
    ("Segformer-B0", (1, 256, 32, 32), 128, "linear", "bilinear", {}),
    ("Segformer-B0", (1, 256, 64, 64), 128, "linear", "bilinear", {}),
    ("Segformer-B0 labels", (1, 150, 128, 128), 512, "linear", "bilinear", {}),
    ("Mask2Former masks", (1, 100, 96, 96), 384, "linear", "bilinear", {}),
    ("U-Net, bilinear", (1, 64, 128, 128), 256, "linear", "bilinear", {"align_corners": True}),
    ("feature pyramid", (1, 256, 32, 32), 64, "nearest", "nearest", {}),
    ("StyleGAN, VAE", (1, 128, 128, 128), 256, "nearest", "nearest", {}),
    ("ViT positions", (1, 768, 14, 14), 32, "cubic", "bicubic", {}),
    ("images", (1, 3, 512, 512), 1024, "cubic", "bicubic", {}),
    ("images", (1, 3, 1024, 1024), 512, "linear", "bilinear", {}),
    ("images", (8, 3, 512, 512), 224, "linear", "bilinear", {"antialias": True}),
    ("images", (8, 3, 512, 512), 224, "cubic", "bicubic", {"antialias": True}),
    ("segmentation", (1, 64, 256, 256), 128, "nearest", "nearest", {}),
    ("segmentation", (1, 64, 256, 256), 128, "cubic", "bicubic", {}),
]


def _resize() -> Iterator[Case]:
    for where, shape, size, mode, peer_mode, how in _RESIZES:
        corners, antialias = how.get("align_corners", False), how.get("antialias", False)
        nearest = mode == "nearest"
        coordinates = "align_corners" if corners else "asymmetric" if nearest else "half_pixel"
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
        attributes |= {"nearest_mode": "floor"} if nearest else {}
        # PyTorch antialiases as Pillow does.
        attributes |= {"antialias": 1, "exclude_outside": 1} if antialias else {}
        attributes |= {"cubic_coeff_a": -0.5} if antialias and mode == "cubic" else {}
        extra = "".join(f", {key}" for key in how)
        yield Case(
            f"{mode}{extra} {_shape(shape)} -> {size}",
            where,
            "Resize",
            {0: _f(*shape)},
            _interpolate(size, peer_mode, how),
            {3: np.array([*shape[:2], size, size], np.int64)},
            attributes,
            between=shape[1] > 3,
        )


def _interpolate(size: int, mode: str, how: dict[str, Any]) -> Function:
    from torch.nn.functional import interpolate

    return lambda x: interpolate(x, (size, size), mode=mode, **how)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# (where, shape, grid's two sizes, mode, padding, align_corners)
_GRIDS: list[tuple[str, tuple[int, ...], tuple[int, int], str, str, int]] = [
    ("Mask2Former, 64 px", (8, 32, 64, 64), (5376, 4), "bilinear", "zeros", 0),
    ("Mask2Former, 32 px", (8, 32, 32, 32), (5376, 4), "bilinear", "zeros", 0),
    ("Mask2Former, 16 px", (8, 32, 16, 16), (5376, 4), "bilinear", "zeros", 0),
    ("PointRend", (1, 256, 128, 128), (784, 20), "bilinear", "border", 0),
    ("optical flow", (1, 64, 128, 128), (128, 128), "bilinear", "border", 1),
    ("warping images", (1, 3, 512, 512), (512, 512), "bilinear", "reflection", 0),
    ("warping images", (1, 3, 512, 512), (512, 512), "bicubic", "zeros", 0),
    ("warping images", (1, 3, 512, 512), (512, 512), "nearest", "zeros", 0),
    ("warping features", (1, 64, 128, 128), (128, 128), "bicubic", "border", 0),
    ("warping features", (1, 64, 128, 128), (128, 128), "nearest", "reflection", 0),
]
_ONNX_MODES = {"bilinear": "linear", "bicubic": "cubic", "nearest": "nearest"}


def _grid_sample() -> Iterator[Case]:
    for where, shape, points, mode, padding, corners in _GRIDS:
        grid = _RNG.uniform(-1.1, 1.1, (shape[0], *points, 2)).astype(np.float32)
        yield Case(
            f"{mode}, {padding}{', align_corners' * corners} {_shape(shape)} at {_shape(points)}",
            where,
            "GridSample",
            {0: _f(*shape), 1: grid},
            _sample(mode, padding, bool(corners)),
            attributes={
                "mode": _ONNX_MODES[mode],
                "padding_mode": padding,
                "align_corners": corners,
            },
            between=shape[1] > 3,
        )


def _sample(mode: str, padding: str, corners: bool) -> Function:
    from torch.nn.functional import grid_sample

    return lambda x, grid: grid_sample(
        x, grid, mode=mode, padding_mode=padding, align_corners=corners
    )


def _scatter() -> Iterator[Case]:
    for reduction in ("none", "add"):
        for where, shape, places in (
            ("key-value cache, rows", (1024, 768), _distinct(8, 1024)),
            ("token pruning, rows", (16384, 256), _distinct(4096, 16384)),
            ("pixels", (512, 512), _RNG.permutation(512 * 512)[:50000]),
            ("points, sparse voxels", (65536, 4), _distinct(20000, 65536)),
        ):
            depth = 2 if where == "pixels" else 1
            rows = np.stack(np.unravel_index(places, shape[:depth]), axis=-1).astype(np.int64)
            yield Case(
                f"{reduction}, {len(rows)} of {_shape(shape)}",
                where,
                "ScatterND",
                {0: _f(*shape), 1: rows, 2: _f(len(rows), *shape[depth:])},
                _put(reduction == "add"),
                attributes={"reduction": reduction},
            )
    for where, shape, count, axis, reduction in (
        ("selected queries", (1, 8400), 300, 1, "none"),
        ("masks of tokens", (32, 8192), 512, 1, "none"),
        ("top-k experts", (4096, 64), 2, 1, "none"),
        ("unpooling", (64, 16384), 4096, 1, "none"),
    ):
        rows_of = [_distinct(count, shape[1]) for _ in range(shape[0])]
        updates = _f(shape[0], count)
        yield Case(
            f"{reduction}, {count} a row of {_shape(shape)}",
            where,
            "ScatterElements",
            {0: _f(*shape), 1: np.stack(rows_of), 2: updates},
            lambda x, index, updates: x.scatter(1, index, updates),
            attributes={"axis": axis, "reduction": reduction},
        )
    for where, shape, count in (
        ("graph network, edges to nodes", (2048, 64), 10000),
        ("graph network, edges to nodes", (256, 128), 2048),
    ):
        nodes = _RNG.integers(0, shape[0], (count, 1)).repeat(shape[1], axis=1)
        yield Case(
            f"add, {count} rows to {_shape(shape)}",
            where,
            "ScatterElements",
            {0: _f(*shape), 1: nodes, 2: _f(count, shape[1])},
            lambda x, index, updates: x.scatter_add(0, index, updates),
            attributes={"axis": 0, "reduction": "add"},
        )


def _put(accumulate: bool) -> Function:
    return lambda x, rows, updates: x.index_put(rows.unbind(-1), updates, accumulate=accumulate)


def _gather() -> Iterator[Case]:
    gathers: list[tuple[str, tuple[int, ...], Array, int]] = [
        ("BERT-base words", (30522, 768), _RNG.integers(0, 30522, (1, 128)), 0),
        ("BERT-base words, batch 32", (30522, 768), _RNG.integers(0, 30522, (32, 128)), 0),
        ("Swin relative positions", (169, 12), _RNG.integers(0, 169, (49 * 49,)), 0),
        ("columns", (512, 4096), _RNG.integers(0, 4096, (2048,)), 1),
        ("channels", (1, 256, 64, 64), _distinct(128, 256), 1),
    ]
    for where, shape, places, axis in gathers:
        yield Case(
            f"axis {axis}, {_shape(places.shape)} of {_shape(shape)}",
            where,
            "Gather",
            {0: _f(*shape), 1: places.astype(np.int64)},
            _select(axis, places.shape),
            attributes={"axis": axis},
            between=len(shape) == 4,
        )
    elements: list[tuple[str, tuple[int, ...], tuple[int, ...], int]] = [
        ("RT-DETR queries", (1, 8400, 256), (1, 300, 256), 1),
        ("RT-DETR boxes", (1, 8400, 4), (1, 300, 4), 1),
        ("losses", (4096, 1000), (4096, 1), 1),
        ("permutations", (64, 16384), (64, 16384), 1),
    ]
    for where, shape, wanted, axis in elements:
        places = _RNG.integers(0, shape[axis], (*wanted[: axis + 1], 1)[: len(shape)])
        places = np.ascontiguousarray(np.broadcast_to(places, wanted))
        yield Case(
            f"axis {axis}, {_shape(wanted)} of {_shape(shape)}",
            where,
            "GatherElements",
            {0: _f(*shape), 1: places},
            _take(axis),
            attributes={"axis": axis},
        )


def _select(axis: int, shape: tuple[int, ...]) -> Function:
    def select(x: Any, places: Any) -> Any:
        found = x.index_select(axis, places.flatten())
        return found.reshape(x.shape[:axis] + shape + x.shape[axis + 1 :])

    return select


def _take(axis: int) -> Function:
    return lambda x, places: x.gather(axis, places)


def _top_k() -> Iterator[Case]:
    for where, shape, k in (
        ("ImageNet", (1, 1000), 5),
        ("ImageNet, batch 64", (64, 1000), 5),
        ("vocabulary", (1, 50257), 50),
        ("RT-DETR queries", (1, 8400), 300),
        ("DETR classes and queries", (1, 80000), 100),
        ("region proposals", (1, 182400), 1000),
        ("mixture of experts", (4096, 64), 2),
        ("sorting", (64, 1024), 1024),
    ):
        yield Case(
            f"{k} of {_shape(shape)}",
            where,
            "TopK",
            {0: _f(*shape)},
            _extremes(k),
            {1: np.array([k], np.int64)},
            outputs=2,
        )


def _extremes(k: int) -> Function:
    return lambda x: tuple(x.topk(k))


# (where, shape, channels out, kernel, padding, output padding); the stride is 2.
_TRANSPOSED: list[tuple[str, tuple[int, ...], int, int, int, int]] = [
    ("U-Net", (1, 1024, 32, 32), 512, 2, 0, 0),
    ("U-Net", (1, 512, 64, 64), 256, 2, 0, 0),
    ("U-Net", (1, 128, 256, 256), 64, 2, 0, 0),
    ("Mask R-CNN", (32, 256, 14, 14), 256, 2, 0, 0),
    ("pose estimation, DCGAN", (1, 256, 32, 32), 256, 4, 1, 0),
    ("pose estimation, DCGAN", (1, 128, 64, 64), 64, 4, 1, 0),
    ("CycleGAN", (1, 256, 64, 64), 128, 3, 1, 1),
    ("CycleGAN", (1, 128, 128, 128), 64, 3, 1, 1),
    ("decoder", (1, 512, 32, 32), 256, 3, 1, 1),
]


def _transposed() -> Iterator[Case]:
    for where, shape, c_out, kernel, pad, extra in _TRANSPOSED:
        weight = _f(shape[1], c_out, kernel, kernel) / np.float32(np.sqrt(shape[1]))
        bias = _f(c_out)
        yield Case(
            f"k{kernel} s2 {_shape(shape)} -> {c_out}",
            where,
            "ConvTranspose",
            {0: _f(*shape)},
            _deconvolve(weight, bias, pad, extra),
            {1: weight, 2: bias},
            {
                "kernel_shape": [kernel, kernel],
                "strides": [2, 2],
                "pads": [pad] * 4,
                "output_padding": [extra] * 2,
            },
            between=True,
        )


def _deconvolve(weight: Array, bias: Array, pad: int, extra: int) -> Function:
    import torch

    w, b = torch.from_numpy(weight), torch.from_numpy(bias)
    return lambda x: torch.conv_transpose2d(x, w, b, stride=2, padding=pad, output_padding=extra)


# (where, operator, shape, kernel, stride, padding)
_POOLS: list[tuple[str, str, tuple[int, ...], int, int, int]] = [
    ("U-Net", "MaxPool", (1, 64, 256, 256), 2, 2, 0),
    ("U-Net", "MaxPool", (1, 512, 64, 64), 2, 2, 0),
    ("ResNet", "MaxPool", (1, 64, 112, 112), 3, 2, 1),
    ("ResNet, batch 8", "MaxPool", (8, 64, 112, 112), 3, 2, 1),
    ("YOLO", "MaxPool", (1, 256, 20, 20), 5, 1, 2),
    ("YOLOv4", "MaxPool", (1, 512, 19, 19), 13, 1, 6),
    ("DenseNet", "AveragePool", (1, 256, 56, 56), 2, 2, 0),
    ("Inception-v3", "AveragePool", (1, 192, 35, 35), 3, 1, 1),
    ("PSPNet, adaptive to 6", "AveragePool", (1, 512, 60, 60), 10, 10, 0),
    ("ResNet", "GlobalAveragePool", (1, 2048, 7, 7), 7, 7, 0),
    ("ResNet, batch 8", "GlobalAveragePool", (8, 2048, 7, 7), 7, 7, 0),
    ("squeeze and excite", "GlobalAveragePool", (1, 96, 112, 112), 112, 112, 0),
]


def _pooling() -> Iterator[Case]:
    import torch.nn.functional as F

    for where, op, shape, kernel, stride, pad in _POOLS:
        attributes: dict[str, Any] = {
            "kernel_shape": [kernel] * 2,
            "strides": [stride] * 2,
            "pads": [pad] * 4,
        }
        attributes |= {"count_include_pad": 1} if op == "AveragePool" else {}
        window = "" if op.startswith("Global") else f"k{kernel} s{stride} "
        yield Case(
            f"{window}{_shape(shape)}",
            where,
            op,
            {0: _f(*shape)},
            _pool(F.max_pool2d if op == "MaxPool" else F.avg_pool2d, kernel, stride, pad),
            attributes={} if op.startswith("Global") else attributes,
            between=True,
        )


def _pool(function: Function, kernel: int, stride: int, pad: int) -> Function:
    return lambda x: function(x, kernel, stride, pad)
