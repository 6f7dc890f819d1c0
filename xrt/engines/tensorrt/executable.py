"""A built cluster: loaded when it first runs, with an execution context for every thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrt.engines.engine import Executable
from xrt.engines.tensorrt.loading import Loaded
from xrt.engines.tensorrt.plan import Plan
from xrt.engines.tensorrt.session import Session, profile_for
from xrt.errors import EngineRunError, InputError, XrtError
from xrt.graph import Cluster
from xrt.kernels.cuda import device, streams
from xrt.kernels.cuda.array import DeviceArray
from xrt.kernels.cuda.streams import Lane
from xrt.options import CompileOptions


class TensorRTExecutable(Executable):
    """A cluster built by TensorRT.

    Making one needs no GPU; running it does. Inputs may be NumPy arrays, which are copied through
    pinned memory, or arrays of any library on the GPU, whose memory is shared. Outputs are
    `DeviceArray`s.

    Args:
        plan: What was built.
        cluster: What it was built of.
        options: The options it runs under.
    """

    def __init__(self, plan: Plan, cluster: Cluster, options: CompileOptions) -> None:
        self.plan = plan
        self._cluster, self._options = cluster.name, options
        self._loaded: Loaded | None = None
        self._lock = threading.Lock()
        self._layers: list[dict[str, str]] | None = None

    def load(self) -> None:
        """Bring the engine to the GPU now instead of at the first run.

        Raises:
            EngineUnavailableError: If it cannot run here; the message says what is missing.
            DeviceMemoryError: If the GPU has not enough memory.
        """
        self._load()

    def _load(self) -> Loaded:
        with self._lock:
            if self._loaded is None:
                self._loaded = Loaded(self.plan, self._cluster, self._options)
            return self._loaded

    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[DeviceArray]:
        """Enqueue the cluster on `stream`, by default the thread's own, and return its outputs.

        Raises:
            InputError: If an input does not fit.
            EngineUnavailableError: If the engine cannot run here.
            DeviceMemoryError: If the GPU has not enough memory.
            EngineRunError: If TensorRT fails. The executable can be run again.
        """
        self._check(inputs)
        loaded = self._loaded or self._load()
        lane = streams.lane() if stream is None else streams.lane_on(stream)
        session = lane.kept.get(self)
        if session is None:
            session = lane.kept[self] = Session(self.plan, loaded, lane)
        try:
            return session.run(inputs)
        except EngineRunError:
            self._forget(lane)
            raise

    def _forget(self, lane: Lane) -> None:
        """Drop a context that failed; the next run makes a new one."""
        session = lane.kept.pop(self, None)
        if session is not None and not lane.capturing:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                lane.wait()
                session.release()

    def _check(self, inputs: Sequence[Any]) -> None:
        bindings = self.plan.inputs
        if len(inputs) != len(bindings):
            raise InputError(
                f"Cluster {self._cluster!r} takes {len(bindings)} inputs; got {len(inputs)}."
            )
        for binding, given in zip(bindings, inputs, strict=True):
            shape = tuple(np.shape(given)) if not hasattr(given, "shape") else tuple(given.shape)
            fits = len(shape) == len(binding.shape) and all(
                want in (None, have) for want, have in zip(binding.shape, shape, strict=True)
            )
            if not fits:
                wanted = ["any" if size is None else size for size in binding.shape]
                raise InputError(
                    f"Input {binding.name!r} of cluster {self._cluster!r} has shape "
                    f"{list(shape)}; it was built for {wanted}."
                )
        if self.plan.profiles:
            profile_for(self.plan, [tuple(given.shape) for given in inputs])

    @property
    def capturable(self) -> bool:
        """Whether runs can be captured into a CUDA graph."""
        if not self._options.tensorrt.cuda_graphs or not self.plan.inputs:
            return False
        if self.plan.profiles:
            return False  # a graph is of one shape, and its context must stay at that
        if any(_narrows(b.original, b.dtype) for b in self.plan.inputs):
            return False  # numbers that do not fit are found on the host
        loaded = self._loaded
        if loaded is None:
            return True
        session = streams.lane().kept.get(self)
        return not loaded.on_host and (session is None or session.capturable)

    @property
    def details(self) -> dict[str, Any]:
        """Plan size, workspace, build time, where it came from, and layers where a GPU tells."""
        found = {**self.plan.report}
        layers = self._inspect()
        if layers:
            found["engine_layers"] = layers
            found["layers_by_precision"] = _count(layers)
        return {**found, "summary": summary(found)}

    def memory(self) -> dict[str, int]:
        """Bytes of the engine's weights and, once it is loaded, of a context's activations."""
        found = {"weights": len(self.plan.data)}
        if self._loaded is not None:
            found["temporaries"] = int(self._loaded.engine.device_memory_size_v2)
        return found

    def _inspect(self) -> list[dict[str, str]]:
        """The engine's layers; none where it cannot be loaded."""
        if self._layers is None:
            if not device.support():
                return []
            try:
                self._layers = self._load().layers()
            except XrtError:
                return []
        return self._layers

    def serialize(self) -> bytes:
        """The plan as bytes, for `Plan.from_bytes`."""
        return self.plan.to_bytes()


def summary(report: Mapping[str, Any]) -> str:
    """What a report says, in a line."""
    parts = []
    if "plan_bytes" in report:
        parts.append(f"plan {report['plan_bytes'] / 1e6:.2f} MB")
    if "target" in report:
        parts.append(f"for {report['target']}")
    if "build_seconds" in report:
        source = " (now from the cache)" if report.get("cache_hit") else ""
        parts.append(f"built in {report['build_seconds']:.2f} s{source}")
    if "engine_layers" in report:
        kinds = report["layers_by_precision"].items()
        listed = ", ".join(f"{count} {precision}" for precision, count in kinds)
        parts.append(f"{len(report['engine_layers'])} layers" + (f": {listed}" if listed else ""))
    return ", ".join(parts)


def _narrows(original: str, dtype: str) -> bool:
    return np.dtype(original).kind in "iu" and not np.can_cast(original, dtype, "safe")


def _count(layers: Sequence[dict[str, str]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer in layers:
        name = layer.get("precision", "")
        if name:
            counts[name] = counts.get(name, 0) + 1
    return counts
