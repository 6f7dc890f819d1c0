"""`python -m tests.fuzz`: fuzz for as long as you like.

    python -m tests.fuzz --seconds 600 [--op Resize] [--seed 7]

Prints a line now and then, each failure as a snippet that runs by itself, and a table at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz.case import Case
from tests.fuzz.run import check
from tests.fuzz.strategies import STRATEGIES

_SHRINKING = 20.0
"""Seconds that making a failing example smaller may take."""

_LONG = settings(
    max_examples=6,
    deadline=None,
    database=None,
    verbosity=Verbosity.quiet,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
    print_blob=False,
    report_multiple_bugs=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz; 1 if something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long")
    parser.add_argument("--op", action="append", choices=sorted(STRATEGIES), help="only these")
    parser.add_argument("--seed", type=int, default=None, help="of the random numbers")
    chosen = parser.parse_args(arguments)
    seed = random.randrange(2**32) if chosen.seed is None else chosen.seed
    print(f"seed {seed}")
    ops = chosen.op or sorted(STRATEGIES)
    counts, failed = _rounds(ops, seed, chosen.seconds)
    _summary(ops, counts, failed)
    return 1 if failed else 0


def _rounds(
    ops: Sequence[str], seed: int, seconds: float
) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Fuzz all of `ops` in turn until the time is over; an operator that failed is done."""
    numbers = random.Random(seed)
    counts: dict[str, Counter[str]] = {op: Counter() for op in ops}
    failed: dict[str, str] = {}
    end, shown = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < end and len(failed) < len(ops):
        for op in numbers.sample(sorted(set(ops) - set(failed)), len(set(ops) - set(failed))):
            if time.monotonic() > end:
                break
            error = _fuzz(op, numbers.randrange(2**32), counts[op])
            if error:
                failed[op] = error
                print(f"\n{op} FAILED\n{error}\n", flush=True)
            if time.monotonic() - shown > 15:
                shown = time.monotonic()
                total = sum(count["cases"] for count in counts.values())
                print(f"{total} cases, {len(failed)} operators failed", flush=True)
    return counts, failed


class _ShrunkLongEnoughError(BaseException):
    """Ends a run of hypothesis, which catches every Exception."""


def _fuzz(op: str, seed: int, count: Counter[str]) -> str:
    """Run one round on `op`; the message of its smallest failure, if it has one."""
    failures: list[str] = []
    first: list[float] = []

    @seeded(seed)
    @_LONG
    @given(st.lists(STRATEGIES[op], min_size=1, max_size=24))
    def once(cases: list[Case]) -> None:
        if first and time.monotonic() - first[0] > _SHRINKING:
            raise _ShrunkLongEnoughError
        try:
            outcomes = check(cases)
        except Exception as error:
            failures.append(str(error) if isinstance(error, AssertionError) else repr(error))
            first.append(time.monotonic())
            raise
        for outcome in outcomes:
            count["cases"] += 1
            count["refused"] += bool(outcome.refused)
            count["excused"] += bool(outcome.excused)
            count.update(f"why {text}" for text in (outcome.refused, outcome.excused) if text)

    with contextlib.suppress(Exception, _ShrunkLongEnoughError):
        once()
    return min(failures, key=len, default="")


def _summary(ops: Sequence[str], counts: dict[str, Counter[str]], failed: dict[str, str]) -> None:
    print(f"{'operator':28}{'cases':>8}{'refused':>9}{'excused':>9}")
    for op in ops:
        count = counts[op]
        row = f"{op:28}{count['cases']:8}{count['refused']:9}{count['excused']:9}"
        print(row + ("   FAILED" if op in failed else ""))
        for key, number in count.most_common():
            if key.startswith("why ") and number > count["cases"] // 10:
                print(f"    {number} times {key.removeprefix('why ')}")
    total = sum(count["cases"] for count in counts.values())
    print(f"{total} cases of {len(ops)} operators, {len(failed)} operators failed")


if __name__ == "__main__":
    sys.exit(main())
