"""Every option of xrt, in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrt.errors import OptionError, unknown

PRECISIONS = ("fp32", "fp16", "bf16", "int8")

CACHE_BYTES = 4 << 30
"""How large the compile caches may grow unless `CompileOptions.cache_bytes` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class XlaOptions:
    """Options of the XLA engine.

    Attributes:
        compiler_options: XLA compile options by name, added to the engine's own for every cluster.
        cluster_compiler_options: Options for single clusters: cluster name -> options, which win
            over `compiler_options`.
        tune: Measure convolution algorithms on this device and keep the fastest for each layer.
            Costs compile time once; the choices are cached on disk.
    """

    compiler_options: Mapping[str, Any] = field(default_factory=dict)
    cluster_compiler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tune: bool = False


@dataclass(frozen=True, kw_only=True)
class TensorRTOptions:
    """Options of the engines TensorRT and TensorRT-RTX.

    One that the installed library lacks is an `OptionError` when a cluster is built. Numbers are
    no matter of options: types are in the graph, but for `tf32`.

    Attributes:
        workspace: Bytes of scratch memory that a cluster may use at most. None leaves it to the
            library, which takes what the GPU has.
        optimization_level: 0 to 5: more build time for perhaps faster engines. None is 3.
        tf32: Let products of float32 round their inputs to TF32, with 10 bits of fraction.
        refit: Keep weights replaceable in a built engine. TensorRT-RTX needs a GPU for that.
        version_compatible: Build engines that later releases run too. Not for TensorRT-RTX.
        hardware_compatibility: "ampere_plus" or "same_compute_capability": build engines for more
            than the GPU present. Not for TensorRT-RTX, whose engines run on every GPU of their
            compute capability.
        timing_cache: File that keeps what the library measured, to build sooner. Not for
            TensorRT-RTX, which measures nothing when it builds.
        weight_streaming: Let weights be loaded while a cluster runs, where they exceed memory.
        cuda_graphs: Replay the work of a call as one CUDA graph.
        shape_specialization: When TensorRT-RTX compiles kernels for the shapes of a call: "lazy"
            (in the background, after the first such call), "eager" (within it) or "none".
    """

    workspace: int | None = None
    optimization_level: int | None = None
    tf32: bool = False
    refit: bool = False
    version_compatible: bool = False
    hardware_compatibility: str | None = None
    timing_cache: Path | str | None = None
    weight_streaming: bool = False
    cuda_graphs: bool = True
    shape_specialization: str = "lazy"

    def __post_init__(self) -> None:
        _check_all(self, _TENSORRT_CHECKS)


@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """Options of precision "int8".

    Attributes:
        observer: How ranges of activations are chosen: "percentile", "minmax", "entropy" or "mse".
        percentile: The share of values, in percent, that the observer "percentile" covers.
        weight_bits: 8, or 7 for CPUs whose instructions add two products in 16 bits. None lets the
            device decide.
        equalize: Even out the ranges of channels between two products first.
        correct_bias: Take the mean error that rounding weights makes out of the biases.
        report: Compare with fp32 on the calibration data: predictions, noise and time. Costs two
            more compilations.
    """

    observer: str = "percentile"
    percentile: float = 99.99
    weight_bits: int | None = None
    equalize: bool = False
    correct_bias: bool = False
    report: bool = True

    def __post_init__(self) -> None:
        observers = ("entropy", "minmax", "mse", "percentile")
        if self.observer not in observers:
            raise OptionError(unknown("Observer", self.observer, observers))
        _check_all(self, _QUANTIZATION_CHECKS)


@dataclass(frozen=True, kw_only=True)
class InputNormalization:
    """Lets a program take images as uint8 pixels: it computes (pixel / 255 - mean) / std itself.

    A quarter of the bytes go through memory and across copies, and the arithmetic goes into the
    weights of the convolution that follows. `ImageFolder.normalization` is one.

    Attributes:
        mean: For each channel, on a scale from 0 to 1.
        std: For each channel.
        input: Name of the model's input that is meant; None means the first one.
        layout: Of the pixels: "NCHW", or "NHWC" for a program that takes them as cameras and
            Pillow give them. The model itself takes float ``[N, C, H, W]``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input: str | None = None
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        _check_all(self, _NORMALIZATION_CHECKS)
        if len(self.mean) != len(self.std):
            raise OptionError(
                "InputNormalization.mean and std need a number for each channel; got "
                f"{len(self.mean)} and {len(self.std)}."
            )


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    """Options of `xrt.compile`.

    Attributes:
        strict: Raise where the default is to fall back with a warning.
        threads: Threads that the clusters of a program compute with on the CPU. The steps of a
            call run one after the other, so its engines together take no more. None takes one for
            each core that the process may use.
        min_cluster_weight: Least weight of a cluster; a lighter one runs on the host. Operators
            that compute much (convolutions, matrix products, ...) weigh 10, others 1, those that
            only rename data 0.
        max_clusters: Most clusters in a program; the lightest beyond it run on the host.
            None sets no bound.
        max_cluster_nodes: Most nodes in a cluster; larger ones are cut, which costs time at each
            cut, but bounds what an engine compiles at once. None sets no bound.
        fuel: Number of nodes, in topological order, that engines may claim. Lowering it bisects a
            wrong result to the node that causes it. None sets no bound.
        keep_memory: Keep memory that passes between the steps of a call for the next call, where
            new memory costs more time. Off, a program that is not called holds only its weights.
        max_specializations: Input signatures kept compiled by a program; the least recently used
            goes first.
        max_bound_values: Most contents of small inputs that shapes depend on (sizes, axes, counts)
            that a program is compiled for, for each signature of shapes. Beyond it, it is compiled
            once for any contents, and what depends on them runs on the host. 0 does that at once.
        cache_dir: Folder of the compile caches. None uses `XRT_CACHE_DIR`, or the user's cache
            folder.
        cache_bytes: How large the compile caches in that folder may grow together; the least
            recently used entries go first.
        ranges: Sizes of symbolic dimensions, by their name in the model, that one executable is to
            serve where an engine can (TensorRT): (least, most) or (least, usual, most). They come
            before those that the model declares. A dimension without a range is bound to the size
            of a call, until calls come with several sizes; the range then covers what was seen.
        widen_ranges: Build anew for a wider range where a call is outside a declared one. By
            default that is an error.
        calibration_batches: Calls that calibrate a program of precision "int8" which is given no
            calibration data.
        max_mismatch: For "int8": the largest share of predictions on the calibration data that may
            differ from fp32's. Operators go back to floating point until it holds.
        max_accuracy_drop: For "int8": how far `accuracy_fn` may fall below its value in fp32.
        accuracy_fn: Takes a callable like the program and returns its accuracy, higher being
            better.
        quantization: Further options of "int8".
        normalization: Let the program take images as uint8, and normalize them itself.
        cache: Keep compiled executables on disk.
        progress: Show progress of long work on stderr. None shows it if stderr is a terminal.
        xla: Options of the XLA engine.
        tensorrt: Options of the TensorRT engines.
    """

    strict: bool = False
    threads: int | None = None
    min_cluster_weight: int = 2
    max_clusters: int | None = None
    max_cluster_nodes: int | None = None
    fuel: int | None = None
    keep_memory: bool = True
    max_specializations: int = 8
    max_bound_values: int = 4
    ranges: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    widen_ranges: bool = False
    calibration_batches: int = 8
    max_mismatch: float | None = None
    max_accuracy_drop: float | None = None
    accuracy_fn: Callable[[Callable[..., Any]], float] | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    normalization: InputNormalization | None = None
    cache_dir: Path | str | None = None
    cache_bytes: int = CACHE_BYTES
    cache: bool = True
    progress: bool | None = None
    xla: XlaOptions = field(default_factory=XlaOptions)
    tensorrt: TensorRTOptions = field(default_factory=TensorRTOptions)

    def __post_init__(self) -> None:
        _check_all(self, _CHECKS)
        if (self.max_accuracy_drop is None) != (self.accuracy_fn is None):
            raise OptionError(
                "CompileOptions.max_accuracy_drop and accuracy_fn go together: the bound, and what "
                "measures the accuracy that it bounds."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """Options of `xrt.compile_training`.

    Attributes:
        trainable: For ONNX graphs: patterns (`*`, `?`) of names of the initializers to train. None
            trains those whose metadata say xrt.trainable = "true".
        clip_norm: Scale the gradients down to this global norm where theirs is larger; as
            torch.nn.utils.clip_grad_norm_. None does not.
        accumulate: Into how many parts a batch is cut, which run one after the other; the update
            takes the mean of their gradients. The memory is that of one part.
        segments: Into how many pieces the forward pass is cut whose inner values are computed again
            for the backward pass instead of kept. 1 keeps all.
        batch_norm: On several devices, whether a BatchNorm takes the statistics of the whole batch,
            "synchronized", or each device normalizes its share by itself, "device".
        seed: Of all random numbers.
        nonfinite: What a loss or gradient that is not finite does: "raise" an error or "skip" the
            update. The weights stay as they were either way. In precision "fp16" an overflow of the
            gradients always lowers the loss scale and skips.
        loss_scale: First loss scale of precision "fp16".
        scale_growth_steps: So many steps without overflow double the loss scale.
        cache_dir: Folder of the compile caches. None uses `XRT_CACHE_DIR`, or the user's cache
            folder.
        progress: Show progress of long work on stderr. None shows it if stderr is a terminal.
        xla: Options of the XLA engine.
    """

    trainable: tuple[str, ...] | None = None
    clip_norm: float | None = None
    accumulate: int = 1
    segments: int = 1
    batch_norm: str = "synchronized"
    seed: int = 0
    nonfinite: str = "raise"
    loss_scale: float = 65536.0
    scale_growth_steps: int = 2000
    cache_dir: Path | str | None = None
    progress: bool | None = None
    xla: XlaOptions = field(default_factory=XlaOptions)

    def __post_init__(self) -> None:
        _check_all(self, _TRAINING_CHECKS)


_Check = tuple[Callable[[object], bool], str]


def _check_all(options: object, checks: Mapping[str, _Check]) -> None:
    for name, (accepts, wanted) in checks.items():
        value = getattr(options, name)
        if not accepts(value):
            kind = type(options).__name__
            raise OptionError(f"{kind}.{name} must be {wanted}; got {value!r}.")


def _whole(least: int, *, optional: bool = False) -> _Check:
    def accepts(value: object) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return accepts, f"a whole number of at least {least}"


def _between(least: float, most: float, *, optional: bool = False) -> _Check:
    def accepts(value: object) -> bool:
        if value is None:
            return optional
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and least <= value <= most  # type: ignore[operator]

    return accepts, f"a number from {least:g} to {most:g}"


def _of(*kinds: type) -> _Check:
    names = ["None" if kind is type(None) else kind.__name__ for kind in kinds]
    return lambda value: isinstance(value, kinds), f"of type {' or '.join(names)}"


def _is_range(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) in (2, 3)
        and all(isinstance(size, int) and not isinstance(size, bool) for size in value)
        and 0 <= value[0] <= value[-1]
        and list(value) == sorted(value)
    )


_TENSORRT_CHECKS: dict[str, _Check] = {
    "workspace": _whole(1, optional=True),
    "optimization_level": (
        lambda value: value is None or (type(value) is int and 0 <= value <= 5),
        "a whole number from 0 to 5, or None",
    ),
    "tf32": _of(bool),
    "refit": _of(bool),
    "version_compatible": _of(bool),
    "hardware_compatibility": (
        lambda value: value in (None, "ampere_plus", "same_compute_capability"),
        "'ampere_plus', 'same_compute_capability' or None",
    ),
    "timing_cache": _of(str, Path, type(None)),
    "weight_streaming": _of(bool),
    "cuda_graphs": _of(bool),
    "shape_specialization": (
        lambda value: value in ("lazy", "eager", "none"),
        "'lazy', 'eager' or 'none'",
    ),
}

_QUANTIZATION_CHECKS: dict[str, _Check] = {
    "percentile": _between(50, 100),
    "weight_bits": (lambda value: value in (None, 7, 8), "7, 8 or None"),
    "equalize": _of(bool),
    "correct_bias": _of(bool),
    "report": _of(bool),
}


def _are_finite(value: object) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    return all(isinstance(each, (int, float)) and math.isfinite(each) for each in value)


_NORMALIZATION_CHECKS: dict[str, _Check] = {
    "mean": (_are_finite, "a tuple of finite numbers"),
    "std": (lambda value: _are_finite(value) and 0 not in value, "a tuple of numbers but 0"),  # type: ignore[operator]
    "input": _of(str, type(None)),
    "layout": (lambda value: value in ("NCHW", "NHWC"), "'NCHW' or 'NHWC'"),
}

_CHECKS: dict[str, _Check] = {
    "strict": _of(bool),
    "threads": _whole(1, optional=True),
    "min_cluster_weight": _whole(0),
    "max_clusters": _whole(0, optional=True),
    "max_cluster_nodes": _whole(1, optional=True),
    "fuel": _whole(0, optional=True),
    "keep_memory": _of(bool),
    "max_specializations": _whole(1),
    "max_bound_values": _whole(0),
    "ranges": (
        lambda value: isinstance(value, Mapping) and all(map(_is_range, value.values())),
        "a mapping from symbols to (least, most) or (least, usual, most), each at least 0",
    ),
    "widen_ranges": _of(bool),
    "calibration_batches": _whole(1),
    "max_mismatch": _between(0, 1, optional=True),
    "max_accuracy_drop": _between(0, 1, optional=True),
    "accuracy_fn": (lambda value: value is None or callable(value), "callable"),
    "quantization": _of(QuantizationOptions),
    "normalization": _of(InputNormalization, type(None)),
    "cache_dir": _of(str, Path, type(None)),
    "cache_bytes": _whole(0),
    "cache": _of(bool),
    "progress": _of(bool, type(None)),
    "xla": _of(XlaOptions),
    "tensorrt": _of(TensorRTOptions),
}
"""What each option accepts, and how to say so."""

_TRAINING_CHECKS: dict[str, _Check] = {
    "trainable": (
        lambda value: (
            value is None
            or (isinstance(value, tuple) and all(isinstance(each, str) for each in value))
        ),
        "a tuple of patterns of names, or None",
    ),
    "clip_norm": _between(0, float("inf"), optional=True),
    "accumulate": _whole(1),
    "segments": _whole(1),
    "batch_norm": (lambda value: value in ("synchronized", "device"), "'synchronized' or 'device'"),
    "seed": _whole(0),
    "nonfinite": (lambda value: value in ("raise", "skip"), "'raise' or 'skip'"),
    "loss_scale": _between(1, 2.0**127),
    "scale_growth_steps": _whole(1),
    "cache_dir": _of(str, Path, type(None)),
    "progress": _of(bool, type(None)),
    "xla": _of(XlaOptions),
}
