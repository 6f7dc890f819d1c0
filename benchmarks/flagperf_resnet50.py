"""ResNet-50 by FlagPerf's definitions, beside its published rows.

    python -m benchmarks.flagperf_resnet50                      # 50,000 images, batch 256
    python -m benchmarks.flagperf_resnet50 --quick              # generated files, batch 8
    python -m benchmarks.flagperf_resnet50 --images imagenet/val --weights resnet50-0676ba61.pth

FlagPerf runs the framework's own model first ("validation"), then the engine ("inference"), on the
same batches, with no warm-up. Beside its numbers stand two of another definition, marked "device":
the rate of batches that are on the device already, and its share of the dense peak where an image
counts 2 x 4.12e9 operations, since 4.12e9 are multiply-accumulates. `benchmarks.flagperf_adapter`
runs xrt in FlagPerf's own harness.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import cnn_inference, contenders, harness, latency, tables
from benchmarks.published import load as load_published

TABLE = PUBLISHED = "flagperf_resnet50"
MACS = 4.12e9
"""Multiply-accumulates for an image; FlagPerf calls them FLOPs."""

PEAKS = {
    "A100": {"fp32": 156e12, "fp16": 312e12, "int8": 624e12},
    "H100": {"fp32": 494.5e12, "fp16": 989e12, "int8": 1979e12},
    "H200": {"fp32": 494.5e12, "fp16": 989e12, "int8": 1979e12},
}
"""Dense peak rates, operations a second; fp32 is TF32, as FlagPerf has it."""

FIGURES = (
    *("e2e_time", "p_val_whole", "p_val_core", "p_infer_whole", "p_infer_core", "mfu"),
    *("acc", "mem_gib"),
)

Record = dict[str, Any]
Array = np.ndarray[Any, Any]


# --- the arithmetic -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What FlagPerf takes down while all batches run.

    Attributes:
        batches: Batches of a pass over the data; the last one is dropped unless it is full.
        batch: Images in a batch.
        repeat: Passes.
        seconds: Of the whole, reading included.
        core_seconds: From synchronization to synchronization around the model, added up.
        foreign_seconds: Within them, what the engine declares foreign.
    """

    batches: int
    batch: int
    repeat: int
    seconds: float
    core_seconds: float
    foreign_seconds: float = 0.0

    @property
    def images(self) -> int:
        """Images that ran."""
        return self.repeat * self.batches * self.batch

    @property
    def whole(self) -> float:
        """Images per second, all included."""
        return self.images / self.seconds

    @property
    def core(self) -> float:
        """Images per second of core time."""
        return self.images / (self.core_seconds - self.foreign_seconds)


def mfu(rate: float, peak: float, operations: float = MACS) -> float:
    """The share of the peak that a rate is; `operations` for an image, FlagPerf's by default."""
    return rate * operations / peak


def peak_of(gpu: str, precision: str) -> float | None:
    """The dense peak of a GPU by its name, None if it is not known here."""
    known = next((rates for name, rates in PEAKS.items() if name in gpu), None)
    return None if known is None else known.get(precision)


# --- the measurement ------------------------------------------------------------------------------


def run(
    model: Callable[[list[Any]], tuple[list[Any], float]],
    batches: Callable[[], Iterable[Any]],
    *,
    repeat: int,
    wait: Callable[[], None],
) -> tuple[Pass, Array]:
    """Run a model over all batches as FlagPerf's harness does.

    Args:
        model: As `flagperf_adapter.InferModel`.
        batches: Gives a pass over the data: float32 tensors [N, 3, H, W].
        repeat: Passes.
        wait: Waits for the device.

    Returns:
        The times, and the predicted classes.
    """
    import torch

    core = foreign = 0.0
    count, size = 0, 0
    classes = []
    begin = time.perf_counter()
    for _ in range(repeat):
        for pixels in batches():
            wait()
            start = time.perf_counter()
            with torch.inference_mode():
                (scores, *_), declared = model([pixels])
            wait()
            core += time.perf_counter() - start
            foreign += declared
            classes.append(scores.float().argmax(1).cpu().numpy())
            count, size = count + 1, len(pixels)
    seconds = time.perf_counter() - begin
    if not count:
        raise contenders.RefusalError("the folder holds no whole batch")
    return Pass(count // repeat, size, repeat, seconds, core, foreign), np.concatenate(classes)


@tables.one_record
def measure(job: Record, temporary: Path, chosen: argparse.Namespace) -> Record:
    """One engine in one precision: validation by eager, then inference."""
    import torch

    from benchmarks.flagperf_adapter import InferModel

    engine, precision = job["column"].split()
    begin = time.perf_counter()
    torch.set_num_threads(chosen.threads)
    with harness.watch_memory() as memory:
        subject = latency.subject_of(
            job["network"], job["batch"], temporary, chosen, checkpoint=chosen.weights
        )
        count = 2 if chosen.dry else 6 if chosen.quick else 50_000 // job["batch"]
        feeds = cnn_inference.folder(subject, count, temporary, chosen)

        def batches() -> Iterator[Any]:
            return (torch.from_numpy(next(iter(each.values()))) for each in feeds())

        def wait() -> None:
            contenders.wait(subject.device)

        validation, wanted = run(_eager(subject, precision), batches, repeat=1, wait=wait)
        config = SimpleNamespace(
            fp16=precision == "fp16", batch_size=job["batch"], xrt_engine=engine,
            threads=chosen.threads,
        )  # fmt: skip
        model = InferModel(config, subject.path, None)
        memory.note()
        inference, got = run(model, batches, repeat=chosen.repeat, wait=wait)
    seconds = time.perf_counter() - begin
    (scores,), _ = model(list(subject.inputs))
    reference = list(subject.reference([subject.feeds]))
    contenders.accept(job["column"], reference, [[scores.float().cpu().numpy()]])
    device = _on_device(model, subject, runs=2 if chosen.dry else 10)
    return {
        "precision": precision,
        "bs": job["batch"],
        "images": inference.images,
        "mem_gib": memory.peak_bytes / 2**30,
        "memory": memory.where,
        "e2e_time": seconds,
        "p_val_whole": validation.whole,
        "p_val_core": validation.core,
        "p_infer_whole": inference.whole,
        "p_infer_core": inference.core,
        "device_core": device,
        "acc": _accuracy(chosen, wanted, got),
        "differ": int(np.sum(got.reshape(chosen.repeat, -1) != wanted)),
        **_shares(inference.core, device, precision, chosen),
    }


def _eager(subject: contenders.Subject, precision: str) -> Callable[[list[Any]], Any]:
    """The network as FlagPerf's validation runs it: by PyTorch, in fp16 on a GPU."""
    import copy

    import torch

    half = precision == "fp16" and subject.device == "cuda"
    module = copy.deepcopy(subject.module).half() if half else subject.module

    def model(inputs: list[Any]) -> tuple[list[Any], float]:
        moved = inputs[0].to(subject.device, torch.float16 if half else None)
        return [module(moved)], 0.0

    return model


def _on_device(model: Any, subject: contenders.Subject, runs: int) -> float:
    """Images per second of a batch that is on the device: the median of calls."""

    def call() -> None:
        model(list(subject.inputs))
        contenders.wait(subject.device)

    times = harness.interleave({"call": call}, runs=runs, warmup=2, seconds=120)
    return 1e3 * subject.batch / times["call"]["median_ms"]


def _shares(core: float, device: float, precision: str, chosen: argparse.Namespace) -> Record:
    """MFU by FlagPerf's definition and by the honest one; nothing without a peak."""
    gpu = harness.gpu_name()
    peak = chosen.peak * 1e12 if chosen.peak else peak_of(gpu, precision)
    if peak is None:
        name = gpu or "this processor"
        return {"mfu": None, "mfu_reason": f"the peak rate of {name} is not known; give --peak"}
    return {"peak": peak, "mfu": mfu(core, peak), "device_mfu": mfu(device, peak, 2 * MACS)}


def _accuracy(chosen: argparse.Namespace, wanted: Array, got: Array) -> str | None:
    """Top-1 of inference and validation in percent; None where labels mean nothing."""
    if chosen.images is None or chosen.weights is None:
        return None
    from xrt.data import ImageFolder

    labels = ImageFolder(chosen.images).labels
    if labels is None:
        return None
    shares = [100 * np.mean(each[: len(wanted)] == labels[: len(wanted)]) for each in (got, wanted)]
    return "/".join(f"{share:.1f}" for share in shares)


# --- the table ------------------------------------------------------------------------------------


def jobs(chosen: argparse.Namespace) -> tuple[list[Record], list[Record]]:
    """A job for each engine and precision, and records of those that do not run."""
    batch = 4 if chosen.dry else 8 if chosen.quick else 256
    name = "tiny_cnn" if chosen.dry else "resnet50"
    every = tables.choose(chosen, (), ("xla", "tensorrt", "tensorrt_rtx"))
    return tables.one_each([name], chosen.batch or [batch], every, chosen)


def render(found: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    heading = ("tool", "hardware", "precision", "bs", *FIGURES)
    machine = found.get("machine", {})
    here = machine.get("gpu") or machine.get("cpu") or "this machine"
    ours = [
        [each["column"].split()[0], here, each["precision"], str(each["bs"])]
        + [_cell(name, each.get(name)) for name in FIGURES]
        for each in found["records"]
        if "reason" not in each
    ]
    theirs = [
        [row["tool"], row["hardware"], row["precision"], row["bs"]]
        + [_cell(name, row[name]) for name in FIGURES]
        for row in load_published(PUBLISHED)["rows"]
    ]
    device = [
        [
            each["column"], f"{each['device_core']:.1f}", _cell("mfu", each.get("device_mfu")),
            f"{each['differ']} of {each['images']}",
        ]
        for each in found["records"]
        if "reason" not in each
    ]  # fmt: skip
    parts = [
        "By FlagPerf's definitions; the published rows below ours:",
        tables.markdown(heading, [*ours, *theirs], left=4),
        "Batches on the device, and the share of the dense peak with 2 x MAC; predictions that "
        "differ from validation's:",
        tables.markdown(("column", "device core", "device MFU", "differ"), device),
        tables.reasons(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{100 * value:.1f} %" if name == "mfu" else f"{value:.1f}"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = tables.parser(__doc__, precisions=["fp32", "fp16"])
    parser.add_argument("--images", type=Path, help="ImageNet's validation images, by class")
    parser.add_argument("--weights", type=Path, help="torchvision's resnet50-0676ba61.pth")
    parser.add_argument("--repeat", type=int, default=1, help="passes of inference")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, for MFU")
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        tables.serve(measure, chosen)
        return
    wanted, absent = jobs(chosen)
    records = absent + tables.collect(
        "benchmarks.flagperf_resnet50", wanted, measure, chosen, share_files=True
    )
    where = chosen.images or "generated JPEG files, read again as often as needed"
    protocol = f"Images: {where}. {load_published(PUBLISHED)['protocol']}."
    found = tables.result(
        "ResNet-50 by FlagPerf's definitions", protocol, records, chosen, published=PUBLISHED
    )
    tables.finish(TABLE, found, render(found), chosen)


if __name__ == "__main__":
    main()
