"""What benchmarks.runtime makes of its measurements."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import runtime
from xrt.runtime.trace import Interval, Trace


def test_aims_are_found_in_results():
    results = {
        "gap": {"resnet50": {"streamed": {"gap_fraction": 0.02}}},
        "split": {"ratio_less_cuts": 1.02},
        "overhead": {"overhead": {"numpy": 100.0}},
        "growth": {"called": {"calls": 10, "per_call": 9.0}},
        "images": {"summary": {"of_least": 0.96, "over_torch": 0.9, "least": 3.0}},
    }
    reached = {aim.name: aim.reached for aim in runtime.aims(results)}
    assert reached == {
        "gap of resnet50, part of the wall time": False,
        "ten clusters, less their cuts, over one": True,
        "microseconds of a call over the bare one": True,
        "bytes left by each of 10 batches called": False,
        "images: part of min(decode, compute)": True,
        "images: rate over torch": False,
    }
    assert runtime.aims({}) == []


def test_an_aim_says_whether_it_is_reached():
    assert str(runtime.Aim("ratio", 2.0, 1.0)).endswith("at most 1   missed")
    assert str(runtime.Aim("ratio", 2.0, 1.0, least=True)).endswith("at least 1")


def test_medians_of_traces():
    traces = [
        Trace.of([Interval(n, "launch", "c", 10 * n, 10 * n + busy) for n in range(3)], 30)
        for busy in (5, 6, 9)
    ]
    found = runtime._medians(traces)
    assert found["gap_fraction"] == pytest.approx(0.4)
    assert found["longest_between_launches_ms"] == pytest.approx(5e-6)
    assert found["between_launches_ms"] == pytest.approx(4e-6)


def test_work_at_once_is_work_that_is_done():
    done: list[str] = []
    with runtime.ThreadPoolExecutor(1) as pool:
        found = runtime._gain(pool, lambda: done.append("a"), lambda: done.append("b"), 1)
    assert done.count("a") == done.count("b") > 10
    assert found["gain"] == found["serial_ms"] / found["at_once_ms"]
    assert np.isfinite(found["gain"])
