"""The published figures agree with each other, and with the arithmetic that gave them."""

from __future__ import annotations

import pytest

from benchmarks import flagperf_resnet50 as flagperf
from benchmarks import models, published


@pytest.mark.parametrize("name", published.TABLES)
def test_every_table_names_its_hardware_and_protocol(name):
    table = published.load(name)
    assert table["rows"]
    assert all(table[key] for key in ("title", "hardware", "protocol", "unit"))


def test_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match="Known tables: bert_training_xla"):
        published.load("bert")


def test_training_throughput_follows_from_the_time_of_a_batch():
    for row in published.load("bert_training_xla")["rows"]:
        if row["seconds_per_batch"]:
            rate = 60 * row["gpus"] / row["seconds_per_batch"]
            assert row["samples_per_second"] == pytest.approx(rate)


def test_training_speedups_are_over_the_row_without_clusters():
    rows = published.load("bert_training_xla")["rows"]
    plain = {(r["gpus"], r["system"], r["precision"]): r["samples_per_second"] for r in rows}
    for row in rows:
        base = plain[row["gpus"], row["system"].removesuffix("_xla"), row["precision"]]
        assert row["speedup"] == pytest.approx(row["samples_per_second"] / base, rel=1e-3)


def test_every_network_of_a_published_table_is_known_here():
    for name in ("cnn_inference_tensorrt", "torch_compile_inference"):
        known = {n.reference_key for n in models.NETWORKS.values() if n.reference_table == name}
        assert {row["model"] for row in published.load(name)["rows"]} == known


@pytest.mark.parametrize(
    ("tool", "precision", "share"),
    [("tensorrt", "fp16", 16.8), ("tensorrt", "fp32", 16.1), ("torchtrt", "fp16", 6.3)],
)
def test_flagperfs_definition_gives_the_published_mfu(tool, precision, share):
    (row,) = [
        row
        for row in published.load("flagperf_resnet50")["rows"]
        if (row["tool"], row["precision"]) == (tool, precision)
    ]
    peak = flagperf.peak_of(row["hardware"], precision)
    found = flagperf.mfu(row["p_infer_core"], peak)
    # 12,698.7 x 4.12e9 / 312e12 is 16.77 %; torchtrt's is 6.24 %, published rounded up.
    assert 100 * found == pytest.approx(share, abs=0.07)
    assert row["mfu"] == pytest.approx(found, abs=0.0007)
    assert flagperf.mfu(row["p_infer_core"], peak, 2 * flagperf.MACS) == pytest.approx(2 * found)


def test_the_rates_of_a_pass_follow_flagperfs_definitions():
    done = flagperf.Pass(
        batches=195, batch=256, repeat=2, seconds=100.0, core_seconds=50.0, foreign_seconds=10.0
    )
    assert done.images == 99_840
    assert done.whole == pytest.approx(998.4)
    assert done.core == pytest.approx(2496.0)


def test_a_gpu_without_a_known_peak_has_none():
    assert flagperf.peak_of("NVIDIA A100-SXM4-40GB", "fp16") == 312e12
    assert flagperf.peak_of("NVIDIA T4", "fp16") is None
    assert flagperf.peak_of("", "fp32") is None
