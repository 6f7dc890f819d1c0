"""The networks in fp32, fp16, bf16 and int8, beside ONNX Runtime's own int8.

    python -m benchmarks.precision                          # all, one process each
    python -m benchmarks.precision --quick                  # digits, resnet50, bert
    python -m benchmarks.precision --networks vit --runs 5
    python -m benchmarks.precision --networks --bound       # only int8 within a bound on accuracy

Weights are random but for "digits", which is trained. Four batches calibrate, others are compared
with fp32; both are noise with the spectrum of photographs, or random words. ONNX Runtime quantizes
the same file on the same batches: QDQ, per channel. All of a network is timed in turn within one
process. What fails is a row with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import harness, models
from benchmarks.cases import (
    DIGITS,
    Case,
    Feeds,
    batch_of,
    difference,
    export,
    feeds_of,
    load,
)

Array = np.ndarray[Any, Any]

QUICK = (DIGITS, "resnet50", "bert")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
PEERS = ("onnxruntime fp32", "onnxruntime int8")
COLUMNS = (*PRECISIONS, *PEERS)
"""What is measured of each network."""

_WIDTH = 130  # of the printed tables


@dataclass(frozen=True)
class Candidate:
    """One network in one precision: a call, and what is known about it without running it."""

    run: Callable[[Feeds], Sequence[Array]]
    facts: dict[str, Any]


def compiled(case: Case, precision: str, cache: Path, **options: Any) -> Candidate:
    """The network through xrt."""
    import xrt

    quantization = xrt.QuantizationOptions(report=False)
    begin = time.perf_counter()
    program = xrt.compile(
        case.path,
        case.calibration[0],
        precision=precision,
        calibration=case.calibration if precision == "int8" else None,
        options=xrt.CompileOptions(cache_dir=cache, quantization=quantization, **options),
    )
    seconds = time.perf_counter() - begin
    explanation = program.explain()
    kept = explanation.precision["kept"]
    return Candidate(
        lambda feeds: _as_tuple(program(**feeds)),
        {
            "compile_seconds": seconds,
            "weight_bytes": _constant_bytes(program),
            "memory": _planned(program),
            "on_host": sum(n for each in explanation.reasons().values() for n in each.values()),
            "kept": dict(Counter(f"{each['op']}: {each['reason']}" for each in kept)),
            "groups": explanation.precision.get("groups"),
            "reverted": len(explanation.precision.get("reverted", ())),
            "notes": explanation.precision["notes"],
        },
    )


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _constant_bytes(program: Any) -> int:
    """Bytes of the constants in a program's graph: what its weights take on disk."""
    values = program.specialization.built.model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _planned(program: Any) -> dict[str, int]:
    """Bytes that XLA plans for a call, weights included in the arguments; added over clusters."""
    total: Counter[str] = Counter()
    for executable in program.specialization.executables.values():
        if hasattr(executable, "memory"):
            total.update(executable.memory())
    return dict(total)


def peer(case: Case, precision: str, folder: Path) -> Candidate:
    """The network through ONNX Runtime, quantized by it for "int8"."""
    import onnxruntime

    begin = time.perf_counter()
    path = case.path if precision == "fp32" else _quantized(case, folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - begin
    size = sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))
    return Candidate(
        lambda feeds: session.run(None, feeds), {"compile_seconds": seconds, "weight_bytes": size}
    )


def _quantized(case: Case, folder: Path) -> Path:
    """The file as ONNX Runtime quantizes it: unsigned activations, signed weights by channel."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from xrt.runtime.processor import weight_bits

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(case.calibration)

        def get_next(self) -> Feeds | None:
            return next(self._batches, None)

    prepared, target = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(
        case.path, prepared, skip_symbolic_shape=True, save_as_external_data=True,
        external_data_location="prepared.onnx.data",
    )  # fmt: skip
    q.quantize_static(
        prepared,
        target,
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        reduce_range=weight_bits() == 7,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        use_external_data_format=True,
    )
    return target


def measure(
    case: Case, folder: Path, columns: Sequence[str] = COLUMNS, *, runs: int = 10
) -> Iterator[dict[str, Any]]:
    """Measure `case` in this process.

    Yields:
        A row for each column, with "error" and "traceback" if it failed, then one with "times".
    """
    calls: dict[str, Callable[[], Any]] = {}
    wanted: dict[str, list[Any]] = {}
    for column in columns:
        runtime, _, precision = column.rpartition(" ")
        try:
            if runtime:
                made = peer(case, precision, folder)
            else:
                made = compiled(case, precision, folder / "cache")
            got = [made.run(feeds) for feeds in case.inputs]
        except Exception as error:  # whatever it is, it is a result
            yield {"column": column, **_failure(error)}
            continue
        reference = wanted.setdefault(runtime, got)
        calls[column] = lambda run=made.run: run(case.inputs[0])  # type: ignore[misc]
        yield {"column": column, **made.facts, **difference(reference, got)}
    yield {"times": harness.interleave(calls, runs=runs, seconds=60, pause=0.1, settle=1)}


def _failure(error: Exception) -> dict[str, str]:
    first = str(error).strip().split("\n")[0][:300]
    return {
        "error": f"{type(error).__name__}: {first}",
        "traceback": "".join(traceback.format_exception(error))[-4000:],
    }


def collect(name: str, batch: int, lines: Sequence[str], status: int) -> dict[str, Any]:
    """What a worker said about a network, with a reason for every column that it said nothing of.

    Args:
        name: The network.
        batch: Its batch size.
        lines: What it printed.
        status: Its exit status.
    """
    said = [json.loads(line) for line in lines if line.startswith("{")]
    times: Mapping[str, Any] = next((each["times"] for each in said if "times" in each), {})
    rows = {each.pop("column"): each for each in said if "column" in each}
    missing = {"error": f"its process ended with status {status}"}
    columns = {column: rows.get(column, missing) for column in COLUMNS}
    for column, row in columns.items():
        if "error" not in row and column in times:
            row["times"] = times[column]
    return {"name": name, "batch": batch, "columns": columns}


def bounded(folder: Path, *, inputs: int, bound: float) -> dict[str, Any]:
    """int8 ResNet-50, free and under a bound on predictions that differ.

    The bound is held on `inputs` inputs that calibrate it, and looked at on as many others.
    """
    batch = 10
    network = models.NETWORKS["resnet50"]
    module, example = models.load("resnet50", batch=batch)
    path = export(module, example, folder / "resnet50.onnx", ["x"])
    kinds = {"calibration": 10_000, "held_out": 20_000}
    data = {
        kind: [
            feeds_of(network.example_inputs(batch, seed + i), ["x"]) for i in range(inputs // batch)
        ]
        for kind, seed in kinds.items()
    }
    case = Case(path, data["calibration"], data["held_out"])
    full = compiled(case, "fp32", folder / "cache")
    wanted = {kind: [full.run(feeds) for feeds in each] for kind, each in data.items()}
    classes = np.concatenate([outputs[0].argmax(-1) for outputs in wanted["held_out"]])
    result: dict[str, Any] = {"bound": bound, "classes": len(np.unique(classes))}
    for label, limit in (("free", None), ("bounded", bound)):
        made = compiled(case, "int8", folder / "cache", max_mismatch=limit)
        found = {
            kind: difference(wanted[kind], [made.run(feeds) for feeds in each])
            for kind, each in data.items()
        }
        result[label] = {**made.facts, **found}
    return result


def _spawn(name: str, batch: int, chosen: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--worker", "--networks", name]
    command += ["--batch", str(batch), "--runs", str(chosen.runs)]
    command += ["--exports", str(chosen.exports)] if chosen.exports else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return collect(name, batch, done.stdout.splitlines(), done.returncode)


def table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each network and precision; "/ fp32" is the time over xrt's in fp32."""
    result = Table("network", "batch", "precision", "ms", "/ fp32", "planned MB", "weights MB",
                   "differ", "mean error", "in fp32")  # fmt: skip
    for network in networks:
        base = network["columns"]["fp32"].get("times", {}).get("median_ms")
        for column, row in network["columns"].items():
            head = (network["name"], str(network["batch"]), column)
            if "error" in row:
                result.add_row(*head, f"[red]{row['error'][:100]}")
                continue
            time_ms = row.get("times", {}).get("median_ms", float("nan"))
            memory = row.get("memory")
            result.add_row(
                *head,
                f"{time_ms:.1f}",
                f"{time_ms / base:.2f}" if base else "",
                f"{sum(memory.values()) / 1e6:.0f}" if memory else "",
                f"{row['weight_bytes'] / 1e6:.1f}",
                f"{row['mismatches']} of {row['predictions']}",
                f"{row['mean_relative_error']:.1e}",
                str(sum(row.get("kept", {}).values())),
            )
    return result


def _worker(name: str, batch: int, runs: int, exports: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = load(name, batch, Path(folder), exports)
        except Exception as error:  # then no column has a figure
            for column in COLUMNS:
                print(json.dumps({"column": column, **_failure(error)}))
            raise
        for row in measure(case, Path(folder), runs=runs):
            print(json.dumps(row), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = (DIGITS, *models.names())
    parser.add_argument("--networks", nargs="*", metavar="NETWORK", choices=known, default=None)
    parser.add_argument("--quick", action="store_true", help=", ".join(QUICK))
    parser.add_argument("--batch", type=int, help="default: 1, and 8 for the CNNs")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--bound", action="store_true", help="also hold int8 ResNet-50 to a bound")
    parser.add_argument("--inputs", type=int, default=500, help="of --bound")
    parser.add_argument("--exports", type=Path, help="folder that keeps exported files")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/precision.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    chosen.all = chosen.networks is None and not chosen.quick
    chosen.names = list(known if chosen.all else chosen.networks or QUICK * chosen.quick)
    return chosen


def main() -> None:
    """Run the benchmark."""
    chosen = _arguments()
    if chosen.worker:
        _worker(chosen.names[0], chosen.batch, chosen.runs, chosen.exports)
        return
    networks: list[dict[str, Any]] = []
    result: dict[str, Any] = {"networks": networks}
    console, out = Console(stderr=True, width=_WIDTH), Console(width=_WIDTH)
    for name in chosen.names:
        batch = batch_of(name, chosen.batch)
        with console.status(f"{name}, batch {batch}"):
            networks.append(_spawn(name, batch, chosen))
        console.print(table(networks[-1:]))
    if networks:
        out.print(table(networks))
    if chosen.bound:
        with console.status("int8 within a bound"), tempfile.TemporaryDirectory() as folder:
            result["bound"] = bounded(Path(folder), inputs=chosen.inputs, bound=0.01)
        out.print_json(data=result["bound"])
    if chosen.json or chosen.all:
        console.print(f"written: {harness.save('precision', result, chosen.json)}")
    failed = [
        f"{network['name']} {column}"
        for network in networks
        for column, row in network["columns"].items()
        if "error" in row
    ]
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
