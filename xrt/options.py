"""Every option of xrt, in one place."""

from __future__ import annotations

from collections.abc import Mapping
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
    cache_dir: Path | str | None = None
    cache: bool = True
    progress: bool | None = None
    xla: XlaOptions = field(default_factory=XlaOptions)

    def __post_init__(self) -> None:
        for name, least in (
            ("min_cluster_weight", 0),
            ("max_clusters", 0),
            ("fuel", 0),
            ("max_specializations", 1),
        ):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise OptionError(
                    f"CompileOptions.{name} must be a whole number of at least {least}; "
                    f"got {value!r}."
                )
