"""`compile`: from a model to a program. The whole data flow, on one page.

    import     torch, ONNX or graphsurgeon model -> onnx_ir at one opset      importers/
    prepare    convert the opset; fold constants, BatchNorm, biases, pads     passes.PREPARE
    specialize bind the input shapes; fold all shape arithmetic away          passes.SPECIALIZE
    partition  ask engines, form clusters, outline them                       passes.partition
    build      each cluster by its engine, on failure by the next             build_clusters
    schedule   clusters and host kernels as a flat list of steps              runtime.schedule

The first two happen once for a model, the rest once for every input signature.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from xrt import passes
from xrt.engines import resolve
from xrt.engines.engine import Engine, Executable
from xrt.errors import EngineBuildError, EngineFallbackWarning, InputError, OptionError, unknown
from xrt.graph import Support, static_shape
from xrt.importers import Imported, import_model, is_torch_module, split_example
from xrt.kernels import host
from xrt.options import PRECISIONS, CompileOptions
from xrt.passes.partition import Partition, partition
from xrt.progress import progress
from xrt.runtime.program import Program, Signature, Specialization
from xrt.runtime.schedule import build_schedule


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    engine: str | Sequence[str] = "auto",
    precision: str = "fp32",
    calibration: Any = None,
    dynamic_shapes: Any = None,
    target: str | None = None,
    options: CompileOptions | None = None,
) -> Program:
    """Compile a model.

    Args:
        model: torch.nn.Module, torch.export.ExportedProgram, path, bytes, onnx.ModelProto,
            onnx_ir.Model or onnx_graphsurgeon.Graph. Its weights are read now or at the first
            call; what becomes of the model later does not change the program.
        example_inputs: A tuple (by position) or a dict (by name) of arrays. With it the program is
            compiled now, for these shapes; without it an ONNX model of fixed input shapes is
            compiled now, and everything else at the first call.
        engine: "auto", "xla", "host", another installed engine, or a list in order of preference.
        precision: "fp32".
        calibration: For int8 only.
        dynamic_shapes: As torch.export.export takes them. The symbolic dimensions of an ONNX model
            work by themselves.
        target: For engines that build for another device only.
        options: See `CompileOptions`.

    Raises:
        ModelImportError: If the model cannot be read.
        OptionError: If an argument has an unknown value.
        InputError: If the example inputs do not fit the model.
        EngineUnavailableError: If an engine asked for by name cannot run here.
    """
    options = options or CompileOptions()
    _check(precision, calibration, target, options)
    order = resolve(engine)
    source = _Source(model, dynamic_shapes, options)

    def specialize_for(imported: Imported, signature: Signature) -> Specialization:
        return specialize(imported, signature, order, options)

    program = Program(source, specialize_for, order, options)
    args, kwargs = split_example(example_inputs)
    if example_inputs is not None:
        program.prepare(*args, **kwargs)
    elif not is_torch_module(model):
        imported = source((), {})
        signature = _fixed_signature(imported.model)
        if signature is not None:
            program.prepare_signature(imported, signature)
    return program


def specialize(
    imported: Imported, signature: Signature, order: Sequence[Engine], options: CompileOptions
) -> Specialization:
    """Compile a prepared model at one input signature.

    Raises:
        InputError: If the signature does not fit the model.
    """
    clock = _Clock()
    model = imported.model.clone()
    _check_types(model, signature)
    shapes = {
        str(value.name): shape
        for value, (shape, _) in zip(model.graph.inputs, signature, strict=True)
    }
    bind = passes.BindShapesPass(shapes)
    passes.run([bind, *passes.SPECIALIZE, NameFixPass], model, evaluate=host.evaluate)
    clock.mark("passes")
    outlined, parts, executables = build_clusters(model, order, options, clock)
    schedule = build_schedule(outlined, executables)
    clock.mark("schedule")
    return Specialization(
        imported, signature, outlined, parts, executables, schedule, clock.seconds
    )


def build_clusters(
    model: ir.Model, order: Sequence[Engine], options: CompileOptions, clock: _Clock | None = None
) -> tuple[ir.Model, Partition, dict[str, Executable]]:
    """Partition `model` and build every cluster.

    A build that fails takes the node it names (or else all nodes of the cluster) away from that
    engine, and the model is partitioned anew: the next engine or the host takes over. What is
    built already is kept.

    Raises:
        EngineBuildError: If a build fails and `options.strict` is set.
    """
    clock = clock or _Clock()
    candidates = [_Excluding(engine) for engine in order]
    by_name = {engine.name: engine for engine in candidates}
    built: dict[str, Executable] = {}
    while True:
        outlined = model.clone()
        parts = partition(outlined, candidates, options)
        clock.mark("partition")
        with progress("Compiling clusters", len(parts.clusters), options.progress) as advance:
            for cluster in parts.clusters:
                engine = by_name[cluster.engine]
                try:
                    if cluster.name not in built:
                        built[cluster.name] = engine.engine.compile(cluster, options)
                except EngineBuildError as error:
                    if options.strict:
                        raise
                    engine.exclude(cluster.nodes, error)
                    break
                finally:
                    clock.mark("build")
                advance(cluster.name)
            else:
                return outlined, parts, built


class _Excluding:
    """An engine, less the nodes that it failed to build."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name = engine.name
        self._failed: dict[str | None, Support] = {}  # by first output: names may be missing

    def supports(self, node: ir.Node, context: Any = None) -> Support:
        failed = self._failed.get(node.outputs[0].name)
        return self.engine.supports(node, context) if failed is None else failed

    def exclude(self, nodes: Sequence[ir.Node], error: EngineBuildError) -> None:
        named = [node for node in nodes if error.place and node.name == error.place]
        for node in named or nodes:
            self._failed[node.outputs[0].name] = Support.no(f"the build failed: {error.reason}")
        operators = ", ".join(sorted({node.op_type for node in nodes}))
        warnings.warn(
            f"{error} Falling back to the next engine for "
            f"{'that node' if named else f'all {len(nodes)} nodes of the cluster: {operators}'}.",
            EngineFallbackWarning,
            stacklevel=2,
        )


class _Source:
    """Imports the model for a call: once, or for a torch module once for each static signature."""

    def __init__(self, model: Any, dynamic_shapes: Any, options: CompileOptions) -> None:
        self._model = model
        self._dynamic_shapes = dynamic_shapes
        self._options = options
        self._by_example = is_torch_module(model)
        self._imports: list[Imported] = []

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Imported:
        for imported in self._imports:
            if not self._by_example or imported.accepts(args, kwargs):
                return imported
        with progress("Importing", None, self._options.progress):
            imported = import_model(self._model, args, kwargs, self._dynamic_shapes)
            passes.run((NameFixPass, *passes.PREPARE), imported.model, evaluate=host.evaluate)
        self._imports.append(imported)
        del self._imports[: -self._options.max_specializations]
        return imported


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _check(precision: str, calibration: Any, target: str | None, options: CompileOptions) -> None:
    if not isinstance(options, CompileOptions):
        raise OptionError(f"options must be an xrt.CompileOptions; got {options!r}.")
    if precision not in PRECISIONS:
        raise OptionError(unknown("Precision", precision, PRECISIONS).replace("ys:", "ies:"))
    if precision != "fp32":
        raise OptionError(f"Precision {precision!r} is not built yet. Use 'fp32'.")
    if calibration is not None:
        raise OptionError(
            f"calibration is for precision 'int8'; the precision here is {precision!r}."
        )
    if target is not None:
        raise OptionError(
            f"target={target!r}: no engine of this version builds for a device that is not here."
        )


def _check_types(model: ir.Model, signature: Signature) -> None:
    for value, (shape, dtype) in zip(model.graph.inputs, signature, strict=True):
        want = value.dtype.numpy().name if value.dtype else dtype
        if dtype != want:
            raise InputError(
                f"Input {value.name!r} has dtype {dtype}; the model takes {want}. Convert it "
                "first: xrt does not change numbers silently."
            )
        if value.shape is not None and len(value.shape) != len(shape):
            raise InputError(
                f"Input {value.name!r} has rank {len(shape)}, shape {list(shape)}; the model takes "
                f"rank {len(value.shape)}, shape {value.shape}."
            )


def _fixed_signature(model: ir.Model) -> Signature | None:
    """The signature of a model whose inputs all have fixed shapes, else None."""
    signature = []
    for value in model.graph.inputs:
        shape = static_shape(value)
        if shape is None or value.dtype is None:
            return None
        signature.append((shape, np.dtype(value.dtype.numpy()).name))
    return tuple(signature)
