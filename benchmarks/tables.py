"""What the scripts of the published tables share: options, a process for each row, Markdown.

A result is a list of records, one for each cell: network, batch, column, and either figures or the
"reason" why there are none. Results of a run are in benchmarks/results/<device>/<table>.json.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import re
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import contenders, harness

Record = dict[str, Any]
Worker = Callable[[Record, argparse.Namespace], Iterator[Record]]
"""Measures one job in this process."""

QUICK = "left out of the quick form"
DRY = "left out of a dry run"


# --- options --------------------------------------------------------------------------------------


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The options that every table has; `defaults` are of those that a script wants otherwise."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--quick", action="store_true", help="few networks and rounds: minutes")
    made.add_argument("--dry", action="store_true", help="tiny networks, nothing kept: seconds")
    made.add_argument("--networks", nargs="+", metavar="NETWORK")
    made.add_argument("--batch", nargs="+", type=int, metavar="N", help="batch sizes")
    made.add_argument("--columns", nargs="+", metavar="COLUMN", help='as in "xla" or "xla fp16"')
    made.add_argument("--precisions", nargs="+", default=["fp32", "fp16", "int8"])
    made.add_argument("--runs", type=int, help="rounds that count")
    made.add_argument("--threads", type=int, default=harness.cores(), help="of every runtime")
    made.add_argument("--exports", type=Path, help="folder that keeps exported files")
    made.add_argument("--json", type=Path, help="default: benchmarks/results/<device>/<table>.json")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    made.set_defaults(**defaults)
    return made


def choose(
    chosen: argparse.Namespace,
    peers: Sequence[str],
    quick: Iterable[str],
    peer_precisions: Sequence[str] | None = None,
) -> list[str]:
    """The columns to measure; `chosen.left_out` gets the others, with the reason.

    Args:
        chosen: The options.
        peers: The table's peers.
        quick: Runtimes and columns that the quick form measures.
        peer_precisions: Those of peers; by default fp32, on a GPU fp16 too.
    """
    every = contenders.columns(chosen.precisions, peers, peer_precisions)
    chosen.left_out = {}
    if chosen.columns:
        return [each for each in every if _named(each, chosen.columns)]
    missing = contenders.unavailable()
    for column in every:
        if column.split()[0] in missing:
            continue  # and the reason is that
        if chosen.dry and column.split()[0] in ("torch.compile", "reduce-overhead"):
            chosen.left_out[column] = DRY
        elif (chosen.quick or chosen.dry) and not _named(column, quick):
            chosen.left_out[column] = DRY if chosen.dry else QUICK
    return every


def _named(column: str, names: Iterable[str]) -> bool:
    return column in names or column.split()[0] in names


def one_each(
    networks: Sequence[str],
    batches: Sequence[int],
    columns: Sequence[str],
    chosen: argparse.Namespace,
) -> tuple[list[Record], list[Record]]:
    """A job for each column that can run, and records of the others, with the reason."""
    missing = contenders.unavailable()
    wanted: list[Record] = []
    absent: list[Record] = []
    for name, batch, column in itertools.product(networks, batches, columns):
        job: Record = {"network": name, "batch": batch, "column": column}
        why = missing.get(column.split()[0]) or chosen.left_out.get(column)
        (absent if why else wanted).append({**job, "reason": why} if why else job)
    return wanted, absent


# --- jobs -----------------------------------------------------------------------------------------


def collect(
    module: str,
    jobs: Sequence[Record],
    worker: Worker,
    chosen: argparse.Namespace,
    *,
    share_files: bool = False,
) -> list[Record]:
    """The records of `jobs`, each measured in a process of its own; in this one in a dry run.

    Args:
        module: Of the script.
        jobs: What to measure.
        worker: Measures a job.
        chosen: The options.
        share_files: Jobs are about the same networks: export each once for all of them.
    """
    if share_files and chosen.exports is None:
        with tempfile.TemporaryDirectory() as folder:
            chosen.exports = Path(folder)
            return collect(module, jobs, worker, chosen)
    records: list[Record] = []
    for job in jobs:
        print(f"... {_title(job)}", file=sys.stderr, flush=True)
        if chosen.dry:
            with contextlib.redirect_stdout(io.StringIO()):
                records += [{**job, **record} for record in worker(job, chosen)]
        else:
            records += _spawn(module, job, chosen)
    return records


def _spawn(module: str, job: Record, chosen: argparse.Namespace) -> list[Record]:
    arguments = list(sys.argv[1:])
    if chosen.exports:
        arguments += ["--exports", str(chosen.exports)]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--worker", json.dumps(job)],
        stdout=subprocess.PIPE, text=True, check=False,
        env=harness.threads_environment(chosen.threads),
    )  # fmt: skip
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    if done.returncode:
        why = ending(done.returncode)
        said.append({"column": "the others" if said else "all", "reason": why})
    return [{**job, **record} for record in said]


def serve(worker: Worker, chosen: argparse.Namespace) -> None:
    """Be the process of a job."""
    for record in worker(json.loads(chosen.worker), chosen):
        print(json.dumps(record), flush=True)


def ending(status: int) -> str:
    """How a process ended that should not have, by its exit status."""
    if status == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    return f"its process ended with status {status}"


def one_record(measure: Callable[[Record, Path, argparse.Namespace], Record]) -> Worker:
    """A worker that gives what `measure` finds, in a folder of its own, or why there is nothing."""

    @functools.wraps(measure)
    def worker(job: Record, chosen: argparse.Namespace) -> Iterator[Record]:
        column = job["column"]
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield {"column": column, **measure(job, Path(folder), chosen)}
            except Exception as error:
                yield {"column": column, "reason": reason(error)}

    return worker


def reason(error: BaseException) -> str:
    """Why a cell is empty, for the reader of a table; a surprise is also traced on stderr."""
    if isinstance(error, contenders.RefusalError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed"
    traceback.print_exception(error)
    first = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {first}"


def _title(job: Record) -> str:
    return ", ".join(f"{key} {value}" for key, value in job.items())


# --- results --------------------------------------------------------------------------------------


def result(
    title: str, protocol: str, records: list[Record], chosen: argparse.Namespace, **more: Any
) -> dict[str, Any]:
    """What is kept of a run."""
    return {
        "title": title,
        "form": "dry" if chosen.dry else "quick" if chosen.quick else "full",
        "protocol": protocol,
        "threads": chosen.threads,
        "unavailable": contenders.unavailable(),
        "records": records,
        **more,
    }


def finish(name: str, found: Mapping[str, Any], text: str, chosen: argparse.Namespace) -> None:
    """Print a table, and keep its result unless it was a dry run or of chosen rows alone."""
    print(f"# {found['title']} ({found['form']})\n\n{found['protocol']}\n\n{text}")
    partial = chosen.dry or chosen.networks or chosen.columns or chosen.batch
    if chosen.json or not partial:
        path = chosen.json or harness.RESULTS / harness.device() / f"{name}.json"
        print(f"written: {harness.save(name, found, path)}", file=sys.stderr)


def pivot(
    records: Iterable[Record],
    figure: str,
    *,
    keys: Sequence[str] = ("network", "batch"),
    form: str = "{:.1f}",
) -> str:
    """A Markdown table of one figure: a line for each network, a column for each contender."""
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    titles: dict[str, None] = {}
    for record in records:
        line = lines.setdefault(tuple(record.get(key, "") for key in keys), {})
        if record.get(figure) is not None:
            line[record["column"]] = form.format(record[figure])
            titles[record["column"]] = None
    columns = list(titles)
    body = [
        [*map(str, key), *(line.get(column, "") for column in columns)]
        for key, line in lines.items()
    ]
    return markdown([*keys, *columns], body, left=len(keys))


def markdown(heading: Sequence[str], body: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; columns after the first `left` are aligned to the right."""
    rule = ["---" if index < left else "---:" for index in range(len(heading))]
    lines = [[_escaped(cell) for cell in line] for line in (heading, rule, *body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def parse(text: str) -> list[list[dict[str, str]]]:
    """The Markdown tables in a text, each a list of lines by heading."""
    tables: list[list[dict[str, str]]] = []
    heading: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            heading = []
            continue
        cells = [
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])
        ]
        if not heading:
            heading = cells
            tables.append([])
        elif not all(re.fullmatch("-+:?", cell) for cell in cells):
            tables[-1].append(dict(zip(heading, cells, strict=True)))
    return tables


def details(records: Iterable[Record]) -> str:
    """A Markdown table of all that was measured of each cell, beside the median."""
    heading = ("network", "batch", "column", "median ms", "least", "most", "p90", "p99", "CPU ms",
               "rounds", "memory MiB", "compile s", "error")  # fmt: skip
    names = ("median_ms", "min_ms", "max_ms", "p90_ms", "p99_ms", "cpu_ms")
    body = [
        [each["network"], str(each["batch"]), each["column"]]
        + [f"{each[name]:.2f}" for name in names]
        + [str(each["rounds"]), f"{each['memory_mib']:.0f}", f"{each['compile_seconds']:.1f}"]
        + [f"{each['error']:.1e}"]
        for each in records
        if "median_ms" in each
    ]
    return markdown(heading, body, left=3) if body else ""


def reasons(found: Mapping[str, Any]) -> str:
    """Why cells are empty, as a list: each engine that cannot run, then each cell.

    A record may lack single figures only: "gap_reason" says why there is no gap.
    """
    lines = [f"- {name}: {why}" for name, why in found["unavailable"].items()]
    missing = set(found["unavailable"])
    grouped: dict[tuple[str, str], dict[str, list[str]]] = {}
    for record in found["records"]:
        if record["column"].split()[0] in missing:
            continue
        where = f"{record['network']} {record.get('batch', '')}".strip()
        for key, why in record.items():
            if key == "reason" or key.endswith("_reason"):
                columns = grouped.setdefault((key.removesuffix("reason"), why), {})
                columns.setdefault(record["column"], []).append(where)
    for (figure, why), columns in grouped.items():
        parts = [f"{column} ({', '.join(where)})" for column, where in columns.items()]
        if why in (QUICK, DRY):
            parts = list(columns)
        label = f"{figure.removesuffix('_')} of " if figure else ""
        lines.append(f"- {label}{', '.join(parts)}: {why}")
    return "\n".join(["Empty cells:", "", *lines]) if lines else ""
