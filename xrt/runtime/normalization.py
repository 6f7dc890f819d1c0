"""Example inputs of a torch module that is to be compiled with an input normalization."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrt.errors import InputError
from xrt.options import InputNormalization
from xrt.runtime import arrays


def normalized_example(
    module: Any,
    normalization: InputNormalization,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which to export `module`, for those with which the program is called.

    Args:
        module: A torch.nn.Module, which takes floating-point images.
        normalization: What is to come before it.
        args: Arguments by position; the image among them is uint8.
        kwargs: Arguments by name.

    Raises:
        InputError: If there is no such argument, or it is no image of uint8.
    """
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError:
        return args, dict(kwargs)  # the importer says what is wrong with them
    names = list(bound.arguments)
    name = normalization.input or next(iter(names), None)
    if name is None or name not in bound.arguments:
        raise InputError(
            f"CompileOptions.normalization: input {name!r} is unknown. The example inputs of "
            f"forward{signature} are {', '.join(names) or 'none'}."
        )
    bound.arguments[name] = _normalize(name, bound.arguments[name], normalization, _dtype(module))
    return bound.args, bound.kwargs


def _dtype(module: Any) -> str:
    """The floating-point type that the module computes in, by the first of its parameters."""
    first = next(iter(module.parameters()), None)
    return "float32" if first is None or not first.is_floating_point() else arrays.dtype_name(first)


def _normalize(name: str, image: Any, normalization: InputNormalization, dtype: str) -> Any:
    axis = 1 if normalization.layout == "NCHW" else 3
    got = f"{arrays.dtype_name(image)} {list(image.shape)}" if hasattr(image, "dtype") else image
    fits = hasattr(image, "shape") and arrays.dtype_name(image) == "uint8"
    if not fits or len(image.shape) != 4 or image.shape[axis] != len(normalization.mean):
        raise InputError(
            f"Input {name!r} is {got!r:.60}; with CompileOptions.normalization it must be uint8 "
            f"{'[N, C, H, W]' if axis == 1 else '[N, H, W, C]'} of {len(normalization.mean)} "
            "channels."
        )
    pixels = arrays.on_host(arrays.take(image))
    if axis == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    mean, std = (
        np.array(numbers, np.float32).reshape(-1, 1, 1)
        for numbers in (normalization.mean, normalization.std)
    )
    normalized = (pixels / np.float32(255) - mean) / std
    return np.ascontiguousarray(normalized.astype(arrays.numpy_dtype(dtype)))
