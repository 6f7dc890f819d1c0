"""A program's work at one input signature: a flat list of steps over numbered slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.engine import Executable
from xrt.kernels import host
from xrt.runtime.arrays import on_host
from xrt.runtime.inputs import tensors_of

Record = Callable[["Step", int, int], None]
"""Told after each step: the step, its start and its end in nanoseconds."""


@dataclass(frozen=True)
class Step:
    """One piece of work.

    Attributes:
        kind: "launch" for an engine's executable, "host" for a host kernel.
        label: Name of the cluster, or operator and node.
        run: Inputs to outputs.
        inputs: Slots read; -1 stands for an absent optional input.
        outputs: Slots written; -1 stands for an output that nobody reads.
        frees: Slots whose last reader this step is.
    """

    kind: str
    label: str
    run: Callable[[Sequence[Any]], Sequence[Any]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...]


class Schedule:
    """Steps in order, with everything about slots decided beforehand. Safe to run from threads."""

    def __init__(
        self,
        steps: Sequence[Step],
        initial: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
    ) -> None:
        self.steps = tuple(steps)
        self._initial = list(initial)
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._owned = self._ownership()

    def run(self, inputs: Sequence[Any], record: Record | None = None) -> list[Any]:
        """The outputs for `inputs`, in the graph's order; they share no memory with anything.

        Args:
            inputs: NumPy arrays or device arrays of the signature's shapes and dtypes.
            record: Called after each step, to measure.
        """
        values = self._initial.copy()
        for slot, array in zip(self._inputs, inputs, strict=True):
            values[slot] = array
        for step in self.steps:
            arguments = [values[slot] if slot >= 0 else None for slot in step.inputs]
            start = time.perf_counter_ns() if record else 0
            results = step.run(arguments)
            if record:
                record(step, start, time.perf_counter_ns())
            for slot, array in zip(step.outputs, results, strict=False):
                if slot >= 0:
                    values[slot] = array
            for slot in step.frees:
                values[slot] = None
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


def build_schedule(model: ir.Model, executables: Mapping[str, Executable]) -> Schedule:
    """The schedule of an outlined model.

    Args:
        model: The graph, where `xrt::Cluster` nodes stand for clusters.
        executables: Executable by cluster name.
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
    outputs = [slot(value) for value in graph.outputs]
    frees = _last_uses(plans, keep={*outputs, *(i for i, a in enumerate(initial) if a is not None)})
    steps = [
        _step(node, executables, reads, writes, frees[number])
        for number, (node, reads, writes) in enumerate(plans)
    ]
    return Schedule(steps, initial, [slots[value] for value in graph.inputs], outputs)


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
) -> Step:
    run = runner(node, executables)
    if G.is_cluster(node):
        return Step("launch", node.attributes["name"].as_string(), run, reads, writes, frees)
    return Step("host", f"{G.op_name(node)} {node.name or ''}".strip(), run, reads, writes, frees)


def runner(
    node: ir.Node, executables: Mapping[str, Executable]
) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """What runs `node`: an executable, or a host kernel that launches those in nested graphs."""
    if G.is_cluster(node):
        return executables[node.attributes["name"].as_string()].run
    inner = partial(runner, executables=executables) if drives_clusters(node) else None
    kernel = host.find(node, inner)

    def run(arguments: Sequence[Any]) -> Sequence[Any]:
        return kernel([on_host(argument) for argument in arguments])

    return run


def drives_clusters(node: ir.Node) -> bool:
    """Whether there are clusters in the nested graphs of `node`."""
    return any(map(G.is_cluster, G.nested_nodes(node)))
