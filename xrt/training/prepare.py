"""Training graphs made ready to be traced."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from xrt import passes
from xrt.errors import TrainingError
from xrt.graph import is_standard, static_shape
from xrt.importers.training import TrainingModel
from xrt.kernels import host
from xrt.passes.rewrite import Names
from xrt.training.losses import own_loss
from xrt.training.lowerings import supports

_PRODUCTS = {"Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}

_LOW = {"bf16": ir.DataType.BFLOAT16, "fp16": ir.DataType.FLOAT16}


def prepare(
    source: TrainingModel,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    own: bool,
    precision: str = "fp32",
) -> TrainingModel:
    """`source` with its graph ready to be traced, at the shapes of example inputs.

    Args:
        source: The model, whose graph is changed.
        args: Inputs by position.
        kwargs: Inputs by name.
        own: Whether the model computes its loss: then all other outputs go.
        precision: "fp32"; or "bf16" or "fp16", in which what is safe then computes.

    Raises:
        InputError: If the inputs do not fit.
        TrainingError: If the model is to give its loss and gives none.
    """
    model = source.model
    leaves = source.interface.flatten(args, kwargs)
    values = list(model.graph.inputs)[: len(leaves)]
    shapes = {str(v.name): tuple(leaf.shape) for v, leaf in zip(values, leaves, strict=True)}
    run = partial(
        passes.run, model=model, evaluate=host.evaluate, supports=lambda node: bool(supports(node))
    )
    run([NameFixPass, passes.BindShapesPass(shapes), *passes.PREPARE_TRAINING])
    if own:
        _keep_loss(source)
        run([passes.EliminateDeadCodePass])
    if precision in _LOW:
        keep = _loss_tail(model.graph) if own else {}
        run([passes.CastPrecisionPass(_LOW[precision], keep=keep), *passes.CLEAN])
    return source


def _loss_tail(graph: ir.Graph) -> dict[str, str]:
    """What only the loss follows from, after the last products: name of a value -> why float32.

    So computes torch.autocast: sums over all targets leave the range and the digits of fp16, and
    so does the loss scale, which is the first gradient.
    """
    loss = graph.outputs[0]
    tail: set[ir.Node] = set()
    for node in reversed(graph):
        users = [use.node for value in node.outputs for use in value.uses()]
        state = any(value.is_graph_output() and value is not loss for value in node.outputs)
        found = users or node is loss.producer()
        if found and not state and node.op_type not in _PRODUCTS and tail.issuperset(users):
            tail.add(node)
    return {str(value.name): "it is part of the loss" for node in tail for value in node.outputs}


def _keep_loss(source: TrainingModel) -> None:
    """Leave the loss and the new state as the only outputs."""
    model = source.model
    count = len(model.graph.outputs) - len(source.state)
    outputs = list(model.graph.outputs)
    index = own_loss(source.interface, [_shape(value) for value in outputs[:count]])
    model.graph.outputs[:] = [outputs[index], *outputs[count:]]


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise TrainingError(
            f"The output {value.name!r} has a shape that depends on data: {value.shape}. A step is "
            "one executable of fixed shapes; keep such outputs out of forward() in training."
        )
    return shape


def evaluation_graph(model: ir.Model) -> None:
    """Dropout => none; BatchNormalization in training mode => by its running statistics."""
    names = Names(model)
    for node in model.graph.all_nodes():
        if is_standard(node, "Dropout") and len(node.inputs) > 2:
            off = names.constant(model.graph, "not_training", np.array(False))
            node.replace_input_with(2, off)
        elif is_standard(node, "BatchNormalization") and _is_training(node):
            node.attributes["training_mode"] = ir.AttrInt64("training_mode", 0)
            if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
                raise TrainingError(
                    f"BatchNormalization {node.name!r} gives its running statistics, which it does "
                    "not in evaluation. Evaluate trainer.program() instead."
                )
            node.resize_outputs(1)


def _is_training(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    return mode is not None and bool(mode.value)
