"""A model to be trained, in the graph IR: its weights are inputs, its new state outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.errors import ModelImportError
from xrt.importers.interface import Interface

Array = np.ndarray[Any, Any]

TRAINABLE = "xrt.trainable"
"""Metadata of an initializer of an ONNX graph that training changes; its value is "true"."""


@dataclass(frozen=True, eq=False)
class TrainingModel:
    """A model whose weights have become inputs of its graph.

    Attributes:
        model: Its graph takes the inputs of a call, then one input for each of `weights`; it gives
            the outputs of a call, then one output for each of `state`.
        interface: How a user calls it.
        weights: The first value of each weight (a parameter, or a buffer that forward() reads or
            changes), by name, in the order of the graph's inputs.
        trainable: The weights that the optimizer changes.
        state: The weights that forward() itself changes: the statistics of BatchNorm.
        names: Every name in the model's state dict -> the weight behind it; tied ones share one.
        constants: Buffers of the state dict that became constants of the graph.
        spare: What the state dict holds besides, and the graph does not use.
    """

    model: ir.Model
    interface: Interface
    weights: Mapping[str, Array]
    trainable: frozenset[str]
    state: tuple[str, ...]
    names: Mapping[str, str]
    constants: Mapping[str, Array] = field(default_factory=dict)
    spare: Mapping[str, Array] = field(default_factory=dict)


def without_weights(model: TrainingModel) -> TrainingModel:
    """`model` with zeros for weights, which are of their shapes and types and take no memory."""
    zeros = {
        name: np.broadcast_to(np.zeros((), weight.dtype), weight.shape)
        for name, weight in model.weights.items()
    }
    return replace(model, weights=zeros)


def lift_weights(graph: ir.Graph, names: list[str]) -> None:
    """Make inputs of the initializers `names`, in this order, after those that `graph` has."""
    for name in names:
        value = graph.initializers.pop(name)
        tensor = value.const_value
        assert tensor is not None
        value.const_value = None
        value.type = ir.TensorType(tensor.dtype)
        value.shape = ir.Shape(tuple(tensor.shape))  # type: ignore[arg-type]
        graph.inputs.append(value)


def with_trainable_initializers(
    model: ir.Model, interface: Interface, patterns: Sequence[str] | None
) -> TrainingModel:
    """An ONNX model whose trainable initializers become inputs.

    Args:
        model: The model, which is changed.
        interface: How it is called.
        patterns: Patterns of names; None takes the initializers that their metadata mark.

    Raises:
        ModelImportError: If a pattern or the whole model has nothing to train, or the type of a
            trainable initializer is not float32.
    """
    initializers = model.graph.initializers
    if patterns is None:
        names = [name for name, value in initializers.items() if _is_marked(value)]
    else:
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in initializers):
                raise ModelImportError(
                    f"TrainingOptions.trainable: no initializer is named {pattern!r}. There are: "
                    f"{', '.join(list(initializers)[:12]) or 'none'}."
                )
        names = [n for n in initializers if any(fnmatchcase(n, each) for each in patterns)]
    if not names:
        raise ModelImportError(
            "The ONNX model marks no initializer as trainable. Name them in "
            f"TrainingOptions(trainable=('*.weight', ...)), or give them the metadata {TRAINABLE!r}"
            " = 'true'."
        )
    arrays = {}
    for name in names:
        tensor = initializers[name].const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            kind = None if tensor is None else tensor.dtype
            raise ModelImportError(
                f"The trainable initializer {name!r} is of type {kind}; xrt trains float32. Leave "
                "it out, or convert it."
            )
        arrays[name] = np.array(tensor.numpy(), order="C", copy=True)
    rest = {
        n: np.asarray(v.const_value.numpy()) for n, v in initializers.items()
        if n not in arrays and v.const_value is not None
    }  # fmt: skip
    lift_weights(model.graph, names)
    kept = {name: name for name in (*arrays, *rest)}
    return TrainingModel(model, interface, arrays, frozenset(names), (), kept, rest)


def _is_marked(value: ir.Value) -> bool:
    return value.metadata_props.get(TRAINABLE) == "true"
