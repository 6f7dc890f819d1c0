"""What a call costs beyond the bare executable, and what importing xrt costs.

python -m benchmarks.overhead
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import xrt
from benchmarks import harness

_MODEL = """
<ir_version: 10, opset_import: ["": 20]>
mlp (float[1, 64] x) => (float[1, 64] y) {
  w = ConstantOfShape<value = float[1] {0.5}>(shape)
  h = MatMul(x, w)
  r = Relu(h)
  y = MatMul(r, w)
}
"""

CALLS = 500
"""Calls in one timing."""


def program() -> xrt.Program:
    """A one-cluster program so small that its overhead shows."""
    model = ir.from_onnx_text(_MODEL.replace("{\n  w", "\n<int64[2] shape = {64, 64}>\n{\n  w", 1))
    return xrt.compile(model)


def call_overhead(runs: int) -> dict[str, Any]:
    """Microseconds of a call, of its bare executable, and the difference, by kind of array."""
    import jax
    import torch

    from xrt.engines.xla import device

    compiled = program()
    assert len(compiled.clusters) == 1
    (executable,) = compiled.specialization.executables.values()
    array = np.random.default_rng(0).standard_normal((1, 64)).astype(np.float32)
    tensor, ours = torch.from_numpy(array), device.put(array)
    theirs = jax.device_put(array)
    bare = executable.bare([ours])
    calls: dict[str, Callable[[], Any]] = {
        "bare executable": bare,
        "numpy": lambda: compiled(array),
        "torch": lambda: compiled(tensor),
        "jax": lambda: compiled(theirs),
    }
    repeated = {name: _repeat(call) for name, call in calls.items()}
    times = harness.interleave(repeated, runs=runs)
    micros = {name: each["median_ms"] * 1e3 / CALLS for name, each in times.items()}
    floor = micros["bare executable"]
    return {"microseconds": micros, "overhead": {n: m - floor for n, m in micros.items()}}


def _repeat(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def import_seconds(runs: int) -> dict[str, Any]:
    """Seconds of `import xrt` in a fresh interpreter, beyond what an empty one costs."""
    calls = {
        "empty": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        "import xrt": lambda: subprocess.run([sys.executable, "-c", "import xrt"], check=True),
    }
    times = harness.interleave(calls, runs=runs)
    medians = {name: each["median_ms"] / 1e3 for name, each in times.items()}
    return {**medians, "seconds": medians["import xrt"] - medians["empty"]}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/overhead.json")
    chosen = parser.parse_args()
    calls = call_overhead(chosen.runs)
    imports = import_seconds(chosen.runs)
    for name, micros in calls["microseconds"].items():
        over = calls["overhead"][name]
        print(f"{name:16} {micros:8.1f} us a call, {over:8.1f} us over the bare one")
    print(f"import xrt       {imports['seconds']:.3f} s")
    print(f"written: {harness.save('overhead', {'call': calls, 'import': imports}, chosen.json)}")


if __name__ == "__main__":
    main()
