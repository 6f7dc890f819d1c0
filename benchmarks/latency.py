"""The latency of one batch, for every column in turn: what the tables of inference are made of."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import contenders, harness, tables
from benchmarks.contenders import Candidate, Subject

Record = dict[str, Any]


def built(
    subject: Subject, columns: Sequence[str], chosen: argparse.Namespace
) -> Iterator[tuple[Record, Candidate | None]]:
    """Build columns one by one and hold their outputs against those of eager in fp32.

    Yields:
        A record of each, with the candidate; with a reason and None where it has no figure.
    """
    wanted = list(subject.reference([subject.feeds]))
    for column in columns:
        record: Record = {"column": column}
        if column in chosen.left_out:
            yield {**record, "reason": chosen.left_out[column]}, None
            continue
        try:
            with harness.watch_memory() as memory:
                begin = time.perf_counter()
                made = contenders.build(column, subject, chosen.threads)
                memory.note()
                got = made.run(subject.feeds)
            record |= contenders.accept(column, wanted, [got])
        except Exception as error:  # whatever it is, it is a result
            yield {**record, "reason": tables.reason(error)}, None
            continue
        record |= {
            "compile_seconds": made.compile_seconds,
            "first_seconds": time.perf_counter() - begin,
            "memory_mib": memory.peak_bytes / 2**20,
            "memory": memory.where,
            "host_nodes": _on_host(made),
        }
        yield record, made


def _on_host(made: Candidate) -> int | None:
    if made.program is None:
        return None
    reasons: dict[str, dict[str, int]] = made.program.explain().reasons()
    return sum(count for each in reasons.values() for count in each.values())


def timed(
    pairs: Sequence[tuple[Record, Candidate | None]], *, runs: int, seconds: float, most: float
) -> list[Record]:
    """The records, with the times of calls taken in turn where there is a candidate."""
    calls = {record["column"]: made.call for record, made in pairs if made is not None}
    times = harness.interleave(
        calls, runs=runs, warmup=2, seconds=seconds, pause=0.1, settle=1, most=most
    )
    return [{**record, **times.get(record["column"], {})} for record, _ in pairs]


@contextmanager
def loaded(name: str, batch: int, chosen: argparse.Namespace, **options: Any) -> Iterator[Subject]:
    """A network whose file is gone afterwards, unless `--exports` keeps it."""
    with tempfile.TemporaryDirectory() as temporary:
        yield subject_of(name, batch, Path(temporary), chosen, **options)


def subject_of(
    name: str, batch: int, temporary: Path, chosen: argparse.Namespace, **options: Any
) -> Subject:
    """A network; its file is kept in, and taken from, the folder that `--exports` names."""
    folder = chosen.exports or temporary
    folder.mkdir(parents=True, exist_ok=True)
    return contenders.subject(name, batch, folder, cache=temporary / "cache", **options)
