"""One example of the fuzzer: an operator, its inputs and attributes, and how to show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from tests.engines.xla.ops_support import node_model
from xrt.passes import InferShapesPass
from xrt.passes.type_corrections import CORRECTIONS

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """One node and its inputs.

    Attributes:
        op: The operator, of ONNX's own domain at xrt's opset.
        inputs: Arrays; None for an absent optional input.
        attributes: The node's attributes; those that are None are left out.
        constants: Positions of inputs that are initializers.
        outputs: How many outputs the node has, or the positions of those it has.
        scale: Factor on the tolerances.
    """

    op: str
    inputs: Sequence[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: Sequence[int] = ()
    outputs: int | Sequence[int] = 1
    scale: float = 1.0

    @property
    def moving(self) -> list[Array]:
        """The inputs that are not initializers, in order."""
        given = enumerate(self.inputs)
        return [x for i, x in given if x is not None and i not in self.constants]

    def model(self) -> onnx.ModelProto:
        """The model of this node alone, types and shapes inferred."""
        model = node_model(
            self.op,
            self.inputs,
            outputs=self.outputs,
            constants=self.constants,
            **self.attributes,
        )
        known = all(value.type.tensor_type.HasField("shape") for value in model.graph.output)
        if known and self.op not in CORRECTIONS:
            return model
        # ONNX leaves the outputs of some operators open, or errs; xrt's own inference does not.
        inferred = ir.from_proto(model)
        InferShapesPass()(inferred)
        return ir.to_proto(inferred)

    def snippet(self) -> str:
        """Python that checks this case again, with the model as ONNX text above it."""
        try:
            text = onnx.printer.to_text(self.model())
        except Exception as error:  # the model is what fails
            text = f"no model: {error}"
        lines = [f"# {line}" for line in text.splitlines() if line.strip()]
        inputs = ", ".join(map(_source, self.inputs))
        attributes = {k: v for k, v in self.attributes.items() if v is not None}
        values = ", ".join(f"{k!r}: {_source(v)}" for k, v in attributes.items())
        arguments = f"{self.op!r}, [{inputs}], {{{values}}}"
        rest = f"constants={tuple(self.constants)}, outputs={self.outputs}, scale={self.scale}"
        return "\n".join(
            [
                *lines,
                "import ml_dtypes, onnx  # noqa",
                "from numpy import array, dtype, float32, inf, nan",
                "from tests.fuzz.case import Case",
                "from tests.fuzz.run import check",
                f"check([Case({arguments}, {rest})])",
            ]
        )


def _source(value: Any) -> str:
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return f"onnx.numpy_helper.from_array({_source(array)})"
    if not isinstance(value, np.ndarray):
        return repr(value)
    plain = value.astype(np.float32) if value.dtype.kind == "V" else value
    text = f"array({plain.tolist()!r}, '{plain.dtype.name}')"
    if plain is not value:
        text += f".astype(dtype('{value.dtype.name}'))"
    return text if value.size else f"{text}.reshape{value.shape}"
