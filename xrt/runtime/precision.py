"""How a program's numbers are narrowed: what is done to a specialized model before it is built.

Precision lives in the graph, as Cast, QuantizeLinear and DequantizeLinear, so every engine and the
host see the same numbers. Full precision builds the model as it is; half precision is here, int8 in
`runtime.int8`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt import passes
from xrt.importers.interface import Imported
from xrt.kernels import host
from xrt.passes.cast_precision import CastPrecisionPass, overflowing, watched_values
from xrt.passes.rewrite import Names
from xrt.runtime import arrays
from xrt.runtime.build import Built
from xrt.runtime.inputs import Signature


@dataclass(frozen=True, eq=False)
class Job:
    """A model to build at one input signature.

    Attributes:
        imported: Where it comes from.
        signature: The signature.
        model: The model, specialized for it.
        leaves: The inputs of the call that asks for it; None if no call does.
        build: Builds a model: partition, executables and schedule.
        build_here: Builds a model to run on this machine, where `build` builds for another; None
            where they are the same.
    """

    imported: Imported
    signature: Signature
    model: ir.Model
    leaves: Sequence[Any] | None
    build: Callable[[ir.Model], Built]
    build_here: Callable[[ir.Model], Built] | None = None

    def runnable(self, model: ir.Model, built: Built | None = None) -> Built:
        """`model`, built to run on this machine: `built` if that is such a one."""
        if self.build_here is not None:
            return self.build_here(model)
        return built if built is not None else self.build(model)


@dataclass(frozen=True)
class Conversion:
    """What became of the numbers of a model.

    Attributes:
        precision: "fp32", "fp16", "bf16" or "int8".
        kept: Nodes left in fp32: each its name, operator and reason.
        notes: What the user should know, one sentence each.
        report: Figures about the conversion, as plain data.
    """

    precision: str
    kept: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        kept = [{"node": node, "op": op, "reason": reason} for node, op, reason in self.kept]
        return {
            "precision": self.precision,
            "kept": kept,
            "notes": list(self.notes),
            **self.report,
        }


Observe = Callable[[Sequence[Any], list[Any]], list[Any]]
"""Takes the inputs and the results of a call, looks at them, and returns the model's outputs."""


class Precision(ABC):
    """A precision, and what it knows about the models of one program."""

    name: str

    def stage(self, imported: Imported) -> int:
        """Grows when what was built for `imported` is to be built anew."""
        return 0

    @abstractmethod
    def build(self, job: Job) -> tuple[Built, Conversion, Observe | None]:
        """Convert the model of `job`, in place or in a copy, and build it."""


class Full(Precision):
    """fp32: the numbers that the model has."""

    name = "fp32"

    def build(self, job: Job) -> tuple[Built, Conversion, Observe | None]:
        """Build the model as it is."""
        return job.build(job.model), Conversion(self.name), None


class Half(Precision):
    """fp16 or bf16, with what needs it in fp32; see `passes.CastPrecisionPass`.

    fp16 ends at 65504, so the model is first run in fp32 on the inputs of the call that it is built
    for, and nodes whose results come near stay in fp32.
    """

    def __init__(self, name: str, device: Callable[[], str]) -> None:
        """Create it.

        Args:
            name: "fp16" or "bf16".
            device: Tells what the device gains by it, in a sentence; empty for all one hopes for.
        """
        self.name = name
        self._dtype = ir.DataType.FLOAT16 if name == "fp16" else ir.DataType.BFLOAT16
        self._device = device

    def build(self, job: Job) -> tuple[Built, Conversion, Observe | None]:
        """Cast, clean up, and build."""
        keep: dict[str, str] = {}
        notes = [note for note in (self._device(),) if note]
        if self._dtype == ir.DataType.FLOAT16:
            if job.leaves is None:
                notes.append(
                    "The range of fp16 was not checked, for want of inputs. Pass example_inputs."
                )
            else:
                seen = magnitudes(job, watched_values(job.model.graph))
                keep = overflowing(seen, job.model.graph, self._dtype)
        cast = CastPrecisionPass(self._dtype, keep=keep)
        passes.run([cast, *passes.CLEAN], job.model, evaluate=host.evaluate)
        kept = tuple((each.node, each.op, each.reason) for each in cast.kept)
        return job.build(job.model), Conversion(self.name, kept, tuple(notes)), None


def magnitudes(job: Job, names: Sequence[str]) -> dict[str, float]:
    """The largest magnitude, on the inputs of `job`, of values of its model, which stays.

    Infinite elements do not count: masks hold them, and every type does.
    """
    assert job.leaves is not None
    model = job.model.clone()
    values = {str(v.name): v for v in model.graph.inputs}
    values.update({str(v.name): v for node in model.graph for v in node.outputs})
    count = len(model.graph.outputs)
    zero = Names(model).constant(model.graph, "magnitude_zero", np.zeros((), np.float32))
    for number, name in enumerate(names):
        size = ir.node("Abs", [values[name]])
        infinite = ir.node("IsInf", [values[name]])
        finite = ir.node("Where", [infinite.outputs[0], zero, size.outputs[0]])
        largest = ir.node("ReduceMax", finite.outputs, {"keepdims": 0})
        for node in (size, infinite, finite, largest):
            node.name = f"magnitude_{number}_{node.op_type}"
            node.outputs[0].name = f"{node.name}_of"
        model.graph.extend([size, infinite, finite, largest])
        model.graph.outputs.append(largest.outputs[0])
    passes.InferShapesPass()(model)
    results = job.runnable(model).schedule.run([arrays.take(leaf) for leaf in job.leaves])
    found = [float(np.asarray(result)) for result in results[count:]]
    return dict(zip(names, found, strict=True))
