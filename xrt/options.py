"""Every option of xrt, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrt.errors import OptionError, unknown

PRECISIONS = ("fp32", "fp16", "bf16", "int8")


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
class CompileOptions:
    """Options of `xrt.compile`.

    Attributes:
        strict: Raise where the default is to fall back with a warning.
        min_cluster_weight: Least weight of a cluster; a lighter one runs on the host. Operators
            that compute much (convolutions, matrix products, ...) weigh 10, others 1, those that
            only rename data 0.
        max_clusters: Most clusters in a program; the lightest beyond it run on the host.
            None sets no bound.
        fuel: Number of nodes, in topological order, that engines may claim. Lowering it bisects a
            wrong result to the node that causes it. None sets no bound.
        max_specializations: Input signatures kept compiled by a program; the least recently used
            goes first.
        max_bound_values: Most contents of small inputs that shapes depend on (sizes, axes, counts)
            that a program is compiled for, for each signature of shapes. Beyond it, it is compiled
            once for any contents, and what depends on them runs on the host. 0 does that at once.
        cache_dir: Folder of the compile caches. None uses `XRT_CACHE_DIR`, or the user's cache
            folder.
        calibration_batches: Calls that calibrate a program of precision "int8" which is given no
            calibration data.
        max_mismatch: For "int8": the largest share of predictions on the calibration data that may
            differ from fp32's. Operators go back to floating point until it holds.
        max_accuracy_drop: For "int8": how far `accuracy_fn` may fall below its value in fp32.
        accuracy_fn: Takes a callable like the program and returns its accuracy, higher being
            better.
        quantization: Further options of "int8".
        cache: Keep compiled executables on disk.
        progress: Show progress of long work on stderr. None shows it if stderr is a terminal.
        xla: Options of the XLA engine.
    """

    strict: bool = False
    min_cluster_weight: int = 2
    max_clusters: int | None = None
    fuel: int | None = None
    max_specializations: int = 8
    max_bound_values: int = 4
    calibration_batches: int = 8
    max_mismatch: float | None = None
    max_accuracy_drop: float | None = None
    accuracy_fn: Callable[[Callable[..., Any]], float] | None = None
    quantization: QuantizationOptions = field(default_factory=QuantizationOptions)
    cache_dir: Path | str | None = None
    cache: bool = True
    progress: bool | None = None
    xla: XlaOptions = field(default_factory=XlaOptions)

    def __post_init__(self) -> None:
        _check_all(self, _CHECKS)
        if (self.max_accuracy_drop is None) != (self.accuracy_fn is None):
            raise OptionError(
                "CompileOptions.max_accuracy_drop and accuracy_fn go together: the bound, and what "
                "measures the accuracy that it bounds."
            )


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


_QUANTIZATION_CHECKS: dict[str, _Check] = {
    "percentile": _between(50, 100),
    "weight_bits": (lambda value: value in (None, 7, 8), "7, 8 or None"),
    "equalize": _of(bool),
    "correct_bias": _of(bool),
    "report": _of(bool),
}

_CHECKS: dict[str, _Check] = {
    "strict": _of(bool),
    "min_cluster_weight": _whole(0),
    "max_clusters": _whole(0, optional=True),
    "fuel": _whole(0, optional=True),
    "max_specializations": _whole(1),
    "max_bound_values": _whole(0),
    "calibration_batches": _whole(1),
    "max_mismatch": _between(0, 1, optional=True),
    "max_accuracy_drop": _between(0, 1, optional=True),
    "accuracy_fn": (lambda value: value is None or callable(value), "callable"),
    "quantization": _of(QuantizationOptions),
    "cache_dir": _of(str, Path, type(None)),
    "cache": _of(bool),
    "progress": _of(bool, type(None)),
    "xla": _of(XlaOptions),
}
"""What each option accepts, and how to say so."""
