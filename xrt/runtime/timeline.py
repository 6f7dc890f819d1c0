"""Draw a trace: lanes over time, with the gaps marked, as an image or as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xrt.errors import InputError, MissingDependencyError, OptionError, unknown
from xrt.runtime.paths import writing
from xrt.runtime.trace import Interval, Trace, rows

if TYPE_CHECKING:
    from PIL import ImageDraw

GAPS = "gaps"
"""The lane below all others: when the device waits."""

_WIDTH, _LEFT, _RIGHT = 1600, 190, 50
_TOP, _ROW, _BAR, _BOTTOM = 56, 40, 26, 44
_FONT_SIZE = 15
_INK, _FAINT, _GAP = (33, 37, 41), (222, 226, 230), (214, 39, 40)
_COLOURS = ((31, 119, 180), (255, 152, 62), (60, 160, 90), (148, 103, 189), (140, 112, 95))
_TICKS = 8


@dataclass(frozen=True)
class View:
    """A part of a trace.

    Attributes:
        start_ns: Where it begins.
        end_ns: Where it ends.
        lanes: The intervals by lane, from top to bottom; none is empty, and in none do any overlap.
        gaps: When the device waits.
    """

    start_ns: int
    end_ns: int
    lanes: dict[str, list[Interval]]
    gaps: list[tuple[int, int]]

    def place(self, time_ns: int) -> float:
        """Where a time is, from 0 at the start to 1 at the end."""
        return (time_ns - self.start_ns) / max(self.end_ns - self.start_ns, 1)


def view(trace: Trace, batches: int) -> View:
    """At most so many batches from the middle of the run, and the gaps among them.

    Raises:
        InputError: If the trace holds no work.
    """
    numbers = sorted({each.batch for each in trace.intervals})
    if not numbers:
        raise InputError("This trace holds no work, so there is nothing to draw.")
    first = max((len(numbers) - batches) // 2, 0)
    chosen = set(numbers[first : first + max(batches, 1)])
    shown = [each for each in trace.intervals if each.batch in chosen]
    start, end = min(each.start_ns for each in shown), max(each.end_ns for each in shown)
    gaps = [(max(a, start), min(b, end)) for a, b in trace.gaps() if a < end and b > start]
    return View(start, end, rows(shown), gaps)


def draw(trace: Trace, path: Path, batches: int) -> None:
    """Write the image. See `Trace.plot`."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingDependencyError("pillow", "image", "Trace.plot") from error
    formats = Image.registered_extensions().items()
    known = {suffix for suffix, name in formats if name in Image.SAVE}
    if path.suffix.lower() not in known:
        raise OptionError(f"Trace.plot: {unknown('Image format', path.suffix, known)}")
    part = view(trace, batches)
    names = [*part.lanes, GAPS]
    height = _TOP + _ROW * len(names) + _BOTTOM
    image = Image.new("RGB", (_WIDTH, height), "white")
    canvas = ImageDraw.Draw(image)
    canvas.font = ImageFont.load_default(_FONT_SIZE)
    canvas.text((14, 16), str(trace), fill=_INK)
    _axis(canvas, part, _TOP + _ROW * len(names))
    for row, name in enumerate(names):
        middle = _TOP + _ROW * row + _ROW // 2
        canvas.text((14, middle), name, fill=_INK, anchor="lm")
        if name == GAPS:
            for start, end in part.gaps:
                _bar(canvas, part, start, end, middle, _GAP)
        else:
            for each in part.lanes[name]:
                colour = _COLOURS[each.batch % len(_COLOURS)]
                _bar(canvas, part, each.start_ns, each.end_ns, middle, colour, str(each.batch))
    with writing(path, "timeline"):
        image.save(path)


def _bar(
    canvas: ImageDraw.ImageDraw,
    part: View,
    start: int,
    end: int,
    middle: int,
    colour: tuple[int, int, int],
    text: str = "",
) -> None:
    left, right = _x(part, start), max(_x(part, end), _x(part, start) + 1)
    canvas.rectangle((left, middle - _BAR // 2, right, middle + _BAR // 2), fill=colour)
    if text and right - left > canvas.textlength(text) + 6:
        canvas.text(((left + right) / 2, middle), text, fill="white", anchor="mm")


def _axis(canvas: ImageDraw.ImageDraw, part: View, bottom: int) -> None:
    span = (part.end_ns - part.start_ns) / 1e6
    for number in range(_TICKS + 1):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / _TICKS
        canvas.line((x, _TOP, x, bottom), fill=_FAINT)
        label = f"{span * number / _TICKS:.4g}" + (" ms" if number == _TICKS else "")
        canvas.text((x, bottom + 14), label, fill=_INK, anchor="mm")


def _x(part: View, time_ns: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * part.place(time_ns)


@dataclass(frozen=True)
class Line:
    """A lane as text.

    Attributes:
        name: The lane.
        cells: For each character the batch that works, None where none does.
    """

    name: str
    cells: Sequence[int | None]

    def __str__(self) -> str:
        if self.name == GAPS:
            return "".join(" " if cell is None else "!" for cell in self.cells)
        return "".join("." if cell is None else str(cell % 10) for cell in self.cells)


def lines(trace: Trace, width: int, batches: int) -> list[Line]:
    """The lanes as text of `width` characters; work that is shorter than one takes one.

    Of gaps only what is at least half a character long shows.
    """
    part = view(trace, batches)
    result = []
    for name, intervals in part.lanes.items():
        spans = [(each.start_ns, each.end_ns, each.batch) for each in intervals]
        result.append(Line(name, _cells(part, spans, width)))
    least = (part.end_ns - part.start_ns) / width / 2
    spans = [(start, end, 0) for start, end in part.gaps if end - start >= least]
    return [*result, Line(GAPS, _cells(part, spans, width))]


def _cells(part: View, spans: Sequence[tuple[int, int, int]], width: int) -> list[int | None]:
    cells: list[Any] = [None] * width
    for start, end, batch in spans:
        first = min(int(part.place(start) * width), width - 1)
        last = min(max(round(part.place(end) * width), first + 1), width)
        cells[first:last] = [batch] * (last - first)
    return cells
