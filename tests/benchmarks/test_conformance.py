"""The report on the backend suite, on a few of its cases."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from benchmarks import conformance


def test_the_report(tmp_path, monkeypatch, capsys):
    path = tmp_path / "report.json"
    monkeypatch.setenv("ONNX_HOME", str(tmp_path))
    monkeypatch.setattr(
        sys, "argv", ["conformance", "--json", str(path), "--match", "test_(relu|nonzero_example)_"]
    )
    conformance.main()
    printed = capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["not_whole"] == {"test_nonzero_example": conformance.HOST}
    assert found["kinds"]["node"] == {
        "passed": 3,
        "total": 3,
        conformance.WHOLE: 2,
        conformance.SPLIT: 0,
        conformance.HOST: 1,
        conformance.EMPTY: 0,
    }
    assert found["failed"] == {}
    assert list(found["outside"]) == ["NonZero"]
    assert found["machine"]["date"]
    assert "NonZero: 1 x" in printed
    assert "failed: 0" in printed


def test_a_failure_is_a_result():
    def fails(test) -> None:
        raise AssertionError("no")

    result = conformance.run("node", "test_x", fails)
    assert result.error == "AssertionError: no"
    assert "test_x: AssertionError: no" in conformance.table([result])


def test_outputs_are_compared_strictly():
    one, two = np.float32(1).reshape(()), np.float32(2).reshape(())
    compare = conformance.Suite.assert_similar_outputs
    compare([[one, two], one], [[one, two], one], 0, 0)
    for wrong in ([[one, one], one], [[one], one], [[one, two]], [[one, two], one.astype("f8")]):
        with pytest.raises(AssertionError):
            compare([[one, two], one], wrong, 0, 0)
