"""From a cluster to a plan: export, parse, configure, build."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from xrt import graph as G
from xrt.engines.tensorrt.export import export
from xrt.engines.tensorrt.library import TENSORRT_RTX, Library, listening, plain
from xrt.engines.tensorrt.parse import Network, ParseError, parse
from xrt.engines.tensorrt.plan import Binding, Plan, Profile
from xrt.engines.tensorrt.support import DTYPES, bounds
from xrt.engines.tensorrt.surgery import RefusedError, place_of
from xrt.errors import CacheWarning, EngineBuildError, OptionError
from xrt.graph import Cluster
from xrt.kernels.cuda.device import present
from xrt.options import CompileOptions, TensorRTOptions
from xrt.progress import progress

_WAIT_SECONDS = 0.1
"""How often the thread that waits for a build looks for an interrupt."""


class UnknownShapesError(EngineBuildError):
    """A cluster was cut so that TensorRT cannot know its shapes. Says nothing of its nodes."""


def build(library: Library, cluster: Cluster, options: CompileOptions, target: str | None) -> Plan:
    """Build `cluster` for `target`, or for the GPU present.

    Raises:
        EngineBuildError: With the library's own words, and the node where that is known.
        OptionError: If an option or the target is none of this library.
        KeyboardInterrupt: On Ctrl-C, after the library has stopped.
    """
    begin = time.perf_counter()
    model, network = _network(library, cluster)
    config = _configure(library, network, options.tensorrt, target)
    profile = _profile(cluster, network, config)
    data = _serialize(library, network, config, model, cluster, options)
    _keep_timings(config, options.tensorrt)
    report = {
        "library": f"{library.name} {library.version}",
        "target": target or "the GPU present",
        "plan_bytes": len(data),
        "layers": int(network.network.num_layers),
        "workspace_limit": int(config.get_memory_pool_limit(library.trt.MemoryPoolType.WORKSPACE)),
        "build_seconds": time.perf_counter() - begin,
        "cache_hit": False,
    }
    if profile:
        report["profile"] = {name: list(map(list, each)) for name, each in profile.items()}
    inputs, outputs = bindings(cluster, network)
    return Plan(library, data, inputs, outputs, target, (profile,) if profile else (), report)


def _network(library: Library, cluster: Cluster) -> tuple[ir.Model, Network]:
    try:
        model = export(cluster.body)
        return model, parse(library, model)
    except RefusedError as error:
        raise _failed(cluster, str(error), error.node) from error
    except ParseError as error:
        raise _failed(cluster, error.reason, error.node) from error


def _failed(cluster: Cluster, reason: str, node: ir.Node | None) -> EngineBuildError:
    op, place = ("", "") if node is None else place_of(node)
    return EngineBuildError(cluster.engine, reason, op=op, place=place)


def bindings(cluster: Cluster, network: Network) -> tuple[tuple[Binding, ...], tuple[Binding, ...]]:
    """Inputs and outputs of a network, in the order of the cluster's."""
    made = network.network
    inputs = {t.name: t for t in (made.get_input(i) for i in range(made.num_inputs))}
    outputs = {t.name: t for t in (made.get_output(i) for i in range(made.num_outputs))}
    return (
        tuple(_binding(value, inputs.get(value.name)) for value in cluster.body.inputs),
        tuple(_binding(value, outputs.get(value.name)) for value in cluster.body.outputs),
    )


def _binding(value: ir.Value, tensor: Any) -> Binding:
    assert value.dtype is not None, "supports() admits typed values"
    assert value.shape is not None, "supports() admits values of known rank"
    original = value.dtype.numpy().name
    dtype = original if tensor is None else DTYPES[str(tensor.dtype.name)]
    shape = tuple(dim if isinstance(dim, int) else None for dim in value.shape)
    return Binding(str(value.name), dtype, original, shape)


# --- shapes that change --------------------------------------------------------------------------


def _profile(cluster: Cluster, network: Network, config: Any) -> Profile:
    """Tell the library between which shapes the inputs of `cluster` lie.

    Raises:
        UnknownShapesError: If that is not known, or is not all that the network needs to know.
        EngineBuildError: If the library does not take it.
    """
    profile = network.builder.create_optimization_profile()
    made = network.network
    open_inputs = {}
    for value in cluster.body.inputs:
        if G.static_shape(value) is None:
            known = bounds(value)
            if known is None:
                reason = f"the input {value.name!r} has shape {value.shape}, of no known range"
                raise _unknown(cluster, value, reason)
            open_inputs[str(value.name)] = known
    for index in range(made.num_inputs):
        tensor = made.get_input(index)
        if tensor.is_shape_tensor:
            (value,) = (each for each in cluster.body.inputs if each.name == tensor.name)
            raise _unknown(cluster, value, _DECIDES.format(tensor.name))
        if tensor.name in open_inputs:
            profile.set_shape(tensor.name, *open_inputs[tensor.name])
    if open_inputs and config.add_optimization_profile(profile) < 0:
        raise _failed(cluster, f"TensorRT does not take the shapes {open_inputs}", None)
    return open_inputs


_DECIDES = (
    "shapes depend on the contents of {!r}, which the host or another engine computes, and whose "
    "range is not known"
)


def _unknown(cluster: Cluster, value: ir.Value, reason: str) -> UnknownShapesError:
    """The error for an input of a cluster, which names a node that uses it."""
    node = next(iter(value.uses())).node
    return UnknownShapesError(cluster.engine, reason, op=node.op_type, place=node.name or "")


# --- options -------------------------------------------------------------------------------------


def _configure(
    library: Library, network: Network, options: TensorRTOptions, target: str | None
) -> Any:
    trt = library.trt
    config = network.builder.create_builder_config()
    if target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(library.capability(target), 0)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.tf32:
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            _require(library, name, flag in dir(trt.BuilderFlag))
            config.set_flag(getattr(trt.BuilderFlag, flag))
    if options.hardware_compatibility is not None:
        _require(library, "hardware_compatibility", hasattr(trt, "HardwareCompatibilityLevel"))
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatibility.upper())
        config.hardware_compatibility_level = level
    if options.timing_cache is not None:
        _require(library, "timing_cache", True)
        _take_timings(config, options.timing_cache)
    return config


_FLAGS = {
    "refit": "REFIT",
    "version_compatible": "VERSION_COMPATIBLE",
    "weight_streaming": "WEIGHT_STREAMING",
}

_NOT_IN_RTX = {
    "version_compatible": "its engines are for one release",
    "hardware_compatibility": "its engines run on every GPU of their compute capability",
    "timing_cache": "it measures nothing when it builds",
}
"""Options that TensorRT-RTX takes without effect, or fails on."""


def _require(library: Library, name: str, known: bool) -> None:
    """Raise if an option that was set is none of this library, or cannot work here."""
    why = "" if known else "this release does not have it"
    if library.name == TENSORRT_RTX:
        why = _NOT_IN_RTX.get(name, why)
        if name == "refit" and isinstance(present(), str):
            why = "TensorRT-RTX builds refittable engines on a machine with a GPU only"
    if why:
        raise OptionError(
            f"TensorRTOptions.{name} is not for {library.name} {library.version}: {why}. "
            "Leave it out."
        )


def _take_timings(config: Any, file: Path | str) -> None:
    """Give the library what it measured in earlier builds.

    Raises:
        OptionError: If it was measured by another release, or on another GPU.
    """
    path = Path(file)
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise OptionError(
            f"TensorRTOptions.timing_cache: TensorRT does not take {str(path)!r}, which is damaged "
            "or was written by another release or on another GPU. Name another file, or remove it."
        )


def _keep_timings(config: Any, options: TensorRTOptions) -> None:
    """Write what the library measured back to the file that the user named.

    The plan is finished by now: a file that cannot be written is only told.
    """
    if options.timing_cache is None:
        return
    path = Path(options.timing_cache)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".timing-") as folder:
            written = Path(folder, path.name)
            written.write_bytes(memoryview(config.get_timing_cache().serialize()))
            os.replace(written, path)
    except OSError as error:
        warnings.warn(
            f"The timing cache {str(path)!r} cannot be written: {error.strerror or error}. The "
            "next build measures again what this one did. Name another file with "
            "TensorRTOptions(timing_cache).",
            CacheWarning,
            stacklevel=2,
        )


# --- the build itself ----------------------------------------------------------------------------


def _serialize(
    library: Library,
    network: Network,
    config: Any,
    model: ir.Model,
    cluster: Cluster,
    options: CompileOptions,
) -> bytes:
    with (
        listening() as messages,
        progress(f"TensorRT: {cluster.name}", None, options.progress) as advance,
    ):
        monitor = _monitor(library, advance)
        config.progress_monitor = monitor

        def work() -> None:
            with listening(messages):
                made = network.builder.build_serialized_network(network.network, config)
                results.append(None if made is None else bytes(memoryview(made)))

        results: list[bytes | None] = []
        _run_interruptible(work, monitor.cancel)
        config.progress_monitor = None
    if results and results[0] is not None:
        return results[0]
    reason = "; ".join(map(plain, messages.errors)) or "the builder gave no reason"
    raise _failed(cluster, reason, _named_in(reason, model))


def _run_interruptible(work: Callable[[], None], cancel: Callable[[], None]) -> None:
    """Run `work` in a thread, since the library's own code does not notice Ctrl-C.

    An interrupt of this thread cancels the work, waits until it has ended, and goes on.
    """
    failures: list[BaseException] = []
    ended = threading.Event()  # join() of Python 3.11 returns too early after an interrupt

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=guarded, name="xrt-tensorrt-build", daemon=True)
    try:
        thread.start()
        while not ended.wait(_WAIT_SECONDS):
            pass
    except BaseException:
        cancel()
        if thread.is_alive():  # else it has ended, or ends as soon as it begins
            ended.wait()
            thread.join()
        raise
    thread.join()
    if failures:
        raise failures[0]


def _monitor(library: Library, advance: Callable[[str], None]) -> Any:
    """A progress monitor of the library that shows phases, and stops the build when cancelled."""
    base = library.trt.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.cancelled = threading.Event()

        def cancel(self) -> None:
            self.cancelled.set()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            advance(name)

        def phase_finish(self, name: str) -> None:
            pass

        def step_complete(self, name: str, step: int) -> bool:
            return not self.cancelled.is_set()

    return Monitor()


def _named_in(reason: str, model: ir.Model) -> ir.Node | None:
    """The node of the exported model that the library names in an error, if it names one."""
    words = set(re.findall(r"[^\s\[\](){}<>,;:'\"]+", reason))
    named = [node for node in model.graph if node.name and node.name in words]
    return named[0] if len(named) == 1 else None
