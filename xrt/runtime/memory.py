"""Where the values of a schedule are kept: which of them share memory, and how much that takes.

Three things hold what passes between the steps of a call:

- what NumPy or an engine allocates, freed after its last reader;
- staging memory: host arrays that clusters read in place if they are aligned, and would otherwise
  copy at each launch. What several of them read is copied once, to an arena laid out by lifetime;
- recycled memory: results of clusters that only clusters read. An engine that can computes into the
  array that an earlier value of the same shape and dtype has left behind.

The last two live as long as the program. Recycling saves the time in which the system clears fresh
pages (ten clusters with 4 MiB between them: 29 ms without, 10 ms with it; see
benchmarks/memory.py). Each call in flight has an `Arena` of its own, from a pool that keeps a few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.engine import INNER, Executable
from xrt.runtime.layout import ALIGNMENT, Buffer, Layout, lay_out

if TYPE_CHECKING:
    from xrt.runtime.schedule import Schedule

RECYCLED_BYTES = 1 << 19
"""Smaller results are not worth a place: the allocator has such memory at hand, and passing it
costs microseconds (at 256 KiB, 2 % of the time of elementwise clusters).
"""

STAGED_BYTES = 1 << 20
"""Smaller host arrays are not worth a place: NumPy's allocator has larger memory at hand."""

KEPT_ARENAS = 4
"""Arenas that a schedule keeps for its next calls; those of more calls at once are let go."""

Plans = Sequence[tuple[ir.Node, tuple[int, ...], tuple[int, ...]]]
"""For each step its node, and the slots that it reads and writes."""


def allocate(count: int) -> np.ndarray[Any, Any]:
    """`count` bytes, aligned to `ALIGNMENT`."""
    memory = np.empty(count + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + count]


@dataclass(frozen=True)
class Place:
    """A place in the staging memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Arena:
    """The memory of one call in flight.

    Attributes:
        spare: Recycled memory by number: an array that nothing reads any more, or None.
    """

    def __init__(self, size: int, places: Sequence[Place], spares: int) -> None:
        self.spare: list[Any] = [None] * spares
        self._size = size
        self._places = places
        self._views: list[np.ndarray[Any, Any]] = []

    def stage(self, number: int, array: Any) -> Any:
        """`array`, in place `number` if it is a host array that a launch would copy."""
        if not isinstance(array, np.ndarray) or is_aligned(array):
            return array
        if not self._views:
            memory = allocate(self._size)
            self._views = [_view(memory, place) for place in self._places]
        view = self._views[number]
        if view.shape != array.shape or view.dtype != array.dtype:
            return array
        np.copyto(view, array)
        return view


def _view(memory: np.ndarray[Any, Any], place: Place) -> np.ndarray[Any, Any]:
    count = int(np.prod(place.shape)) * place.dtype.itemsize
    part = memory[place.offset : place.offset + count]
    return part.view(place.dtype).reshape(place.shape)


def is_aligned(array: np.ndarray[Any, Any]) -> bool:
    """Whether an engine can read `array` where it is."""
    return array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0


class Arenas:
    """Arenas for the calls of a schedule; safe to share between threads.

    Args:
        layout: Of the staging memory.
        places: The places in it.
        spares: The size of each piece of recycled memory.
    """

    def __init__(self, layout: Layout, places: Sequence[Place], spares: Sequence[int]) -> None:
        self.layout = layout
        self.recycled = sum(spares)
        self._places = tuple(places)
        self._spares = len(spares)
        self._idle: list[Arena] = []

    def take(self) -> Arena:
        """One that nobody else has until it is given back, or forgotten."""
        try:
            return self._idle.pop()
        except IndexError:
            return Arena(self.layout.peak, self._places, self._spares)

    def give(self, arena: Arena) -> None:
        """Keep `arena` for another call."""
        if len(self._idle) < KEPT_ARENAS:
            self._idle.append(arena)


@dataclass(frozen=True)
class StepMemory:
    """What a launch does with the arena of its call.

    Attributes:
        executable: What it launches.
        staged: For inputs to be staged: position, place, and slot, which has the staged array from
            then on.
        into: The spares that its recycled outputs are computed into, in their order; -1 for none.
        leaves: Slots whose last reader it is, and the spares that their arrays become.
        last: Whether no later launch needs the arena.
    """

    executable: Executable
    staged: tuple[tuple[int, int, int], ...] = ()
    into: tuple[int, ...] = ()
    leaves: tuple[tuple[int, int], ...] = ()
    last: bool = False

    def run(self, arguments: list[Any], values: list[Any], arenas: Arenas) -> Sequence[Any]:
        """Launch; the last of `values` holds the arena while the call needs it."""
        arena: Arena | None = values[-1]
        if arena is None:
            arena = values[-1] = arenas.take()
        for position, place, slot in self.staged:
            arguments[position] = values[slot] = arena.stage(place, arguments[position])
        if self.into:
            spare = arena.spare
            given = [None if number < 0 else spare[number] for number in self.into]
            for number in self.into:
                if number >= 0:
                    spare[number] = None
            results = self.executable.run_into(arguments, given)
        else:
            results = self.executable.run(arguments)
        for slot, number in self.leaves:
            arena.spare[number] = values[slot]
        if self.last:
            values[-1] = None
            arenas.give(arena)
        return results


def mark_inner(model: ir.Model) -> None:
    """Mark outputs of clusters that only clusters of the same engine read, in their bodies.

    An engine may then let them be computed into memory that is given to it.
    """
    for node in model.graph:
        if not G.is_cluster(node):
            continue
        body = node.attributes["body"].as_graph()
        for value, inside in zip(node.outputs, body.outputs, strict=True):
            inside.metadata_props.pop(INNER, None)
            if _is_inner(value, _engine(node), model.graph):
                inside.metadata_props[INNER] = "true"


def _is_inner(value: ir.Value, engine: str, graph: ir.Graph) -> bool:
    size = size_of(value)
    if size is None or size < RECYCLED_BYTES or value.is_graph_output() or not value.uses():
        return False
    readers = [use.node for use in value.uses()]
    return all(n.graph is graph and G.is_cluster(n) and _engine(n) == engine for n in readers)


def _engine(node: ir.Node) -> str:
    return node.attributes["engine"].as_string()


def size_of(value: ir.Value) -> int | None:
    """The bytes of a value, if they are known before it is."""
    shape = G.static_shape(value)
    if shape is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
        return None
    try:
        return int(np.prod(shape, dtype=np.int64)) * np.dtype(value.dtype.numpy()).itemsize
    except TypeError:  # strings
        return None


def report(schedule: Schedule, executables: Mapping[str, Executable]) -> dict[str, int]:
    """What the values of a call take, in bytes.

    Returns:
        peak: What all that steps write takes in one arena laid out by lifetime; the outputs of the
            graph count to its end.
        unshared: The same without sharing.
        live: The least that any layout takes.
        staged: Of staging memory, in one arena; kept between calls.
        recycled: Of results that are computed into kept memory.
        kept: staged and recycled: what a program holds for each call that was in flight at once.
        temporaries: The most that a cluster needs inside, as its engine says.
        weights: Of clusters and host steps.
        unknown: Number of values whose size is known only when they are computed.
    """
    layout = lay_out(schedule.buffers)
    clusters = [executable.memory() for executable in executables.values()]
    staged, recycled = schedule.arenas.layout.peak, schedule.arenas.recycled
    return {
        "peak": layout.peak,
        "unshared": layout.unshared,
        "live": layout.live,
        "staged": staged,
        "recycled": recycled,
        "kept": staged + recycled,
        "temporaries": max((each.get("temporaries", 0) for each in clusters), default=0),
        "weights": sum(each.get("weights", 0) for each in clusters) + schedule.constant_bytes,
        "unknown": schedule.written - len(schedule.buffers),
    }


class Planner:
    """Decides what becomes of every value of a schedule.

    Args:
        plans: The steps, in order.
        values: The value of each slot.
        constants: Slots of constants.
        outputs: Slots of the graph's outputs.
        executables: What launches run, by name of the cluster.
    """

    def __init__(
        self,
        plans: Plans,
        values: Sequence[ir.Value],
        constants: set[int],
        outputs: set[int],
        executables: Mapping[str, Executable],
    ) -> None:
        self._plans = plans
        self._values = values
        self._constants = constants
        self._outputs = outputs
        self._executables = [
            executables[node.attributes["name"].as_string()] if G.is_cluster(node) else None
            for node, _, _ in plans
        ]
        self._readers: dict[int, list[int]] = {}
        self._writer: dict[int, int] = {}
        for number, (_, reads, writes) in enumerate(plans):
            for slot in dict.fromkeys(reads):
                self._readers.setdefault(slot, []).append(number)
            self._writer.update((slot, number) for slot in writes if slot >= 0)

    def buffers(self) -> tuple[Buffer, ...]:
        """What the steps write, and how long it is needed; without what has no known size."""
        found = []
        for slot, first in self._writer.items():
            value = self._values[slot]
            size = size_of(value)
            if size:
                readers = self._readers.get(slot, [first])
                last = len(self._plans) - 1 if slot in self._outputs else readers[-1]
                found.append(Buffer(str(value.name), size, first, max(first, last)))
        return tuple(found)

    def plan(self) -> tuple[dict[int, StepMemory], Arenas]:
        """What each launch does with its arena, by number of the step, and the arenas."""
        staged, layout, places, ends = self._staged()
        into, leaves, spares = self._recycled()
        # The arena goes back after the last launch that reads of it, which may do nothing else.
        numbers = sorted({*staged, *into, *leaves, *ends})
        memories = {}
        for number in numbers:
            executable = self._executables[number]
            assert executable is not None
            memories[number] = StepMemory(
                executable,
                tuple(staged.get(number, ())),
                into.get(number, ()),
                tuple(leaves.get(number, ())),
                number == numbers[-1],
            )
        return memories, Arenas(layout, places, spares)

    def _staged(
        self,
    ) -> tuple[dict[int, list[tuple[int, int, int]]], Layout, list[Place], list[int]]:
        """Host arrays that several launches read: for each step which it stages, their places, and
        the steps that read them last.

        One that a single launch reads is copied there just the same, so nothing would be saved.
        """
        steps: dict[int, list[tuple[int, int, int]]] = {}
        buffers: list[Buffer] = []
        shapes: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        for slot, readers in self._readers.items():
            first = self._stages_at(slot)
            if first is None:
                continue
            position, value = self._plans[first][1].index(slot), self._values[slot]
            steps.setdefault(first, []).append((position, len(buffers), slot))
            buffers.append(Buffer(str(value.name), size_of(value) or 0, first, readers[-1]))
            assert value.dtype is not None
            shapes.append((G.static_shape(value) or (), np.dtype(value.dtype.numpy())))
        layout = lay_out(buffers)
        places = [Place(at, *each) for at, each in zip(layout.offsets, shapes, strict=True)]
        return steps, layout, places, [buffer.last for buffer in buffers]

    def _stages_at(self, slot: int) -> int | None:
        """The launch that copies a slot for itself and those after it, if one does."""
        if slot < 0 or slot in self._constants or slot in self._outputs:
            return None
        writer = self._writer.get(slot)
        if writer is not None and self._executables[writer] is not None:
            return None  # engines align what they make
        if (size_of(self._values[slot]) or 0) < STAGED_BYTES:
            return None
        last_host = max((n for n in self._readers[slot] if not self._reads_in_place(n)), default=-1)
        launches = [n for n in self._readers[slot] if n > last_host]
        return launches[0] if len(launches) > 1 else None

    def _reads_in_place(self, number: int) -> bool:
        executable = self._executables[number]
        return executable is not None and executable.reads_in_place

    def _recycled(
        self,
    ) -> tuple[dict[int, tuple[int, ...]], dict[int, list[tuple[int, int]]], list[int]]:
        """For each step the spares that it computes into, those that it leaves, and their sizes.

        Values of one shape and dtype take turns, as registers do in a linear scan.
        """
        into: dict[int, tuple[int, ...]] = {}
        leaves: dict[int, list[tuple[int, int]]] = {}
        free: dict[tuple[Any, ...], list[int]] = {}
        ends: dict[int, list[tuple[tuple[Any, ...], int]]] = {}
        spares: list[int] = []
        for number, executable in enumerate(self._executables):
            chosen = []
            for position in executable.recycled if executable is not None else ():
                slot = self._plans[number][2][position]
                last = self._last_launch(slot)
                if last is None:
                    chosen.append(-1)
                    continue
                value = self._values[slot]
                kind = (G.static_shape(value), value.dtype)
                if not free.get(kind):
                    free.setdefault(kind, []).append(len(spares))
                    spares.append(size_of(value) or 0)
                chosen.append(free[kind].pop())
                leaves.setdefault(last, []).append((slot, chosen[-1]))
                ends.setdefault(last, []).append((kind, chosen[-1]))
            if chosen:
                into[number] = tuple(chosen)
            for kind, spare in ends.get(number, ()):
                free[kind].append(spare)
        return into, leaves, spares

    def _last_launch(self, slot: int) -> int | None:
        """The last reader of a slot that only launches read, else None."""
        readers = self._readers.get(slot)
        if slot < 0 or not readers or slot in self._outputs:
            return None
        if any(self._executables[number] is None for number in readers):
            return None
        return readers[-1]
