"""Throughput from JPEG files to scores: decoding, computing, and both at once, beside three peers.

    python -m benchmarks.images            # 2,000 files, ResNet-50
    python -m benchmarks.images --quick    # 200 files, two rounds

Every contender is a process of its own that waits for its turn; a turn is one part of the folder,
and parts go round: A B C, A B C, ... so that the machine's drift hits all alike. All compute with
as many threads, and decode with as many, as there are cores.

    decode          xrt.data.ImageFolder alone
    compute         program(batch) on one batch, again and again
    xrt             program.stream(ImageFolder, 3), uint8 pixels, normalized by the program
    xrt-float       the same with float32, normalized by the threads that decode
    torch           DataLoader with worker processes, Pillow and torchvision's transform; eager
    onnxruntime     InferenceSession.run in a loop over ImageFolder
    openvino        AsyncInferQueue fed by ImageFolder

On cores that decode and compute at the same time nobody can be faster than
1 / (1 / decode + 1 / compute), which is reported beside min(decode, compute).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.photographs import WARM, write_folder

Array = np.ndarray[Any, Any]
Turn = Callable[[Path], float]
"""Works through the images of a folder; returns the mean magnitude of the scores, or of pixels."""

NETWORK = "resnet50"
DEPTH = 3
"""Batches in flight in xrt's streams; two of them compute at once."""


# --- the contenders -------------------------------------------------------------------------------


def _folder(path: Path, batch: int, threads: int, dtype: str) -> Any:
    from xrt.data import ImageFolder

    return ImageFolder(
        path.parent, classes=[path.name], batch_size=batch, dtype=dtype, workers=threads
    )


def _magnitude(outputs: Iterable[Any]) -> float:
    """The mean magnitude of arrays, so that none is left unlooked at."""
    return statistics.fmean(float(np.abs(np.asarray(each)).mean()) for each in outputs)


def decode(batch: int, threads: int) -> Turn:
    """Decoding alone."""

    def turn(path: Path) -> float:
        return _magnitude(images[:, 0, 0] for (images,) in _folder(path, batch, threads, "uint8"))

    return turn


def _program(batch: int, dtype: str) -> Any:
    import torch

    import xrt
    from benchmarks import models
    from xrt.data import IMAGENET_MEAN, IMAGENET_STD

    module, (example,) = models.load(NETWORK, batch=batch)
    options = xrt.CompileOptions()
    if dtype == "uint8":
        example = torch.zeros(example.shape, dtype=torch.uint8)
        normalization = xrt.InputNormalization(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        options = xrt.CompileOptions(normalization=normalization)
    return xrt.compile(module, (example,), options=options)


def compute(batch: int, threads: int) -> Turn:
    """Computing alone, on pixels that are in memory."""
    program = _program(batch, "uint8")

    def turn(path: Path) -> float:
        count = sum(1 for _ in path.iterdir())
        pixels = next(iter(_folder(path, batch, threads, "uint8")))
        return _magnitude(program(*pixels) for _ in range(count // batch))

    return turn


def streamed(dtype: str) -> Callable[[int, int], Turn]:
    """Decoding and computing with xrt."""

    def make(batch: int, threads: int) -> Turn:
        program = _program(batch, dtype)
        return lambda path: _magnitude(program.stream(_folder(path, batch, threads, dtype), DEPTH))

    return make


def torch_eager(batch: int, threads: int) -> Turn:
    """PyTorch as in its own examples: DataLoader, transform, eager mode."""
    import torch

    from benchmarks import models

    torch.set_num_threads(threads)
    module, _ = models.load(NETWORK, batch=batch)

    def turn(path: Path) -> float:
        loader = torch.utils.data.DataLoader(
            _TorchFolder(path), batch_size=batch, num_workers=threads
        )
        with torch.inference_mode():
            return _magnitude(module(images) for images in loader)

    return turn


class _TorchFolder:
    """A map-style dataset: torchvision's loader and evaluation transform, written with Pillow."""

    def __init__(self, path: Path) -> None:
        self.paths = sorted(path.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import torch
        from PIL import Image

        from xrt.data import IMAGENET_MEAN, IMAGENET_STD

        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        width, height = image.size
        short = min(width, height)
        size = int(256 * width / short), int(256 * height / short)
        image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
        pixels = np.array(image.crop((left, top, left + 224, top + 224)))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.tensor(n).view(-1, 1, 1) for n in (IMAGENET_MEAN, IMAGENET_STD))
        return tensor.sub_(mean).div_(std)


def _exported(batch: int, folder: Path) -> Path:
    from benchmarks import models
    from benchmarks.cases import export

    module, inputs = models.load(NETWORK, batch=batch)
    return export(module, inputs, folder / f"{NETWORK}.onnx", ["image"])


def onnxruntime_loop(batch: int, threads: int) -> Turn:
    """ONNX Runtime, with the same decoder."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = _exported(batch, Path(folder))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def turn(path: Path) -> float:
        batches = _folder(path, batch, threads, "float32")
        return _magnitude(session.run(None, {"image": images})[0] for (images,) in batches)

    return turn


def openvino_queue(batch: int, threads: int) -> Turn:
    """OpenVINO's queue of asynchronous requests, with the same decoder."""
    import openvino

    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads}
    settings["INFERENCE_PRECISION_HINT"] = "f32"  # its own choice is bfloat16, where there is any
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(_exported(batch, Path(folder)))
        compiled = core.compile_model(model, "CPU", settings)

    def turn(path: Path) -> float:
        found: list[float] = []
        queue = openvino.AsyncInferQueue(compiled)
        queue.set_callback(lambda request, _: found.append(_magnitude(request.results.values())))
        for (images,) in _folder(path, batch, threads, "float32"):
            queue.start_async({"image": images})
        queue.wait_all()
        return statistics.fmean(found)

    return turn


CONTENDERS: dict[str, Callable[[int, int], Turn]] = {
    "decode": decode,
    "compute": compute,
    "xrt": streamed("uint8"),
    "xrt-float": streamed("float32"),
    "torch": torch_eager,
    "onnxruntime": onnxruntime_loop,
    "openvino": openvino_queue,
}
PEERS = ("torch", "onnxruntime", "openvino")
SCORERS = ("xrt", "xrt-float", *PEERS)
"""Those whose scores must agree."""


# --- the run --------------------------------------------------------------------------------------


def serve(name: str, batch: int, threads: int) -> None:
    """Be a contender: read folders from stdin, answer with seconds and magnitude."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print
    turn = CONTENDERS[name](batch, threads)
    for line in sys.stdin:
        begin, busy = time.perf_counter(), _cpu_seconds()
        magnitude = turn(Path(line.strip()))
        answer = {
            "seconds": time.perf_counter() - begin,
            "cpu_seconds": _cpu_seconds() - busy,
            "magnitude": magnitude,
        }
        print(json.dumps(answer), file=answers, flush=True)


def _cpu_seconds() -> float:
    """Of this process and of those it started and saw end."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


class Contender:
    """A process that serves turns."""

    def __init__(self, name: str, batch: int, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.images", "--serve", name]
        command += ["--batch", str(batch), "--threads", str(threads)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def turn(self, path: Path) -> dict[str, float]:
        """Seconds and magnitude of one part."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(root: Path, names: list[str], batch: int, threads: int) -> dict[str, Any]:
    """Images per second of each contender, over all parts of a folder and for the median part."""
    parts = sorted(part for part in root.iterdir() if part.name != WARM)
    counts = [sum(1 for _ in part.iterdir()) for part in parts]
    contenders = {name: Contender(name, batch, threads) for name in names}
    try:
        for contender in contenders.values():
            contender.turn(root / WARM)
        answers = {name: [] for name in names}  # type: dict[str, list[dict[str, float]]]
        for number, part in enumerate(parts):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                time.sleep(0.5)
                answers[name].append(contenders[name].turn(part))
    finally:
        for contender in contenders.values():
            contender.close()
    _check_scores(answers)
    return {name: _rates(counts, answers[name]) for name in names}


def _rates(counts: list[int], answers: list[dict[str, float]]) -> dict[str, Any]:
    rates = [count / each["seconds"] for count, each in zip(counts, answers, strict=True)]
    return {
        "images_per_second": sum(counts) / sum(each["seconds"] for each in answers),
        "median": statistics.median(rates),
        "min": min(rates),
        "max": max(rates),
        "cpu_ms_per_image": 1e3 * sum(each["cpu_seconds"] for each in answers) / sum(counts),
    }


def _check_scores(answers: dict[str, list[dict[str, float]]]) -> None:
    """Everybody saw the same images and computed the same network."""
    scored = [[each["magnitude"] for each in answers[name]] for name in SCORERS if name in answers]
    for other in scored[1:]:
        np.testing.assert_allclose(other, scored[0], rtol=1e-3)


def summary(rates: dict[str, Any]) -> dict[str, float]:
    """What the reach asks for."""
    rate = {name: each["images_per_second"] for name, each in rates.items()}
    least = min(rate["decode"], rate["compute"])
    shared = 1 / (1 / rate["decode"] + 1 / rate["compute"])
    return {
        "least": least,
        "shared_cores": shared,
        "of_least": rate["xrt"] / least,
        "of_shared_cores": rate["xrt"] / shared,
        **{f"over_{peer}": rate["xrt"] / rate[peer] for peer in PEERS if peer in rate},
    }


def _lines(rates: dict[str, Any], found: dict[str, float]) -> Iterator[str]:
    for name, each in rates.items():
        yield (
            f"{name:12} {each['images_per_second']:8.1f} images/s   "
            f"(parts: {each['min']:.1f} to {each['max']:.1f})   "
            f"{each['cpu_ms_per_image']:.1f} ms of CPU per image"
        )
    for name, value in found.items():
        yield f"{name:18} {value:8.3f}"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--parts", type=int, default=5, help="rounds, each over a part of the folder"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--quick", action="store_true", help="200 files in two parts")
    parser.add_argument("--json", type=Path, help="default: benchmarks/results/images.json")
    parser.add_argument("--serve", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.serve:
        serve(chosen.serve, chosen.batch, chosen.threads)
        return
    images, parts = (192, 2) if chosen.quick else (chosen.images, chosen.parts)
    if images % (parts * chosen.batch):
        parser.error(f"{images} images are no whole batches of {chosen.batch} in {parts} parts")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        size = write_folder(root, images, parts, warm=2 * chosen.batch)
        rates = measure(root, chosen.only, chosen.batch, chosen.threads)
    complete = {"decode", "compute", "xrt"} <= set(rates)
    found = summary(rates) if complete else {}
    print(*_lines(rates, found), sep="\n")
    result = {
        "images": images,
        "mean_bytes": size / (images + 2 * chosen.batch),
        "network": NETWORK,
        "batch": chosen.batch,
        "threads": chosen.threads,
        "rates": rates,
        "summary": found,
    }
    if complete and not (chosen.quick and chosen.json is None):
        print(f"written: {harness.save('images', result, chosen.json)}")


if __name__ == "__main__":
    main()
