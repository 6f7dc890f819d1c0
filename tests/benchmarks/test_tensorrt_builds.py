from __future__ import annotations

import argparse
import io

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

from tests.support import model

pytest.importorskip("tensorrt_rtx", reason="pip install 'xrt[tensorrt]'")

from benchmarks import tensorrt_builds as builds
from benchmarks.cases import Case


@pytest.fixture
def case(tmp_path):
    """A convolution, with an operator that TensorRT lacks behind it."""
    made = model(
        """
        g (float[1,3,8,8] x) => (float[1,4] y) <float[4,3,3,3] w> {
            c = Conv (x, w)  r = Relu (c)  d = Det (r)  y = Neg (d)
        }
        """,
        w=np.random.default_rng(0).normal(size=(4, 3, 3, 3)),
    )
    ir.save(made, tmp_path / "net.onnx")
    rng = np.random.default_rng(1)
    feeds = [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)]
    return Case(tmp_path / "net.onnx", feeds[:2], feeds[2:])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_network_is_partitioned_once_and_built_for_all_targets(case, tmp_path, precision):
    rows = list(builds.measure(case, tmp_path, precision, ["sm_80", "sm_89"]))
    assert [row["target"] for row in rows] == ["sm_80", "sm_89"]
    for row in rows:
        assert "error" not in row, row
        assert row["clusters"] == 1
        assert row["plan_bytes"] > 1000
        assert row["build_seconds"] > 0
        reasons = row["left_out"]["Det"]
        assert list(reasons) == ["tensorrt_rtx: TensorRT's parser has no operator Det"]
    assert rows[0]["agreement"] == rows[1]["agreement"]
    assert rows[0]["agreement"]["mean_relative_error"] < (1e-5 if precision == "fp32" else 0.05)


def test_a_failure_is_a_row_with_the_reason(case, tmp_path):
    (row,) = builds.measure(case, tmp_path, "fp32", ["sm_1"])
    assert row["error"].startswith("OptionError: target='sm_1' is unknown")
    assert "traceback" in row


def row(precision: str, target: str, **facts):
    return {"precision": precision, "target": target, **facts}


def chosen(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"precisions": ["fp32"], "targets": ["sm_80", "sm_86"], **given})


def test_new_rows_replace_old_ones_and_keep_the_others():
    known = [
        {
            "name": "vgg16",
            "rows": [row("fp32", "sm_80", error="old"), row("int8", "sm_80", layers=3)],
            "seconds": 2.0,
        }
    ]
    new = {
        "name": "vgg16",
        "rows": [row("fp32", "sm_80", layers=1), row("fp16", "sm_86", layers=2)],
        "seconds": 1.0,
    }
    (merged,) = builds.merge(known, new)
    assert merged["rows"] == [
        row("fp32", "sm_80", layers=1),
        row("fp16", "sm_86", layers=2),
        row("int8", "sm_80", layers=3),
    ]
    assert merged["seconds"] == 3.0
    names = [each["name"] for each in builds.merge(known, {**new, "name": "alexnet"})]
    assert names == ["alexnet", "vgg16"]


def test_what_failed_or_is_missing_is_done_again():
    rows = [row("fp32", "sm_80"), row("fp32", "sm_86", error="no")]
    known = [{"name": "bert", "rows": rows}]
    assert builds.missing(known, "bert", chosen()) == ["fp32"]
    assert builds.missing(known, "bert", chosen(targets=["sm_80"])) == []
    assert builds.missing(known, "vit", chosen(targets=["sm_80"])) == ["fp32"]


def test_the_tables_show_figures_and_reasons(case, tmp_path):
    rows = list(builds.measure(case, tmp_path, "fp32", ["sm_86"], agree=False))
    network = {"name": "bert", "rows": [*rows, row("fp32", "sm_89", error="it broke")]}
    console = Console(width=130, record=True, file=io.StringIO())
    console.print(builds.table([network]))
    console.print(builds.refusals([network]))
    text = console.export_text()
    assert "it broke" in text
    assert "TensorRT's parser has no operator Det" in text
