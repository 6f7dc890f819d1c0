"""Strategies of the operators that move, cut, join, index or generate data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from tests.fuzz.case import Array, Case
from tests.fuzz.values import (
    BOOL,
    FLOATS,
    INDICES,
    INTEGERS,
    Maker,
    Source,
    is_float,
    types,
)

I64 = np.dtype(np.int64)


def _ints(values: Sequence[int]) -> Array:
    return np.asarray(values, np.int64)


def _indices(s: Source, shape: Sequence[int], size: int) -> Array:
    """Indices into a dimension of `size`, from both ends."""
    dtype = s.pick(INDICES)
    return np.asarray(s.rng().integers(-size, size, shape)).astype(dtype)


def _reshape(s: Source) -> Case:
    dtype = s.pick(types("Reshape", narrow=True))
    shape = s.shape()
    kept, wanted = list(shape), []
    while kept:  # merge neighbours at random
        count = s.integer(1, len(kept))
        wanted.append(math.prod(kept[:count]))
        kept = kept[count:]
    if s.flag():
        wanted.insert(s.integer(0, len(wanted)), 1)
    inputs = [s.array(shape, dtype), _ints(wanted)]
    if 0 in shape:
        return Case("Reshape", inputs, {"allowzero": 1}, constants=(1,))
    if wanted and s.flag():
        inputs[1][s.integer(0, len(wanted) - 1)] = -1
    return Case("Reshape", inputs, {}, constants=(1,))


def _flatten(s: Source) -> Case:
    shape = s.shape()
    axis = s.integer(-len(shape), len(shape))
    return Case("Flatten", [s.array(shape, s.pick(types("Flatten", narrow=True)))], {"axis": axis})


def _transpose(s: Source) -> Case:
    shape = s.shape()
    perm = [int(i) for i in s.rng().permutation(len(shape))]
    array = s.array(shape, s.pick(types("Transpose", narrow=True)))
    return Case("Transpose", [array], {"perm": perm if perm and s.flag() else None})


def _squeeze(s: Source) -> Case:
    shape = list(s.shape(0, 3))
    for _ in range(s.integer(0, 2)):
        shape.insert(s.integer(0, len(shape)), 1)
    ones = [i for i, size in enumerate(shape) if size == 1]
    array = s.array(shape, s.pick(types("Squeeze", narrow=True)))
    if not ones or s.flag():
        return Case("Squeeze", [array])
    axes = [i - len(shape) * s.flag() for i in ones if s.flag()]
    return Case("Squeeze", [array, _ints(axes)], constants=(1,))


def _unsqueeze(s: Source) -> Case:
    shape = s.shape()
    rank = len(shape) + s.integer(0, 2)
    axes = [int(i) for i in s.rng().permutation(rank)[: rank - len(shape)]]
    axes = [axis - rank * s.flag() for axis in axes]
    array = s.array(shape, s.pick(types("Unsqueeze", narrow=True)))
    return Case("Unsqueeze", [array, _ints(axes)], constants=(1,))


def _concat(s: Source) -> Case:
    dtype = s.pick(types("Concat"))
    shape = list(s.shape(1))
    axis = s.axis(len(shape))
    arrays = []
    for _ in range(s.integer(1, 4)):
        shape[axis] = s.sizes(1)[0]
        arrays.append(s.array(shape, dtype))
    return Case("Concat", arrays, {"axis": axis})


def _split(s: Source) -> Case:
    dtype = s.pick(types("Split"))
    shape = list(s.shape(1))
    axis = s.axis(len(shape))
    if s.flag():
        sizes = s.sizes(s.integer(1, 4))
        shape[axis] = sum(sizes)
        inputs = [s.array(shape, dtype), _ints(sizes)]
        return Case("Split", inputs, {"axis": axis}, constants=(1,), outputs=len(sizes))
    shape[axis] = s.integer(1, 9)
    counts = [n for n in range(1, shape[axis] + 1) if -(-shape[axis] // n) * (n - 1) < shape[axis]]
    count = s.pick(counts)
    return Case(
        "Split", [s.array(shape, dtype)], {"axis": axis, "num_outputs": count}, outputs=count
    )


def _slice(s: Source) -> Case:
    dtype = s.pick(types("Slice"))
    shape = s.shape(1)
    chosen = [axis for axis in range(len(shape)) if s.flag()] or [0]
    bounds = [-(2**63), 2**63 - 1, *range(-7, 8)]
    starts = [s.pick(bounds[2:]) for _ in chosen]
    ends = [s.pick(bounds) for _ in chosen]
    steps = [s.pick([1, -1, 2, -2, 3, -5]) for _ in chosen]
    axes: Array | None = _ints([a - len(shape) * s.flag() for a in chosen])
    if chosen == list(range(len(shape))) and s.flag():
        axes = None
    inputs = [s.array(shape, dtype), _ints(starts), _ints(ends), axes, _ints(steps)]
    return Case("Slice", inputs, constants=(1, 2, 3, 4))


def _pad(s: Source) -> Case:
    dtype = s.pick(types("Pad"))
    mode = s.pick([None, "constant", "reflect", "edge", "wrap"])
    least = 1 if mode in ("reflect", "edge", "wrap") else 0
    shape = s.shape(1, least=least)
    most = {"reflect": 1, "wrap": 0}.get(str(mode))
    before, after = [], []
    for size in shape:
        limit = 3 if most is None else size - most
        low = s.integer(-size if mode != "reflect" and most is None else 0, max(limit, 0))
        high = s.integer(-(size + min(low, 0)) if low >= 0 and most is None else 0, max(limit, 0))
        if size + min(low, 0) + min(high, 0) < least:
            low, high = 0, 0
        before.append(low)
        after.append(high)
    value = s.maybe(s.array((), dtype))
    if mode in ("reflect", "edge", "wrap"):
        value = None
    if s.flag():
        axes = [int(a) for a in s.rng().permutation(len(shape))[: s.integer(1, len(shape))]]
        before, after = [before[a] for a in axes], [after[a] for a in axes]
        named = _ints([a - len(shape) * s.flag() for a in axes])
        inputs = [s.array(shape, dtype), _ints(before + after), value, named]
        return Case("Pad", inputs, {"mode": mode}, constants=(1, 3))
    inputs = [s.array(shape, dtype), _ints(before + after), value]
    return Case("Pad", inputs, {"mode": mode}, constants=(1,))


def _expand(s: Source) -> Case:
    full = s.shape()
    inputs = [s.array(s.smaller(full), s.pick(types("Expand"))), _ints(s.smaller(full))]
    return Case("Expand", inputs, constants=(1,))


def _tile(s: Source) -> Case:
    shape = s.shape(0, 3)
    repeats = _ints([s.integer(0, 3) for _ in shape])
    return Case("Tile", [s.array(shape, s.pick(types("Tile"))), repeats], constants=(1,))


def _shape(s: Source) -> Case:
    rank = 5
    start, end = s.maybe(s.integer(-rank, rank)), s.maybe(s.integer(-rank, rank))
    array = s.array(s.shape(), s.pick(types("Shape")))
    return Case("Shape", [array], {"start": start, "end": end})


def _size(s: Source) -> Case:
    return Case("Size", [s.array(s.shape(), s.pick(types("Size")))])


def _constant_of_shape(s: Source) -> Case:
    dtype = s.pick(types("ConstantOfShape", "T2"))
    value = onnx.numpy_helper.from_array(s.array((1,), dtype))
    return Case("ConstantOfShape", [_ints(s.shape())], {"value": s.maybe(value)}, constants=(0,))


def _range(s: Source) -> Case:
    dtype = s.pick(types("Range"))
    delta = s.pick([1, 2, -1, -3, 0.5, -0.25]) if is_float(dtype) else s.pick([1, 2, -1, -3])
    start = s.integer(-5, 5)
    limit = start + delta * s.integer(-2, 9)
    if dtype == np.float32 and s.flag():
        limit += 0.25
    inputs = [np.asarray(v, dtype) for v in (start, limit, delta)]
    return Case("Range", inputs, constants=(0, 1, 2))


def _eye_like(s: Source) -> Case:
    attributes: dict[str, Any] = {"k": s.maybe(s.integer(-4, 4))}
    if s.flag():
        wanted = s.pick(types("EyeLike", "T2"))
        attributes["dtype"] = onnx.helper.np_dtype_to_tensor_dtype(wanted)
    return Case("EyeLike", [s.array(s.sizes(2), s.pick(types("EyeLike", "T1")))], attributes)


def _trilu(s: Source) -> Case:
    inputs: list[Array | None] = [s.array(s.shape(2), s.pick(types("Trilu")))]
    if s.flag():
        inputs.append(np.asarray(s.integer(-5, 5), np.int64))
    return Case("Trilu", inputs, {"upper": s.maybe(s.flag())}, constants=s.pick([(), (1,)]))


def _depth_to_space(s: Source) -> Case:
    block = s.integer(1, 3)
    n, c, h, w = s.sizes(4, high=3)
    dtype = s.pick(types("DepthToSpace"))
    attributes = {"blocksize": block, "mode": s.pick([None, "DCR", "CRD"])}
    return Case("DepthToSpace", [s.array((n, c * block * block, h, w), dtype)], attributes)


def _space_to_depth(s: Source) -> Case:
    block = s.integer(1, 3)
    n, c, h, w = s.sizes(4, high=3)
    array = s.array((n, c, h * block, w * block), s.pick(types("SpaceToDepth")))
    return Case("SpaceToDepth", [array], {"blocksize": block})


def _gather(s: Source) -> Case:
    shape = s.shape(1, least=1)
    axis = s.axis(len(shape))
    rows = _indices(s, s.shape(0, 3), shape[axis])
    inputs = [s.array(shape, s.pick(types("Gather"))), rows]
    return Case("Gather", inputs, {"axis": axis}, constants=s.pick([(), (1,)]))


def _elements(s: Source) -> tuple[Array, Array, int]:
    """Data of some shape, indices of a smaller one, and the axis they count along."""
    shape = s.shape(1, least=1)
    axis = s.axis(len(shape))
    smaller = [s.integer(1, size) for size in shape]
    return np.empty(shape), _indices(s, smaller, shape[axis]), axis


def _gather_elements(s: Source) -> Case:
    data, rows, axis = _elements(s)
    inputs = [s.array(data.shape, s.pick(types("GatherElements"))), rows]
    return Case("GatherElements", inputs, {"axis": axis}, constants=s.pick([(), (1,)]))


def _gather_nd(s: Source) -> Case:
    shape = s.shape(1, least=1)
    batch = s.integer(0, len(shape) - 1)
    depth = s.integer(1, len(shape) - batch)
    rows_shape = (*shape[:batch], *s.sizes(s.integer(0, 2), low=1))
    columns = [s.rng().integers(-size, size, rows_shape) for size in shape[batch : batch + depth]]
    rows = np.stack(columns, axis=-1).astype(np.int64)
    inputs = [s.array(shape, s.pick(types("GatherND"))), rows]
    return Case("GatherND", inputs, {"batch_dims": batch}, constants=s.pick([(), (1,)]))


_REDUCTIONS = (None, "none", "add", "mul", "min", "max")


def _scatter_elements(s: Source) -> Case:
    data, rows, axis = _elements(s)
    dtype = s.pick(types("ScatterElements"))
    reduction = s.pick(_REDUCTIONS) if dtype != BOOL else None
    if reduction in (None, "none"):  # each place is written once
        size = data.shape[axis]
        order = np.argsort(s.rng().random(data.shape), axis=axis)
        cut = tuple(slice(0, n) for n in rows.shape)
        rows = (order[cut] - size * s.flag()).astype(rows.dtype)
    domain = "any" if reduction in (None, "none", "min", "max") else "tame"
    inputs = [s.array(data.shape, dtype, domain), rows, s.array(rows.shape, dtype, domain)]
    return Case("ScatterElements", inputs, {"axis": axis, "reduction": reduction})


def _scatter_nd(s: Source) -> Case:
    shape = s.shape(1, least=1)
    depth = s.integer(1, len(shape))
    dtype = s.pick(types("ScatterND"))
    reduction = s.pick(_REDUCTIONS) if dtype != BOOL else None
    places = math.prod(shape[:depth])
    count = s.integer(0, places)
    flat = s.rng().permutation(places)[:count]
    if reduction not in (None, "none"):
        flat = s.rng().integers(0, places, count)
    columns = np.unravel_index(flat, shape[:depth])
    rows = np.stack(columns, axis=-1).astype(np.int64)
    if s.flag():
        rows = rows - np.asarray(shape[:depth])
    if count and count % 2 == 0 and s.flag():
        rows = rows.reshape(2, count // 2, depth)
    domain = "any" if reduction in (None, "none", "min", "max") else "tame"
    updates = s.array((*rows.shape[:-1], *shape[depth:]), dtype, domain)
    inputs = [s.array(shape, dtype, domain), rows, updates]
    return Case("ScatterND", inputs, {"reduction": reduction})


def _one_hot(s: Source) -> Case:
    depth = s.integer(1, 5)
    shape = s.shape(1, 3)
    kind = s.pick(types("OneHot", "T1"))
    low = 0 if kind.kind == "u" else -depth - 1
    indices = np.asarray(s.rng().integers(low, depth + 2, shape)).astype(kind)
    size = np.asarray(depth, s.pick(types("OneHot", "T2"))).reshape(s.pick([(), (1,)]))
    values = s.array((2,), s.pick(types("OneHot", "T3")))
    axis = s.integer(-len(shape) - 1, len(shape))
    return Case("OneHot", [indices, size, values], {"axis": axis}, constants=(1,))


def _reverse_sequence(s: Source) -> Case:
    batch_axis = s.flag()
    shape = s.shape(2, least=1)
    lengths = s.rng().integers(1, shape[1 - batch_axis] + 1, shape[batch_axis])
    inputs = [s.array(shape, s.pick(types("ReverseSequence"))), lengths.astype(np.int64)]
    return Case("ReverseSequence", inputs, {"batch_axis": batch_axis, "time_axis": 1 - batch_axis})


def _constant(s: Source) -> Case:
    dtype = s.pick((*FLOATS, *INTEGERS, BOOL))
    tensor = onnx.numpy_helper.from_array(s.array(s.shape(), dtype))
    attributes = s.pick(
        [
            {"value": tensor},
            {"value_float": 1.5},
            {"value_floats": [1.0, 2.5]},
            {"value_int": -(2**40)},
            {"value_ints": [1, 2**40]},
        ]
    )
    return Case("Constant", [], attributes)


def _compress(s: Source) -> Case:
    shape = s.shape(1, least=1)
    axis = s.maybe(s.axis(len(shape)))
    size = math.prod(shape) if axis is None else shape[axis]
    inputs = [s.array(shape, s.pick(types("Compress"))), s.array((s.integer(1, size),), BOOL)]
    return Case("Compress", inputs, {"axis": axis})


TABLE: dict[str, Maker] = {
    "Compress": _compress,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "ReverseSequence": _reverse_sequence,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
