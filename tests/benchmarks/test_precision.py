"""The benchmark of precisions, on a network of two layers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import cases, precision
from docs import measurements


def small(folder):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5)
        ).eval()
    batches = [
        {"x": np.random.default_rng(seed).normal(size=(4, 3, 8, 8)).astype(np.float32)}
        for seed in range(4)
    ]
    path = cases.export(net, (torch.from_numpy(batches[0]["x"]),), folder / "net.onnx", ["x"])
    return cases.Case(path, batches[:2], batches[2:])


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    rows = precision.measure(small(folder), folder, runs=1)
    return [json.dumps(row) for row in rows]


def test_every_column_has_its_figures(lines):
    found = precision.collect("small", 4, lines, 0)["columns"]
    assert list(found) == list(precision.COLUMNS)
    assert not [row["traceback"] for row in found.values() if "error" in row]
    assert found["fp32"]["mean_relative_error"] == found["fp32"]["mismatches"] == 0
    for column in ("fp16", "bf16", "int8", "onnxruntime int8"):
        assert 0 < found[column]["mean_relative_error"] < 0.05, column
        assert found[column]["predictions"] == 8
    weights = [found[column]["weight_bytes"] for column in precision.PRECISIONS]
    assert weights[1] == weights[2] < 0.51 * weights[0]
    assert weights[3] < 0.3 * weights[0]
    assert all(row["times"]["median_ms"] > 0 for row in found.values())
    assert found["fp32"]["memory"]["arguments"] >= weights[0]


def test_a_failure_is_a_row_with_the_reason(tmp_path):
    case = small(tmp_path)
    case.calibration[1]["x"][0] = np.nan
    rows = precision.measure(case, tmp_path, ["fp32", "int8"], runs=1)
    found = precision.collect("small", 4, [json.dumps(row) for row in rows], 0)["columns"]
    assert found["int8"]["error"].startswith("CalibrationError: Calibration batch 1 has NaN")
    assert "Traceback" in found["int8"]["traceback"]
    assert "times" in found["fp32"]


def test_what_a_dead_process_did_not_say_is_an_error(lines):
    network = precision.collect("small", 4, [lines[0], "Killed"], -9)
    assert "error" not in network["columns"]["fp32"]
    assert network["columns"]["int8"] == {"error": "its process ended with status -9"}
    page = measurements._precision({"machine": machine(), "networks": [network]})
    assert "- small, int8: its process ended with status -9" in page


def machine():
    return {"date": "2026-01-01", "commit": "0", "cpu": "cpu", "cores": 1, "packages": {}}


def test_the_page_shows_errors_latencies_and_sizes(lines):
    network = precision.collect("small", 4, lines, 0)
    free, held = (
        {"predictions": 500, "mismatches": n, "mean_relative_error": 0.01} for n in (20, 5)
    )
    bound = {
        "bound": 0.01,
        "classes": 9,
        "free": {"calibration": free, "held_out": free, "groups": 70, "reverted": 0},
        "bounded": {"calibration": held, "held_out": held, "groups": 60, "reverted": 10},
    }
    page = measurements._precision({"machine": machine(), "networks": [network], "bound": bound})
    tables = [line for line in page.splitlines() if line.startswith("| small | ")]
    assert len(tables) == 3
    assert "What failed" not in page
    assert "reverted 10 of 70 operators" in page
    assert "| bound | 99.00% | 99.00% | 1.0e-02 | 60 |" in page
    for line in page.splitlines():
        if line.startswith("| small"):
            assert "failed" not in line


def test_the_mean_relative_error_is_of_the_main_output():
    want = [(np.array([[2.0, -2.0]], np.float32), np.ones(3, np.float32))]
    got = [(np.array([[1.0, 2.0]], np.float32), np.zeros(3, np.float32))]
    found = precision.difference(want, got)
    assert found == {"predictions": 1, "mismatches": 1, "mean_relative_error": 5 / 4}


def test_the_networks_inputs_fit_their_files(tmp_path):
    case = cases.load("alexnet", 2, tmp_path, None)
    assert len(case.calibration) == len(case.inputs) == cases.BATCHES
    shapes = {
        array.shape for feeds in (*case.calibration, *case.inputs) for array in feeds.values()
    }
    assert shapes == {(2, 3, 224, 224)}
    first = next(iter(case.inputs[0].values()))
    assert not any(np.array_equal(first, next(iter(f.values()))) for f in case.calibration)
