"""The node cases of ONNX's own backend suite, through `find`."""

from __future__ import annotations

import pytest

from tests.kernels.host import node_cases

RANDOM = "test_bernoulli"
"""Expected outputs that a generator drew without a seed; nothing can reproduce them."""


@pytest.fixture(scope="module")
def cases() -> list[node_cases.NodeCase]:
    return list(node_cases.load())


def _failures(cases: list[node_cases.NodeCase]) -> dict[str, str]:
    failures = {}
    for case in cases:
        try:
            node_cases.check(case)
        except Exception as error:
            failures[case.name] = f"{type(error).__name__}: {error}"
    return failures


def test_single_nodes_at_the_current_version(cases: list[node_cases.NodeCase]) -> None:
    chosen = [
        case
        for case in cases
        if case.current and len(list(case.graph)) == 1 and not case.name.startswith(RANDOM)
    ]
    assert len(chosen) > 1200
    assert _failures(chosen) == {}


def test_expanded_functions_at_the_current_version(cases: list[node_cases.NodeCase]) -> None:
    chosen = [case for case in cases if case.current and len(list(case.graph)) > 1]
    assert len(chosen) > 50
    assert _failures(chosen) == {}
