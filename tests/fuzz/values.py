"""What every operator's description draws from: element types, shapes and values.

Shapes and attributes are drawn one by one, so that a failing example shrinks to a small one; the
elements of an array come from one drawn seed, which is fast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st

from tests.fuzz.case import Array, Case
from xrt.graph import OPSET

T = TypeVar("T")
DType = np.dtype[Any]

FLOATS: tuple[DType, ...] = tuple(
    np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
)
SIGNED: tuple[DType, ...] = tuple(np.dtype(t) for t in ("int64", "int32", "int16", "int8"))
UNSIGNED: tuple[DType, ...] = tuple(np.dtype(t) for t in ("uint8", "uint16", "uint32", "uint64"))
INTEGERS = SIGNED + UNSIGNED
BOOL: DType = np.dtype(np.bool_)
INDICES: tuple[DType, ...] = (np.dtype("int64"), np.dtype("int32"))
NARROW: tuple[DType, ...] = tuple(
    np.dtype(t)
    for t in (
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
        ml_dtypes.int4,
        ml_dtypes.uint4,
    )
)
"""Types that only operators which move data take."""

Maker = Callable[["Source"], Case]


@functools.cache
def types(op: str, name: str = "T", *, narrow: bool = False) -> tuple[DType, ...]:
    """The element types that ONNX allows for type variable `name` of `op`."""
    constraints = onnx.defs.get_schema(op, OPSET).type_constraints
    (allowed,) = (set(c.allowed_type_strs) for c in constraints if c.type_param_str == name)
    known = (*FLOATS, *INTEGERS, BOOL, *(NARROW if narrow else ()))
    return tuple(dtype for dtype in known if _label(dtype) in allowed)


def _label(dtype: DType) -> str:
    code = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    name = onnx.TensorProto.DataType.Name(code).lower()
    return f"tensor({name})"


def is_float(dtype: DType) -> bool:
    """Whether `dtype` is a floating-point type, those of ml_dtypes included."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


class Source:
    """Where the description of an operator gets its random parts from."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._draw = draw

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`; examples shrink towards the first."""
        chosen: T = self._draw(st.sampled_from(options))
        return chosen

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return int(self._draw(st.integers(low, high)))

    def flag(self) -> int:
        """0 or 1."""
        return self.integer(0, 1)

    def maybe(self, value: T) -> T | None:
        """`value`, or None."""
        return value if self.flag() else None

    def number(self, low: float, high: float) -> float:
        """A number in [low, high] that float32 holds, as an attribute is stored."""
        steps = self.integer(0, 64)
        return float(np.float32(low + (high - low) * steps / 64))

    def rng(self) -> np.random.Generator:
        """Random numbers from a drawn seed."""
        return np.random.default_rng(self.integer(0, 2**32 - 1))

    def sizes(self, rank: int, *, low: int = 0, high: int = 5) -> tuple[int, ...]:
        """`rank` dimensions; the size 0 is rare."""
        options = [*range(max(low, 1), high + 1)] * 3 + [0] * (low == 0)
        return tuple(self.pick(options) for _ in range(rank))

    def shape(self, low: int = 0, high: int = 4, *, least: int = 0) -> tuple[int, ...]:
        """A shape of `low` to `high` dimensions (up to 6 now and then), each at least `least`."""
        rank = self.integer(low, high)
        if high == 4 and rank == 4:
            rank = self.pick([4, 4, 5, 6])
        return self.sizes(rank, low=least, high=5 if rank < 4 else 3)

    def broadcast(self, count: int) -> list[tuple[int, ...]]:
        """`count` shapes that broadcast with each other."""
        full = self.shape()
        return [self.smaller(full) for _ in range(count)]

    def smaller(self, full: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts to `full`, often `full` itself."""
        if self.flag():
            return tuple(full)
        kept = list(full)[self.integer(0, len(full)) :]
        return tuple(1 if self.pick([0, 0, 1]) else size for size in kept)

    def axis(self, rank: int) -> int:
        """An axis, counted from either end."""
        return self.integer(-rank, rank - 1)

    def array(self, shape: Sequence[int], dtype: DType, domain: str = "any") -> Array:
        """Elements of a domain: see `_fill`."""
        rng, special = self.rng(), self.flag()
        values = _fill(rng, tuple(shape), dtype, domain)
        extras = _special(dtype, domain)
        if special and values.size and extras:
            hit = np.asarray(rng.random(values.shape) < 0.3)
            values[hit] = rng.choice(np.asarray(extras, values.dtype), int(hit.sum()))
        return np.asarray(values.astype(dtype, copy=False))


def _fill(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, domain: str) -> Array:
    """Random elements.

    Domains: "any", the whole type with infinities, NaN and extremes; "nonfinite", moderate numbers
    with infinities and NaN; "tame", moderate numbers only; "positive"; "unit", within [-1, 1];
    "nonzero", like "any" without zeros. For integers: "tame" is within [-5, 5], "positive" within
    [1, 5], the others take the whole type too.
    """
    if dtype == BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if is_float(dtype):
        values = _floats(rng, shape, domain)
        return np.asarray(values.astype(dtype))
    return _integers(rng, shape, dtype, domain)


def _floats(rng: np.random.Generator, shape: tuple[int, ...], domain: str) -> Array:
    if domain == "unit":
        return np.asarray(rng.uniform(-1, 1, shape))
    if domain == "positive":
        return np.asarray(rng.uniform(0.1, 3, shape))
    values = np.asarray(rng.normal(size=shape) * rng.choice([1, 3, 10]))
    return np.asarray(np.round(values)) if rng.random() < 0.2 else values


def _integers(rng: np.random.Generator, shape: tuple[int, ...], dtype: DType, domain: str) -> Array:
    info = ml_dtypes.iinfo(dtype)
    low, high = int(info.min), int(info.max)
    if domain in ("tame", "positive", "nonzero") or rng.random() < 0.5:
        low, high = max(low, -5), min(high, 5)
    if domain == "positive":
        low = 1
    wide = np.uint64 if high > 2**63 - 1 else np.int64
    values = np.asarray(rng.integers(low, high, shape, dtype=wide, endpoint=True)).astype(dtype)
    if domain == "nonzero":
        values = np.where(values == 0, np.ones((), dtype), values)
    return np.asarray(values)


@functools.cache
def _special(dtype: DType, domain: str) -> tuple[Any, ...]:
    """Values that break things, for the domains that have them."""
    if dtype == BOOL:
        return ()
    if not is_float(dtype):
        info = ml_dtypes.iinfo(dtype)
        edges = {info.min, info.max, 0, 1, max(info.min, -1)}
        if domain == "nonzero":
            edges -= {0}
        return tuple(sorted(edges)) if domain in ("any", "nonzero") else ()
    limits = ml_dtypes.finfo(dtype)
    # Of float32 and float64, XLA's Exp and Log flush subnormal numbers, and on some processors
    # all of XLA does; tests/engines/xla/test_denormals.py has what must keep them.
    tiny = limits.smallest_subnormal if dtype == np.float16 else limits.smallest_normal
    zeros = (0.0, -0.0)
    by_domain: dict[str, tuple[Any, ...]] = {
        "any": (*zeros, tiny, limits.max, -limits.max, *_NONFINITE, *_TIES),
        "nonfinite": (*zeros, *_NONFINITE, *_TIES),
        "finite": (*zeros, *_TIES),
        "nonzero": (limits.max, *_NONFINITE, *_TIES),
    }
    return by_domain.get(domain, ())


_NONFINITE = (np.inf, -np.inf, np.nan)
_TIES = (1.0, -1.0, 0.5, -0.5, 1.5, 2.5)


def strategy(maker: Maker) -> st.SearchStrategy[Case]:
    """The strategy of the cases that `maker` makes."""

    @st.composite
    def cases(draw: Any) -> Case:
        return maker(Source(draw))

    return cases()
