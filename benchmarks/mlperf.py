"""ResNet-50 and BERT under MLPerf's own load generator: SingleStream, Offline, Server, accuracy.

    python -m benchmarks.mlperf            # 60 seconds a scenario
    python -m benchmarks.mlperf --quick    # 3 seconds

Needs the package mlcommons-loadgen, which decides when queries arrive and takes the times. Samples
are in memory before the clock starts; a query's time runs from its issue to its answer. All modes
use one `System`: a queue, and a thread that answers what is in it in batches. Without `--images`
and `--weights` accuracy is the share of answers that are those of eager in fp32.

These are no submissions: those run for 600 seconds on the whole data set, with BERT-large.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders, latency, models, tables
from benchmarks.cases import feeds_of
from benchmarks.contenders import Array, Candidate, Feeds
from benchmarks.published import load as load_published

TABLE = "mlperf"
PUBLISHED = "mlperf_inference"
PEERS = ("eager", "onnxruntime")
QUICK = ("xla fp32", "tensorrt fp16", "eager fp32")
BOUNDS_MS = {"resnet50": 15.0, "bert": 130.0}
"""Latency bounds of the Server scenario, for the 99th percentile."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """What queries ask about.

    Attributes:
        inputs: A batch of one for each sample.
        labels: The right answers, None where nobody knows them.
    """

    inputs: list[Feeds]
    labels: Array | None = None

    def batch(self, indices: Sequence[int], size: int) -> Feeds:
        """Samples as a batch of `size`; the last one is repeated where there are fewer."""
        filled = [*indices, *[indices[-1]] * (size - len(indices))]
        parts = [self.inputs[index] for index in filled]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class System:
    """Answers queries in batches, on a thread: what MLPerf calls the system under test.

    Args:
        candidates: What computes, by size of the batches that it takes.
        samples: What queries ask about.
        complete: Takes the ids of queries and their answers, int32.
    """

    def __init__(
        self,
        candidates: dict[int, Candidate],
        samples: Samples,
        complete: Callable[[Sequence[int], Sequence[Array]], None],
    ) -> None:
        self._candidates = candidates
        self._samples, self._complete = samples, complete
        self._queue: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        self.error: Exception | None = None

    def issue(self, queries: Sequence[tuple[int, int]]) -> None:
        """Take queries: id, and index of the sample."""
        for query in queries:
            self._queue.put(query)

    def close(self) -> None:
        """Answer what is queued, and end the thread."""
        self._queue.put(None)
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            ids, indices = zip(*taken, strict=True)
            try:
                answers = self.answer(indices)
            except Exception as error:  # the generator waits for an answer, whatever it is
                self.error = error
                answers = [np.zeros(1, np.int32)] * len(ids)
            self._complete(ids, answers)

    def _take(self) -> list[tuple[int, int]] | None:
        """What is queued, as many as a batch holds; waits for the first. None at the end."""
        first = self._queue.get()
        if first is None:
            return None
        taken = [first]
        while len(taken) < max(self._candidates) and not self._queue.empty():
            query = self._queue.get()
            if query is None:
                self._queue.put(None)
                break
            taken.append(query)
        return taken

    def answer(self, indices: Sequence[int]) -> list[Array]:
        """The predictions for samples: an int32 array each."""
        size = min(each for each in self._candidates if each >= len(indices))
        outputs = self._candidates[size].run(self._samples.batch(indices, size))
        found = outputs[0].argmax(-1).astype(np.int32)
        return [np.ascontiguousarray(found[place]).reshape(-1) for place in range(len(indices))]


# --- the load generator ---------------------------------------------------------------------------


def test(
    system: dict[int, Candidate], samples: Samples, scenario: str, **settings: Any
) -> tuple[dict[str, str], dict[int, Array]]:
    """Run the load generator once.

    Args:
        system: What computes, by batch size.
        samples: What it asks about.
        scenario: "SingleStream", "Offline", "Server"; or "accuracy", which is Offline with every
            sample once.
        settings: Of `mlperf_loadgen.TestSettings`.

    Returns:
        Its summary, and in accuracy mode the answers by sample.
    """
    import mlperf_loadgen as loadgen

    def complete(ids: Sequence[int], answers: Sequence[Array]) -> None:
        loadgen.QuerySamplesComplete(
            [
                loadgen.QuerySampleResponse(each, answer.ctypes.data, answer.nbytes)
                for each, answer in zip(ids, answers, strict=True)
            ]
        )

    running = System(system, samples, complete)
    count = len(samples.inputs)
    chosen = loadgen.TestSettings()
    accuracy = scenario == "accuracy"
    chosen.scenario = getattr(loadgen.TestScenario, "Offline" if accuracy else scenario)
    modes = loadgen.TestMode
    chosen.mode = modes.AccuracyOnly if accuracy else modes.PerformanceOnly
    for name, value in settings.items():
        setattr(chosen, name, value)
    nothing = lambda *_: None  # noqa: E731  (samples are in memory already)
    sut = loadgen.ConstructSUT(
        lambda queries: running.issue([(each.id, each.index) for each in queries]), nothing
    )
    qsl = loadgen.ConstructQSL(count, count, nothing, nothing)
    with tempfile.TemporaryDirectory() as folder:
        log = loadgen.LogSettings()
        log.enable_trace = False
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        try:
            loadgen.StartTestWithLogSettings(sut, qsl, chosen, log, "")
        finally:
            loadgen.DestroyQSL(qsl)
            loadgen.DestroySUT(sut)
            running.close()
        summary = parse_summary((Path(folder) / "mlperf_log_summary.txt").read_text())
        logged = (Path(folder) / "mlperf_log_accuracy.json").read_text()
    return summary, parse_answers(logged) if accuracy else {}


def parse_summary(text: str) -> dict[str, str]:
    """The lines "name : value" of the generator's summary."""
    pairs = (re.match(r"(.+?)\s*:\s*(\S.*)", line) for line in text.splitlines())
    return {pair[1].strip(): pair[2].strip() for pair in pairs if pair}


def parse_answers(text: str) -> dict[int, Array]:
    """The answers in the generator's accuracy log, by index of the sample."""
    return {
        entry["qsl_idx"]: np.frombuffer(bytes.fromhex(entry["data"]), np.int32)
        for entry in json.loads(text)
    }


# --- the measurement ------------------------------------------------------------------------------


@tables.one_record
def measure(job: Record, folder: Path, chosen: argparse.Namespace) -> Record:
    """All scenarios of one network and one column."""
    seconds = chosen.seconds or (0.2 if chosen.dry else 3 if chosen.quick else 60)
    checkpoint = chosen.weights if job["network"] == "resnet50" else None
    system: dict[int, Candidate] = {}
    subjects = {
        size: latency.subject_of(job["network"], size, folder, chosen, checkpoint=checkpoint)
        for size in (1, job["batch"])
    }
    for size, subject in subjects.items():
        wanted = list(subject.reference([subject.feeds]))
        system[size] = contenders.build(job["column"], subject, chosen.threads)
        contenders.accept(job["column"], wanted, [system[size].run(subject.feeds)])
    samples = _samples(job["network"], subjects[1], chosen)
    found = _scenarios(system, samples, seconds, chosen.bound or BOUNDS_MS.get(job["network"], 1e3))
    return {**found, **_accuracy(system, subjects[1], samples)}


def _samples(name: str, subject: contenders.Subject, chosen: argparse.Namespace) -> Samples:
    """Random samples, or the first images of a folder, with labels if the weights are given."""
    count = chosen.samples or (8 if chosen.dry else 32 if chosen.quick else 1024)
    if chosen.images and name == "resnet50":
        from xrt.data import ImageFolder

        images = ImageFolder(chosen.images, 224, 1, exact=True)
        inputs = [
            {subject.names[0]: pixels.copy()}
            for (pixels,), _ in zip(images, range(count), strict=False)
        ]
        labels = images.labels if chosen.weights else None
        return Samples(inputs, None if labels is None else labels[: len(inputs)])
    make: Callable[[int], Any]
    if name in models.NETWORKS:
        make = lambda seed: models.NETWORKS[name].example_inputs(1, seed)  # noqa: E731
    else:
        from benchmarks import tiny

        make = lambda seed: tiny.inputs(name, 1, seed)  # noqa: E731
    names = list(subject.names)
    return Samples([feeds_of(make(1000 + index), names) for index in range(count)])


def _scenarios(
    system: dict[int, Candidate], samples: Samples, seconds: float, bound: float
) -> Record:
    """The figures of the three scenarios; latencies in milliseconds."""
    least = {"min_duration_ms": int(1e3 * seconds), "min_query_count": 8}
    single, _ = test(system, samples, "SingleStream", **least)
    p90 = float(single["90.0th percentile latency (ns)"]) / 1e6
    guess = 1e3 * max(system) / p90  # the rate if a batch took no longer than a sample
    offline, _ = test(
        system, samples, "Offline", offline_expected_qps=min(guess, 8e3 / p90), **least
    )
    rate = float(offline["Samples per second"])
    own = p90 > bound / 1.5
    bound = 5 * p90 if own else bound
    return {
        "single_p90_ms": p90,
        "single_valid": single.get("Result is"),
        "offline_per_second": rate,
        "offline_valid": offline.get("Result is"),
        "bound_ms": bound,
        "own_bound": own,
        **_server(system, samples, rate, bound, seconds),
    }


def _server(
    system: dict[int, Candidate], samples: Samples, rate: float, bound: float, seconds: float
) -> Record:
    """The largest rate of queries, of those tried, whose p99 holds the bound."""
    low, high = 0.0, rate * 1.1
    tried: list[Record] = []
    for _ in range(3 if seconds < 10 else 6):
        target = (low or high / 3) if not tried else (low + high) / 2
        summary, _ = test(
            system, samples, "Server",
            server_target_qps=target, server_target_latency_ns=int(bound * 1e6),
            server_target_latency_percentile=0.99,
            min_duration_ms=int(1e3 * seconds), min_query_count=8,
        )  # fmt: skip
        p99 = float(summary["99.00 percentile latency (ns)"]) / 1e6
        tried.append({"qps": target, "p99_ms": p99, "valid": summary.get("Result is")})
        low, high = (target, high) if p99 <= bound else (low, target)
    return {"server_qps": low or None, "server_tried": tried}


def _accuracy(
    system: dict[int, Candidate], subject: contenders.Subject, samples: Samples
) -> Record:
    """Answers through the same system, beside labels and those of eager in fp32."""
    _, answers = test(system, samples, "accuracy")
    eager = [outputs[0].argmax(-1).reshape(-1) for outputs in subject.reference(samples.inputs)]
    same = [bool(np.array_equal(answers[index], wanted)) for index, wanted in enumerate(eager)]
    found: Record = {"samples": len(answers), "agree": float(np.mean(same))}
    if samples.labels is not None:
        right = [answers[index][0] == label for index, label in enumerate(samples.labels)]
        found["top1"] = float(np.mean(right))
    return found


# --- the table ------------------------------------------------------------------------------------


def jobs(chosen: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """A job for each network and column, and records of those that do not run."""
    names = ["tiny_cnn", "tiny_bert"] if chosen.dry else ["resnet50", "bert"]
    batch = 4 if chosen.dry else 8 if chosen.quick else 32
    return tables.one_each(
        chosen.networks or names,
        chosen.batch or [batch],
        tables.choose(chosen, PEERS, QUICK),
        chosen,
    )


def render(found: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    heading = ("network", "column", "batch", "SingleStream p90 ms", "Offline samples/s",
               "Server queries/s", "bound ms", "answers as eager's", "top-1")  # fmt: skip
    body = [_line(each) for each in found["records"] if "reason" not in each]
    table = load_published(PUBLISHED)
    theirs = [
        [row["network"], row["precision"] or "", row["scenario"], str(row["samples_per_second"])]
        for row in table["rows"]
    ]
    parts = [
        tables.markdown(heading, body, left=2),
        "A bound marked * is not MLPerf's but five times SingleStream's p90, which MLPerf's bound "
        "leaves no room for here. An empty rate: none that was tried held the bound.",
        tables.reasons(found),
        f"Published, {table['hardware']}, {table['title']}. {table['note']}:",
        tables.markdown(("network", "precision", "scenario", "samples/s"), theirs, left=3),
    ]
    return "\n\n".join(part for part in parts if part)


def _line(record: Record) -> list[str]:
    rate, top1 = record["server_qps"], record.get("top1")
    return [
        *(record["network"], record["column"], str(record["batch"])),
        f"{record['single_p90_ms']:.2f}",
        f"{record['offline_per_second']:.1f}",
        "" if rate is None else f"{rate:.1f}",
        f"{record['bound_ms']:.1f}{' *' if record['own_bound'] else ''}",
        f"{record['agree']:.4f}",
        "" if top1 is None else f"{top1:.4f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = tables.parser(__doc__)
    parser.add_argument("--images", type=Path, help="ImageNet's validation images, by class")
    parser.add_argument("--weights", type=Path, help="torchvision's resnet50-0676ba61.pth")
    parser.add_argument("--samples", type=int, help="samples in memory")
    parser.add_argument("--seconds", type=float, help="least duration of a scenario")
    parser.add_argument("--bound", type=float, help="latency bound of Server, in milliseconds")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        tables.serve(measure, chosen)
        return
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        raise SystemExit(
            "MLPerf's load generator is not installed: pip install mlcommons-loadgen"
        ) from None
    wanted, absent = jobs(chosen)
    records = absent + tables.collect(
        "benchmarks.mlperf", wanted, measure, chosen, share_files=True
    )
    protocol = (
        "mlcommons-loadgen; samples are in memory, answers come from batches of at most the size "
        f"given. Weights: {'given' if chosen.weights else 'random'}."
    )
    found = tables.result(
        "Under MLPerf's load generator", protocol, records, chosen, published=PUBLISHED
    )
    tables.finish(TABLE, found, render(found), chosen)


if __name__ == "__main__":
    main()
