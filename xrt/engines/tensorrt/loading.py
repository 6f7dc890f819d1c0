"""From a plan to an engine on the GPU: checked first, deserialized, configured."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from xrt.engines.cache import DiskCache, open_cache
from xrt.engines.tensorrt.library import listening, logger
from xrt.engines.tensorrt.plan import Plan
from xrt.errors import (
    CacheWarning,
    DeviceMemoryError,
    EngineRunError,
    EngineUnavailableError,
    MissingDependencyError,
    XrtError,
)
from xrt.kernels.cuda import array as A
from xrt.kernels.cuda import device
from xrt.options import CompileOptions

_REASONS = {
    "VERSION_MISMATCH": "it was built by another release of TensorRT-RTX",
    "UNSUPPORTED_CC": "it was built for another compute capability than this GPU's",
    "OLD_CUDA_DRIVER": "the NVIDIA driver here is too old for it",
    "OLD_CUDA_RUNTIME": "the CUDA runtime here is too old for it",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory for it",
    "MALFORMED_ENGINE": "it is damaged",
    "CUDA_ERROR": "the CUDA driver or runtime here is not installed correctly",
}
"""What `get_engine_validity` of TensorRT-RTX diagnoses, in words."""

_SAVE_SECONDS = 10.0
"""Kernels are saved at most this often while programs run, and once more at the end."""


class Loaded:
    """An engine on the GPU, of which each thread makes an execution context.

    Attributes:
        engine: The library's engine.
        trt: The library.
        names: Names of the engine's inputs and outputs.
        on_host: Names of inputs and outputs whose values the library reads or writes on the host.
    """

    def __init__(self, plan: Plan, cluster: str, options: CompileOptions) -> None:
        self.trt: Any = plan.library.trt
        self._cluster, self._plan = cluster, plan
        gpu = device.present()
        if isinstance(gpu, str):
            raise EngineUnavailableError(f"{_who(plan, cluster)}: {gpu}. {_what_to_do(plan)}")
        try:
            device.current()
        except MissingDependencyError as error:
            raise EngineUnavailableError(f"{_who(plan, cluster)}: {error}") from error
        self._gpu = gpu
        self._lock = threading.Lock()
        self._runtime = self.trt.Runtime(logger(plan.library))
        self._check_validity()
        self.engine: Any = self._deserialize()
        self._check_bindings()
        host = self.trt.TensorLocation.HOST
        self.on_host = {n for n in self.names if self.engine.get_tensor_location(n) == host}
        if getattr(self.engine, "streamable_weights_size", 0) and options.tensorrt.weight_streaming:
            budget = self.engine.get_weight_streaming_automatic_budget()
            self.engine.weight_streaming_budget_v2 = budget
        self._config: Any = None
        self._kernels: KernelCache | None = None
        if hasattr(self.engine, "create_runtime_config"):
            self._configure(options)

    def _check_validity(self) -> None:
        if not hasattr(self._runtime, "get_engine_validity"):
            return  # not TensorRT-RTX: deserializing says what is wrong
        with listening() as messages:
            validity, bits = self._runtime.get_engine_validity(self._plan.data)
        if validity != self.trt.EngineValidity.INVALID:
            return
        raise invalid(self._plan, self._cluster, diagnose(self.trt, int(bits)), messages.errors)

    def _deserialize(self) -> Any:
        said: list[str] = []
        for attempt in range(2):
            with listening() as messages:
                engine = self._runtime.deserialize_cuda_engine(self._plan.data)
            if engine is not None:
                return engine
            said = messages.errors
            if attempt or not any(map(device.is_out_of_memory, said)):
                break
            A.trim()  # what xrt holds for later is free for the engine
        text = "; ".join(said) or "TensorRT gave no reason"
        if device.is_out_of_memory(text):
            raise DeviceMemoryError(
                f"The GPU {self._gpu.name} has no memory left for loading the engine of cluster "
                f"{self._cluster!r} ({len(self._plan.data) >> 20} MiB): {text}. "
                + device.memory_left()
            )
        raise EngineUnavailableError(
            f"{_who(self._plan, self._cluster)} on {self._gpu.name} ({self._gpu.target}): {text}. "
            "Compile it again here."
        )

    def _check_bindings(self) -> None:
        engine, plan = self.engine, self._plan
        self.names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        outputs = {binding.name for binding in plan.outputs}
        known = outputs | {binding.name for binding in plan.inputs}
        if not outputs <= self.names <= known:  # it may have no use for an input
            raise EngineUnavailableError(
                f"The engine of cluster {self._cluster!r} has the inputs and outputs "
                f"{sorted(self.names)}, and its plan says {sorted(known)}: the plan is damaged. "
                "Compile it again."
            )

    def _configure(self, options: CompileOptions) -> None:
        """Choose how the engine runs, and see that the library took the choice."""
        config = self._config = self.engine.create_runtime_config()
        for name, wanted in self._strategies(options).items():
            if hasattr(config, name):
                setattr(config, name, wanted)
                _assert_taken(name, getattr(config, name), wanted)
        if hasattr(config, "create_runtime_cache"):
            self._kernels = KernelCache(config, self._plan, self._gpu, options)

    def _strategies(self, options: CompileOptions) -> dict[str, Any]:
        trt, chosen = self.trt, {}
        if hasattr(trt, "CudaGraphStrategy"):
            # xrt captures whole schedules itself; graphs within graphs cannot be.
            chosen["cuda_graph_strategy"] = trt.CudaGraphStrategy.DISABLED
        kinds = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if kinds is not None:
            wanted = getattr(kinds, options.tensorrt.shape_specialization.upper())
            chosen["dynamic_shapes_kernel_specialization_strategy"] = wanted
        return chosen

    def context(self) -> Any:
        """A new execution context, for one thread.

        Raises:
            DeviceMemoryError: If there is no memory for its activations.
            EngineRunError: If the library refuses otherwise.
        """
        with self._lock:
            for attempt in range(2):
                with listening() as messages:
                    made = self._new_context()
                if made is not None:
                    return self._checked(made)
                if attempt or not any(map(device.is_out_of_memory, messages.errors)):
                    break
                A.trim()
        size = int(getattr(self.engine, "device_memory_size_v2", 0))
        raise self.failure(messages.errors, f"an execution context of {size >> 20} MiB")

    def _new_context(self) -> Any:
        if self._config is None:
            return self.engine.create_execution_context()
        return self.engine.create_execution_context(self._config)

    def _checked(self, context: Any) -> Any:
        if self._config is not None and hasattr(context, "get_runtime_config"):
            taken = context.get_runtime_config()
            for name in ("cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"):
                if hasattr(self._config, name):
                    _assert_taken(name, getattr(taken, name), getattr(self._config, name))
        return context

    def failure(self, said: Sequence[str], what: str) -> EngineRunError:
        """The error for what the library said when it failed at `what`."""
        text = "; ".join(said) or "it gave no reason"
        name = self._plan.library.name
        message = f"Cluster {self._cluster!r} failed on {name} at {what}: {text}"
        if device.is_out_of_memory(text):
            return DeviceMemoryError(f"{message}. {device.memory_left()}")
        return EngineRunError(message)

    def save_kernels(self) -> None:
        """Keep what TensorRT-RTX compiled for this GPU on disk, for the next process."""
        if self._kernels is not None:
            self._kernels.save()

    def layers(self) -> list[dict[str, str]]:
        """Name, kind and precision of each layer of the engine, as the library's inspector says."""
        inspector = self.engine.create_engine_inspector()
        return layers_of(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))


def _assert_taken(name: str, got: Any, wanted: Any) -> None:
    if got != wanted:
        raise EngineUnavailableError(
            f"TensorRT took {name}={got} where {wanted} was set; xrt cannot run it so. "
            "Install the release that xrt[tensorrt] names."
        )


def _who(plan: Plan, cluster: str) -> str:
    made_for = f"for {plan.target} " if plan.target else ""
    by = f"{plan.library.name} {plan.library.version}"
    return f"Cluster {cluster!r} was built {made_for}by {by} and cannot run here"


def _what_to_do(plan: Plan) -> str:
    where = f"a GPU of compute capability {plan.target}" if plan.target else "an NVIDIA GPU"
    return (
        f"Run the program on a machine with {where} and its driver, or compile it for this machine "
        "with engine='xla' or engine='host'."
    )


def diagnose(trt: Any, bits: int) -> list[str]:
    """The names of the diagnostics that `get_engine_validity` gave as bits."""
    known = trt.EngineInvalidityDiagnostics.__members__
    return [name for name, value in known.items() if bits & int(value)]


def invalid(plan: Plan, cluster: str, names: Sequence[str], said: Sequence[str]) -> XrtError:
    """The error for an engine that the library declares invalid here."""
    reasons = [_REASONS.get(name, name) for name in names] or list(said) or ["it is invalid here"]
    gpu = device.present()
    here = "" if isinstance(gpu, str) else f" (a {gpu.name}, {gpu.target})"
    text = f"{_who(plan, cluster)}{here}: {', and '.join(reasons)}"
    if list(names) == ["INSUFFICIENT_GPU_MEMORY"]:
        return DeviceMemoryError(f"{text}. {device.memory_left()}")
    return EngineUnavailableError(f"{text}. {_what_to_do(plan)}")


def layers_of(text: str) -> list[dict[str, str]]:
    """The layers in the inspector's JSON: of engines that were built to tell names only, or all."""
    try:
        listed = json.loads(text).get("Layers", [])
    except (ValueError, AttributeError):
        return []
    return [_layer(each) for each in listed]


def _layer(said: Any) -> dict[str, str]:
    if not isinstance(said, dict):
        return {"name": str(said)}
    outputs = said.get("Outputs") or [{}]
    kinds = [str(each.get("Format/Datatype") or each.get("Datatype") or "") for each in outputs]
    found = {
        "name": str(said.get("Name", "")),
        "kind": str(said.get("LayerType", "")),
        "precision": ", ".join(dict.fromkeys(kind for kind in kinds if kind)),
    }
    return {key: value for key, value in found.items() if value}


class KernelCache:
    """What TensorRT-RTX compiles when an engine first runs, kept between processes.

    The library checks by itself that it fits this GPU, driver and release, and starts with nothing
    if it does not.
    """

    def __init__(self, config: Any, plan: Plan, gpu: device.Gpu, options: CompileOptions) -> None:
        self._disk = open_cache(options, "tensorrt-kernels")
        self._cache = config.create_runtime_cache()
        self._key = _key(plan, gpu)
        self._about = {"library": plan.library.name, "version": plan.library.version}
        stored = self._disk.get(self._key) if self._disk else None
        if self._disk and stored and not self._cache.deserialize(stored):
            self._disk.drop(self._key)  # of no use here, and what is compiled may be smaller
        if not config.set_runtime_cache(self._cache):
            warnings.warn(
                f"{plan.library.name} {plan.library.version} did not take a cache for the kernels "
                "that it compiles for this GPU: each process compiles them anew.",
                CacheWarning,
                stacklevel=2,
            )
            self._disk = None
        self._saved = -math.inf
        # Kernels that are compiled in the background may be ready only when the process ends.
        rest = (self._cache, self._disk, self._key, self._about)
        weakref.finalize(self, _save_at_end, *rest)

    def save(self) -> None:
        """Write what was compiled, if that was not done lately: it is all serialized for it."""
        now = time.monotonic()
        if now - self._saved >= _SAVE_SECONDS:
            self._saved = now
            _save(self._cache, self._disk, self._key, self._about)


def _save(cache: Any, disk: DiskCache | None, key: str, about: dict[str, str]) -> None:
    """Write `cache` unless the disk, where other processes save too, holds as much or more."""
    if disk is None:
        return
    data = bytes(cache.serialize())
    with disk.lock(key):
        if len(data) > len(disk.get(key) or b""):
            disk.put(key, data, about)


def _save_at_end(*arguments: Any) -> None:
    with contextlib.suppress(Exception):  # nobody is left to be told
        _save(*arguments)


def _key(plan: Plan, gpu: device.Gpu) -> str:
    digest = hashlib.sha256(plan.data)
    digest.update(repr((plan.library.version, gpu.name, gpu.target, gpu.driver)).encode())
    return digest.hexdigest()
