"""What the examples promise."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

import xrt
from examples import digits_precision, train_digits


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    data = digits_precision.digits()
    options = xrt.CompileOptions(cache_dir=tmp_path_factory.mktemp("cache"))
    found = digits_precision.compare(digits_precision.trained(data), data, runs=2, options=options)
    return {row.precision: row for row in found}


def test_the_network_reads_digits_of_writers_it_never_saw(rows):
    assert rows["fp32"].total == 899
    assert rows["fp32"].correct > 0.97 * rows["fp32"].total
    assert rows["fp32"].differing == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_predicts_as_fp32_does(rows, precision):
    assert rows[precision].differing <= rows[precision].total / 500
    assert rows[precision].weight_bytes < 0.51 * rows["fp32"].weight_bytes


def test_int8_keeps_the_accuracy_within_0_3_points(rows):
    lost = rows["fp32"].correct - rows["int8"].correct
    assert abs(lost) <= 0.003 * rows["int8"].total
    assert rows["int8"].weight_bytes < 0.27 * rows["fp32"].weight_bytes


def test_all_of_it_is_timed(rows):
    assert set(rows) == {"fp32", "fp16", "bf16", "int8"}
    assert all(row.milliseconds > 0 for row in rows.values())


def test_a_trained_network_is_deployed_in_int8(tmp_path, capsys):
    data = digits_precision.digits()
    options = xrt.CompileOptions(cache_dir=tmp_path / "cache")
    trainer = train_digits.train(data, 4, Console())
    assert len(re.findall(r"epoch +\d: loss [\d.]+, [\d.]+% of", capsys.readouterr().out)) == 4
    assert trainer.steps == 4 * 14
    found = train_digits.deploy(trainer, data, tmp_path / "digits.xrt", options)
    assert found["fp32"] > 0.9
    assert abs(found["int8"] - found["fp32"]) <= 0.01
    assert found["int8, loaded"] == found["int8"]
