"""The contract between xrt and an engine, and the registry of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.engines.prepared import PreparedKey
from xrt.errors import OptionError
from xrt.graph import Cluster, Support
from xrt.options import CompileOptions

__all__ = ["Engine", "Executable", "Support"]


INNER = "xrt.inner"
"""Metadata of a cluster's output that only clusters of the same engine read."""


class Executable(ABC):
    """A cluster, built by an engine and bound to a device."""

    @abstractmethod
    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[Any]:
        """Enqueue the cluster on `stream` and return its outputs in the cluster's order.

        Never synchronizes the device. Inputs may be NumPy arrays or the engine's own arrays.
        """

    @property
    def reads_in_place(self) -> bool:
        """Whether `run` reads NumPy arrays that are aligned to 64 bytes where they are, and copies
        others first; and has read them when it returns.
        """
        return False

    @property
    def recycled(self) -> tuple[int, ...]:
        """Outputs that `run_into` computes into memory given to it; of those marked `INNER`."""
        return ()

    def run_into(self, inputs: Sequence[Any], spare: Sequence[Any]) -> Sequence[Any]:
        """Like `run`, with memory for the outputs that `recycled` lists, in that order.

        Args:
            inputs: As `run` takes them.
            spare: For each an output of that shape and dtype of an earlier run, which is lost; or
                None, for new memory.
        """
        return self.run(inputs)

    def memory(self) -> dict[str, int]:
        """Bytes that a run takes, as far as the engine knows: arguments, outputs, temporaries, and
        of the executable: weights, code.
        """
        return {}

    @property
    def details(self) -> dict[str, Any]:
        """What `Program.explain()` adds to the cluster's entry; fit for JSON."""
        return {}

    @property
    def concurrent(self) -> bool:
        """Whether two runs at once, for two batches, take less time than one after the other, and
        give what they would give then.
        """
        return False

    @property
    def capturable(self) -> bool:
        """Whether `run` may be captured into a CUDA graph now.

        It then enqueues on the lane of its thread (`kernels.cuda.streams.lane`), takes memory from
        `kernels.cuda.array.allocate`, and waits for nothing.
        """
        return False

    @abstractmethod
    def serialize(self) -> bytes:
        """The executable as bytes that `Engine.deserialize` takes back."""

    def prepared(self) -> Mapping[PreparedKey, np.ndarray[Any, Any]]:
        """Constants in the form that the device reads, where that is worth keeping in a file.

        A saved program holds them; while its engine deserializes, `engines.prepared.find` gives
        them back, in memory that is mapped, aligned, and never changes.
        """
        return {}


class Engine(ABC):
    """Turns clusters into executables. Subclasses are final and hold no per-program state."""

    name: str

    gpu: bool = False
    """Whether it computes on a GPU, whatever this machine has."""

    channels_last: bool = False
    """Whether it computes convolutions channels-last, and a Transpose between that layout and
    ONNX's costs nothing inside a cluster: values cross between its clusters in that layout."""

    takes_ranges: bool = False
    """Whether an executable serves a range of shapes: a cluster then may have symbolic dimensions,
    and its inputs say in their metadata between which shapes they lie
    (`passes.annotate_profiles.Profile`)."""

    def identity(self, options: CompileOptions) -> Mapping[str, str]:
        """What executables depend on besides their cluster, by name: versions, device, threads.

        Where it is not what it was, a saved program is compiled anew. An engine that leaves it
        empty refuses what it cannot run in `deserialize`.
        """
        return {}

    def targeting(self, target: str) -> Engine:
        """An engine like this one that builds for `target`, a device that need not be here.

        Raises:
            OptionError: If this engine builds for the device that is here only, as most do, or does
                not know the target; the message lists those that it knows.
        """
        raise OptionError(
            f"target={target!r}: the engine {self.name!r} builds for the device that is here only."
        )

    @abstractmethod
    def available(self) -> Support:
        """Whether the engine can run on this machine; if not, the reason and the remedy."""

    @abstractmethod
    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether the engine runs `node`, whose value types and shapes are inferred."""

    @abstractmethod
    def compile(self, cluster: Cluster, options: CompileOptions) -> Executable:
        """Build `cluster`.

        Raises:
            EngineBuildError: If the engine refuses or fails.
        """

    @abstractmethod
    def deserialize(self, data: bytes, cluster: Cluster, options: CompileOptions) -> Executable:
        """The executable that `Executable.serialize` gave, for this cluster on a like device.

        Raises:
            EngineBuildError: If it cannot be had of `data` here; the cluster is compiled anew.
        """
