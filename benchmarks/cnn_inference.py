"""Four CNNs through every engine and precision, beside the published throughput with TensorRT.

    python -m benchmarks.cnn_inference                     # hours without a GPU
    python -m benchmarks.cnn_inference --quick             # AlexNet and ResNet-50, batch 8
    python -m benchmarks.cnn_inference --images imagenet/val --weights resnet50-0676ba61.pth

Images per second twice: of batches that are on the device, and from JPEG files to scores, by the
published protocol (5 batches to warm up, then the mean over 500, decoding and copies included;
fewer in the quick form). All decode with `xrt.data.ImageFolder` on as many threads; xrt has several
batches in flight, its peers run them in a loop. Without `--images` the files are generated. The
gap is what a stream of batches leaves the device idle: wall minus busy time for a batch.

The accuracy table compares predictions with those of eager in fp32, on the images that `--images`
names or on held-out digits.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders, harness, latency, models, tables
from benchmarks.contenders import Array, Candidate, Feeds, Subject
from benchmarks.published import load as load_published

TABLE = "cnn_inference"
PUBLISHED = "cnn_inference_tensorrt"
PEERS = ("eager", "torch.compile", "onnxruntime", "openvino")
QUICK = (
    *("host fp32", "xla", "tensorrt", "tensorrt_rtx"),
    *("eager", "torch.compile", "onnxruntime", "openvino"),
)
TIMELINE = {"network": "resnet50", "batch": 8}
"""The job whose intervals are kept for the chart of gaps."""
DIGITS = "digits"

Record = dict[str, Any]


def jobs(chosen: argparse.Namespace) -> list[Record]:
    """Networks and batch sizes, then the networks whose predictions are compared."""
    known = [each.name for each in models.NETWORKS.values() if each.reference_table == PUBLISHED]
    names, batches = known, [8, 50]
    if chosen.quick:
        names, batches = ["alexnet", "resnet50"], [8]
    if chosen.dry:
        names, batches = ["tiny_cnn"], [4]
    names, batches = chosen.networks or names, chosen.batch or batches
    compared = names if chosen.images or chosen.dry else [DIGITS]
    return [
        *({"network": name, "batch": batch} for name in names for batch in batches),
        *({"network": name, "batch": batches[0], "kind": "accuracy"} for name in compared),
    ]


def work(job: Record, chosen: argparse.Namespace) -> Iterator[Record]:
    """One job."""
    columns = tables.choose(chosen, PEERS, QUICK)
    yield from (accuracy if "kind" in job else measure)(job, columns, chosen)


# --- throughput -----------------------------------------------------------------------------------


def measure(job: Record, columns: list[str], chosen: argparse.Namespace) -> Iterator[Record]:
    """Latency, throughput and gap of each column of one network at one batch size."""
    runs = chosen.runs or (2 if chosen.dry else 10 if chosen.quick else 100)
    checkpoint = weights(job["network"], chosen.weights)
    with latency.loaded(job["network"], job["batch"], chosen, checkpoint=checkpoint) as subject:
        pairs = list(latency.built(subject, columns, chosen))
        records = latency.timed(pairs, runs=runs, seconds=90 if chosen.quick else 600, most=20)
        made = {record["column"]: each for record, each in pairs if each is not None}
        for record in records:
            if "median_ms" in record:
                record["images_per_second"] = 1e3 * subject.batch / record["median_ms"]
        decoded = _decoded(subject, made, records, chosen)
        for record in records:
            record |= decoded.get(record["column"], {})
            if record["column"] in made:
                record |= _gap(subject, made[record["column"]], record, job)
            yield record


def weights(name: str, files: Sequence[Path] | None) -> Path | None:
    """The file of torchvision's weights for a network, told by its name."""
    fitting = [path for path in files or [] if path.name.startswith(name)]
    if len(fitting) > 1:
        raise SystemExit(
            f"--weights names several files for {name}: {', '.join(map(str, fitting))}"
        )
    return fitting[0] if fitting else None


def _decoded(
    subject: Subject,
    made: dict[str, Candidate],
    records: Sequence[Record],
    chosen: argparse.Namespace,
) -> dict[str, Record]:
    """Images per second from JPEG files to scores, by column: the columns take turns."""
    warm, count, rounds = (1, 2, 1) if chosen.dry else (2, 6, 2) if chosen.quick else (5, 250, 2)
    most = 60 if chosen.quick else 900
    rates: dict[str, list[float]] = {}
    found: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as temporary:
        try:
            batches = folder(subject, warm + count, Path(temporary), chosen)
        except Exception as error:
            reason = {"decoding_reason": tables.reason(error)}
            return dict.fromkeys(made, reason)
        for column in list(made):
            median = next(each["median_ms"] for each in records if each["column"] == column)
            seconds = median / 1e3 * (warm + count) * rounds
            if seconds > most:
                found[column] = {"decoding_reason": f"the batches would take {seconds:.0f} s"}
            else:
                rates[column] = []
        for _ in range(rounds):
            for column, each in rates.items():
                each.append(subject.batch * _rate(made[column].stream(batches()), warm, count))
    for column, each in rates.items():
        figures = {"median": statistics.median(each), "min": min(each), "max": max(each)}
        found[column] = {"decoded_images_per_second": figures["median"], "decoded": figures}
    return found


def _rate(outputs: Iterable[list[Array]], warm: int, count: int) -> float:
    """Batches per second between successive results, after `warm` of them."""
    stamps = [time.perf_counter() for _ in itertools.islice(outputs, warm + count)]
    return count / (stamps[-1] - stamps[warm - 1])


def folder(
    subject: Subject, count: int, temporary: Path, chosen: argparse.Namespace
) -> Callable[[], Iterator[Feeds]]:
    """Passes over `count` batches of images, decoded anew each time."""
    from xrt.data import ImageFolder

    path = chosen.images
    if path is None:
        from benchmarks.photographs import write_folder

        path = temporary / "images"
        write_folder(path, min(count * subject.batch, 400), parts=1, warm=0)
    (side,) = {subject.inputs[0].shape[-1], subject.inputs[0].shape[-2]}
    images = ImageFolder(path, side, subject.batch, last="drop", workers=chosen.threads)
    if not len(images):
        raise contenders.RefusalError(f"{path} holds no batch of {subject.batch} images")
    passes = math.ceil(count / len(images))

    def batches() -> Iterator[Feeds]:
        every = itertools.chain.from_iterable(images for _ in range(passes))
        return ({subject.names[0]: pixels} for (pixels,) in itertools.islice(every, count))

    return batches


def _gap(subject: Subject, made: Candidate, record: Record, job: Record) -> Record:
    """Wall and busy time of a batch in a stream of batches in memory; xrt alone can tell."""
    if made.program is None:
        return {}
    count = 3 if record["median_ms"] > 5000 else 8
    if count * record["median_ms"] > 120e3:
        return {"gap_reason": "the batches would take over two minutes"}
    trace = made.program.profile([subject.feeds] * count, depth=2)
    found: Record = {
        "gap_ms": trace.gap_ms,
        "stream_ms": trace.wall_ms,
        "launches_per_batch": trace.launches_per_batch,
    }
    if job == TIMELINE and not record["column"].startswith("host"):
        first = trace.intervals[0].start_ns
        found["timeline"] = [
            [each.batch, each.lane, (each.start_ns - first) / 1e6, (each.end_ns - first) / 1e6]
            for each in trace.intervals
        ]
    return found


# --- accuracy -------------------------------------------------------------------------------------


def accuracy(job: Record, columns: list[str], chosen: argparse.Namespace) -> Iterator[Record]:
    """Predictions of every column that are right, and that differ from those of eager in fp32."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            subject, batches, labels = _labelled(job, Path(temporary), chosen)
        except ImportError as error:
            yield from ({"column": each, "reason": tables.reason(error)} for each in columns)
            return
        wanted = _predictions(subject.reference(batches()))
        for column in columns:
            if column in chosen.left_out:
                yield {"column": column, "reason": chosen.left_out[column]}
                continue
            try:
                made = contenders.build(column, subject, chosen.threads)
                got = _predictions(map(made.run, batches()))
            except Exception as error:
                yield {"column": column, "reason": tables.reason(error)}
                continue
            yield {
                "column": column,
                "top1": None if labels is None else float(np.mean(got == labels[: len(got)])),
                "differ": int(np.sum(got != wanted)),
                "images": len(got),
            }


def _predictions(outputs: Iterable[list[Array]]) -> Array:
    return np.concatenate([scores.argmax(1) for scores, *_ in outputs])


def _labelled(
    job: Record, temporary: Path, chosen: argparse.Namespace
) -> tuple[Subject, Callable[[], Iterable[Feeds]], Array | None]:
    """A network, the batches to predict, and their labels, None where nobody knows them."""
    if job["network"] == DIGITS:
        return _digits(temporary)
    checkpoint = weights(job["network"], chosen.weights)
    subject = latency.subject_of(
        job["network"], job["batch"], temporary, chosen, checkpoint=checkpoint
    )
    if chosen.images is None:  # a dry run
        return subject, lambda: subject.calibration, None
    from xrt.data import ImageFolder

    (side,) = {subject.inputs[0].shape[-1], subject.inputs[0].shape[-2]}
    images = ImageFolder(
        chosen.images, side, job["batch"], last="drop", workers=chosen.threads, exact=True
    )
    known = checkpoint is not None and images.labels is not None

    def batches() -> Iterator[Feeds]:
        return ({subject.names[0]: pixels} for (pixels,) in images)

    return subject, batches, images.labels if known else None


def _digits(temporary: Path) -> tuple[Subject, Callable[[], Iterable[Feeds]], Array]:
    """The digits network, trained here on one half of the images, and the other half."""
    from benchmarks.cases import export
    from examples import digits_precision as example

    data = example.digits()
    module = example.trained(data)
    parts = data.test.split(example.BATCH)
    path = export(module, (parts[0],), temporary / "digits.onnx", ["x"])
    calibration = [{"x": part.numpy()} for part in data.train.split(example.BATCH)][:4]
    held = [{"x": part.numpy()} for part in parts if len(part) == example.BATCH]
    device = "cuda" if harness.gpu_name() else "cpu"
    inputs = (parts[0].to(device),)
    subject = Subject(
        *(DIGITS, example.BATCH, module.to(device), inputs, path, ("x",), temporary / "cache"),
        calibration=calibration,
        device=device,
    )
    return subject, lambda: held, data.test_labels.numpy()


# --- the table ------------------------------------------------------------------------------------


def published(records: Sequence[Record]) -> list[list[str]]:
    """The lines of the published table for the networks and batch sizes that were measured."""
    wanted = {(each["network"], each["batch"]) for each in records}
    return [
        [row["model"], str(row["batch_size"]), row["measured"]]
        + ["" if row[system] is None else str(row[system]) for system in SYSTEMS]
        for row in load_published(PUBLISHED)["rows"]
        if (row["model"], row["batch_size"]) in wanted
    ]


SYSTEMS = (
    *("oneflow_fp32", "oneflow_fp16", "tensorrt_fp32", "tensorrt_fp16", "tensorrt_int8"),
    *("tensorrt_official_fp32", "tensorrt_official_fp16"),
)


def render(found: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    records = [each for each in found["records"] if "kind" not in each]
    compared = [each for each in found["records"] if "images" in each]
    parts = [
        "Images per second, batches on the device:",
        tables.pivot(records, "images_per_second"),
        "Images per second, from JPEG files to scores, decoding and copies included:",
        tables.pivot(records, "decoded_images_per_second"),
        "Gap: milliseconds for a batch that a stream of batches leaves the device idle:",
        tables.pivot(records, "gap_ms", form="{:.2f}"),
        "Predictions that differ from those of eager in fp32, and top-1 accuracy:",
        tables.markdown(
            ("network", "column", "images", "differ", "top-1"), map(_compared, compared), left=2
        ),
        "In detail, batches on the device:",
        tables.details(records),
        tables.reasons(found),
    ]
    theirs = published(records)
    if theirs:
        table = load_published(PUBLISHED)
        heading = ("network", "batch", "measured", *SYSTEMS)
        parts += [
            f"Published, {table['hardware']}, images per second; {table['protocol']}:",
            tables.markdown(heading, theirs, left=3),
        ]
    return "\n\n".join(part for part in parts if part)


def _compared(record: Record) -> list[str]:
    top1 = record.get("top1")
    return [
        record["network"],
        record["column"],
        str(record.get("images", "")),
        str(record.get("differ", "")),
        "" if top1 is None else f"{top1:.4f}",
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = tables.parser(__doc__)
    parser.add_argument("--images", type=Path, help="folder of images, one folder for each class")
    parser.add_argument("--weights", type=Path, nargs="+", help="torchvision's files, by name")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        tables.serve(work, chosen)
        return
    records = tables.collect("benchmarks.cnn_inference", jobs(chosen), work, chosen)
    where = chosen.images or "generated JPEG files"
    protocol = (
        f"Images: {where}. Weights: {'given' if chosen.weights else 'random'}. Latencies are of "
        "batches on the device; throughput from files includes decoding and copies."
    )
    found = tables.result(
        "CNN inference through clusters", protocol, records, chosen, published=PUBLISHED
    )
    tables.finish(TABLE, found, render(found), chosen)


if __name__ == "__main__":
    main()
