"""Dimensions that stay open, for engines whose executables serve a range of shapes.

A symbolic dimension is bound to the size of a call, unless an engine of the program takes ranges
and a range is known: declared by the model or in `CompileOptions.ranges`, or seen, once calls came
with several sizes. Then one specialization serves all calls within the range. A size of 0 is always
bound, since engines that take ranges take no empty tensors; a range from 0 begins at 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from xrt.errors import InputError, OptionError, unknown
from xrt.importers.interface import Imported
from xrt.passes.bind_shapes import OPEN
from xrt.process import new_lock
from xrt.runtime.inputs import Entry, Signature

Bounds = tuple[int, ...]
"""(least, most), or (least, usual, most), of a symbol."""


@dataclass(frozen=True)
class Range:
    """Sizes of a symbolic dimension.

    Attributes:
        least: The smallest that is served.
        usual: The one that is optimized for.
        most: The largest that is served.
    """

    least: int
    usual: int
    most: int

    @classmethod
    def of(cls, bounds: Bounds, usual: int) -> Range:
        """The range with these bounds, less 0; `usual` counts where they name none."""
        least, *middle, most = bounds
        least = min(max(least, 1), most)
        return cls(least, min(max(middle[0] if middle else usual, least), most), most)

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


Open = tuple[tuple[str, Range], ...]
"""Symbols that stay open, with their ranges."""

CORNERS = ("least", "usual", "most")
"""The fields of `Range`, in the order of a profile."""

Shapes = dict[str, tuple[int, ...]]


def shapes_at(imported: Imported, signature: Signature, ranges: Open, corner: str) -> Shapes:
    """Shapes by name of input where the open symbols are at the `corner` of their ranges."""
    sizes = {symbol: getattr(given, corner) for symbol, given in ranges}
    shapes: Shapes = {}
    for value, (shape, _, _) in zip(imported.model.graph.inputs, signature, strict=True):
        if shape is not None:
            shapes[str(value.name)] = tuple(
                _evaluate(value, axis, sizes) if size == OPEN else size
                for axis, size in enumerate(shape)
            )
    return shapes


def closed(imported: Imported, signature: Signature, ranges: Open) -> Signature:
    """`signature` where the open dimensions have the sizes that are optimized for."""
    if not ranges:
        return signature
    shapes = shapes_at(imported, signature, ranges, "usual")
    names = [str(value.name) for value in imported.model.graph.inputs]
    return tuple(
        (shapes.get(name), *entry[1:]) for name, entry in zip(names, signature, strict=True)
    )


def _evaluate(value: ir.Value, axis: int, sizes: Mapping[str, int]) -> int:
    assert value.shape is not None
    dim = value.shape[axis]
    assert isinstance(dim, ir.SymbolicDim)
    found = dim.evaluate(dict(sizes))
    assert isinstance(found, int)
    return found


@dataclass
class _Seen:
    """What the calls of one model came with."""

    calls: Counter[Signature] = field(default_factory=Counter)
    ranges: dict[str, Range] = field(default_factory=dict)
    opened: dict[Signature, tuple[Signature, Open]] = field(default_factory=dict)


_MOST_SIGNATURES = 4096
"""Signatures whose answers are kept."""


class Ranges:
    """Decides which dimensions of a program's models stay open. Safe to use from threads.

    Args:
        declared: Bounds by symbol, in place of the model's own.
        widen: Whether a size outside a declared range widens it. If not, it is an error.
    """

    def __init__(self, declared: Mapping[str, Bounds], *, widen: bool) -> None:
        self._declared = dict(declared)
        self._widen = widen
        self._models: dict[int, _Seen] = {}
        self._lock = new_lock()

    def open(self, imported: Imported, signature: Signature) -> tuple[Signature, Open]:
        """`signature` with `OPEN` for dimensions within a range, and those ranges.

        Raises:
            InputError: If a size is outside the range that is declared for it.
            OptionError: If a range is declared for a symbol that the model does not have.
        """
        seen = self._models.setdefault(id(imported), _Seen())
        known = seen.opened.get(signature)
        if known is None:
            if not all(map(_fits, imported.model.graph.inputs, signature)):
                return signature, ()  # whoever binds it says why, and nothing is learned of it
            with self._lock:
                known = self._decide(imported, signature, seen)
        seen.calls[signature] += 1
        return known

    def restore(self, imported: Imported, ranges: Open) -> None:
        """Take `ranges` as met before."""
        with self._lock:
            seen = self._models.setdefault(id(imported), _Seen())
            seen.ranges.update(ranges)
            seen.opened.clear()

    def _decide(
        self, imported: Imported, signature: Signature, seen: _Seen
    ) -> tuple[Signature, Open]:
        sizes = {symbol: (size, where) for symbol, size, where in _symbols(imported, signature)}
        for name in self._declared:
            if name not in sizes:
                raise OptionError(
                    f"CompileOptions.ranges: {unknown('Symbolic dimension', name, sizes)}"
                )
        calls = seen.calls + Counter([signature])
        wider = dict(seen.ranges)
        for symbol, (size, where) in sizes.items():
            known = self._range(imported, symbol, size, where, seen.ranges.get(symbol), calls)
            if known is not None:
                wider[symbol] = known
        ranges = tuple(
            (symbol, wider[symbol])
            for symbol, (size, _) in sizes.items()
            if symbol in wider and size > 0
        )
        bound = {symbol: sizes[symbol][0] for symbol, _ in ranges}
        answer = _opened(imported, signature, bound), ranges
        if wider != seen.ranges or len(seen.opened) >= _MOST_SIGNATURES:
            seen.opened.clear()  # what was open before may be open further now
        if len(seen.calls) >= _MOST_SIGNATURES:
            seen.calls.clear()
        seen.ranges = wider
        seen.opened[signature] = answer
        return answer

    def _range(
        self,
        imported: Imported,
        symbol: str,
        size: int,
        where: str,
        known: Range | None,
        calls: Counter[Signature],
    ) -> Range | None:
        """The range of `symbol` now that `size` was met; None if it is bound to its size."""
        bounds = self._declared.get(symbol, imported.ranges.get(symbol))
        if size == 0 and (bounds is None or bounds[0] == 0):
            return None
        if known is None and bounds is not None:
            known = Range.of(bounds, size)
        if known is not None and size in known:
            return known
        if bounds is not None and not self._widen:
            raise InputError(
                f"{where} is {size}; the range of {symbol!r} is {known}. Pass a size within it, "
                f"declare another with CompileOptions(ranges={{{symbol!r}: (least, most)}}), or "
                "let it grow with CompileOptions(widen_ranges=True), which builds anew."
            )
        met = _sizes_met(imported, symbol, calls)
        if known is None:
            return Range(min(met), _usual(met), max(met)) if len(met) > 1 else None
        return Range(min(size, known.least), _usual(met), max(size, known.most))


def _sizes_met(imported: Imported, symbol: str, calls: Counter[Signature]) -> Counter[int]:
    met: Counter[int] = Counter()
    for signature, count in list(calls.items()):
        for name, size, _ in _symbols(imported, signature):
            if name == symbol and size > 0:
                met[size] += count
    return met


def _usual(met: Counter[int]) -> int:
    """The size that was met most; of several, the largest."""
    return max(met, key=lambda size: (met[size], size))


def _symbols(imported: Imported, signature: Signature) -> Iterator[tuple[str, int, str]]:
    """The symbols of a model's inputs, each once: name, size in `signature`, and where."""
    found: set[str] = set()
    for value, (shape, _, _) in zip(imported.model.graph.inputs, signature, strict=True):
        if shape is None or value.shape is None or len(shape) != len(value.shape):
            continue  # binding will say what is wrong
        for axis, (dim, size) in enumerate(zip(value.shape, shape, strict=True)):
            name = "" if isinstance(dim, int) else dim.value or ""
            if name.isidentifier() and name not in found:
                found.add(name)
                yield name, size, f"Dimension {axis} of input {value.name!r}"


def _fits(value: ir.Value, entry: Entry) -> bool:
    """Whether an input has the dtype, the rank and the fixed dimensions that are declared."""
    shape, dtype, _ = entry
    if shape is None or value.shape is None or value.dtype is None:
        return True
    return (
        value.dtype.numpy().name == dtype
        and len(shape) == len(value.shape)
        and all(
            want == size
            for want, size in zip(value.shape, shape, strict=True)
            if isinstance(want, int)
        )
    )


def _opened(imported: Imported, signature: Signature, sizes: Mapping[str, int]) -> Signature:
    """`signature` with `OPEN` where a dimension is a symbol of `sizes`, or computed from some.

    Raises:
        InputError: If a dimension is not what `sizes` make it: where it is bound, binding says so.
    """
    opened = []
    for value, entry in zip(imported.model.graph.inputs, signature, strict=True):
        shape = entry[0]
        if shape is not None and value.shape is not None and len(shape) == len(value.shape):
            shape = tuple(
                OPEN if _is_open(value, axis, size, sizes) else size
                for axis, size in enumerate(shape)
            )
        opened.append((shape, *entry[1:]))
    return tuple(opened)


def _is_open(value: ir.Value, axis: int, size: int, sizes: Mapping[str, int]) -> bool:
    assert value.shape is not None
    dim = value.shape[axis]
    if isinstance(dim, int) or not dim.value:
        return False
    try:
        names = dim.free_symbols()
        wanted = dim.evaluate(dict(sizes)) if names <= sizes.keys() else None
    except Exception:  # not an expression: exporters put any text here
        return False
    if wanted is None:
        return False
    if wanted != size:
        known = ", ".join(f"{name!r} is {sizes[name]}" for name in sorted(names))
        raise InputError(
            f"Input {value.name!r} has {size} at dimension {axis}; expected {wanted}, "
            f"since {known}."
        )
    return True
