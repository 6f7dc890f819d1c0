"""A bounded, repeatable run of the fuzzer; `python -m tests.fuzz` is the long one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import run
from tests.fuzz.__main__ import main
from tests.fuzz.case import Case
from tests.fuzz.known import NOT_FUZZED, OTHER_DOMAINS
from tests.fuzz.strategies import STRATEGIES
from xrt.engines import xla  # noqa: F401  (registers the lowerings)
from xrt.engines.xla.lowering import lowered_ops

SHORT = settings(
    max_examples=2,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    # Cases are small as they are; `python -m tests.fuzz --op ...` makes them smaller.
    phases=(Phase.generate,),
)


@pytest.mark.parametrize("op", sorted(STRATEGIES))
def test_implementations_agree(op: str) -> None:
    @SHORT
    @given(st.lists(STRATEGIES[op], min_size=3, max_size=8))
    def agree(cases: list[Case]) -> None:
        run.check(cases)

    agree()


def test_every_lowering_is_fuzzed_or_listed() -> None:
    ours = [(domain, op) for domain, op in lowered_ops() if domain not in OTHER_DOMAINS]
    lowered = {f"{domain}::{op}" if domain else op for domain, op in ours}
    known = STRATEGIES.keys() | NOT_FUZZED.keys()
    assert not lowered - known, "describe these in tests/fuzz, or list them in NOT_FUZZED"
    assert not STRATEGIES.keys() & NOT_FUZZED.keys()


def test_a_difference_is_reported_with_the_place() -> None:
    assert "output 1" in run._difference([np.ones(2), np.ones(2)], [np.ones(2), np.zeros(2)], 1.0)
    assert run._difference([np.ones(2)], [np.ones(2)], 1.0) == ""


def test_a_snippet_runs_by_itself() -> None:
    case = Case("Add", [np.array([np.nan, 1], np.float32), np.ones((0, 2), np.float32)])
    exec(case.snippet(), {})  # which raises if the case fails


def test_the_long_run_reports_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.1", "--op", "Add", "--seed", "1"]) == 0
    assert "0 operators failed" in capsys.readouterr().out
