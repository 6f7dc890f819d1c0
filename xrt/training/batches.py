"""What a user passes to a step: taken apart into the inputs of the graph and the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import onnx_ir as ir

from xrt.errors import InputError
from xrt.graph import static_shape
from xrt.importers import Interface, split_example
from xrt.runtime import arrays

Batch = tuple[list[Any], Any]
"""Inputs of the graph, and targets: a tree of arrays, () where the model computes its own loss."""


def split_batch(batch: Any, with_targets: bool) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The arguments of forward(), by position and by name, and the targets.

    Raises:
        InputError: If a loss function has no targets.
    """
    if not with_targets:
        return (*split_example(batch), ())
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise InputError(
            f"With a loss function a batch is (inputs, targets); got {got}. Several inputs go into "
            "a tuple or a dict of their own: ((x, mask), targets)."
        )
    args, kwargs = split_example(batch[0])
    return args, kwargs, batch[1]


class BatchReader:
    """Turns batches into arrays, all of the shapes of the first.

    Args:
        interface: How the model is called.
        values: The graph's inputs.
        with_targets: Whether a batch is (inputs, targets).
        parts: How many times the graph's own batch a whole batch is.
        processes: How many processes pass a share of it each.
    """

    def __init__(
        self,
        interface: Interface,
        values: list[ir.Value],
        with_targets: bool,
        parts: int,
        processes: int = 1,
    ) -> None:
        self._interface, self._values = interface, values
        self._with_targets = with_targets
        self._parts, self._processes = parts, processes
        self._targets: Any = None

    def __call__(self, batch: Any) -> Batch:
        """The inputs and targets of `batch`, as NumPy or JAX arrays.

        Raises:
            InputError: If structure, shape or dtype are not those the step was compiled for.
        """
        args, kwargs, targets = split_batch(batch, self._with_targets)
        leaves = self._interface.flatten(args, kwargs)
        inputs = [self._input(*pair) for pair in zip(leaves, self._values, strict=True)]
        targets = jax.tree.map(_take, targets, is_leaf=_is_numbers)
        self._check_targets(targets)
        return inputs, targets

    def _input(self, leaf: Any, value: ir.Value) -> Any:
        array = _take(leaf)
        want = value.dtype.numpy() if value.dtype else array.dtype
        array = arrays.widen(array, value.dtype) if value.dtype else array
        if np.dtype(array.dtype) != want:
            raise InputError(
                f"Input {value.name!r} has dtype {array.dtype}; the model takes {want}. Convert it "
                "first: xrt does not change numbers silently."
            )
        shape = static_shape(value)
        if shape:
            shape = (shape[0] * self._parts // self._processes, *shape[1:])
        if tuple(array.shape) != shape:
            raise InputError(
                f"Input {value.name!r} has shape {list(array.shape)}; the step was compiled for "
                f"{list(shape or ())}. A step is one executable of fixed shapes: pad or drop the "
                "last batch, or compile another trainer."
            )
        return array

    def _check_targets(self, targets: Any) -> None:
        """Raise if targets are not like those of the first batch."""
        found = jax.tree.map(lambda each: (tuple(each.shape), str(each.dtype)), targets)
        if self._targets is None:
            self._targets = found
        elif found != self._targets:
            raise InputError(
                f"The targets are {found}; the step was compiled for {self._targets}. Pass targets "
                "of one structure, shape and dtype."
            )


def samples(batch: Batch) -> int:
    """How many samples a batch holds: the first size of its first array."""
    for leaf in jax.tree.leaves(batch):
        if np.ndim(leaf):
            return int(np.shape(leaf)[0])
    return 1


def whole(example: Any, processes: int) -> Any:
    """An example of the batch that so many processes pass shares like `example` of."""
    if processes == 1:
        return example
    if isinstance(example, Mapping):
        return {name: whole(each, processes) for name, each in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(whole(each, processes) for each in example)
    rank = len(getattr(example, "shape", ()))
    if not rank:
        return example
    times = (processes, *[1] * (rank - 1))
    return example.tile(times) if hasattr(example, "tile") else np.tile(example, times)


def cut(example: Any, parts: int) -> Any:
    """The first of `parts` parts of an example batch, along the first axis of each array.

    Raises:
        InputError: If a batch does not divide.
    """
    if parts == 1:
        return example
    if isinstance(example, Mapping):
        return {name: cut(each, parts) for name, each in example.items()}
    if isinstance(example, (tuple, list)):
        return type(example)(cut(each, parts) for each in example)
    shape: tuple[int, ...] = tuple(getattr(example, "shape", ()))
    if not shape:
        return example
    if shape[0] % parts:
        raise InputError(
            f"A batch of {shape[0]} does not divide into {parts} equal parts (devices times "
            "TrainingOptions.accumulate). Choose a batch size that does."
        )
    return example[: shape[0] // parts]


def _take(leaf: Any) -> Any:
    found = arrays.take(leaf)
    return found if hasattr(found, "shape") and hasattr(found, "dtype") else np.asarray(found)


def _is_numbers(node: Any) -> bool:
    """Whether it is a list of numbers: one array, of a number for each sample."""
    return isinstance(node, list) and bool(node) and all(isinstance(n, (int, float)) for n in node)
