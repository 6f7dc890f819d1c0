"""Loading a saved program beside compiling its model, in fresh processes; memory of two processes.

python -m benchmarks.saving /path/to/resnet50.onnx [more.onnx ...]

Every measurement is of a process of its own, which imports xrt and JAX before the clock starts, and
the ways take turns. Memory is measured of two processes that live at the same time and have run the
model: PSS counts a page that n processes share as 1/n of a page in each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import harness

WAYS = ("compile, no cache", "compile, from the cache", "load", "load, not verified")


def measure(way: str, model: str, saved: str, cache: str) -> dict[str, float]:
    """Seconds of one way in this process, and of the first call after it."""
    import numpy as np

    import xrt
    from xrt.engines.xla import XlaEngine

    xrt.compile, xrt.load  # noqa: B018  (their imports are no part of either)
    XlaEngine().available()  # nor is opening the device, which both need
    begin = time.perf_counter()
    if way.startswith("load"):
        program = xrt.load(saved, verify=way == "load")
    else:
        options = xrt.CompileOptions(cache="from" in way, cache_dir=cache, progress=False)
        program = xrt.compile(model, engine="xla", options=options)
    made = time.perf_counter() - begin
    inputs = []
    for value in program.specialization.imported.model.graph.inputs:
        assert value.dtype is not None
        assert value.shape is not None
        inputs.append(np.ones(value.shape.numpy(), value.dtype.numpy()))
    begin = time.perf_counter()
    program(*inputs)
    result = {"seconds": made, "first_call": time.perf_counter() - begin}
    print(json.dumps(result), flush=True)
    if sys.stdin.readline():  # the parent looks at the memory, and says when it has
        print(json.dumps(memory()), flush=True)
        sys.stdin.readline()
    return result


def memory() -> dict[str, float]:
    """MB of this process: resident, and its share (PSS)."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: line.split() for line in rollup.splitlines()[1:]}
    return {name: int(sizes[name][1]) * 1024 / 1e6 for name in ("Rss", "Pss", "Private_Dirty")}


def start(*arguments: str) -> subprocess.Popen[str]:
    """A process of `measure`."""
    command = [sys.executable, "-m", "benchmarks.saving", "--measure", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line(process: subprocess.Popen[str]) -> dict[str, float]:
    """The next line that a process prints."""
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def say(process: subprocess.Popen[str]) -> None:
    """Let a process go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def timings(places: tuple[str, str, str], runs: int) -> dict[str, Any]:
    """Medians of the ways, in turn, and ratios to loading."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(runs):
        for way in WAYS:
            process = start(way, *places)
            found[way].append(line(process))
            process.communicate()
    table = {
        way: {
            "median_s": statistics.median(each["seconds"] for each in runs_of),
            "min_s": min(each["seconds"] for each in runs_of),
            "max_s": max(each["seconds"] for each in runs_of),
            "first_call_s": statistics.median(each["first_call"] for each in runs_of),
        }
        for way, runs_of in found.items()
    }
    load = table["load"]["median_s"]
    ratios = {way: table[way]["median_s"] / load for way in WAYS[:2]}
    return {"seconds": table, "times_the_load": ratios}


def shares(way: str, places: tuple[str, str, str]) -> dict[str, float]:
    """Means of the memory of two processes that hold the program at the same time."""
    pair = [start(way, *places) for _ in range(2)]
    for process in pair:
        line(process)
    for process in pair:
        say(process)
    both = [line(process) for process in pair]
    for process in pair:
        say(process)
        process.communicate()
    return {name: statistics.mean(each[name] for each in both) for name in both[0]}


def benchmark(model: Path, runs: int) -> dict[str, Any]:
    """All figures of one model."""
    import xrt

    with tempfile.TemporaryDirectory() as folder:
        places = (str(model), f"{folder}/model.xrt", f"{folder}/cache")
        small = f"{folder}/small.xrt"
        options = xrt.CompileOptions(cache_dir=places[2], progress=False)
        program = xrt.compile(model, engine="xla", options=options)
        begin = time.perf_counter()
        program.save(places[1])
        saved = time.perf_counter() - begin
        program.save(small, prepared=False)
        del program
        return {
            "save_s": saved,
            "file_mb": Path(places[1]).stat().st_size / 1e6,
            "file_without_prepared_mb": Path(small).stat().st_size / 1e6,
            **timings(places, runs),
            "memory_mb": {
                "compiled": shares(WAYS[1], places),
                "loaded": shares("load", places),
                "loaded, not prepared": shares("load", (places[0], small, places[2])),
            },
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files of fixed input shapes")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/saving.json")
    chosen = parser.parse_args()
    if chosen.measure:
        measure(*chosen.measure)
        return
    results = {}
    for path in chosen.models:
        results[path.stem] = found = benchmark(path, chosen.runs)
        print(f"{path.stem}: {found['file_mb']:.0f} MB, saved in {found['save_s']:.2f} s")
        for way, times in found["seconds"].items():
            print(f"  {way:24} {times['median_s']:6.3f} s, then {times['first_call_s']:6.3f} s")
        for way, ratio in found["times_the_load"].items():
            print(f"  {way} takes {ratio:.1f} times as long as load")
        for way, sizes in found["memory_mb"].items():
            print(f"  {way:24} " + ", ".join(f"{n} {v:.0f} MB" for n, v in sizes.items()))
    print(f"written: {harness.save('saving', {'models': results}, chosen.json)}")


if __name__ == "__main__":
    main()
