"""Every script of a published table, on tiny networks: its table parses and no cell is invented."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import (
    bert_training,
    cnn_inference,
    contenders,
    flagperf_adapter,
    flagperf_resnet50,
    gpu_suite,
    hf_inference,
    mlperf,
    tables,
    tiny,
)


def dry(script, capsys, folder, *arguments):
    """What a script prints in a dry run, as tables, and the result that it writes."""
    path = folder / "result.json"
    script.main(["--quick", "--dry", "--json", str(path), *arguments])
    found = json.loads(path.read_text())
    assert found["form"] == "dry"
    assert found["machine"]["cores"] > 0
    text = capsys.readouterr().out
    for name, why in contenders.unavailable().items():
        assert f"- {name}: {why}" in text
    return tables.parse(text), found


def test_hf_inference(capsys, tmp_path):
    (times, gained, *_), found = dry(hf_inference, capsys, tmp_path)
    assert [row["network"] for row in times] == ["tiny_cnn", "tiny_bert"]
    for row in times:
        assert float(row["xla fp32"]) >= 0
    assert {row["eager fp32"] for row in gained} == {"0"}
    for record in found["records"]:
        assert ("median_ms" in record) != ("reason" in record)
        if "median_ms" in record:
            assert record["error"] < 1e-4
            assert record["compile_seconds"] >= 0
            assert record["p99_ms"] >= record["p90_ms"] >= record["median_ms"] > 0
    reasons = {r["column"]: r["reason"] for r in found["records"] if "reason" in r}
    assert reasons["torch.compile fp32"] == tables.DRY


def test_cnn_inference(capsys, tmp_path):
    (rates, decoded, gaps, compared, *_), found = dry(
        cnn_inference, capsys, tmp_path, "--precisions", "fp32", "int8"
    )
    for table in (rates, decoded):
        assert float(table[0]["xla fp32"]) > 0
        assert float(table[0]["eager fp32"]) > 0
    assert float(gaps[0]["xla int8"]) >= 0
    assert "eager fp32" not in gaps[0]
    exact = [row for row in compared if row["column"] == "xla fp32"]
    assert [(row["images"], row["differ"]) for row in exact] == [("8", "0")]
    measured = [each for each in found["records"] if "median_ms" in each]
    assert all(each["decoded"]["min"] > 0 for each in measured)


def test_weights_belong_to_the_network_that_their_file_names(tmp_path):
    files = [tmp_path / "resnet50-0676ba61.pth", tmp_path / "vgg16-397923af.pth"]
    assert cnn_inference.weights("vgg16", files) == files[1]
    assert cnn_inference.weights("alexnet", files) is None
    with pytest.raises(SystemExit, match="several files for vgg16"):
        cnn_inference.weights("vgg16", [*files, tmp_path / "vgg16-other.pth"])


def test_published_rows_stand_beside_those_that_were_measured():
    rows = cnn_inference.published([{"network": "vgg16", "batch": 8}])
    assert [row[2] for row in rows] == ["2019-12", "2020-02-17"]
    assert rows[1][3:] == ["398", "346", "425", "1200", "2054", "470", "1629"]
    assert rows[0][7] == ""  # int8 was not published then


def test_flagperf(capsys, tmp_path):
    (rows, device, *_), found = dry(
        flagperf_resnet50, capsys, tmp_path, "--precisions", "fp32", "--repeat", "2", "--peak", "1"
    )
    (ours,) = [row for row in rows if row["tool"] == "xla"]
    assert [row["mfu"] for row in rows if row["tool"] == "torchtrt"] == ["6.3 %"]
    assert ours["acc"] == ""  # of generated files nobody knows the labels
    (record,) = [each for each in found["records"] if each["column"] == "xla fp32"]
    assert record["images"] == 2 * 2 * 4
    assert record["mfu"] == pytest.approx(record["p_infer_core"] * 4.12e9 / 1e12)
    assert record["p_infer_core"] > record["p_infer_whole"]
    assert [row["differ"] for row in device] == ["0 of 16"]


def test_flagperfs_interface_runs_a_file_and_a_module(tmp_path):
    subject = contenders.subject("tiny_cnn", 2, tmp_path)
    config = SimpleNamespace(fp16=False, batch_size=2, xrt_engine="xla")
    wanted = subject.module(*subject.inputs).detach()
    for path, module in ((subject.path, None), (None, subject.module)):
        (scores,), foreign = flagperf_adapter.InferModel(config, path, module)(list(subject.inputs))
        assert foreign == 0.0
        torch.testing.assert_close(scores, wanted)


def test_bert_training(capsys, tmp_path):
    (ours, theirs), found = dry(bert_training, capsys, tmp_path, "--precisions", "fp32")
    columns = [row["column"] for row in ours]
    assert columns == ["host fp32", "xla fp32", "eager fp32"]
    losses = [float(row["loss"]) for row in ours]
    assert losses == pytest.approx([losses[-1]] * 3, rel=1e-4)
    assert losses[0] == pytest.approx(np.log(512) + np.log(2), rel=0.05)
    assert ours[2]["over eager"] == ours[0]["over host"] == "1.00"
    assert theirs[1]["samples/s"] == "133.3"
    assert {each["batches"] for each in found["records"] if "loss" in each} == {2}


def test_a_training_time_counts_only_with_the_right_loss():
    assert bert_training.disagreement(10.001, 10.0, "fp32", 0.0) == ""
    assert "that of eager" in bert_training.disagreement(10.1, 10.0, "fp32", 0.0)
    assert bert_training.disagreement(10.1, 10.0, "fp32", 0.1) == ""
    assert bert_training.disagreement(float("nan"), 10.0, "fp16", 0.0) == "the loss is nan"


def test_a_contender_that_fails_stays_out_of_further_turns(tmp_path):
    chosen = bert_training.tables.parser("").parse_args(["--dry"])
    chosen.dropout = 0.0
    job = {"network": "bert", "batch": 2, "devices": 1, "column": "host fp99"}
    failing = bert_training.Local(job, chosen)
    failing.turn(0)
    (record,) = bert_training.finished([failing], None, 0.0)
    assert "fp99" in record["reason"]
    assert failing.turns == []


@pytest.mark.skipif(
    importlib.util.find_spec("mlperf_loadgen") is None, reason="mlcommons-loadgen is not installed"
)
def test_mlperf(capsys, tmp_path):
    (rows, *_), found = dry(mlperf, capsys, tmp_path, "--networks", "tiny_bert")
    assert {row["column"] for row in rows} == {"xla fp32", "eager fp32"}
    for row in rows:
        assert row["answers as eager's"] == "1.0000"
        assert float(row["Offline samples/s"]) > 0
    (record,) = [each for each in found["records"] if each["column"] == "xla fp32"]
    assert record["samples"] == 8
    assert len(record["server_tried"]) == 3


def test_mlperfs_system_fills_batches_and_answers_each_query():
    samples = mlperf.Samples([{"x": np.full((1, 2), n, np.float32)} for n in range(3)])
    sizes, answered = [], {}

    def run(feeds):
        sizes.append(len(feeds["x"]))
        return [np.stack([-feeds["x"][:, 0], feeds["x"][:, 1]], axis=1)]

    candidates = {size: contenders.Candidate(run, lambda: None, 0.0) for size in (1, 2)}
    system = mlperf.System(
        candidates, samples, lambda ids, found: answered.update(zip(ids, found, strict=True))
    )
    system.issue([(10, 0), (11, 1), (12, 2), (13, 2), (14, 1)])
    system.close()
    assert {key: int(value[0]) for key, value in answered.items()} == {
        10: 0, 11: 1, 12: 1, 13: 1, 14: 1,
    }  # fmt: skip
    assert set(sizes) <= {1, 2}


def test_an_error_in_mlperfs_system_is_raised_at_the_end():
    def fail(feeds):
        raise ArithmeticError("no")

    answered = []
    system = mlperf.System(
        {1: contenders.Candidate(fail, lambda: None, 0.0)},
        mlperf.Samples([{"x": np.zeros((1, 2))}]),
        lambda ids, found: answered.extend(ids),
    )
    system.issue([(7, 0)])
    with pytest.raises(ArithmeticError):
        system.close()
    assert answered == [7]


def test_the_generators_logs_are_read():
    text = "Scenario : Server\n90.0th percentile latency (ns)  : 1200\nResult is : VALID\n===\n"
    found = mlperf.parse_summary(text)
    assert found["90.0th percentile latency (ns)"] == "1200"
    assert found["Result is"] == "VALID"
    answers = mlperf.parse_answers('[{"seq_id": 0, "qsl_idx": 3, "data": "05000000"}]')
    assert answers[3].tolist() == [5]


def test_the_gpu_suite_leaves_out_what_is_not_installed(tmp_path):
    step = gpu_suite.Step("made up", "benchmarks.hf_inference", needs=("no_such_package",))
    found = gpu_suite.run(step, 60, tmp_path, dry=True)
    assert (found.what, found.reason) == ("left out", "not installed: no_such_package")
    missing = gpu_suite.Step("made up", "benchmarks.no_such_script", needs=())
    assert gpu_suite.run(missing, 60, tmp_path, dry=True).what == "left out"
    page = gpu_suite.summary([found])
    (table,) = tables.parse(page)
    assert table[0]["why"] == "not installed: no_such_package"


def test_the_gpu_suite_tells_a_failure_from_success(tmp_path):
    step = gpu_suite.Step("a script", "platform", (), needs=(), is_table=False)
    assert gpu_suite.run(step, 60, tmp_path, dry=False).what == "passed"
    step = gpu_suite.Step("a script", "json.tool", ("no such file",), needs=(), is_table=False)
    found = gpu_suite.run(step, 60, tmp_path, dry=False)
    assert found.what == "failed"
    assert "no such file" in gpu_suite.summary([found])


def test_tiny_networks_depend_on_the_seed_alone():
    for name in tiny.NETWORKS:
        first, _ = tiny.load(name, 1)
        second, _ = tiny.load(name, 2)
        for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
            assert torch.equal(mine, theirs)
