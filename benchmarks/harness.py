"""What the benchmark scripts share: fair timing, the machine's description, result files."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

_PACKAGES = (
    *("jax", "jaxlib", "torch", "onnx", "onnx-ir", "onnxruntime", "transformers", "numpy"),
    *("openvino", "tensorrt", "tensorrt-rtx", "mlcommons-loadgen"),
)

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables that thread pools read when their library is loaded."""


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    *,
    runs: int = 10,
    warmup: int = 1,
    seconds: float = 60.0,
    pause: float = 0.0,
    settle: int = 0,
    most: float | None = None,
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
        most: Seconds that one call may take up in all; it then stays out of further rounds, which
            `rounds` tells. One call of each counts, be it the one that was to warm it up.

    Returns:
        For each call the median, least and largest milliseconds, the 90th and 99th percentile, the
        median of the processor time of all threads, and the number of rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    began = time.perf_counter()
    for number in range(warmup + runs):
        for name, call in calls.items():
            if most is not None and times[name] and spent[name] > most:
                continue
            time.sleep(pause)
            start = time.perf_counter()
            for _ in range(settle if most is None or spent[name] <= most else 0):
                call()
            work, begin = time.process_time_ns(), time.perf_counter_ns()
            call()
            end, worked = time.perf_counter_ns(), time.process_time_ns()
            spent[name] += time.perf_counter() - start
            if number >= warmup or (most is not None and spent[name] > most):
                times[name].append((end - begin) / 1e6)
                processor[name].append((worked - work) / 1e6)
        if number >= warmup + 2 and time.perf_counter() - began > seconds:
            break
    return {name: summary(each, processor[name]) for name, each in times.items()}


def summary(wall: list[float], processor: list[float]) -> dict[str, float]:
    """Median, spread and percentiles of the milliseconds of calls."""
    ordered = sorted(wall)
    return {
        "median_ms": statistics.median(wall),
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
        "p90_ms": percentile(ordered, 90),
        "p99_ms": percentile(ordered, 99),
        "cpu_ms": statistics.median(processor),
        "rounds": len(wall),
    }


def percentile(ordered: list[float], percent: float) -> float:
    """What `percent` percent of the sorted values do not exceed: one of them, the nearest rank."""
    rank = -(-percent * len(ordered) // 100)
    return ordered[max(int(rank), 1) - 1]


def ratio(times: Mapping[str, Mapping[str, float]], name: str, base: str) -> float:
    """Median of `name` over median of `base`: below 1 is faster."""
    return times[name]["median_ms"] / times[base]["median_ms"]


def threads_environment(threads: int) -> dict[str, str]:
    """The environment of a process in which every library computes with `threads` threads.

    GPU memory is taken as it is needed, so that several libraries can share a GPU.
    """
    pools = dict.fromkeys(_THREADS, str(threads))
    return {**os.environ, **pools, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Memory:
    """Most memory that was taken, on the GPU if torch sees one, else of the process.

    Attributes:
        where: "device" or "resident".
        peak_bytes: Most bytes beyond those taken at the start, once `watch_memory` has ended.
    """

    def __init__(self) -> None:
        self.where = "device" if gpu_name() else "resident"
        self.peak_bytes = 0
        self._start = self.taken()

    def taken(self) -> int:
        """Bytes that are taken now: of the whole GPU, or resident in the process."""
        if self.where == "device":
            import torch

            free, total = torch.cuda.mem_get_info()
            return int(total - free)
        return _status("VmRSS")

    def note(self) -> None:
        """Look at the memory. A GPU has no record of a peak, but libraries keep what they took."""
        now = self.taken() if self.where == "device" else _status("VmHWM")
        self.peak_bytes = max(self.peak_bytes, now - self._start)


@contextmanager
def watch_memory() -> Iterator[Memory]:
    """Measure the most memory that the body takes."""
    with suppress(OSError):  # not Linux, or not allowed: the peak is older then
        Path("/proc/self/clear_refs").write_text("5")
    memory = Memory()
    yield memory
    memory.note()


def _status(name: str) -> int:
    """Bytes of an entry of this process's status, 0 where the system has none."""
    with suppress(OSError):
        found = re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else 0
    return 0


def gpu_name() -> str:
    """The GPU that torch sees, or nothing."""
    try:
        import torch
    except ImportError:
        return ""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def device() -> str:
    """The device of a result, as the name of a folder: "nvidia-h100", "amd-epyc-2-cores"."""
    name = gpu_name() or f"{_cpu()} {cores()} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)", "", name.lower())).strip("-")


def machine() -> dict[str, Any]:
    """Date, commit, processor and library versions, for a result that is to be kept."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": cores(),
        "gpu": gpu_name(),
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
