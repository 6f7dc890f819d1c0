"""The XLA engine: clusters compiled by XLA through JAX."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.cache import DiskCache, cache_folder
from xrt.engines.engine import Engine, Executable
from xrt.engines.xla import device as D
from xrt.engines.xla import keys as K
from xrt.engines.xla import lowering as L
from xrt.engines.xla import ops as _ops  # noqa: F401  (registers the lowerings)
from xrt.engines.xla import trace as T
from xrt.engines.xla import tune as tuning
from xrt.errors import EngineBuildError
from xrt.graph import Cluster, Support
from xrt.options import CompileOptions

# jaxlib 0.10.2 computes wrong results on the CPU through its YNNPACK reduce fusion (jax issue
# 39103): allow that library single dots and convolutions only. test_engine.py watches.
_CPU_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    )
}


# Barriers hold until code generation: without it XLA computes a rounded value anew in every fusion
# that reads it, and what that was computed of (a chain of three residual blocks: 2.9 ms, not 1.8).
_CPU_QUANTIZED_OPTIONS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


class XlaExecutable(Executable):
    """A cluster compiled by XLA, with its weights on the device."""

    def __init__(self, loaded: Any, cluster: Cluster, parameters: Sequence[jax.Array]) -> None:
        self._loaded = loaded
        self._parameters = list(parameters)
        self._choices = tuning.choices(cluster.body)
        self._algorithms = tuning.algorithms(cluster.body)
        self._keys = K.KeySource() if any(map(L.draws, cluster.body)) else None

    def run(self, inputs: Sequence[Any], stream: Any = None) -> Sequence[jax.Array]:
        """Run the cluster; `stream` is XLA's own. On the CPU the result is ready on return."""
        arguments = [D.put(array) for array in inputs]
        arguments += self._parameters
        if self._keys is not None:
            arguments.append(D.put(self._keys()))
        results = self._loaded.execute_sharded(arguments)
        return [shards[0] for shards in results.disassemble_into_single_device_arrays()]

    def bare(self, inputs: Sequence[jax.Array]) -> Callable[[], Any]:
        """A call of the compiled code alone, for arrays on the device: what benchmarks subtract."""
        arguments = [*inputs, *self._parameters]
        if self._keys is not None:
            arguments.append(D.put(self._keys()))
        return lambda: self._loaded.execute_sharded(arguments)

    @property
    def details(self) -> dict[str, Any]:
        """How many convolutions each algorithm computes."""
        return {"algorithms": self._algorithms} if self._algorithms else {}

    def serialize(self) -> bytes:
        """The tuned choices, which say how the weights are laid out, and the machine code."""
        data: bytes = self._loaded.serialize()
        return json.dumps(self._choices).encode() + b"\n" + data

    def memory(self) -> dict[str, int]:
        """Bytes that XLA plans for a run: arguments, outputs, temporaries and code."""
        stats = self._loaded.get_compiled_memory_stats()
        return {
            "arguments": int(stats.argument_size_in_bytes),
            "outputs": int(stats.output_size_in_bytes),
            "temporaries": int(stats.temp_size_in_bytes),
            "code": int(self._loaded.size_of_generated_code_in_bytes()),
        }


class XlaEngine(Engine):
    """Compiles clusters through JAX's tracing and XLA."""

    name = "xla"

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
        cache = DiskCache(cache_folder(options) / "xla") if options.cache else None
        flags = self._compiler_options(cluster, options)
        with D.isolated():
            tuning.annotate(cluster.body, _tuned(cluster, flags, options))
            key = _cache_key(cluster, flags)
            chosen = T.plan(cluster.body)
            parameters = [_on_device(parameter) for parameter in chosen.parameters]
            stored = cache.get(key) if cache else None
            loaded = _load(stored) if stored else None
            if loaded is None:
                loaded = _build(cluster, chosen, parameters, flags)
                if cache:
                    cache.put(key, loaded.serialize())
            return XlaExecutable(loaded, cluster, parameters)

    def deserialize(self, data: bytes, cluster: Cluster, options: CompileOptions) -> Executable:
        """Load what `XlaExecutable.serialize` gave on a machine of the same kind."""
        with D.isolated():
            header, _, code = data.partition(b"\n")
            loaded = _load(code) if code else None
            if loaded is None:
                raise EngineBuildError(self.name, "the payload is not of this device or jaxlib")
            tuning.annotate(cluster.body, json.loads(header))
            parameters = [_on_device(p) for p in T.plan(cluster.body).parameters]
            return XlaExecutable(loaded, cluster, parameters)

    def _compiler_options(self, cluster: Cluster, options: CompileOptions) -> dict[str, Any]:
        base: dict[str, Any] = {}
        if D.device().platform == "cpu":
            rounds = any(G.is_standard(node, "QuantizeLinear") for node in cluster.body.all_nodes())
            base = {**_CPU_OPTIONS, **(_CPU_QUANTIZED_OPTIONS if rounds else {})}
        mine = options.xla.cluster_compiler_options.get(cluster.name, {})
        return {**base, **options.xla.compiler_options, **mine}


def _build(
    cluster: Cluster, chosen: T.Plan, parameters: Sequence[jax.Array], flags: dict[str, Any]
) -> Any:
    specs = [_spec(value) for value in cluster.body.inputs]
    specs += [_shaped(array.shape, array.dtype) for array in parameters]
    if chosen.draws:
        specs.append(_shaped(K.WORDS, np.uint32))
    function = T.function(cluster.body, chosen)
    function.__name__ = cluster.name
    try:
        lowered = jax.jit(function, keep_unused=True).lower(*specs)
        return lowered.compile(compiler_options=flags or None).runtime_executable()
    except EngineBuildError:
        raise  # it names the node
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise EngineBuildError("xla", f"{type(error).__name__}: {error}") from error


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


_WEIGHTS: weakref.WeakValueDictionary[tuple[str, str], Any] = weakref.WeakValueDictionary()
_WEIGHTS_LOCK = threading.Lock()


def _on_device(parameter: T.Parameter) -> jax.Array:
    """The device array of `parameter`, shared by all executables that use it."""
    with _WEIGHTS_LOCK:
        found = _WEIGHTS.get(parameter.key)
        if found is None:
            # Always a copy: the tensor may view memory that the user's model goes on changing.
            found = D.put(np.array(parameter.array(), order="C", copy=True))
            _WEIGHTS[parameter.key] = found
        return found


def _load(data: bytes) -> Any:
    """The executable in `data`, or None if this device or jaxlib cannot take it."""
    from jaxlib import xla_client

    target = D.device()
    try:
        return target.client.deserialize_executable(data, xla_client.DeviceList((target,)))
    except (RuntimeError, ValueError, TypeError):
        return None


def _tuned(cluster: Cluster, flags: dict[str, Any], options: CompileOptions) -> tuning.Choices:
    """What tuning found for `cluster`, if it is asked for."""
    if not options.xla.tune:
        return {}
    cache = DiskCache(cache_folder(options) / "tune") if options.cache else None
    return tuning.tune(
        cluster.body, flags, cache=cache, identity=_toolchain(), show=options.progress
    )


def _cache_key(cluster: Cluster, flags: dict[str, Any]) -> str:
    chosen = sorted(tuning.choices(cluster.body).items())
    parts = (cluster.digest, sorted(flags.items()), chosen, _toolchain())
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
