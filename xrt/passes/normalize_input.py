"""Lets a model take pixels: the normalization of an image becomes part of its graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import InputError
from xrt.graph import add_constant
from xrt.options import InputNormalization
from xrt.passes.rewrite import Names, is_floating


class NormalizeInputPass(ir.passes.InPlacePass):
    """g(float x) => g(uint8 x), which computes (Cast(x) - 255*mean) * 1/(255*std) first.

    With the layout "NHWC" the pixels are transposed before, while they are bytes. The arithmetic is
    in float32, whatever the floating-point type of the input was.

    Requires that the input is a floating-point tensor of rank 4 with a channel for each mean.
    Preserves names and order of the inputs.

    Raises:
        InputError: If there is no such input.
    """

    def __init__(self, normalization: InputNormalization) -> None:
        super().__init__()
        self._normalization = normalization

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the input of `model`."""
        graph, wanted = model.graph, self._normalization
        place = _find(graph, wanted)
        old = graph.inputs[place]
        assert old.shape is not None
        assert old.dtype is not None
        name, dtype, shape = str(old.name), old.dtype, old.shape.copy()
        names = Names(model)
        pixels = ir.Value(name=name, type=ir.TensorType(ir.DataType.UINT8), shape=shape)
        if wanted.layout == "NHWC":
            pixels.shape = ir.Shape([shape[axis] for axis in (0, 2, 3, 1)])
        old.name = names.fresh(f"{name}_normalized")
        graph.inputs[place] = pixels
        steps = _steps(graph, pixels, wanted, names, dtype)
        result = steps[-1].outputs[0]
        first = next(iter(graph), None)
        if first is None:
            graph.extend(steps)
        else:
            graph.insert_before(first, steps)
        old.replace_all_uses_with(result, replace_graph_outputs=True)
        return ir.passes.PassResult(model, modified=True)


def _find(graph: ir.Graph, wanted: InputNormalization) -> int:
    """The number of the input that is to be normalized.

    Raises:
        InputError: If there is none of that name, or it is no image of so many channels.
    """
    names = [str(value.name) for value in graph.inputs]
    if wanted.input is not None and wanted.input not in names:
        raise InputError(
            f"CompileOptions.normalization: input {wanted.input!r} is unknown. This model takes "
            f"{', '.join(names) or 'none'}."
        )
    if not names:
        raise InputError("CompileOptions.normalization: this model takes no inputs.")
    place = 0 if wanted.input is None else names.index(wanted.input)
    value, channels = graph.inputs[place], len(wanted.mean)
    shape = value.shape
    if not is_floating(value) or shape is None or len(shape) != 4:
        raise InputError(
            f"CompileOptions.normalization: input {names[place]!r} is {value.type} of shape "
            f"{shape}; an image is floating-point [N, C, H, W]. Inputs: {', '.join(names)}."
        )
    if isinstance(shape[1], int) and shape[1] != channels:
        raise InputError(
            f"CompileOptions.normalization: input {names[place]!r} has {shape[1]} channels; mean "
            f"and std have {channels} numbers."
        )
    return place


def _steps(
    graph: ir.Graph,
    pixels: ir.Value,
    wanted: InputNormalization,
    names: Names,
    dtype: ir.DataType,
) -> list[ir.Node]:
    """The nodes from pixels to what the model takes."""
    mean = np.array(wanted.mean).reshape(-1, 1, 1) * 255.0
    factor = 1.0 / (255.0 * np.array(wanted.std).reshape(-1, 1, 1))
    name = str(pixels.name)
    steps: list[ir.Node] = []

    def add(op_type: str, label: str, *operands: ir.Value, **attributes: Any) -> None:
        before = steps[-1].outputs[0] if steps else pixels
        output = ir.Value(name=names.fresh(f"{name}_{label}"))
        inputs = [before, *operands]
        steps.append(ir.node(op_type, inputs, attributes, outputs=[output], name=output.name))

    def constant(label: str, array: np.ndarray[Any, Any]) -> ir.Value:
        return add_constant(graph, names.fresh(f"{name}_{label}"), array.astype(np.float32))

    if wanted.layout == "NHWC":
        add("Transpose", "planes", perm=[0, 3, 1, 2])
    add("Cast", "float", to=ir.DataType.FLOAT)
    add("Sub", "centred", constant("mean", mean))
    add("Mul", "scaled", constant("factor", factor))
    if dtype != ir.DataType.FLOAT:
        add("Cast", "narrow", to=dtype)
    return steps
