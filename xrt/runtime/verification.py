"""`verify`: check a program cluster by cluster against the host runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.importers import split_example
from xrt.kernels import host
from xrt.passes.rewrite import RANDOM_OPS, is_training_dropout
from xrt.runtime import arrays
from xrt.runtime.schedule import drives_clusters

if TYPE_CHECKING:
    from xrt.runtime.program import Program, Specialization

_TOLERANCE = {"float64": 1e-10, "float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
"""Largest difference allowed, relative to the largest magnitude of the reference. What is computed
in a narrower type on the way counts, so the narrowest type in a cluster decides for all of it."""

_QUANTUM = 2e-2
"""Allowed where values are rounded to bytes: a sum that is off by a bit may round to the next of
127 steps, and the next product may take that step again."""


@dataclass(frozen=True)
class Divergence:
    """Where a cluster leaves the host's results.

    Attributes:
        cluster: Name of the cluster.
        node: Name of the first diverging node in it.
        op: Its operator.
        value: The value that differs.
        error: Largest difference, relative to the largest magnitude of the host's value.
        tolerance: What is allowed for its dtype.
    """

    cluster: str
    node: str
    op: str
    value: str
    error: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"cluster {self.cluster} diverges at {self.op} {self.node!r}: value {self.value!r} is "
            f"off by {self.error:.3g} (allowed: {self.tolerance:.3g})"
        )


@dataclass(frozen=True)
class Verification:
    """The result of `verify`; true if nothing diverges.

    Attributes:
        errors: Relative error of each cluster's worst output, by cluster name.
        divergence: The first cluster and op that diverge, or None.
        skipped: Names of clusters that draw random numbers, which cannot be compared.
    """

    errors: dict[str, float]
    divergence: Divergence | None
    skipped: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.divergence is None

    def __str__(self) -> str:
        if self.divergence is not None:
            return str(self.divergence)
        worst = max(self.errors.values(), default=0.0)
        rest = f"; {len(self.skipped)} not compared: they draw at random" if self.skipped else ""
        return f"{len(self.errors)} clusters agree with the host; largest error {worst:.3g}{rest}"


def verify(program: Program, inputs: Any) -> Verification:
    """Compare every cluster of `program` with the host runtime, on the same inputs.

    Each cluster gets the host's values at its edge, so errors do not add up. One in a body that the
    host drives is compared in each iteration. If one differs, its nodes are run one after the other
    to find the first that does.

    Args:
        program: The program.
        inputs: A tuple of inputs, a dict of inputs by name, or a single input.
    """
    args, kwargs = split_example(inputs)
    specialization, leaves = program.locate(args, kwargs)
    graph = specialization.partition.model.graph
    values: dict[ir.Value, Any] = dict(
        zip(graph.inputs, (arrays.on_host(arrays.take(leaf)) for leaf in leaves), strict=True)
    )
    checker = _Checker(program, specialization)
    for node in graph:
        reads = [_lookup(values, value) for value in (*node.inputs, *G.captured_values(node))]
        values.update(zip(node.outputs, checker.find(node)(reads), strict=False))
        if checker.divergence is not None:
            break
    return Verification(checker.errors, checker.divergence, tuple(checker.skipped))


class _Checker:
    """Runs nodes on the host, and each cluster, nested ones too, by its engine besides."""

    def __init__(self, program: Program, specialization: Specialization) -> None:
        self.errors: dict[str, float] = {}
        self.divergence: Divergence | None = None
        self.skipped: dict[str, None] = {}
        self._program, self._executables = program, specialization.executables
        self._clusters = {cluster.name: cluster for cluster in specialization.partition.clusters}

    def find(self, node: ir.Node) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """What gives the host's results for `node`."""
        if G.is_cluster(node):
            return partial(self._compare, self._clusters[node.attributes["name"].as_string()])
        return host.find(node, self.find if drives_clusters(node) else None)

    def _compare(self, cluster: G.Cluster, reads: Sequence[Any]) -> list[Any]:
        inner = _run_on_host(cluster.body, reads)
        want = [inner[value] for value in cluster.body.outputs]
        if self.divergence is not None:
            return want
        if any(map(_draws, cluster.body.all_nodes())):
            self.skipped[cluster.name] = None
            return want
        allowed = _Tolerance(cluster.body)
        got = self._executables[cluster.name].run(reads)
        error = max(map(_error, got, want), default=0.0)
        self.errors[cluster.name] = max(error, self.errors.get(cluster.name, 0.0))
        if any(_error(g, w) > allowed(w) for g, w in zip(got, want, strict=True)):
            self.divergence = _first_divergence(self._program, cluster, reads, inner)
        return want


def _lookup(values: dict[ir.Value, Any], value: ir.Value | None) -> Any:
    if value is None:
        return None
    return values[value] if value in values else G.constant(value)


def _run_on_host(body: ir.Graph, inputs: Sequence[Any]) -> dict[ir.Value, Any]:
    """Every value of `body`, computed by host kernels."""
    values: dict[ir.Value, Any] = dict(zip(body.inputs, inputs, strict=True))
    for value in body.initializers.values():
        values[value] = G.constant(value)
    for node in body:
        reads = [_lookup(values, value) for value in (*node.inputs, *G.captured_values(node))]
        values.update(zip(node.outputs, host.evaluate(node, reads), strict=False))
    return values


def _first_divergence(
    program: Program, cluster: G.Cluster, inputs: Sequence[Any], want: dict[ir.Value, Any]
) -> Divergence:
    """Rebuild the cluster with every value as an output, and compare in order.

    Fusion may differ in that build; if no single value diverges, the whole cluster is named.
    """
    body = cluster.body.clone()
    allowed = _Tolerance(cluster.body)
    originals = [value for node in cluster.body for value in node.outputs if value.name]
    wanted = {value.name: want[value] for value in originals if value in want}
    copies = [value for node in body for value in node.outputs if value.name in wanted]
    body.outputs[:] = copies
    probe = G.Cluster(f"{cluster.name}_probe", cluster.engine, body, G.digest(body))
    got = program.build(probe).run(inputs)
    for value, array in zip(copies, got, strict=True):
        reference = wanted[value.name]
        error = _error(array, reference)
        if error > allowed(reference):
            node = value.producer()
            assert node is not None
            return Divergence(
                cluster.name,
                node.name or "",
                node.op_type,
                str(value.name),
                error,
                allowed(reference),
            )
    last = cluster.nodes[-1]
    return Divergence(
        cluster.name,
        last.name or "",
        "the cluster as a whole",
        cluster.outputs[0],
        float("nan"),
        0.0,
    )


def _draws(node: ir.Node) -> bool:
    """Whether `node` draws other numbers at each call."""
    drawing = G.is_standard(node, *RANDOM_OPS) and "seed" not in node.attributes
    return drawing or (is_training_dropout(node) and "seed" not in node.attributes)


class _Tolerance:
    """What is allowed within one cluster, by what its values are of."""

    def __init__(self, body: ir.Graph) -> None:
        kinds = {str(v.dtype.numpy()) for n in body for v in n.outputs if _has_numbers(v)}  # type: ignore[union-attr]
        self._least = max((_TOLERANCE.get(kind, 0.0) for kind in kinds), default=0.0)
        rounds = any(G.is_standard(node, *_ROUNDING) for node in body)
        self._quantum = _QUANTUM if rounds else 0.0

    def __call__(self, reference: Any) -> float:
        name = np.asarray(reference).dtype.name
        if name in ("int8", "uint8"):
            return self._quantum
        own = _TOLERANCE.get(name, 0.0)
        return max(own, self._least, self._quantum) if own else 0.0


_ROUNDING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def _has_numbers(value: ir.Value) -> bool:
    return value.dtype is not None and not value.dtype.is_string()


def _error(got: Any, want: Any) -> float:
    """Largest difference relative to the largest finite magnitude of `want`; inf if NaNs differ."""
    left, right = np.asarray(got), np.asarray(want)
    if left.shape != right.shape or left.dtype != right.dtype:
        return float("inf")
    if left.dtype.name in ("int8", "uint8"):
        return float(np.abs(left.astype(int) - right.astype(int)).max(initial=0)) / 127
    if left.dtype.kind in "biuUSO":
        return 0.0 if np.array_equal(left, right) else float("inf")
    left, right = left.astype(np.float64), right.astype(np.float64)
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(right[finite]).max()) or 1.0
    error = float(np.abs(left[finite] - right[finite]).max()) / scale
    return error if np.isfinite(error) else float("inf")
