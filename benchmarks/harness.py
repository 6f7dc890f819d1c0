"""What the benchmark scripts share: fair timing, the machine's description, result files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("jax", "jaxlib", "torch", "onnx", "onnx-ir", "onnxruntime", "transformers", "numpy")


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 10,
    warmup: int = 1,
    seconds: float = 60.0,
    pause: float = 0.0,
    settle: int = 0,
) -> dict[str, dict[str, float]]:
    """Time `calls` in turn: A B C, A B C, ... so that the machine's drift hits all alike.

    Args:
        calls: What to time, by name.
        runs: Most rounds that count.
        warmup: Rounds before them.
        seconds: No new round starts after so long (at least three count).
        pause: Seconds of rest before each call: the threads of a peer's pool go on spinning for a
            while after its call, and would slow down whoever comes next.
        settle: Calls right before each timed one that do not count. A library whose threads slept
            through the others' turns wakes up in them, as it would be in a stream of batches.

    Returns:
        For each call the median, least and largest milliseconds, and the number of rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for number in range(warmup + runs):
        for name, call in calls.items():
            time.sleep(pause)
            for _ in range(settle):
                call()
            begin = time.perf_counter_ns()
            call()
            if number >= warmup:
                times[name].append((time.perf_counter_ns() - begin) / 1e6)
        if number >= warmup + 2 and time.perf_counter() - began > seconds:
            break
    return {
        name: {
            "median_ms": statistics.median(each),
            "min_ms": min(each),
            "max_ms": max(each),
            "rounds": len(each),
        }
        for name, each in times.items()
    }


def ratio(times: Mapping[str, Mapping[str, float]], name: str, base: str) -> float:
    """Median of `name` over median of `base`: below 1 is faster."""
    return times[name]["median_ms"] / times[base]["median_ms"]


def machine() -> dict[str, Any]:
    """Date, commit, processor and library versions, for a result that is to be kept."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def save(name: str, result: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write a result with the machine's description to benchmarks/results, or to `path`."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return target


def _commit() -> str:
    try:
        root = Path(__file__).parents[1]
        head = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    widest = next((f for f in ("avx512f", "avx2", "avx") if f in flags.split()), "")
    return f"{model} ({widest})" if widest else model


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
