"""Partition a model and build its clusters; what fails to build goes elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from xrt.engines.engine import Engine, Executable
from xrt.errors import EngineBuildError, EngineFallbackWarning
from xrt.graph import Support
from xrt.options import CompileOptions
from xrt.passes.partition import Partition, partition
from xrt.progress import progress
from xrt.runtime import capture
from xrt.runtime.memory import mark_inner
from xrt.runtime.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Built:
    """A model, ready to run.

    Attributes:
        model: The model that was partitioned.
        partition: Clusters, where every node went and why, and the outlined model.
        executables: What the engines built, by cluster name.
        schedule: What a call runs.
    """

    model: ir.Model
    partition: Partition
    executables: Mapping[str, Executable]
    schedule: Schedule


def build(model: ir.Model, engines: Sequence[Engine], options: CompileOptions) -> Built:
    """Partition `model`, which stays as it is, build its clusters, and schedule it.

    Raises:
        EngineBuildError: If a build fails and `options.strict` is set.
    """
    return assemble(model, *build_clusters(model, engines, options), options)


def assemble(
    model: ir.Model,
    parts: Partition,
    executables: Mapping[str, Executable],
    options: CompileOptions,
) -> Built:
    """Schedule what was partitioned and built of `model`."""
    schedule = capture.schedule(parts.model, executables, keep_memory=options.keep_memory)
    return Built(model, parts, executables, schedule)


def build_clusters(
    model: ir.Model, engines: Sequence[Engine], options: CompileOptions
) -> tuple[Partition, dict[str, Executable]]:
    """Partition `model`, which stays as it is, and build every cluster.

    A build that fails takes the node it names (or else all nodes of the cluster) away from that
    engine, and the model is partitioned anew: the next engine or the host takes over. What is
    built already is kept.

    Returns:
        The partition, with the outlined model, and the executables by cluster name.

    Raises:
        EngineBuildError: If a build fails and `options.strict` is set.
    """
    candidates = {engine.name: _Excluding(engine) for engine in engines}
    built: dict[str, Executable] = {}
    while True:
        parts = partition(model.clone(), list(candidates.values()), options)
        if options.keep_memory:
            mark_inner(parts.model)
        with progress("Compiling clusters", len(parts.clusters), options.progress) as advance:
            for cluster in parts.clusters:
                candidate = candidates[cluster.engine]
                try:
                    if cluster.name not in built:
                        built[cluster.name] = candidate.engine.compile(cluster, options)
                except EngineBuildError as error:
                    if options.strict:
                        raise
                    candidate.exclude(cluster.nodes, error)
                    break
                advance(cluster.name)
            else:
                return parts, built


class _Excluding:
    """An engine, less the nodes that it failed to build."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name
        self.channels_last = engine.channels_last
        self._failed: dict[str | None, Support] = {}  # by first output: names may be missing

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        failed = self._failed.get(node.outputs[0].name)
        return self.engine.supports(node, context) if failed is None else failed

    def exclude(self, nodes: Sequence[ir.Node], error: EngineBuildError) -> None:
        named = [node for node in nodes if error.place and node.name == error.place]
        for node in named or nodes:
            self._failed[node.outputs[0].name] = Support.no(f"the build failed: {error.reason}")
        operators = ", ".join(sorted({node.op_type for node in nodes}))
        warnings.warn(
            f"{str(error).rstrip('.')}. Falling back to the next engine for "
            f"{'that node' if named else f'all {len(nodes)} nodes of the cluster: {operators}'}.",
            EngineFallbackWarning,
            stacklevel=2,
        )
