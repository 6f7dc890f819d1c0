"""The page of the published tables and its charts."""

from __future__ import annotations

import json

import pytest

from benchmarks import bars, harness, report, tables
from docs import published


def record(network, column, **figures):
    return {"network": network, "batch": 8, "column": column, **figures}


@pytest.fixture
def results(tmp_path):
    lanes = [[b, "launches", 10.0 * b, 10.0 * b + 8] for b in range(3)]
    cnn = {
        "title": "CNN inference",
        "form": "quick",
        "protocol": "Random weights.",
        "threads": 2,
        "unavailable": {"tensorrt": "no driver"},
        "records": [
            record("resnet50", "eager fp32", images_per_second=10.0),
            record("resnet50", "xla fp32", images_per_second=15.0, gap_ms=2.0, timeline=lanes),
            record("resnet50", "xla int8", reason="it failed"),
        ],
    }
    for device in ("cpu-a", "gpu-b"):
        harness.save("cnn_inference", cnn, tmp_path / device / "cnn_inference.json")
    return tmp_path


def test_the_page_has_ours_beside_theirs(results):
    page = published.page(results)
    rates, *_ = tables.parse(page)
    assert rates == [
        {"network": "resnet50", "batch": "8", "eager fp32": "10.0", "xla fp32": "15.0"}
    ]
    assert "| resnet50 | 8 | 2020-02-17 | 735 | 570 | 945 | 2120 | 3512 | 1025 | 2500 |" in page
    assert "- tensorrt: no driver" in page
    assert "- xla int8 (resnet50 8): it failed" in page
    assert page.count("## CNN inference\n") == 1
    assert page.count("### ") == 2
    assert "`python -m benchmarks.hf_inference`" in page.split("## Not measured yet")[1]


def test_charts_show_speedups_beside_the_published(results):
    result = json.loads((results / "cpu-a" / "cnn_inference.json").read_text())
    chart = report.cnn_chart(result)
    ((label, found),) = chart.groups
    assert label == "resnet50, batch 8"
    assert found["xla fp32"] == 1.5
    assert found["published: TensorRT int8 / OneFlow fp32"] == pytest.approx(3512 / 735)
    assert chart.measured == {"xla fp32"}


def test_latencies_are_compared_the_other_way_round():
    records = [
        record("vit", "eager fp32", median_ms=20.0),
        record("vit", "xla fp32", median_ms=10.0),
    ]
    records = [{**each, "batch": 1} for each in records]
    ((_, found),) = report.hf_chart({"records": records}).groups
    assert found == {
        "xla fp32": 2.0,
        "published: torch.compile, A100": pytest.approx(9.325 / 7.584),
    }


def test_pictures_are_drawn_and_drawing_repeats_itself(results, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = dict(report.pictures(results))
    assert list(drawn) == ["cnn-speedup", "gap-timeline"]
    for name, draw in drawn.items():
        for suffix, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
            first, second = (tmp_path / f"{name}{n}.{suffix}" for n in (1, 2))
            draw(first)
            draw(second)
            assert first.read_bytes().startswith(start)
            assert first.read_bytes() == second.read_bytes()
    assert "resnet50, batch 8, xla fp32" in (tmp_path / "gap-timeline1.svg").read_text()


def test_an_empty_chart_can_be_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    bars.draw_bars(report.Chart("Nothing", [], frozenset()), "here", tmp_path / "x.svg")
    assert (tmp_path / "x.svg").exists()


def test_a_stale_page_is_named(tmp_path, capsys):
    assert report.main(["--check"], tmp_path) == 1
    assert "published.md is stale" in capsys.readouterr().err
