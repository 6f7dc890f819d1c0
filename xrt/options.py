"""Every option of xrt, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xrt.errors import OptionError

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
    cache_dir: Path | str | None = None
    cache: bool = True
    progress: bool | None = None
    xla: XlaOptions = field(default_factory=XlaOptions)

    def __post_init__(self) -> None:
        for name, (accepts, wanted) in _CHECKS.items():
            value = getattr(self, name)
            if not accepts(value):
                raise OptionError(f"CompileOptions.{name} must be {wanted}; got {value!r}.")


def _whole(least: int, *, optional: bool = False) -> tuple[Callable[[object], bool], str]:
    def accepts(value: object) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    return accepts, f"a whole number of at least {least}"


def _of(*kinds: type) -> tuple[Callable[[object], bool], str]:
    names = ["None" if kind is type(None) else kind.__name__ for kind in kinds]
    return lambda value: isinstance(value, kinds), f"of type {' or '.join(names)}"


_CHECKS = {
    "strict": _of(bool),
    "min_cluster_weight": _whole(0),
    "max_clusters": _whole(0, optional=True),
    "fuel": _whole(0, optional=True),
    "max_specializations": _whole(1),
    "max_bound_values": _whole(0),
    "cache_dir": _of(str, Path, type(None)),
    "cache": _of(bool),
    "progress": _of(bool, type(None)),
    "xla": _of(XlaOptions),
}
"""What each option accepts, and how to say so."""
