"""`compile`: from a model to a program. The whole data flow, on one page.

    import      torch, ONNX or graphsurgeon model -> onnx_ir              importers/
    prepare     one opset; fold constants, BatchNorm, biases, pads        passes.PREPARE
    specialize  bind the input shapes; fold all shape arithmetic away     passes.SPECIALIZE
    convert     narrow the numbers: casts, or calibrate and quantize      runtime.precision, .int8
    partition   ask the engines, form clusters, outline them              passes.partition
    build       each cluster by its engine, on failure by the next        runtime.build
    schedule    clusters and host kernels as a flat list of steps         runtime.schedule

The first two happen once for a model (`runtime.source`), the rest, `specialize` below, once for
every input signature. A `Program` calls them as it meets new inputs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from xrt import passes
from xrt.engines import resolve, stand_ins
from xrt.engines.engine import Engine
from xrt.errors import InputError, OptionError, unknown
from xrt.graph import static_shape
from xrt.importers import Imported, split_example
from xrt.kernels import host
from xrt.options import PRECISIONS, CompileOptions
from xrt.runtime.build import Built, build
from xrt.runtime.inputs import Signature, contents_of
from xrt.runtime.int8 import Int8, calibrate
from xrt.runtime.precision import Full, Half, Job, Precision
from xrt.runtime.processor import half_gain, weight_bits
from xrt.runtime.program import Program, Specialization
from xrt.runtime.ranges import CORNERS, Open, shapes_at
from xrt.runtime.source import Source


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
            call, and of a torch module again wherever it is exported anew for other shapes; what
            becomes of them later changes nothing that was read.
        example_inputs: A tuple (by position) or a dict (by name) of arrays. With it the program is
            compiled now, for these shapes; without it an ONNX model of fixed input shapes is
            compiled now, and everything else at the first call.
        engine: "auto" (TensorRT where it can run, then XLA), "tensorrt", "tensorrt_rtx", "xla",
            "host", another installed engine, or a list in order of preference.
        precision: "fp32", "fp16", "bf16" or "int8".
        calibration: For int8: an iterable of batches, each as `example_inputs`. Without it the
            first calls calibrate while they answer in fp32.
        dynamic_shapes: As torch.export.export takes them. The symbolic dimensions of an ONNX model
            work by themselves.
        target: Build for a device that need not be here, e.g. "sm_89": the GPUs of that compute
            capability (TensorRT-RTX). Engines that do not build for it are left out. The program
            calibrates here, and can be saved; to run it takes such a device.
        options: See `CompileOptions`.

    Raises:
        ModelImportError: If the model cannot be read.
        OptionError: If an argument has an unknown value.
        InputError: If the example inputs do not fit the model.
        CalibrationError: If the calibration data does not fit, or nothing can be quantized.
        EngineUnavailableError: If the engine asked for by name, or none of those, can run here; if
            `options.strict` is set, if one of them cannot.
    """
    options = options or CompileOptions()
    _check(precision, calibration, options)
    engines = resolve(engine, target, strict=options.strict)
    here = None if target is None else stand_ins(engine)
    source = Source(model, dynamic_shapes, options)
    if dynamic_shapes is not None and not source.by_example:
        raise OptionError(
            "dynamic_shapes is for torch modules; what an exported program or an ONNX model leaves "
            "open is written in it."
        )

    numbers = precision_for(precision, options, engines)

    def specialize_for(
        imported: Imported, signature: Signature, leaves: Sequence[Any] | None, ranges: Open
    ) -> Specialization:
        return specialize(imported, signature, engines, options, numbers, leaves, ranges, here)

    program = Program(source, specialize_for, engines, options, numbers)
    if calibration is not None:
        assert isinstance(numbers, Int8)
        calibrate(program, numbers, calibration, options)
    if example_inputs is not None:
        args, kwargs = split_example(example_inputs)
        program.prepare(*args, **kwargs)
    elif calibration is None and not source.by_example:
        imported = source.imported()
        signature = _fixed_signature(imported)
        if signature is not None:
            program.prepare_signature(imported, signature)
    return program


def specialize(
    imported: Imported,
    signature: Signature,
    engines: Sequence[Engine],
    options: CompileOptions,
    precision: Precision,
    leaves: Sequence[Any] | None,
    ranges: Open = (),
    here: Sequence[Engine] | None = None,
) -> Specialization:
    """Compile a prepared model at one input signature, of which `leaves` are an example, if any.

    Dimensions that the signature leaves open lie within `ranges`. Where `engines` build for a
    target, `here` are those that run on this machine in their place, to calibrate.

    Raises:
        InputError: If the signature does not fit the model.
    """
    _check_types(imported.model, signature)
    names = [str(value.name) for value in imported.model.graph.inputs]
    entries = dict(zip(names, signature, strict=True))
    shapes = {name: entry[0] for name, entry in entries.items() if entry[0] is not None}
    values = {name: contents_of(entry) for name, entry in entries.items()}
    begin = time.perf_counter()
    model = imported.model.clone()
    corners = [shapes_at(imported, signature, ranges, corner) for corner in CORNERS]
    annotate = [passes.AnnotateProfilesPass(corners, host.evaluate)] if ranges else []
    bind = [
        passes.BindShapesPass(shapes),
        passes.BindValuesPass({n: array for n, array in values.items() if array is not None}),
    ]
    passes.run(
        [*bind, *annotate, *passes.SPECIALIZE, NameFixPass],
        model,
        evaluate=host.evaluate,
        supports=(lambda node: any(each.supports(node) for each in engines)) if engines else None,
    )
    middle = time.perf_counter()

    def build_by(chosen: Sequence[Engine], each: ir.Model) -> Built:
        passes.run(annotate, each)  # what the passes made since
        return build(each, chosen, options)

    build_here = None if here is None else partial(build_by, here)
    job = Job(imported, signature, model, leaves, partial(build_by, engines), build_here)
    built, conversion, observe = precision.build(job)
    seconds = {"passes": middle - begin, "build": time.perf_counter() - middle}
    return Specialization(
        imported, signature, built, conversion, {**imported.seconds, **seconds}, observe, ranges
    )


def precision_for(name: str, options: CompileOptions, engines: Sequence[Engine] = ()) -> Precision:
    """What converts the numbers of a program for `engines` to the precision `name`."""
    gpu = bool(engines) and engines[0].gpu
    if name == "int8":
        return Int8(options, 8 if gpu else weight_bits())
    return Full() if name == "fp32" else Half(name, lambda: "" if gpu else half_gain(name))


def _check(precision: str, calibration: Any, options: CompileOptions) -> None:
    if not isinstance(options, CompileOptions):
        raise OptionError(f"options must be an xrt.CompileOptions; got {options!r}.")
    if precision not in PRECISIONS:
        raise OptionError(unknown("Precision", precision, PRECISIONS))
    if calibration is not None and precision != "int8":
        raise OptionError(
            f"calibration is for precision 'int8'; the precision here is {precision!r}."
        )


def _check_types(model: ir.Model, signature: Signature) -> None:
    for value, (shape, dtype, _) in zip(model.graph.inputs, signature, strict=True):
        want = value.dtype.numpy().name if value.dtype else dtype
        if dtype not in (want, ""):
            raise InputError(
                f"Input {value.name!r} has dtype {dtype}; the model takes {want}. Convert it "
                "first: xrt does not change numbers silently."
            )
        if shape is not None and value.shape is not None and len(value.shape) != len(shape):
            raise InputError(
                f"Input {value.name!r} has rank {len(shape)}, shape {list(shape)}; the model takes "
                f"rank {len(value.shape)}, shape {value.shape}."
            )


def _fixed_signature(imported: Imported) -> Signature | None:
    """The signature of a model whose inputs all have fixed shapes, and decide none, else None."""
    if imported.shape_inputs:
        return None
    signature = []
    for value in imported.model.graph.inputs:
        shape = static_shape(value)
        if shape is None or value.dtype is None or not isinstance(value.type, ir.TensorType):
            return None
        signature.append((shape, np.dtype(value.dtype.numpy()).name, None))
    return tuple(signature)
