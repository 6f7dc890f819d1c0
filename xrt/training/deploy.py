"""From trained weights to a program: `Trainer.program`, and state dicts in the user's types."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt.compile import compile
from xrt.errors import InputError, OptionError
from xrt.importers import import_model, is_torch_module
from xrt.importers.training import Array, TrainingModel
from xrt.runtime import arrays as A


def deploy(
    model: Any, source: TrainingModel, state: Mapping[str, Any], example_inputs: Any, **options: Any
) -> Any:
    """`xrt.compile` on a copy of `model` that holds the weights `state`, in eval() mode."""
    if is_torch_module(model):
        trained = _copy_of(model)
        trained.load_state_dict(state, strict=True)
        return compile(trained.eval(), example_inputs, **options)
    graph = import_model(model, (), {}).model
    for name, array in state.items():
        value = graph.graph.initializers[name]
        value.const_value = ir.Tensor(array, name=name)
    return compile(graph, example_inputs, **options)


def _copy_of(model: Any) -> Any:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise OptionError(
            f"The {type(model).__name__} cannot be copied ({error}), so that program() cannot give "
            "it the trained weights. Load trainer.state_dict() into it and call xrt.compile."
        ) from error


def to_user(arrays: Mapping[str, Array], *, torch: bool) -> dict[str, Any]:
    """`arrays`, which nobody else holds, as tensors of torch or as they are."""
    return {name: A.give(array, "torch") if torch else array for name, array in arrays.items()}


def checked(
    state: Mapping[str, Any], source: TrainingModel
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The weights of the graph that a state dict holds, and what it holds for nobody, by name.

    Raises:
        InputError: If something is missing, unknown or does not fit.
    """
    missing = [name for name in source.names if name not in state]
    strange = [name for name in state if name not in source.names]
    if missing or strange:
        raise InputError(
            f"The state dict lacks {missing[:8] or 'nothing'} and has {strange[:8] or 'nothing'} "
            "that the model does not. Pass one of this model."
        )
    found: dict[str, Array] = {}
    spare: dict[str, Array] = {}
    for name, weight in source.names.items():
        array = np.asarray(A.on_host(A.take(state[name])))
        known = {**source.constants, **source.spare}.get(name)
        known = source.weights[weight] if known is None else known
        if array.shape != known.shape or array.dtype != known.dtype:
            raise InputError(
                f"The state dict holds {name!r} as {array.dtype}{list(array.shape)}; the model has "
                f"{known.dtype}{list(known.shape)}."
            )
        if name in source.constants:
            if not np.array_equal(array, known):
                raise InputError(
                    f"The buffer {name!r} is a constant of the compiled step and cannot change. "
                    "Load it into the model and call xrt.compile_training again."
                )
        elif name in source.spare:
            spare[name] = np.array(array, copy=True)
        elif weight in found and not np.array_equal(found[weight], array):
            raise InputError(
                f"{name!r} is tied to another weight, but the state dict gives them two values."
            )
        else:
            found[weight] = array
    return found, spare
