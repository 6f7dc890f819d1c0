"""The contract between xrt and an engine, and the registry of engines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from xrt.graph import Cluster, Support
from xrt.options import CompileOptions

__all__ = ["Engine", "Executable", "Support"]


class Executable(ABC):
    """A cluster, built by an engine and bound to a device."""

    @abstractmethod
    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[Any]:
        """Enqueue the cluster on `stream` and return its outputs in the cluster's order.

        Never synchronizes the device. Inputs may be NumPy arrays or the engine's own arrays.
        """

    @property
    def details(self) -> dict[str, Any]:
        """What `Program.explain()` adds to the cluster's entry; fit for JSON."""
        return {}

    @abstractmethod
    def serialize(self) -> bytes:
        """The executable as bytes that `Engine.deserialize` takes back."""


class Engine(ABC):
    """Turns clusters into executables. Subclasses are final and hold no per-program state."""

    name: str

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
        """The executable that `Executable.serialize` gave, for this cluster on a like device."""
