"""What memory that is kept between calls saves: time, page faults, and the most that a call takes.

    python -m benchmarks.memory [--runs 15] [--json FILE]

Networks of ten blocks, cut on purpose: Sigmoid is left to the host. The blocks apply it to pooled
values, so clusters pass large values on to each other and small ones over the host; one network
passes large values from host steps to clusters. Each runs with `keep_memory` on and off, in turns;
peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import xrt
from benchmarks import harness
from xrt.engines.xla import XlaEngine
from xrt.graph import Support
from xrt.passes import InferShapesPass
from xrt.runtime.build import Built, build
from xrt.runtime.memory import report

BLOCKS = 10
CALLS = 10
"""Calls of the process that measures peak memory."""

_HEADER = '<ir_version: 10, opset_import: ["": 20]>\n'
_GATE = "p{i} = GlobalAveragePool (b{i}) s{i} = Sigmoid (p{i}) "
_BODIES = {
    "elementwise": "t{i} = Tanh ({x}) b{i} = Mul (t{i}, {x}) "
    + _GATE
    + "m{i} = Mul (b{i}, s{i}) d{i} = Add (m{i}, {x}) ",
    "convolutions": "c{i} = Conv <pads = [1, 1, 1, 1]> ({x}, w) b{i} = Relu (c{i}) "
    + _GATE
    + "m{i} = Mul (b{i}, s{i}) d{i} = Add (m{i}, {x}) ",
    "host to clusters": "s{i} = Sigmoid ({x}) b{i} = Tanh (s{i}) p{i} = GlobalAveragePool (b{i}) "
    "g{i} = Sigmoid (p{i}) m{i} = Mul (s{i}, g{i}) d{i} = Add (m{i}, b{i}) ",
}
CASES = {
    "elementwise 1x64x32x32": ("elementwise", (1, 64, 32, 32)),
    "elementwise 8x64x56x56": ("elementwise", (8, 64, 56, 56)),
    "convolutions 1x64x56x56": ("convolutions", (1, 64, 56, 56)),
    "convolutions 8x64x56x56": ("convolutions", (8, 64, 56, 56)),
    "host to clusters 8x64x56x56": ("host to clusters", (8, 64, 56, 56)),
}
"""Name -> kind and input shape."""


def network(kind: str, shape: tuple[int, ...]) -> ir.Model:
    """Ten blocks of a kind."""
    n, c = shape[:2]
    weights = (np.random.default_rng(0).standard_normal((c, c, 3, 3)) * 0.02).astype(np.float32)
    lines, previous = [], "x"
    for number in range(BLOCKS):
        lines.append(_BODIES[kind].format(i=number, x=previous))
        previous = f"d{number}"
    size = ",".join(map(str, shape))
    body = "".join(lines) + f"y = GlobalAveragePool ({previous})"
    inputs = f"float[{size}] x, float[{c},{c},3,3] w"
    text = f"{_HEADER}g ({inputs}) => (float[{n},{c},1,1] y) {{ {body} }}"
    model = ir.from_onnx_text(text)
    constant = model.graph.inputs.pop()
    constant.const_value = ir.tensor(weights, name="w")
    model.graph.register_initializer(constant)
    InferShapesPass()(model)
    return model


class Cutting(XlaEngine):
    """XLA without Sigmoid."""

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether XLA takes the node, and it is no Sigmoid."""
        if node.op_type == "Sigmoid":
            return Support.no("a cut on purpose")
        return super().supports(node, context)


def compiled(case: str, *, keep: bool) -> tuple[Built, Any]:
    """A built network and its input."""
    kind, shape = CASES[case]
    options = xrt.CompileOptions(keep_memory=keep, min_cluster_weight=0)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    return build(network(kind, shape), [Cutting()], options), x


def measure(case: str, runs: int) -> dict[str, Any]:
    """Time, page faults and memory of a case, kept and fresh."""
    calls: dict[str, Callable[[], Any]] = {}
    results, faults = {}, {}
    for name, keep in (("kept", True), ("fresh", False)):
        built, x = compiled(case, keep=keep)
        calls[name] = functools.partial(built.schedule.run, [x])
        results[name] = [np.asarray(calls[name]()[0]) for _ in range(3)][-1]
        faults[name] = _faults(calls[name])
        if keep:
            memory = report(built.schedule, built.executables)
            clusters = len(built.partition.clusters)
    if results["kept"].tobytes() != results["fresh"].tobytes():
        raise SystemExit(f"{case}: results differ")
    times = harness.interleave(calls, runs=runs, warmup=2)
    return {
        "clusters": clusters,
        "times": times,
        "ratio": harness.ratio(times, "kept", "fresh"),
        "page_faults": faults,
        "peak_mib": {name: _peak(case, name) for name in calls},
        "planned": memory,
    }


def _faults(call: Callable[[], Any]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(CALLS):
        call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / CALLS


def _peak(case: str, name: str) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--peak-of", case, name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def _print_peak(case: str, name: str) -> None:
    """Print how far calls raise the memory of this process, in MiB.

    The executables come from the compile cache, so that compiling does not count.
    """
    built, x = compiled(case, keep=name == "kept")
    before = _resident("VmRSS")
    for _ in range(CALLS):
        built.schedule.run([x])
    print(json.dumps(round(_resident("VmHWM") - before, 1)))


def _resident(field: str) -> float:
    """A field of this process's status, in MiB; the peak of `getrusage` is the parent's too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/memory.json")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak_of:
        _print_peak(*chosen.peak_of)
        return
    measured = {}
    for case in CASES:
        found = measured[case] = measure(case, chosen.runs)
        times, faults, peak = found["times"], found["page_faults"], found["peak_mib"]
        print(
            f"{case:28} {found['clusters']:2} clusters  "
            f"{times['fresh']['median_ms']:8.2f} -> {times['kept']['median_ms']:8.2f} ms  "
            f"{faults['fresh']:8.0f} -> {faults['kept']:6.0f} page faults  "
            f"{peak['fresh']:6.1f} -> {peak['kept']:6.1f} MiB"
        )
    print(f"written: {harness.save('memory', {'cases': measured}, chosen.json)}")


if __name__ == "__main__":
    main()
