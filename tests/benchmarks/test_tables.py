"""What the scripts of the published tables share."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import contenders, harness, tables


def options(*arguments):
    chosen = tables.parser("A table.").parse_args(arguments)
    chosen.left_out = {}
    return chosen


def test_times_have_percentiles_and_processor_time():
    found = harness.summary([float(n) for n in range(1, 101)], [2.0, 4.0, 9.0])
    assert found["median_ms"] == 50.5
    assert (found["p90_ms"], found["p99_ms"]) == (90.0, 99.0)
    assert (found["min_ms"], found["max_ms"], found["rounds"]) == (1.0, 100.0, 100)
    assert found["cpu_ms"] == 4.0


def test_calls_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    found = harness.interleave(calls, runs=2, warmup=1)
    assert order == list("abcabcabc")
    assert all(each["rounds"] == 2 for each in found.values())


def test_a_call_that_takes_too_long_counts_once(monkeypatch):
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: float(next(clock)))
    count = []
    found = harness.interleave({"slow": lambda: count.append(1)}, runs=50, seconds=1e9, most=5)
    assert found["slow"]["rounds"] == len(count) == 1


def test_memory_of_the_body_is_seen():
    with harness.watch_memory() as memory:
        array = np.ones(8_000_000)
        memory.note()
        del array
    assert memory.where in ("resident", "device")
    assert memory.where == "device" or memory.peak_bytes > 50e6


def test_every_peer_computes_with_the_same_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = harness.threads_environment(3)
    assert environment["OMP_NUM_THREADS"] == environment["OPENBLAS_NUM_THREADS"] == "3"


def test_a_result_names_the_machine(tmp_path):
    path = harness.save("x", {"records": []}, tmp_path / "x.json")
    machine = json.loads(path.read_text())["machine"]
    assert {"date", "commit", "cpu", "cores", "gpu", "packages"} <= set(machine)
    assert harness.device() == harness.device().lower()
    assert " " not in harness.device()


def test_a_table_can_be_read_back():
    text = tables.markdown(("a", "b | c"), [["1", ""], ["x|y", "2"]])
    assert tables.parse(f"before\n\n{text}\n\nafter\n\n| d |\n| --- |\n| 3 |\n") == [
        [{"a": "1", "b | c": ""}, {"a": "x|y", "b | c": "2"}],
        [{"d": "3"}],
    ]


def test_a_pivot_leaves_cells_without_figures_empty():
    records = [
        {"network": "n", "batch": 1, "column": "xla fp32", "median_ms": 2.0},
        {"network": "n", "batch": 1, "column": "tensorrt fp32", "reason": "no GPU"},
        {"network": "m", "batch": 1, "column": "eager fp32", "median_ms": 4.0},
    ]
    (table,) = tables.parse(tables.pivot(records, "median_ms"))
    assert table == [
        {"network": "n", "batch": "1", "xla fp32": "2.0", "eager fp32": ""},
        {"network": "m", "batch": "1", "xla fp32": "", "eager fp32": "4.0"},
    ]


def test_empty_cells_have_reasons():
    found = {
        "unavailable": {"tensorrt": "no driver"},
        "records": [
            {"network": "n", "batch": 1, "column": "tensorrt fp32", "reason": "no driver"},
            {"network": "n", "batch": 1, "column": "xla int8", "reason": "it failed"},
            {"network": "m", "batch": 4, "column": "xla int8", "reason": "it failed"},
        ],
    }
    lines = tables.reasons(found).splitlines()
    assert lines[2:] == ["- tensorrt: no driver", "- xla int8 (n 1, m 4): it failed"]


def test_what_the_quick_form_leaves_out_says_so():
    chosen = options("--quick", "--precisions", "fp32")
    columns = tables.choose(chosen, ("eager",), ("xla",))
    assert {"host fp32", "xla fp32", "eager fp32"} <= set(columns)
    assert chosen.left_out == {"host fp32": tables.QUICK, "eager fp32": tables.QUICK}
    chosen = options("--columns", "xla")
    assert tables.choose(chosen, (), ()) == ["xla fp32", "xla fp16", "xla int8"]


def test_an_engine_that_cannot_run_has_a_record_with_the_reason(monkeypatch):
    monkeypatch.setattr(contenders, "unavailable", lambda: {"tensorrt": "no driver"})
    wanted, absent = tables.one_each(["n"], [1], ["tensorrt fp32", "xla fp32"], options())
    assert [each["column"] for each in wanted] == ["xla fp32"]
    assert absent[0]["reason"] == "no driver"


def test_a_process_that_dies_leaves_a_reason(monkeypatch):
    # The script refuses the unknown option, so its process ends with status 2.
    monkeypatch.setattr("sys.argv", ["script", "--no-such-option"])
    found = tables.collect("benchmarks.hf_inference", [{"network": "n"}], None, options())
    assert found == [{"network": "n", "column": "all", "reason": "its process ended with status 2"}]


def test_wrong_outputs_are_refused():
    want = [[np.array([[1.0, 2.0]], np.float32)]]
    assert contenders.accept("xla fp32", want, want)["error"] == 0
    near = [[want[0][0] + np.float32(1e-3)]]
    with pytest.raises(contenders.RefusalError, match=r"differ from eager's in fp32 by 5\.0e-04"):
        contenders.accept("xla fp32", want, near)
    assert contenders.accept("xla fp16", want, near)["error"] == pytest.approx(1 / 1500, rel=1e-3)
    for wrong in (-want[0][0], want[0][0] * np.nan):
        with pytest.raises(contenders.RefusalError, match="outputs differ"):
            contenders.accept("xla int8", want, [[wrong]])
    with pytest.raises(contenders.RefusalError, match="gives 2 outputs, eager 1"):
        contenders.accept("xla fp32", want, [want[0] * 2])


def test_a_process_that_ends_too_early_is_explained():
    assert "memory" in tables.ending(-9)
    assert "status 3" in tables.ending(3)
