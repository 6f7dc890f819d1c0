"""How the time to partition a graph grows with its size.

    python -m benchmarks.partition [--json FILE] [--sizes 1000,10000] [MODEL.onnx ...]

Synthetic graphs have residual and inception-like blocks, with one node in twenty that no engine
takes, scattered by a fixed seed. Of a model file, all operators are taken but data-dependent ones.
Times are CPU seconds of this process, which other work on the machine disturbs least; the passes
run on one thread.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.graph import OPSET, Support
from xrt.passes.assign_engines import assign_engines
from xrt.passes.form_clusters import form_clusters
from xrt.passes.outline_clusters import outline_clusters

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
UNSUPPORTED = 0.05
SEED = 20_26


@dataclass(frozen=True)
class Row:
    """One measurement; times in CPU seconds."""

    graph: str
    nodes: int
    host_nodes: int
    clusters: int
    assign: float
    form: float
    outline: float

    @property
    def microseconds_per_node(self) -> float:
        """Time of all three passes by node."""
        return (self.assign + self.form + self.outline) / max(self.nodes, 1) * 1e6


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
    """A model of about `nodes` nodes: blocks of 3 to 12 nodes, joined by Add or Concat."""
    choose = random.Random(seed)
    kind = ir.TensorType(ir.DataType.FLOAT)
    shape = ir.Shape([1, 64, 28, 28])
    weight = ir.Value(
        name="w", const_value=ir.tensor(np.zeros((64, 64, 1, 1), np.float32), name="w")
    )
    made: list[ir.Node] = []

    def node(op: str, *inputs: ir.Value) -> ir.Value:
        if choose.random() < unsupported:
            op, inputs = "NonZero", inputs[:1]
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
            value = node("Concat", *(branch(value) for _ in range(choose.randint(2, 4))))
        if choose.random() < 0.1:  # a skip over many blocks
            value = node("Add", value, older)
            older = before
    graph = ir.Graph(
        [start], [value], nodes=made, initializers=[weight], opset_imports={"": OPSET}, name="g"
    )
    return ir.Model(graph, ir_version=13)


def measure(label: str, model: ir.Model) -> Row:
    """Partition `model`, which this changes, and time the three passes."""
    count = len(model.graph)
    engine = Taker(("NonZero", "Unique", "Loop", "Compress"))
    assign, assignment = _timed(lambda: assign_engines(model.graph, [engine]))
    form, formation = _timed(lambda: form_clusters(assignment))
    outline, clusters = _timed(lambda: outline_clusters(model, formation))
    host = len(model.graph) - len(clusters)
    return Row(label, count, host, len(clusters), assign, form, outline)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    head = f"{'graph':<24}{'nodes':>8}{'host':>7}{'clusters':>10}"
    head += f"{'assign s':>10}{'form s':>9}{'outline s':>11}{'us/node':>9}"
    lines = [head, "-" * len(head)]
    for row in rows:
        lines.append(
            f"{row.graph:<24}{row.nodes:>8}{row.host_nodes:>7}{row.clusters:>10}"
            f"{row.assign:>10.3f}{row.form:>9.3f}{row.outline:>11.3f}"
            f"{row.microseconds_per_node:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files to partition too")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="nodes, by commas")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = []
    for size in (int(size) for size in arguments.sizes.split(",") if size):
        rows.append(measure(f"synthetic-{size}", synthetic(size)))
    for path in arguments.models:
        rows.append(measure(path.stem, ir.load(path)))
    print(table(rows))
    if arguments.json:
        content = [asdict(row) | {"us_per_node": row.microseconds_per_node} for row in rows]
        arguments.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
