"""Strategies of reductions, cumulative operators, searches and what normalizes along axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.fuzz.case import Array, Case
from tests.fuzz.values import Maker, Source, is_float, types

_REDUCTIONS: dict[str, str] = {
    "ReduceL1": "nonfinite",
    "ReduceL2": "nonfinite",
    "ReduceLogSum": "positive",
    "ReduceLogSumExp": "nonfinite",
    "ReduceMax": "any",
    "ReduceMean": "nonfinite",
    "ReduceMin": "any",
    "ReduceProd": "nonfinite",
    "ReduceSum": "nonfinite",
    "ReduceSumSquare": "nonfinite",
}
"""Operator -> domain of its input."""
_NOT_OF_NOTHING = {"ReduceMean"}
_THROUGH_FLOATS = {
    "ReduceL2": "positive",
    "ReduceLogSum": "positive",
    "ReduceLogSumExp": "positive",
    "ReduceMean": "tame",
}
"""Operator -> domain of integers, whose result is computed in floats: small ones only."""


def _reduction(op: str, domain: str) -> Maker:
    def make(s: Source) -> Case:
        dtype = s.pick(types(op))
        shape = s.shape(least=int(op in _NOT_OF_NOTHING))
        kind = domain if is_float(dtype) else _THROUGH_FLOATS.get(op, domain)
        inputs: list[Array | None] = [s.array(shape, dtype, kind)]
        chosen = [axis for axis in range(len(shape)) if s.flag()]
        if s.flag():
            inputs.append(np.asarray([a - len(shape) * s.flag() for a in chosen], np.int64))
        attributes = {"keepdims": s.maybe(s.flag()), "noop_with_empty_axes": s.maybe(s.flag())}
        return Case(op, inputs, attributes, constants=(1,))

    return make


def _arg(op: str) -> Maker:
    def make(s: Source) -> Case:
        shape = s.shape(1, least=1)
        attributes: dict[str, Any] = {
            "axis": s.axis(len(shape)),
            "keepdims": s.flag(),
            "select_last_index": s.flag(),
        }
        return Case(op, [s.array(shape, s.pick(types(op)))], attributes)

    return make


def _cumulative(op: str) -> Maker:
    def make(s: Source) -> Case:
        shape = s.shape(1)
        dtype = s.pick(types(op))
        axis = np.asarray(s.axis(len(shape)), s.pick(types(op, "T2")))
        attributes = {"exclusive": s.flag(), "reverse": s.flag()}
        return Case(op, [s.array(shape, dtype, "nonfinite"), axis], attributes, constants=(1,))

    return make


def _along(op: str, domain: str) -> Maker:
    def make(s: Source) -> Case:
        shape = s.shape(1)
        array = s.array(shape, s.pick(types(op)), domain)
        return Case(op, [array], {"axis": s.maybe(s.axis(len(shape)))})

    return make


def _top_k(s: Source) -> Case:
    shape = s.shape(1, least=1)
    axis = s.axis(len(shape))
    k = np.asarray([s.integer(0, shape[axis])], np.int64)
    attributes = {"axis": axis, "largest": s.flag(), "sorted": 1}
    inputs = [s.array(shape, s.pick(types("TopK"))), k]
    return Case("TopK", inputs, attributes, constants=(1,), outputs=2)


def _lp_normalization(s: Source) -> Case:
    shape = s.shape(1)
    attributes = {"axis": s.maybe(s.axis(len(shape))), "p": s.pick([None, 1, 2])}
    array = s.array(shape, s.pick(types("LpNormalization")), "finite")
    return Case("LpNormalization", [array], attributes)


TABLE: dict[str, Maker] = {
    **{op: _reduction(op, domain) for op, domain in _REDUCTIONS.items()},
    **{op: _arg(op) for op in ("ArgMax", "ArgMin")},
    **{op: _cumulative(op) for op in ("CumSum", "CumProd")},
    "Hardmax": _along("Hardmax", "any"),
    "LogSoftmax": _along("LogSoftmax", "nonfinite"),
    "LpNormalization": _lp_normalization,
    "Softmax": _along("Softmax", "nonfinite"),
    "TopK": _top_k,
}
