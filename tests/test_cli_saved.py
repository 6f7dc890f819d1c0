"""Saved programs on the command line."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import xrt
from tests.support import model
from tests.test_cli import call
from xrt.errors import OptionError, ProgramFileError

W = np.arange(12).reshape(3, 4) - 5


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def saved(tmp_path):
    text = "g (float[n,3] x) => (float[n,4] y) <float[3,4] w> { a = MatMul (x, w) y = Relu (a) }"
    onnx.save(ir.to_proto(model(text, w=W)), tmp_path / "model.onnx")
    path = tmp_path / "model.xrt"
    given = ("-e", "xla", "-s", "x=2x3", "-O", "min_cluster_weight=0")
    told = call("compile", str(tmp_path / "model.onnx"), "-o", str(path), *given).output
    assert told.startswith(f"{path}: 1 cluster, ")
    return path


def test_a_saved_program_is_explained_run_and_timed(saved, tmp_path):
    assert "x: float32[2, 3]" in call("explain", str(saved)).output
    assert "x: float32[5, 3]" in call("explain", str(saved), "-s", "x=5x3").output
    assert "on host" in call("explain", str(saved), "-e", "host").output
    assert "latency" in call("bench", str(saved), "--runs", "2").output
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    call("run", str(saved), "-i", f"x={tmp_path / 'x.npy'}", "-o", str(tmp_path), "--verify")
    want = np.maximum(np.ones((2, 3)) @ W, 0)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want)


def test_what_does_not_fit_a_saved_program(saved, tmp_path):
    for arguments, message in (
        (("explain", str(saved), "-p", "int8"), "was compiled in fp32"),
        (("compile", str(saved), "-o", str(tmp_path / "a.onnx")), "ends in .xrt"),
    ):
        result = call(*arguments, status=1)
        assert isinstance(result.exception, OptionError)
        assert message in str(result.exception)
    saved.write_bytes(b"PK")
    assert isinstance(call("run", str(saved), status=1).exception, ProgramFileError)


def test_a_torch_program_runs_from_its_file(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x, scale=1.0):
            return {"twice": x + x, "rest": [x * scale, None]}

    program = xrt.compile(Net(), (torch.ones(2, 3),), engine="host")
    program.save(tmp_path / "net.xrt")
    output = call("run", str(tmp_path / "net.xrt")).output
    assert output.count("2x3") == 2
