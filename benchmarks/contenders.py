"""Who is measured: every engine of xrt in every precision, and its peers, behind one call.

A column is named by runtime and precision, "xla fp16". What cannot run is a `RefusalError` with the
reason, and so is what computes something else than PyTorch eager in fp32.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, models
from benchmarks.cases import difference, export, feeds_of

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]

PEERS = ("eager", "torch.compile", "reduce-overhead", "onnxruntime", "openvino")
"""What runs in place of an engine of xrt."""

PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}

BOUNDS = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.25, "int8": 0.7}
"""Largest error beside eager in fp32 with which a time is accepted: for fp32 the largest difference
over the largest magnitude of each output, for others the mean error over the mean magnitude of the
main output. Unrelated outputs have errors above 1."""


class RefusalError(Exception):
    """Why a column has no figure."""


@dataclass(frozen=True)
class Subject:
    """A network to measure, as a module and as a file.

    Attributes:
        name: Of the network.
        batch: Size of its batches.
        module: The network in eval mode, on the device that is measured.
        inputs: A batch as the module takes it: positional, or by name.
        path: The network as an ONNX file.
        names: Names of the file's inputs.
        cache: Folder of compiled code.
        calibration: Batches for int8, none of which is measured.
        device: "cpu" or "cuda".
    """

    name: str
    batch: int
    module: Any
    inputs: Any
    path: Path
    names: tuple[str, ...]
    cache: Path
    calibration: list[Feeds] = field(default_factory=list)
    device: str = "cpu"

    @property
    def feeds(self) -> Feeds:
        """The inputs as NumPy arrays by name of the file's inputs."""
        return feeds_of(_moved(self.inputs, "cpu"), list(self.names))

    def reference(self, batches: Iterable[Feeds]) -> Iterator[list[Array]]:
        """What eager computes in fp32, batch by batch."""
        built = build("eager fp32", self, harness.cores())
        for feeds in batches:
            yield built.run(feeds)


@dataclass(frozen=True)
class Candidate:
    """A column that can run.

    Attributes:
        run: From a batch in memory of the host to its outputs there.
        call: Computes the batch of the subject, which is on the device, and waits for it.
        compile_seconds: From the file or module to something that can be called.
        program: The program of xrt, None for a peer.
        stream: From batches, read one after the other, to outputs.
    """

    run: Callable[[Feeds], list[Array]]
    call: Callable[[], Any]
    compile_seconds: float
    program: Any = None

    def stream(self, batches: Iterable[Feeds], depth: int = 3) -> Iterator[list[Array]]:
        """Run batches as the runtime does it best: several in flight with xrt, else in a loop."""
        if self.program is None:
            yield from map(self.run, batches)
        else:
            yield from map(_arrays, self.program.stream(batches, depth=depth))


def subject(
    name: str,
    batch: int,
    folder: Path,
    *,
    checkpoint: Path | None = None,
    calibration: int = 2,
    image_size: tuple[int, int] | None = None,
    cache: Path | None = None,
) -> Subject:
    """Build a network and export it to `folder`.

    Args:
        name: Of `benchmarks.models`, or of `benchmarks.tiny`.
        batch: Size of its batches.
        folder: For its file, which is used again if it is there.
        checkpoint: Its weights; random ones without.
        calibration: Number of batches for int8.
        image_size: Height and width in place of the published ones.
        cache: For compiled code; an empty folder makes compile times a first user's.
    """
    from onnx import load_model

    make: Callable[[int], Any]
    if name in models.NETWORKS:
        module, inputs = models.load(
            name, batch=batch, checkpoint=checkpoint, image_size=image_size
        )
        network = models.NETWORKS[name]
        make = lambda seed: network.example_inputs(batch, seed, image_size)  # noqa: E731
    else:
        from benchmarks import tiny

        module, inputs = tiny.load(name, batch)
        make = lambda seed: tiny.inputs(name, batch, seed)  # noqa: E731
    device = "cuda" if harness.gpu_name() else "cpu"
    given = ["images"] if isinstance(inputs, tuple) else None
    weights = f"_{checkpoint.stem}" if checkpoint else ""
    path = folder / f"{name}_batch{batch}{weights}.onnx"
    if not path.exists():
        export(module, inputs, path, given)
    names = [value.name for value in load_model(path, load_external_data=False).graph.input]
    batches = [feeds_of(make(1 + number), names) for number in range(calibration)]
    module, moved = module.to(device), _moved(inputs, device)
    cache = cache or folder / "cache"
    return Subject(name, batch, module, moved, path, tuple(names), cache, batches, device)


def columns(
    precisions: Sequence[str],
    peers: Sequence[str] = PEERS,
    peer_precisions: Sequence[str] | None = None,
) -> list[str]:
    """Every column: all engines of xrt in each precision, and peers.

    Peers are in fp32, and on a GPU in fp16 too, unless `peer_precisions` says otherwise.
    """
    import xrt

    if peer_precisions is None:
        halves = ["fp16"] if harness.gpu_name() and "fp16" in precisions else []
        peer_precisions = ["fp32", *halves]
    ours = [f"{each.name} {precision}" for each in xrt.engines() for precision in precisions]
    return ours + [f"{peer} {precision}" for peer in peers for precision in peer_precisions]


def unavailable() -> dict[str, str]:
    """Engines and peers that cannot run here, and why."""
    import xrt

    found = {each.name: each.reason for each in xrt.engines() if not each.available}
    for peer, package in PACKAGES.items():
        if importlib.util.find_spec(package) is None:
            found[peer] = f"the package {package} is not installed"
    return found


def build(column: str, subject: Subject, threads: int) -> Candidate:
    """Make a column ready to run.

    Raises:
        RefusalError: If it cannot run here.
    """
    runtime, precision = column.split()
    reason = unavailable().get(runtime)
    if reason:
        raise RefusalError(reason)
    if runtime not in PEERS:
        return _ours(runtime, precision, subject, threads)
    if runtime == "reduce-overhead" and subject.device == "cpu":
        raise RefusalError("it differs from torch.compile by CUDA graphs, which need a GPU")
    if runtime in _FILES:
        return _from_file(runtime, precision, subject, threads)
    return _torch(runtime, precision, subject, threads)


def accept(
    column: str, wanted: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]
) -> dict[str, Any]:
    """How far a column's outputs are from those of eager in fp32, and predictions that differ.

    Raises:
        RefusalError: If they are further off than `BOUNDS` allows.
    """
    counts = {len(theirs) for theirs in wanted} | {len(ours) for ours in got}
    if len(counts) != 1:
        raise RefusalError(f"it gives {len(got[0])} outputs, eager {len(wanted[0])}")
    found = difference(wanted, got)
    precision = column.split()[1]
    error = _largest(wanted, got) if precision == "fp32" else found["mean_relative_error"]
    if not error <= BOUNDS[precision]:
        raise RefusalError(f"its outputs differ from eager's in fp32 by {error:.1e}, relative")
    return {"error": error, **found}


def _largest(wanted: Sequence[Sequence[Array]], got: Sequence[Sequence[Array]]) -> float:
    """The largest difference over the largest magnitude, of all outputs."""
    found = 0.0
    for theirs, ours in zip(wanted, got, strict=True):
        for want, mine in zip(theirs, ours, strict=True):
            size = max(float(np.abs(want).max(initial=0)), 1e-30)
            found = max(found, float(np.abs(want - mine.astype(want.dtype)).max(initial=0)) / size)
    return found


# --- the runtimes ---------------------------------------------------------------------------------


def _ours(engine: str, precision: str, subject: Subject, threads: int) -> Candidate:
    import xrt

    if engine == "xla" and subject.device == "cuda":
        from xrt.engines.xla.device import device

        if device().platform == "cpu":
            raise RefusalError("the JAX that is installed has no GPU")
    options = xrt.CompileOptions(
        threads=threads,
        cache_dir=subject.cache,
        quantization=xrt.QuantizationOptions(report=False),
    )
    begin = time.perf_counter()
    program = xrt.compile(
        subject.path,
        subject.feeds,
        engine=engine,
        precision=precision,
        calibration=subject.calibration if precision == "int8" else None,
        options=options,
    )
    seconds = time.perf_counter() - begin
    if engine != "host" and not program.clusters:
        reasons = program.explain().reasons()
        raise RefusalError(f"no node runs on it: {_first(reasons)}")
    import torch

    tensors = {name: torch.from_numpy(array) for name, array in subject.feeds.items()}
    tensors = _moved(tensors, subject.device)

    def call() -> None:
        program(**tensors)
        wait(subject.device)

    return Candidate(lambda feeds: _arrays(program(**feeds)), call, seconds, program)


def _first(reasons: Any) -> str:
    return next((str(reason) for each in reasons.values() for reason in each), "no reason given")


def _torch(mode: str, precision: str, subject: Subject, threads: int) -> Candidate:
    import copy

    import torch

    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module, inputs = subject.module, subject.inputs
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    if precision != "fp32":
        module = copy.deepcopy(module).to(dtype)
        inputs = _moved(inputs, subject.device, dtype)
    begin = time.perf_counter()
    if mode != "eager":
        # Without this several networks of one process would share a bound on recompilations.
        torch._dynamo.reset()
        module = torch.compile(module, mode=None if mode == "torch.compile" else mode)

    def apply(given: Any) -> Any:
        args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
        with torch.inference_mode():
            return module(*args, **kwargs)

    def run(feeds: Feeds) -> list[Array]:
        tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}
        tensors = _moved(tensors, subject.device, dtype)
        positional = isinstance(inputs, tuple)
        given = tuple(tensors[name] for name in subject.names) if positional else tensors
        return _arrays(apply(given))

    def call() -> None:
        apply(inputs)
        wait(subject.device)

    if mode != "eager":
        call()
    return Candidate(run, call, time.perf_counter() - begin)


def _from_file(name: str, precision: str, subject: Subject, threads: int) -> Candidate:
    if precision != "fp32":
        raise RefusalError("the file is in fp32")
    begin = time.perf_counter()
    run = _FILES[name](subject.path, threads, subject.device)
    feeds = subject.feeds
    return Candidate(run, lambda: run(feeds), time.perf_counter() - begin)


def _onnxruntime(path: Path, threads: int, device: str) -> Callable[[Feeds], list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise RefusalError("this build of ONNX Runtime has no CUDA")
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    return lambda feeds: list(session.run(None, feeds))


def _openvino(path: Path, threads: int, device: str) -> Callable[[Feeds], list[Array]]:
    import openvino

    if device == "cuda":
        raise RefusalError("it does not run on NVIDIA GPUs")
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        # Its default narrows floats where the processor can: that would be another precision.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    return lambda feeds: [np.array(value) for value in compiled(feeds).values()]


_FILES = {"onnxruntime": _onnxruntime, "openvino": _openvino}


# --- arrays ---------------------------------------------------------------------------------------


def _moved(inputs: Any, device: str, dtype: Any = None) -> Any:
    """Tensors on `device`, those of floating point as `dtype`."""
    if isinstance(inputs, dict):
        return {name: _moved(value, device, dtype) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_moved(value, device, dtype) for value in inputs)
    return inputs.to(device, dtype if inputs.is_floating_point() else None)


def _arrays(tree: Any) -> list[Array]:
    """The tensors and arrays in a structure of outputs, as NumPy arrays."""
    from torch.utils import _pytree

    leaves = [leaf for leaf in _pytree.tree_leaves(tree) if hasattr(leaf, "dtype")]
    return [_array(leaf) for leaf in leaves]


def _array(leaf: Any) -> Array:
    if not isinstance(leaf, np.ndarray):
        leaf = leaf.detach().cpu()
        leaf = (leaf.float() if leaf.is_floating_point() else leaf).numpy()
    floating = leaf.dtype.kind == "f" or leaf.dtype.name == "bfloat16"
    array: Array = leaf.astype(np.float32, copy=False) if floating else leaf
    return array


def wait(device: str) -> None:
    """Wait until a device, "cpu" or "cuda", has done all that was asked of it."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
