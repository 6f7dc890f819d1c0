"""What tuning gains: networks compiled by the rule and by measurement, ONNX Runtime beside.

    python -m benchmarks.tune                       # four networks, one process each
    python -m benchmarks.tune --case resnet50:8     # one or some, network:batch

The three are timed in turn within one process. "found in" is what tuning added to the compile.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import harness, models
from benchmarks.networks import _difference, _onnxruntime

CASES = ("resnet50:1", "resnet50:8", "vgg16:1", "inception_v3:1")


def measure(case: str, runs: int) -> dict[str, Any]:
    """One network, in this process."""
    import torch

    import xrt

    name, _, batch = case.partition(":")
    module, args = models.load(name, batch=int(batch or 1))
    programs, seconds, algorithms = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for label, tuned in (("rule", False), ("tuned", True)):
            options = xrt.CompileOptions(
                cache_dir=folder, strict=True, xla=xrt.XlaOptions(tune=tuned)
            )
            begin = time.perf_counter()
            program = programs[label] = xrt.compile(module, args, options=options)
            seconds[label] = time.perf_counter() - begin
            clusters = program.explain().clusters
            algorithms[label] = [cluster.get("algorithms", {}) for cluster in clusters]
        times = harness.interleave(
            {
                "rule": lambda: programs["rule"](*args),
                "tuned": lambda: programs["tuned"](*args),
                "onnxruntime": _onnxruntime(module, args, {}, Path(folder)),
            },
            runs=runs,
            pause=0.2,
        )
        difference = _difference(programs["tuned"](*args), module(*args))
        layers = [_record(path) for path in sorted(Path(folder, "tune").iterdir())]
    return {
        "case": case,
        "compile_seconds": seconds,
        "algorithms": algorithms,
        "difference": difference,
        "times": times,
        "layers": layers,
    }


def _record(path: Path) -> Any:
    """What tuning wrote about one layer; the line before it is a checksum."""
    return json.loads(path.read_bytes().partition(b"\n")[2])


def _spawn(case: str, runs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--worker", "--case", case]
    done = subprocess.run(
        [*command, "--runs", str(runs)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        return {"case": case, "error": f"exit status {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[dict[str, Any]]) -> Table:
    """The results as a table; ratios below 1 say that the first is faster."""
    result = Table("case", "rule ms", "tuned ms", "tuned / rule", "tuned / ORT", "found in, s")
    for row in rows:
        if "error" in row:
            result.add_row(row["case"], row["error"])
            continue
        times, seconds = row["times"], row["compile_seconds"]
        result.add_row(
            row["case"],
            f"{times['rule']['median_ms']:.1f}",
            f"{times['tuned']['median_ms']:.1f}",
            f"{harness.ratio(times, 'tuned', 'rule'):.2f}",
            f"{harness.ratio(times, 'tuned', 'onnxruntime'):.2f}",
            f"{seconds['tuned'] - seconds['rule']:.1f}",
        )
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="*", default=list(CASES), metavar="NETWORK:BATCH")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        print(json.dumps(measure(chosen.case[0], chosen.runs)))
        return
    rows = []
    console = Console(stderr=True)
    for case in chosen.case:
        with console.status(case):
            rows.append(_spawn(case, chosen.runs))
        console.print(table(rows[-1:]))
    Console().print(table(rows))
    if chosen.json:
        console.print(f"written: {harness.save('tune', {'cases': rows}, chosen.json)}")
    if any("error" in row for row in rows):
        raise SystemExit("Some cases failed.")


if __name__ == "__main__":
    main()
