"""The XLA engine: clusters compiled by XLA through JAX."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.cache import DiskCache, open_cache
from xrt.engines.engine import Engine, Executable
from xrt.engines.prepared import find
from xrt.engines.xla import compiler_flags, denormals, launch, recycle
from xrt.engines.xla import device as D
from xrt.engines.xla import keys as K
from xrt.engines.xla import lowering as L
from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
from xrt.engines.xla import trace as T
from xrt.engines.xla import tune as tuning
from xrt.engines.xla.executable import Code, XlaExecutable, load
from xrt.errors import EngineBuildError
from xrt.graph import Cluster, Support
from xrt.importers.tensors import MappedTensor
from xrt.options import CompileOptions


class XlaEngine(Engine):
    """Compiles clusters through JAX's tracing and XLA."""

    name = "xla"
    channels_last = True

    def identity(self, options: CompileOptions) -> Mapping[str, str]:
        """Versions, device and a digest of the lowerings; threads, which loops are cut for."""
        names = ("jax", "jaxlib", "platform", "device", "CPU features", "lowerings")
        with D.isolated(options.threads):
            found = dict(zip(names, _toolchain(), strict=True))
            if found["platform"] == "cpu":
                found["threads"] = str(D.thread_count())
                found["denormals"] = "kept" if denormals.kept(D.device()) else "flushed"
        return found

    def available(self) -> Support:
        """Whether XLA's device can be opened."""
        try:
            D.device()
        except (RuntimeError, AssertionError) as error:  # JAX asserts that it found a platform
            why = (
                str(error) or f"none of jax_platforms={getattr(jax.config, 'jax_platforms', '')!r}"
            )
            return Support.no(
                f"JAX found no device: {why}", "check JAX_PLATFORMS and the jaxlib installed"
            )
        return Support.yes()

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        """Whether a lowering exists for `node`, its types fit XLA and its shapes are static."""
        return L.supports_node(node)

    def compile(self, cluster: Cluster, options: CompileOptions) -> Executable:
        """Trace and compile `cluster`, or load it from the disk cache."""
        cache = open_cache(options, self.name)
        with D.isolated(options.threads):
            flags = self._compiler_options(cluster, options)
            tuning.annotate(cluster.body, _tuned(cluster, flags, options))
            recycled = recycle.positions(cluster.body)
            key = _cache_key(cluster, flags, recycled)
            chosen = T.plan(cluster.body)
            parameters = [_on_device(parameter) for parameter in chosen.parameters]
            code = _stored(cache, key)
            if code is None:
                with cache.lock(key) if cache else contextlib.nullcontext():
                    code = _stored(cache, key)  # another process may have built it meanwhile
                    if code is None:
                        code = Code(_build(cluster, chosen, parameters, recycled, flags))
                        if cache:
                            cache.put(key, code.serialize(), _about(cluster))
            return XlaExecutable(code, cluster, parameters, options.threads, recycled)

    def deserialize(self, data: bytes, cluster: Cluster, options: CompileOptions) -> Executable:
        """Load what `XlaExecutable.serialize` gave on a machine of the same kind."""
        with D.isolated(options.threads):
            header, _, payload = data.partition(b"\n")
            code = load(payload) if payload else None
            if code is None:
                raise EngineBuildError(self.name, "the payload is not of this device or jaxlib")
            told = json.loads(header)
            tuning.annotate(cluster.body, told["choices"])
            parameters = [_on_device(p) for p in T.plan(cluster.body).parameters]
            recycled = tuple(told["recycled"])
            return XlaExecutable(code, cluster, parameters, options.threads, recycled)

    def _compiler_options(self, cluster: Cluster, options: CompileOptions) -> dict[str, Any]:
        mine = options.xla.cluster_compiler_options.get(cluster.name, {})
        given = {**options.xla.compiler_options, **mine}
        if D.device().platform != "cpu":
            return given
        made = {**compiler_flags.CPU, **given}
        # Where values are rounded, XLA would compute what they come from anew in every reader (a
        # chain of three residual blocks: 2.9 ms, not 1.8).
        rounds = any(G.is_standard(node, "QuantizeLinear") for node in cluster.body.all_nodes())
        held = rounds or denormals.kept(D.device())
        return compiler_flags.keep_barriers(made) if held else made


def _build(
    cluster: Cluster,
    chosen: T.Plan,
    parameters: Sequence[jax.Array],
    recycled: tuple[int, ...],
    flags: dict[str, Any],
) -> Any:
    if D.is_forked():
        raise EngineBuildError(
            "xla",
            "this process was forked from one that had started XLA, and XLA cannot compile in it. "
            "Start it by 'spawn' or 'forkserver', or compile the model before the fork",
        )
    specs = [_spec(value) for value in cluster.body.inputs]
    specs += [_shaped(array.shape, array.dtype) for array in parameters]
    if chosen.draws:
        specs.append(_shaped(K.WORDS, np.uint32))
    function = T.function(cluster.body, chosen)
    if denormals.kept(D.device()):
        function = _headed(function, cluster.body, chosen)
    function = recycle.reordered(function, recycled)
    function.__name__ = cluster.name
    donated = range(len(specs), len(specs) + len(recycled))
    specs += [_spec(cluster.body.outputs[position]) for position in recycled]
    try:
        lowered = jax.jit(function, keep_unused=True, donate_argnums=donated).lower(*specs)
        return lowered.compile(compiler_options=flags or None).runtime_executable()
    except EngineBuildError:
        raise  # it names the node
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise EngineBuildError("xla", f"{type(error).__name__}: {error}") from error


def _headed(
    function: Callable[..., tuple[Any, ...]], body: ir.Graph, chosen: T.Plan
) -> Callable[..., tuple[Any, ...]]:
    temporary, results = T.largest_temporary(body, chosen), list(map(T.byte_count, body.outputs))
    return lambda *arguments: function(*launch.head(arguments, temporary, results))


def _spec(value: ir.Value) -> jax.ShapeDtypeStruct:
    shape = G.static_shape(value)
    if shape is None or value.dtype is None:
        raise EngineBuildError("xla", f"input {value.name!r} has no static shape and type")
    return _shaped(shape, value.dtype.numpy())


def _shaped(shape: Sequence[int], dtype: Any) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(D.device())
    struct: Any = jax.ShapeDtypeStruct  # whose constructor JAX does not type
    spec: jax.ShapeDtypeStruct = struct(shape, dtype, sharding=sharding)
    return spec


_WEIGHTS: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_WEIGHTS_LOCK = threading.Lock()


def _after_fork() -> None:
    """Another thread may have held the lock when this process was forked."""
    global _WEIGHTS_LOCK
    _WEIGHTS_LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _on_device(parameter: T.Parameter) -> jax.Array:
    """The device array of `parameter`, shared by all executables that use it on that device."""
    place = (*parameter.key, D.device())
    with _WEIGHTS_LOCK:
        found = _WEIGHTS.get(place)
        if found is None:
            try:
                found = _WEIGHTS[place] = D.put(_lasting(parameter))
            except MemoryError as error:
                raise EngineBuildError("xla", f"no memory for the weights: {error}") from error
        return found


def _lasting(parameter: T.Parameter) -> np.ndarray[Any, Any]:
    """The array of `parameter` in memory that nobody changes."""
    stored = find(XlaEngine.name, parameter.key)
    if stored is not None:
        return stored
    array = parameter.array()
    if isinstance(parameter.tensor, MappedTensor):
        return array
    # A copy: the tensor may view memory that the user's model goes on changing.
    return np.array(array, order="C", copy=True)


def _stored(cache: DiskCache | None, key: str) -> Code | None:
    """The executable that the cache holds under `key`, or None."""
    data = cache.get(key) if cache else None
    return load(data) if data else None


def _about(cluster: Cluster) -> dict[str, Any]:
    """What the cache keeps beside an executable, for people."""
    return {
        "cluster": cluster.name,
        "operators": dict(Counter(node.op_type for node in cluster.nodes)),
        "jaxlib": jaxlib.__version__,
        "device": D.device().device_kind,
    }


def _tuned(cluster: Cluster, flags: dict[str, Any], options: CompileOptions) -> tuning.Choices:
    """What tuning found for `cluster`, if it is asked for."""
    if not options.xla.tune or D.is_forked():
        return {}
    cache, threads = open_cache(options, "tune"), f"{D.thread_count()} threads"
    return tuning.tune(
        cluster.body, flags, cache=cache, identity=(*_toolchain(), threads), show=options.progress
    )


def _cache_key(cluster: Cluster, flags: dict[str, Any], recycled: tuple[int, ...] = ()) -> str:
    chosen = sorted(tuning.choices(cluster.body).items())
    # XLA cuts loops into as many pieces as there are threads.
    parts: tuple[Any, ...]
    parts = (cluster.digest, sorted(flags.items()), chosen, _toolchain(), D.thread_count())
    parts += (denormals.kept(D.device()), recycled)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _toolchain() -> tuple[str, ...]:
    """What, besides the cluster, decides the machine code: versions, device and xrt's own rules."""
    target = D.device()
    source = hashlib.sha256()
    root = Path(__file__).parent
    kernels = root.parents[1] / "kernels"
    for folder in (root, kernels / "jax", kernels / "portable"):
        for path in sorted(folder.rglob("*.py")):
            source.update(path.read_bytes())
    return (
        jax.__version__,
        jaxlib.__version__,
        target.platform,
        target.device_kind,
        _cpu_features() if target.platform == "cpu" else "",
        source.hexdigest(),
    )


def _cpu_features() -> str:
    """The features that XLA compiles this CPU's code for; code for others may crash here."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        import platform

        return f"{platform.machine()} {platform.processor()}"
    wanted = ("flags", "Features", "model name")
    lines = {line for line in text.splitlines() if line.startswith(wanted)}
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
