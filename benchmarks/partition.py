"""How the time of the passes and of partitioning grows with the graph.

    python -m benchmarks.partition [--sizes 1000,10000] [--networks mask2former ...] [--json FILE]

Synthetic graphs have residual and inception-like blocks, with one node in twenty that the engine
refuses, scattered by a fixed seed. A network is imported from torch first, which is not counted,
and partitioned for the XLA engine itself.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from benchmarks import harness, models
from xrt import passes
from xrt.graph import OPSET, Support, static_shape
from xrt.kernels import host
from xrt.options import CompileOptions
from xrt.passes.assign_engines import Claimant, assign_engines
from xrt.passes.form_clusters import form_clusters
from xrt.passes.outline_clusters import outline_clusters

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
UNSUPPORTED = 0.05
SEED = 20_26
REFUSED = "Mish"


@dataclass(frozen=True)
class Row:
    """One measurement; times in seconds. `nodes` counts those that were imported."""

    graph: str
    nodes: int
    host_nodes: int
    clusters: int
    prepare: float
    specialize: float
    assign: float
    form: float
    outline: float

    @property
    def microseconds_per_node(self) -> float:
        """Time of everything by node."""
        return self.total / max(self.nodes, 1) * 1e6

    @property
    def total(self) -> float:
        """Seconds of all passes and of partitioning."""
        return self.prepare + self.specialize + self.assign + self.form + self.outline


class Taker:
    """An engine that takes every operator but some."""

    name = "bench"

    def __init__(self, refused: Sequence[str]) -> None:
        self._refused = frozenset(refused)

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether the operator is not refused."""
        if node.op_type in self._refused:
            return Support.no(f"{node.op_type} is not taken")
        return Support.yes()


def synthetic(nodes: int, *, unsupported: float = UNSUPPORTED, seed: int = SEED) -> ir.Model:
    """A model of about `nodes` nodes: blocks of 3 to 12 nodes, joined by Add or Max."""
    choose = random.Random(seed)
    kind = ir.TensorType(ir.DataType.FLOAT)
    shape = ir.Shape([1, 64, 28, 28])
    weight = ir.Value(
        name="w", const_value=ir.tensor(np.zeros((64, 64, 1, 1), np.float32), name="w")
    )
    made: list[ir.Node] = []

    def node(op: str, *inputs: ir.Value) -> ir.Value:
        if choose.random() < unsupported:
            op, inputs = REFUSED, inputs[:1]
        name = f"n{len(made)}"
        made.append(ir.Node("", op, inputs, name=name))
        result = made[-1].outputs[0]
        result.name, result.type, result.shape = name, kind, shape
        return result

    def branch(value: ir.Value) -> ir.Value:
        for _ in range(choose.randint(1, 3)):
            value = node("Relu", node("Conv", value, weight))
        return value

    start = ir.Value(name="x", type=kind, shape=shape)
    value, older = start, start
    while len(made) < nodes:
        before = value
        if choose.random() < 0.5:
            value = node("Add", branch(value), value)
        else:
            value = node("Max", *(branch(value) for _ in range(choose.randint(2, 4))))
        if choose.random() < 0.1:  # a skip over many blocks
            value = node("Add", value, older)
            older = before
    graph = ir.Graph(
        [start], [value], nodes=made, initializers=[weight], opset_imports={"": OPSET}, name="g"
    )
    return ir.Model(graph, ir_version=13)


def measure(label: str, model: ir.Model, engine: Claimant) -> Row:
    """Run all passes over `model`, which this changes, partition it, and time every step."""
    count = len(model.graph)
    shapes = {str(value.name): static_shape(value) or () for value in model.graph.inputs}

    def prepare() -> None:
        passes.run([NameFixPass, *passes.PREPARE], model, evaluate=host.evaluate)

    def specialize() -> None:
        steps = [passes.BindShapesPass(shapes), *passes.SPECIALIZE, NameFixPass]
        passes.run(steps, model, evaluate=host.evaluate)

    options = CompileOptions()
    prepared, _ = _timed(prepare)
    specialized, _ = _timed(specialize)
    assign, assignment = _timed(lambda: assign_engines(model.graph, [engine], options))
    form, formation = _timed(lambda: form_clusters(assignment, options))
    outline, clusters = _timed(lambda: outline_clusters(model, formation))
    on_host = len(model.graph) - len(clusters)
    return Row(label, count, on_host, len(clusters), prepared, specialized, assign, form, outline)


def network(name: str) -> Row:
    """One of the seventeen networks, imported from torch, for the XLA engine."""
    from xrt.engines.xla import XlaEngine
    from xrt.importers import import_model, split_example

    module, inputs = models.load(name)
    return measure(name, import_model(module, *split_example(inputs)).model, XlaEngine())


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = f"{'graph':<18}{'nodes':>8}{'host':>7}{'clusters':>9}{'prepare s':>11}"
    head += f"{'specialize s':>14}{'assign s':>10}{'form s':>9}{'outline s':>11}"
    head += f"{'total s':>9}{'us/node':>9}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.graph:<18}{row.nodes:>8}{row.host_nodes:>7}{row.clusters:>9}{row.prepare:>11.3f}"
            f"{row.specialize:>14.3f}{row.assign:>10.3f}{row.form:>9.3f}{row.outline:>11.3f}"
            f"{row.total:>9.2f}{row.microseconds_per_node:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="nodes, by commas")
    parser.add_argument("--networks", nargs="*", default=["mask2former"])
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/partition.json")
    chosen = parser.parse_args()
    engine = Taker([REFUSED])
    sizes = [int(size) for size in chosen.sizes.split(",") if size]
    rows = [measure(f"synthetic-{size}", synthetic(size), engine) for size in sizes]
    rows += [network(name) for name in chosen.networks]
    print(table(rows))
    result = [asdict(row) | {"us_per_node": row.microseconds_per_node} for row in rows]
    print(f"written: {harness.save('partition', {'rows': result}, chosen.json)}")


if __name__ == "__main__":
    main()
