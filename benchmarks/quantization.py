"""What the options of int8 do to its error: observers, weight equalization, bias correction.

python -m benchmarks.quantization [--networks digits resnet50] [--exports FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import harness
from benchmarks.cases import batch_of, load
from benchmarks.precision import difference

OPTIONS: dict[str, dict[str, Any]] = {
    "percentile 99.99": {},
    "minmax": {"observer": "minmax"},
    "entropy": {"observer": "entropy"},
    "mse": {"observer": "mse"},
    "equalized": {"equalize": True},
    "bias corrected": {"correct_bias": True},
    "equalized, bias corrected": {"equalize": True, "correct_bias": True},
    "7-bit weights": {"weight_bits": 7},
}
"""Name -> fields of QuantizationOptions that are not at their default."""


def measure(name: str, folder: Path, exports: Path | None) -> list[dict[str, Any]]:
    """The error of a network in int8 with each of the options, on inputs not calibrated on."""
    import xrt

    case = load(name, batch_of(name, None), folder, exports)
    full = xrt.compile(case.path, case.inputs[0])
    wanted = [_tuple(full(**feeds)) for feeds in case.inputs]
    rows = []
    for label, chosen in OPTIONS.items():
        quantization = xrt.QuantizationOptions(report=False, **chosen)
        program = xrt.compile(
            case.path,
            precision="int8",
            calibration=case.calibration,
            options=xrt.CompileOptions(cache_dir=folder, quantization=quantization),
        )
        found = difference(wanted, [_tuple(program(**feeds)) for feeds in case.inputs])
        rows.append({"network": name, "options": label, **found})
    return rows


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["digits", "resnet50"])
    parser.add_argument("--exports", type=Path, help="folder that keeps exported files")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/quantization.json")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in chosen.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, Path(folder), chosen.exports)
    table = Table("network", "options", "differ", "mean error")
    for row in rows:
        differing = f"{row['mismatches']} of {row['predictions']}"
        table.add_row(
            row["network"], row["options"], differing, f"{row['mean_relative_error']:.2e}"
        )
    Console().print(table)
    harness.save("quantization", {"rows": rows}, chosen.json)


if __name__ == "__main__":
    main()
