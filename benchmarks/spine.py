"""Everything that docs/reference/benchmarks.md reports, one script after the other: `make bench`.

python -m benchmarks.spine
"""

from __future__ import annotations

import subprocess
import sys

SCRIPTS = (
    "benchmarks.overhead",
    "benchmarks.partition",
    "benchmarks.networks",
    "benchmarks.precision",
    "benchmarks.quantization",
    "benchmarks.ops.algorithms",
    "benchmarks.runtime",
    "benchmarks.memory",
    "benchmarks.training",
    "benchmarks.tensorrt_builds",
)


def main() -> None:
    """Run the scripts; each writes its file to benchmarks/results."""
    failed = [
        script
        for script in SCRIPTS
        if subprocess.run([sys.executable, "-m", script], check=False).returncode
    ]
    subprocess.run([sys.executable, "-m", "docs.generate"], check=True)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
