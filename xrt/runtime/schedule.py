"""A program's work at one input signature: a flat list of steps over numbered slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt import custom
from xrt import graph as G
from xrt.engines.engine import Executable
from xrt.errors import EngineRunError, XrtError
from xrt.kernels import host
from xrt.runtime.arrays import on_host
from xrt.runtime.inputs import tensors_of
from xrt.runtime.layout import Buffer, lay_out
from xrt.runtime.memory import Arenas, Planner, StepMemory

Record = Callable[["Step", int, int], None]
"""Told after each step: the step, its start and its end in nanoseconds."""


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Attributes:
        kind: "launch" for an engine's executable or a kernel on a GPU, "host" for a host kernel.
        label: Name of the cluster, or operator and node.
        run: Inputs to outputs.
        inputs: Slots read; -1 stands for an absent optional input.
        outputs: Slots written; -1 stands for an output that nobody reads.
        frees: Slots whose last reader this step is.
        engine: Name of the engine of a launch.
        memory: What a launch does with memory that calls use again, if it does.
    """

    kind: str
    label: str
    run: Callable[[Sequence[Any]], Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]
    engine: str = ""
    memory: StepMemory | None = None


class Schedule:
    """Steps in order, with everything about slots decided beforehand. Safe to run from threads.

    Attributes:
        steps: The steps.
        middle: Numbers of the steps from the first launch to the last. In a stream those before
            them, and those after them, run beside the launches of other batches. All steps if
            there is no launch.
        buffers: What the steps write, and how long it is needed.
        arenas: Memory that calls use again.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        initial: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        middle: range | None = None,
        buffers: Sequence[Buffer] = (),
        arenas: Arenas | None = None,
    ) -> None:
        self.steps = tuple(steps)
        self.middle = range(len(self.steps)) if middle is None else middle
        self.buffers = tuple(buffers)
        self.arenas = arenas or Arenas(lay_out(()), (), ())
        self._initial = [*initial, None]  # the last is the arena of a call
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._owned = self._ownership()

    @property
    def written(self) -> int:
        """How many values the steps write."""
        return sum(slot >= 0 for step in self.steps for slot in step.outputs)

    @property
    def constant_bytes(self) -> int:
        """Bytes of the constants that steps read."""
        arrays = [array for array in self._initial if isinstance(array, np.ndarray)]
        return sum(array.nbytes for array in arrays)

    def run(self, inputs: Sequence[Any], record: Record | None = None) -> list[Any]:
        """The outputs for `inputs`, in the graph's order; they share no memory with anything.

        Args:
            inputs: NumPy arrays or device arrays of the signature's shapes and dtypes.
            record: Called after each step, to measure.
        """
        values = self.begin(inputs)
        self.advance(values, range(len(self.steps)), record)
        return self.finish(values, inputs)

    def begin(self, inputs: Sequence[Any]) -> list[Any]:
        """The slots of a run, before its first step."""
        values = self._initial.copy()
        for slot, array in zip(self._inputs, inputs, strict=True):
            values[slot] = array
        return values

    def advance(self, values: list[Any], numbers: range, record: Record | None = None) -> None:
        """Run the steps of these numbers: all before them have run on `values`.

        Raises:
            EngineRunError: If a step fails; `values` are lost, the schedule stays usable.
        """
        for step in self.steps[numbers.start : numbers.stop]:
            arguments = [values[slot] if slot >= 0 else None for slot in step.inputs]
            start = time.perf_counter_ns() if record else 0
            try:
                if step.memory is None:
                    results = step.run(arguments)
                else:
                    results = step.memory.run(arguments, values, self.arenas)
            except Exception as error:
                if isinstance(error, XrtError):
                    raise
                raise _failure(step, error) from error
            if record:
                record(step, start, time.perf_counter_ns())
            for slot, array in zip(step.outputs, results, strict=False):
                if slot >= 0:
                    values[slot] = array
            for slot in step.frees:
                values[slot] = None

    def finish(self, values: list[Any], inputs: Sequence[Any]) -> list[Any]:
        """The outputs, after the last step."""
        taken = list(tensors_of(list(inputs)))
        return [
            values[slot] if owned else _own(values[slot], None if owned is None else taken)
            for slot, owned in zip(self._outputs, self._owned, strict=True)
        ]

    def _ownership(self) -> tuple[bool | None, ...]:
        """For each output whether its memory is its own: yes, maybe (False), or no (None).

        An engine's results are fresh. Host kernels may return views of an input or a constant, and
        a value that is given out twice is one array.
        """
        fresh = {slot for step in self.steps if step.kind == "launch" for slot in step.outputs}
        return tuple(
            None if slot in self._outputs[:number] else slot in fresh
            for number, slot in enumerate(self._outputs)
        )


def _own(value: Any, taken: list[Any] | None) -> Any:
    """`value` in memory of its own, which goes to `taken`: copied if it is a view, or is in `taken`
    already (an input, or what a kernel gave out twice), or if `taken` is None.
    """
    if isinstance(value, list):
        return [_own(item, taken) for item in value]
    if taken is not None and isinstance(value, np.ndarray):
        is_taken = any(value is array for array in taken)
        if value.base is None and value.flags.owndata and not is_taken:
            taken.append(value)
            return value
    return value if value is None else np.array(value)


def build_schedule(
    model: ir.Model, executables: Mapping[str, Executable], *, keep_memory: bool = True
) -> Schedule:
    """The schedule of an outlined model.

    Args:
        model: The graph, where `xrt::Cluster` nodes stand for clusters.
        executables: Executable by cluster name.
        keep_memory: Whether launches use memory of earlier calls again.
    """
    graph = model.graph
    slots: dict[ir.Value, int] = {}
    initial: list[Any] = []

    def slot(value: ir.Value | None) -> int:
        if value is None:
            return -1
        if value not in slots:
            slots[value] = len(initial)
            array = G.constant(value)
            if array is not None:
                array = array.view()
                array.flags.writeable = False
            initial.append(array)
        return slots[value]

    for value in graph.inputs:
        slot(value)
    plans = [
        (
            node,
            tuple(slot(value) for value in _inputs(node)),
            tuple(slot(value) if _is_used(value) else -1 for value in node.outputs),
        )
        for node in graph
    ]
    plans, middle = _by_phase(plans)
    outputs = [slot(value) for value in graph.outputs]
    constants = {number for number, array in enumerate(initial) if array is not None}
    frees = _last_uses(plans, keep={*outputs, *constants})
    planner = Planner(plans, list(slots), constants, set(outputs), executables)
    memories, arenas = planner.plan() if keep_memory else ({}, None)
    steps = [
        _step(node, executables, reads, writes, frees[number], memories.get(number))
        for number, (node, reads, writes) in enumerate(plans)
    ]
    inputs = [slots[value] for value in graph.inputs]
    return Schedule(steps, initial, inputs, outputs, middle, planner.buffers(), arenas)


_Plan = tuple[ir.Node, tuple[int, ...], tuple[int, ...]]
"""A node, and the slots that it reads and writes."""


def _by_phase(plans: Sequence[_Plan]) -> tuple[list[_Plan], range]:
    """`plans` in another topological order, and the numbers of those that launches decide.

    First comes what waits for no launch, last what no launch waits for. Without launches nothing
    moves, and all count.
    """
    launches = [
        G.is_cluster(node) or drives_clusters(node) or custom.is_on_gpu(node)
        for node, _, _ in plans
    ]
    if not any(launches):
        return list(plans), range(len(plans))
    late: set[int] = set()  # slots that wait for a launch
    after = [False] * len(plans)
    for number, (_, reads, writes) in enumerate(plans):
        after[number] = launches[number] or not late.isdisjoint(reads)
        if after[number]:
            late.update(slot for slot in writes if slot >= 0)
    early: set[int] = set()  # slots that a launch waits for
    before = [False] * len(plans)
    for number in reversed(range(len(plans))):
        _, reads, writes = plans[number]
        before[number] = launches[number] or not early.isdisjoint(writes)
        if before[number]:
            early.update(slot for slot in reads if slot >= 0)
    phases = [1 if a and b else 2 if a else 0 for a, b in zip(after, before, strict=True)]
    ordered = [
        plan for phase in range(3) for plan, its in zip(plans, phases, strict=True) if its == phase
    ]
    start = phases.count(0)
    return ordered, range(start, start + phases.count(1))


def _inputs(node: ir.Node) -> list[ir.Value | None]:
    return [*node.inputs, *G.captured_values(node)]


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _last_uses(
    plans: Sequence[tuple[ir.Node, tuple[int, ...], tuple[int, ...]]], keep: set[int]
) -> list[tuple[int, ...]]:
    """For each step the slots that nobody reads after it."""
    frees: list[tuple[int, ...]] = []
    needed = {-1, *keep}
    for _, reads, writes in reversed(plans):
        dead = tuple(sorted({*reads, *writes} - needed))
        frees.append(dead)
        needed.update(reads, writes)
    return frees[::-1]


def _step(
    node: ir.Node,
    executables: Mapping[str, Executable],
    reads: tuple[int, ...],
    writes: tuple[int, ...],
    frees: tuple[int, ...],
    memory: StepMemory | None,
) -> Step:
    run = runner(node, executables)
    if G.is_cluster(node):
        name, engine = (node.attributes[key].as_string() for key in ("name", "engine"))
        return Step("launch", name, run, reads, writes, frees, engine, memory)
    kind = "launch" if custom.is_on_gpu(node) else "host"
    return Step(kind, f"{G.op_name(node)} {node.name or ''}".strip(), run, reads, writes, frees)


def _failure(step: Step, error: Exception) -> EngineRunError:
    """An error of a step that says where it happened."""
    if step.engine:
        where = f"Cluster {step.label!r} failed on engine {step.engine!r}"
    else:
        where = f"{'Host step' if step.kind == 'host' else 'Kernel'} {step.label!r} failed"
    text = f"{where}: {type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        text = f"{text.rstrip('.')}. Use a smaller batch, or give the process more memory."
    return EngineRunError(text)


def runner(
    node: ir.Node, executables: Mapping[str, Executable]
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What runs `node`: an executable, or a host kernel that launches those in nested graphs."""
    if G.is_cluster(node):
        return executables[node.attributes["name"].as_string()].run
    inner = partial(runner, executables=executables) if drives_clusters(node) else None
    kernel = host.find(node, inner)
    if kernel.on_device:
        return kernel.launch

    def run(arguments: Sequence[Any]) -> Sequence[Any]:
        return kernel([on_host(argument) for argument in arguments])

    return run


def drives_clusters(node: ir.Node) -> bool:
    """Whether there are clusters in the nested graphs of `node`."""
    return any(map(G.is_cluster, G.nested_nodes(node)))
