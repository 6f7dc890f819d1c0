"""The seventeen networks built by TensorRT-RTX for GPUs that need not be here.

    python -m benchmarks.tensorrt_builds                                # all, one process each
    python -m benchmarks.tensorrt_builds --networks bert --targets sm_89 --precisions fp16
    python -m benchmarks.tensorrt_builds --resume                       # what is not in the file

A network is exported, calibrated and partitioned once for each precision; its clusters are then
built for every target. What TensorRT does not take is listed with its reason. "error" compares the
ONNX bytes that its parser got, run by ONNX Runtime, with the same clusters run by XLA, on inputs of
the network: the mean error over the mean magnitude of the main output. For int8 that holds
differences of rounding too, which add up over the layers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import harness, models
from benchmarks.cases import Case, difference, load
from xrt.engines.engine import Executable

ENGINE = "tensorrt_rtx"
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_120")
PRECISIONS = ("fp32", "fp16", "int8")

_WIDTH = 130  # of the printed tables


def measure(
    case: Case, folder: Path, precision: str, targets: Sequence[str], *, agree: bool = True
) -> Iterator[dict[str, Any]]:
    """Build `case` in one precision for all targets, in this process.

    Yields:
        A row for each target, with "error" and "traceback" if it failed.
    """
    program: Any = None
    for target in targets:
        begin = time.perf_counter()
        try:
            if program is None:
                program = compiled(case, folder, precision, target)
                plans = [each.details for each in program.specialization.executables.values()]
                facts = partition_of(program)
                facts["agreement"] = _try_agreement(program, case) if agree else {}
            else:
                plans = plans_for(program, target)
        except Exception as error:  # whatever it is, it is a result
            yield {"precision": precision, "target": target, **_failure(error)}
            continue
        yield {
            "precision": precision,
            "target": target,
            **facts,
            "build_seconds": sum(plan["build_seconds"] for plan in plans),
            "plan_bytes": sum(plan["plan_bytes"] for plan in plans),
            "layers": sum(plan["layers"] for plan in plans),
            "seconds": time.perf_counter() - begin,
        }


def _options(folder: Path) -> Any:
    import xrt

    quantization = xrt.QuantizationOptions(report=False)
    return xrt.CompileOptions(cache_dir=folder / "cache", quantization=quantization)


def compiled(case: Case, folder: Path, precision: str, target: str) -> Any:
    """The network as a program for a target."""
    import xrt

    return xrt.compile(
        case.path,
        case.calibration[0],
        engine=ENGINE,
        target=target,
        precision=precision,
        calibration=case.calibration if precision == "int8" else None,
        options=_options(folder),
    )


def partition_of(program: Any) -> dict[str, Any]:
    """What went where."""
    explanation = program.explain()
    return {
        "clusters": len(explanation.clusters),
        "nodes": len(explanation.placements),
        "left_out": explanation.reasons(),
        "kept": len(explanation.precision["kept"]),
        "partition_seconds": explanation.seconds["passes"],
    }


def plans_for(program: Any, target: str) -> list[dict[str, Any]]:
    """The clusters of a program, built for another target; each plan goes through its bytes."""
    import xrt
    from xrt.engines import resolve
    from xrt.engines.tensorrt.plan import Plan

    (engine,) = resolve(ENGINE, target)
    plans = [engine.plan(each, xrt.CompileOptions(cache=False)) for each in program.clusters]
    for plan in plans:
        again = Plan.from_bytes(plan.to_bytes())
        assert (again.data, again.target) == (plan.data, target)
    return [plan.report for plan in plans]


class _Stand(Executable):
    """Runs a cluster in place of its plan."""

    def serialize(self) -> bytes:
        """Nothing: it is never saved."""
        return b""


class _Exported(_Stand):
    """What TensorRT's parser gets for a cluster, run by ONNX Runtime."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        import onnx_ir as ir
        import onnxruntime

        from xrt.engines.tensorrt.export import export

        model = export(cluster.body)
        for node in model.graph:
            for name in [name for name in node.attributes if name.startswith("TRT_")]:
                del node.attributes[name]  # NVIDIA's, which says how to build
        path = folder / f"{cluster.name}.onnx"
        ir.save(model, path, external_data=f"{path.name}.data")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # As the graph says, and in no other order: int8 rounds at each step.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = cluster.inputs

    def run(self, inputs: Sequence[Any], stream: Any = None) -> list[Any]:
        """The outputs of the cluster."""
        feeds = dict(zip(self._inputs, map(np.asarray, inputs), strict=True))
        known = {value.name for value in self._session.get_inputs()}
        return list(self._session.run(None, {n: a for n, a in feeds.items() if n in known}))


class _Compiled(_Stand):
    """A cluster, run by XLA and the host."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        import onnx_ir as ir

        import xrt

        model = ir.Model(cluster.body.clone(), ir_version=10)
        self._program = xrt.compile(model, engine="xla", options=_options(folder))

    def run(self, inputs: Sequence[Any], stream: Any = None) -> list[Any]:
        """The outputs of the cluster."""
        outputs = self._program(*map(np.asarray, inputs))
        return list(outputs) if isinstance(outputs, tuple | list) else [outputs]


def _try_agreement(program: Any, case: Case) -> dict[str, Any]:
    try:
        return agreement(program, case)
    except Exception as error:
        return _failure(error)


def agreement(program: Any, case: Case) -> dict[str, Any]:
    """How the exported clusters differ from the clusters, on inputs of the network."""
    from xrt.runtime.schedule import build_schedule

    model, results = program.specialization.partition.model, []
    leaves = [case.inputs[0][str(value.name)] for value in model.graph.inputs]
    with tempfile.TemporaryDirectory() as name:
        for kind in (_Compiled, _Exported):
            executables = {each.name: kind(each, Path(name)) for each in program.clusters}
            schedule = build_schedule(model, executables)
            results.append(list(map(np.asarray, schedule.run(leaves))))
    return difference(results[:1], results[1:])


def _failure(error: Exception) -> dict[str, str]:
    first = str(error).strip().split("\n")[0][:300]
    return {
        "error": f"{type(error).__name__}: {first}",
        "traceback": "".join(traceback.format_exception(error))[-4000:],
    }


def table(networks: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each network, precision and target."""
    result = Table("network", "precision", "target", "clusters", "left out", "layers", "build s",
                   "plan MB", "error")  # fmt: skip
    for network in networks:
        for row in network["rows"]:
            head = (network["name"], row["precision"], row["target"])
            if "error" in row:
                result.add_row(*head, f"[red]{row['error'][:80]}")
                continue
            left = sum(n for reasons in row["left_out"].values() for n in reasons.values())
            error = row["agreement"].get("mean_relative_error")
            failed = "failed" if "error" in row["agreement"] else ""
            result.add_row(
                *head,
                str(row["clusters"]),
                f"{left} of {row['nodes']}",
                str(row["layers"]),
                f"{row['build_seconds']:.1f}",
                f"{row['plan_bytes'] / 1e6:.1f}",
                failed if error is None else f"{error:.1e}",
            )
    return result


def refusals(networks: Sequence[Mapping[str, Any]]) -> Table:
    """What is left out, and why, once for each network and precision."""
    result = Table("network", "precision", "operator", "count", "reason")
    for network in networks:
        seen = set()
        for row in network["rows"]:
            if row["precision"] in seen or "error" in row:
                continue
            seen.add(row["precision"])
            for op, reasons in row["left_out"].items():
                for reason, count in reasons.items():
                    result.add_row(network["name"], row["precision"], op, str(count), reason)
    return result


def _worker(chosen: argparse.Namespace) -> None:
    (name,) = chosen.networks
    with tempfile.TemporaryDirectory() as folder:
        case = load(name, chosen.batch, Path(folder), chosen.exports)
        for precision in chosen.precisions:
            rows = measure(case, Path(folder), precision, chosen.targets, agree=chosen.agree)
            for row in rows:
                print(json.dumps(row), flush=True)


def _spawn(name: str, precisions: Sequence[str], chosen: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--worker", "--networks", name]
    command += ["--batch", str(chosen.batch), "--targets", *chosen.targets]
    command += ["--precisions", *precisions] + ([] if chosen.agree else ["--no-agree"])
    command += ["--exports", str(chosen.exports)] if chosen.exports else []
    begin = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = {(row["precision"], row["target"]) for row in rows}
    for precision in precisions:
        for target in chosen.targets:
            if (precision, target) not in said:
                error = f"its process ended with status {done.returncode}"
                rows.append({"precision": precision, "target": target, "error": error})
    return {"name": name, "rows": rows, "seconds": time.perf_counter() - begin}


def merge(known: Sequence[Mapping[str, Any]], new: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`known` with the rows of `new` in place of those for the same precision and target."""
    result = {each["name"]: dict(each) for each in known}
    old = result.get(new["name"], {"name": new["name"], "rows": [], "seconds": 0.0})
    fresh = {(row["precision"], row["target"]) for row in new["rows"]}
    kept = [row for row in old["rows"] if (row["precision"], row["target"]) not in fresh]
    rows = [*kept, *new["rows"]]
    rows.sort(key=lambda row: (PRECISIONS.index(row["precision"]), TARGETS.index(row["target"])))
    seconds = old["seconds"] + new["seconds"]
    result[new["name"]] = {"name": new["name"], "rows": rows, "seconds": seconds}
    order = {name: place for place, name in enumerate(models.names())}
    return sorted(result.values(), key=lambda each: order[each["name"]])


def missing(known: Sequence[Mapping[str, Any]], name: str, chosen: argparse.Namespace) -> list[str]:
    """The precisions of a network of which a row is missing, or failed."""
    rows = [row for each in known if each["name"] == name for row in each["rows"]]
    done = {(row["precision"], row["target"]) for row in rows if "error" not in row}
    return [
        precision
        for precision in chosen.precisions
        if any((precision, target) not in done for target in chosen.targets)
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = models.names()
    parser.add_argument("--networks", nargs="+", metavar="NETWORK", choices=known, default=known)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--no-agree", dest="agree", action="store_false", help="only build")
    parser.add_argument("--resume", action="store_true", help="only what the file lacks")
    parser.add_argument("--exports", type=Path, help="folder that keeps exported files")
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/tensorrt_builds.json"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Build, and write what came of it after each network, beside what the file has already."""
    chosen = _arguments()
    if chosen.worker:
        _worker(chosen)
        return
    path = chosen.json or harness.RESULTS / "tensorrt_builds.json"
    known = json.loads(path.read_text())["networks"] if path.exists() else []
    console, out = Console(stderr=True, width=_WIDTH), Console(width=_WIDTH)
    made: list[dict[str, Any]] = []
    for name in chosen.networks:
        wanted = missing(known, name, chosen) if chosen.resume else list(chosen.precisions)
        if not wanted:
            continue
        with console.status(f"{name}: {', '.join(wanted)}"):
            made.append(_spawn(name, wanted, chosen))
        console.print(table(made[-1:]))
        known = merge(known, made[-1])
        harness.save("tensorrt_builds", {"networks": known}, chosen.json)
    out.print(table(made))
    out.print(refusals(made))
    console.print(f"written: {path}")
    failed = [f"{each['name']} {row['precision']} {row['target']}"
              for each in made for row in each["rows"]
              if "error" in row or "error" in row["agreement"]]  # fmt: skip
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
