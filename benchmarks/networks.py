"""The seventeen networks: import, compile, agreement with PyTorch, latency beside its peers.

    python -m benchmarks.networks                     # all, one process each
    python -m benchmarks.networks resnet50 --batch 8  # one or some

Peers are PyTorch eager and ONNX Runtime (of the exporter's own, optimized file) on the same cores,
timed in turn within one process, each call after one of its own that does not count. For ResNet-50
a network written by hand in JAX joins.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import harness, models

ALLOWED = 1e-4
"""Largest difference from PyTorch, relative to the largest magnitude of each output."""


def measure(name: str, batch: int, runs: int) -> dict[str, Any]:
    """Everything about one network, in this process."""
    import torch

    import xrt

    module, inputs = models.load(name, batch=batch)
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    # An empty cache, so that the compile time is a first user's.
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        begin = time.perf_counter()
        program = xrt.compile(module, inputs, options=xrt.CompileOptions(cache_dir=folder))
        seconds = time.perf_counter() - begin
        explanation = program.explain()
        difference = _difference(program(*args, **kwargs), module(*args, **kwargs))
        calls: dict[str, Callable[[], Any]] = {
            "xrt": lambda: program(*args, **kwargs),
            "eager": lambda: module(*args, **kwargs),
            "onnxruntime": _onnxruntime(module, args, kwargs, Path(folder)),
        }
        if name == "resnet50":
            calls["handwritten"] = _handwritten(batch)
        times = harness.interleave(calls, runs=runs, seconds=40, pause=0.1, settle=1)
        gap = program.profile([inputs] * 5)
    return {
        "name": name,
        "batch": batch,
        "nodes": len(explanation.placements),
        "clusters": len(explanation.clusters),
        "host": explanation.reasons(),
        "compile_seconds": seconds,
        "stages": explanation.seconds,
        "difference": difference,
        "times": times,
        "gap_ms": gap.gap_ms,
    }


def _difference(got: Any, want: Any) -> float:
    pairs = zip(_leaves(got), _leaves(want), strict=True)
    return max(float((g - w).abs().max() / w.abs().max().clamp(min=1e-30)) for g, w in pairs)


def _leaves(tree: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    leaves = [leaf for leaf in _pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    return [leaf.float() for leaf in leaves]


def _onnxruntime(module: Any, args: Any, kwargs: Any, folder: Path) -> Callable[[], Any]:
    import onnxruntime
    import torch

    path = folder / "model.onnx"
    exported = torch.onnx.export(module, args, kwargs=kwargs, dynamo=True, verbose=False)
    exported.save(path, external_data=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    arrays = [leaf.numpy() for leaf in (*args, *kwargs.values())]
    feeds = {value.name: array for value, array in zip(session.get_inputs(), arrays, strict=True)}
    return lambda: session.run(None, feeds)


def _handwritten(batch: int) -> Callable[[], Any]:
    from benchmarks.handwritten import case
    from benchmarks.ops.measure import compiled

    return compiled(*case("resnet50", batch))


def _spawn(name: str, batch: int, runs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, name, "--worker"]
    command += ["--batch", str(batch), "--runs", str(runs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"name": name, "batch": batch, "error": f"exit status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[dict[str, Any]]) -> Table:
    """The results as a table; ratios are xrt's latency over the peer's: below 1 xrt is faster."""
    heading = ("network", "batch", "clusters", "on host", "difference", "compile s", "xrt ms")
    result = Table(*heading, "/ eager", "/ ORT", "/ hand")
    for row in rows:
        if "error" in row:
            result.add_row(row["name"], str(row["batch"]), row["error"])
            continue
        on_host = sum(n for reasons in row["host"].values() for n in reasons.values())
        times = row["times"]
        ratios = [
            f"{harness.ratio(times, 'xrt', peer):.2f}" if peer in times else ""
            for peer in ("eager", "onnxruntime", "handwritten")
        ]
        result.add_row(
            row["name"], str(row["batch"]), str(row["clusters"]), str(on_host),
            f"{row['difference']:.1e}", f"{row['compile_seconds']:.1f}",
            f"{times['xrt']['median_ms']:.1f}", *ratios,
        )  # fmt: skip
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=", ".join(models.names()))
    parser.add_argument("--batch", type=int, help="default: 1, and 8 for the CNNs")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/networks.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    names = chosen.names or list(models.names())
    if chosen.worker:
        print(json.dumps(measure(names[0], chosen.batch, chosen.runs)))
        return
    rows = []
    console = Console(stderr=True)
    for name in names:
        batch = chosen.batch or (8 if models.NETWORKS[name].family == "cnn" else 1)
        with console.status(f"{name}, batch {batch}"):
            rows.append(_spawn(name, batch, chosen.runs))
        console.print(table(rows[-1:]))
    Console().print(table(rows))
    if chosen.json or not chosen.names:
        console.print(f"written: {harness.save('networks', {'networks': rows}, chosen.json)}")
    if any("error" in row or row["difference"] >= ALLOWED for row in rows):
        raise SystemExit(f"Some networks failed, or differ from PyTorch by {ALLOWED} or more.")


if __name__ == "__main__":
    main()
