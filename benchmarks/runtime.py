"""What the host runtime costs: gaps in a stream, cuts between clusters, calls, memory.

    python -m benchmarks.runtime                  # everything, one process for each part
    python -m benchmarks.runtime gap split        # some parts

    gap         the gap between launches in streams of ResNet-50 and BERT, batch 8, input ready
    split       ResNet-50 in ten XLA clusters beside the same in one, and what its cut tensors cost
    branches    two host kernels, and a host kernel and a launch, after one another and at once
    overhead    a call, a submitted batch and a batch of a stream, beside the bare executable
    growth      memory that Python objects hold after 10,000 calls
    images      from JPEG files to scores: benchmarks.images

What is compared is timed in turn within one process, so that the machine's drift hits all alike.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness

DEPTH = 2
CALLS = 10_000
MOST_GAP, MOST_SPLIT, MOST_OVERHEAD, MOST_GROWTH, LEAST_IMAGES = 0.01, 1.03, 100.0, 8.0, 0.95
"""Part of the wall time, ratio of times, microseconds, bytes a call, ratio of rates."""


# --- gap ------------------------------------------------------------------------------------------


def gap(rounds: int) -> dict[str, Any]:
    """The gap of streams, and of calls one after the other, by network."""
    return {name: _gap(name, rounds) for name in ("resnet50", "bert")}


def _gap(name: str, rounds: int, batch: int = 8, batches: int = 6) -> dict[str, Any]:
    program, inputs = _compiled(name, batch)
    found: dict[str, list[Any]] = {"one by one": [], "streamed": []}
    program.profile([inputs] * 2)
    for _ in range(rounds):
        found["one by one"].append(program.profile([inputs] * batches))
        found["streamed"].append(program.profile([inputs] * batches, depth=DEPTH))
    return {
        "batch": batch,
        "batches": batches * rounds,
        "clusters": len(program.clusters),
        **{mode: _medians(traces) for mode, traces in found.items()},
    }


def _medians(traces: Sequence[Any]) -> dict[str, float]:
    names = ("wall_ms", "busy_ms", "gap_ms", "gap_fraction", "launches_per_batch", "p50_ms")
    gaps = [(end - start) / 1e6 for trace in traces for start, end in trace.gaps()]
    return {
        **{n: statistics.median(getattr(trace, n) for trace in traces) for n in names},
        "peak_memory_bytes": max(trace.peak_memory_bytes for trace in traces),
        "between_launches_ms": statistics.median(gaps),
        "longest_between_launches_ms": max(gaps),
    }


def _compiled(name: str, batch: int, **options: Any) -> tuple[Any, Any]:
    import torch

    import xrt
    from benchmarks import models

    module, inputs = models.load(name, batch=batch)
    with torch.no_grad():
        return xrt.compile(module, inputs, options=xrt.CompileOptions(**options)), inputs


# --- split ----------------------------------------------------------------------------------------


def split(rounds: int, name: str = "resnet50", batch: int = 8, pieces: int = 10) -> dict[str, Any]:
    """One cluster, ten clusters, and what crosses between them copied by itself."""
    one, inputs = _compiled(name, batch)
    (whole,) = one.clusters
    ten, _ = _compiled(name, batch, max_cluster_nodes=-(-len(whole.nodes) // pieces))
    cuts = ten.specialization.partition.cuts
    calls: dict[str, Callable[[], Any]] = {
        "one cluster": lambda: one(*inputs),
        "clusters": lambda: ten(*inputs),
        "cut tensors": _copies([cut.shape for cut in cuts]),
    }
    times = harness.interleave(calls, runs=3 * rounds, warmup=2, seconds=240)
    base = times["one cluster"]["median_ms"]
    return {
        "network": name,
        "batch": batch,
        "clusters": len(ten.clusters),
        "cut_tensors": len(cuts),
        "cut_bytes": ten.specialization.partition.cut_bytes,
        "times": times,
        "ratio": times["clusters"]["median_ms"] / base,
        "ratio_less_cuts": (times["clusters"]["median_ms"] - times["cut tensors"]["median_ms"])
        / base,
    }


def _copies(shapes: Sequence[Any]) -> Callable[[], None]:
    """Reads and writes a tensor of each shape: what a cut adds, where one cluster would fuse."""
    from benchmarks.ops.measure import compiled

    work = [compiled(lambda x: -x, np.zeros(shape, np.float32)) for shape in shapes]

    def run() -> None:
        for copy in work:
            copy()

    return run


# --- branches -------------------------------------------------------------------------------------

_KERNELS = {
    "sort": lambda array: np.sort(array, axis=1),
    "exp": np.exp,
    "nonzero": np.nonzero,
    "matmul": lambda array: array @ array.T,
}
"""What host kernels spend their time in, as NumPy does it."""


def branches(rounds: int) -> dict[str, Any]:
    """Independent work after one another and at once: milliseconds, and what is gained."""
    from benchmarks.ops.measure import compiled

    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((1024, 1024), dtype=np.float32)
    launch = compiled(lambda x: (x @ x) @ x, matrix)
    found: dict[str, Any] = {}
    with ThreadPoolExecutor(1) as pool:
        for side in (16, 128, 1024):
            array = rng.standard_normal((side, side), dtype=np.float32)
            for name, kernel in _KERNELS.items():
                work = lambda kernel=kernel, array=array: kernel(array)  # noqa: E731
                for other, beside in (("itself", work), ("a launch", launch)):
                    found[f"{name} of {side}x{side} beside {other}"] = _gain(
                        pool, work, beside, rounds
                    )
    return found


def _gain(
    pool: ThreadPoolExecutor, work: Callable[[], Any], beside: Callable[[], Any], rounds: int
) -> dict[str, float]:
    def serial() -> None:
        beside()
        work()

    def at_once() -> None:
        future = pool.submit(work)
        beside()
        future.result()

    begin = time.perf_counter()
    serial()
    repeats = max(int(0.02 / (time.perf_counter() - begin)), 1)
    calls = {
        name: lambda each=each: [each() for _ in range(repeats)]
        for name, each in (("serial", serial), ("at once", at_once))
    }
    times = harness.interleave(calls, runs=5 * rounds, warmup=2)
    serial_ms, at_once_ms = (times[n]["median_ms"] / repeats for n in ("serial", "at once"))
    return {"serial_ms": serial_ms, "at_once_ms": at_once_ms, "gain": serial_ms / at_once_ms}


# --- calls ----------------------------------------------------------------------------------------


def overhead(rounds: int) -> dict[str, Any]:
    """Microseconds of a small program: called, submitted and streamed."""
    from benchmarks.overhead import CALLS as REPEATS
    from benchmarks.overhead import call_overhead, program

    result = call_overhead(5 * rounds)
    compiled, x = program(), np.ones((1, 64), np.float32)
    ways: dict[str, Callable[[], Any]] = {
        "called": lambda: [compiled(x) for _ in range(REPEATS)],
        "submitted": lambda: [f.result() for f in [compiled.submit(x) for _ in range(REPEATS)]],
        "streamed": lambda: list(compiled.stream(itertools.repeat(x, REPEATS), DEPTH)),
    }
    times = harness.interleave(ways, runs=5 * rounds)
    compiled.close()
    result["ways"] = {name: each["median_ms"] * 1e3 / REPEATS for name, each in times.items()}
    return result


def growth(rounds: int) -> dict[str, Any]:
    """Bytes of Python objects that `CALLS` calls leave behind, after as many to warm up.

    jaxlib frees what a call made a few hundred objects at a time, so that some are always left.
    """
    from benchmarks.overhead import program

    compiled, x = program(), np.ones((1, 64), np.float32)
    ways: dict[str, Callable[[int], Any]] = {
        "called": lambda count: [None for _ in range(count) if compiled(x) is None],
        "streamed": lambda count: [
            None for y in compiled.stream(itertools.repeat(x, count)) if y is None
        ],
        "submitted": lambda count: [
            None for _ in range(count) if compiled.submit(x).result() is None
        ],
    }
    found = {}
    for name, run in ways.items():
        run(CALLS // 10)
        tracemalloc.start()
        run(CALLS // 10)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        run(CALLS)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        found[name] = {
            "calls": CALLS,
            "bytes": after - before,
            "per_call": (after - before) / CALLS,
        }
    compiled.close()
    return found


def images(rounds: int) -> dict[str, Any]:
    """What benchmarks.images finds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.json"
        quick = ["--quick"] if rounds < 3 else []
        command = [sys.executable, "-m", "benchmarks.images", "--json", str(path), *quick]
        subprocess.run(command, check=True, stdout=sys.stderr)
        result: dict[str, Any] = json.loads(path.read_text())
    return {name: value for name, value in result.items() if name != "machine"}


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gap": gap,
    "split": split,
    "branches": branches,
    "overhead": overhead,
    "growth": growth,
    "images": images,
}


@dataclass(frozen=True)
class Aim:
    """A number that was measured, and what it is to reach."""

    name: str
    value: float
    bound: float
    least: bool = False

    @property
    def reached(self) -> bool:
        """Whether it is within the bound."""
        return self.value >= self.bound if self.least else self.value <= self.bound

    def __str__(self) -> str:
        side = "least" if self.least else "most"
        missed = "" if self.reached else "   missed"
        return f"{self.name:52} {self.value:10.4f}   at {side} {self.bound:g}{missed}"


def aims(results: dict[str, Any]) -> list[Aim]:
    """What was measured beside what is asked for."""
    found = [
        Aim(f"gap of {name}, part of the wall time", each["streamed"]["gap_fraction"], MOST_GAP)
        for name, each in results.get("gap", {}).items()
    ]
    if "split" in results:
        ratio = results["split"]["ratio_less_cuts"]
        found.append(Aim("ten clusters, less their cuts, over one", ratio, MOST_SPLIT))
    if "overhead" in results:
        over = results["overhead"]["overhead"]["numpy"]
        found.append(Aim("microseconds of a call over the bare one", over, MOST_OVERHEAD))
    found += [
        Aim(f"bytes left by each of {each['calls']} batches {name}", each["per_call"], MOST_GROWTH)
        for name, each in results.get("growth", {}).items()
    ]
    for name, value in results.get("images", {}).get("summary", {}).items():
        if name == "of_least":
            found.append(Aim("images: part of min(decode, compute)", value, LEAST_IMAGES, True))
        elif name.startswith("over_"):
            found.append(Aim(f"images: rate {name.replace('_', ' ')}", value, 1.0, True))
    return found


def _spawn(part: str, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, part, "--worker", "--rounds", str(rounds)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/runtime.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if chosen.worker:
        print(json.dumps(PARTS[chosen.parts[0]](chosen.rounds)))
        return
    results: dict[str, Any] = {}
    for part in chosen.parts or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        results[part] = _spawn(part, chosen.rounds)
        print(json.dumps(results[part], indent=1), file=sys.stderr)
    reached = aims(results)
    print(*reached, sep="\n")
    if chosen.json or not chosen.parts:
        print(f"written: {harness.save('runtime', results, chosen.json)}")
    if not all(aim.reached for aim in reached):
        raise SystemExit("Not all that is asked for was reached.")


if __name__ == "__main__":
    main()
