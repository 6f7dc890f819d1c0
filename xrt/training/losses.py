"""Losses: the model's own output, a named one, or a function of outputs and targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xrt.errors import OptionError, TrainingError, unknown
from xrt.importers import Interface
from xrt.training.sums import mean

Loss = Callable[[Any, Any], Any]
"""Takes the model's outputs, in its own structure, and the targets; gives a scalar."""

IGNORED = -100
"""The class of targets that count for nothing, as in torch."""


def cross_entropy(outputs: Any, targets: Any) -> jax.Array:
    """torch.nn.functional.cross_entropy: the mean of -log softmax(outputs)[target].

    Args:
        outputs: Logits [N, C, ...], or an output structure with `.logits`.
        targets: Classes [N, ...], of which -100 counts for nothing, or probabilities [N, C, ...].
            Another class outside of 0..C-1 makes the loss NaN: such a batch is no step.

    Raises:
        TrainingError: If the shapes do not fit.
    """
    logits = jnp.asarray(_single(outputs, "cross_entropy"))
    targets = jnp.asarray(targets)
    logs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=1)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        _same_shape("cross_entropy", logits.shape, targets.shape)
        return -mean(logs * targets) * logits.shape[1]
    if targets.shape != (logits.shape[0], *logits.shape[2:]):
        raise TrainingError(
            f"The loss 'cross_entropy' got logits of shape {list(logits.shape)} and classes of "
            f"shape {list(targets.shape)}; it takes [N, C, ...] and [N, ...], or probabilities of "
            "the logits' own shape."
        )
    kept = targets != IGNORED
    classes = jnp.expand_dims(jnp.where(kept, targets, 0), 1)
    picked = jnp.take_along_axis(logs, classes, axis=1, mode="clip").squeeze(1)
    wrong = kept & ((targets < 0) | (targets >= logits.shape[1]))
    picked = jnp.where(wrong, jnp.nan, picked)
    count = jnp.sum(kept, dtype=picked.dtype)
    return -mean(jnp.where(kept, picked, 0)) * (picked.size / count)


def mse(outputs: Any, targets: Any) -> jax.Array:
    """The mean of (outputs - targets)^2; both have one shape.

    Raises:
        TrainingError: If the shapes differ.
    """
    got = jnp.asarray(_single(outputs, "mse"))
    _same_shape("mse", got.shape, jnp.shape(targets))
    got = got.astype(jnp.promote_types(got.dtype, jnp.float32))
    return mean(jnp.square(got - jnp.asarray(targets).astype(got.dtype)))


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy, "mse": mse}


def resolve_loss(loss: Any) -> Loss | None:
    """The function for what a user names as the loss; None for the model's own output.

    Raises:
        OptionError: If there is no such loss.
    """
    if loss is None:
        return None
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise OptionError(
                unknown("Loss", loss, LOSSES).replace("losss", "losses")
                + " A function of (outputs, targets), in JAX, is a loss as well."
            )
        return LOSSES[loss]
    if any(kind.__module__.startswith("torch.") for kind in type(loss).__mro__):
        raise OptionError(
            f"loss is a {type(loss).__name__} of torch, which JAX cannot trace. Pass "
            f"{' or '.join(map(repr, LOSSES))}, a function of (outputs, targets) written with "
            "jax.numpy, or compute the loss in forward() and leave `loss` out."
        )
    if not callable(loss):
        raise OptionError(
            f"loss must be None (the model's own output), {', '.join(map(repr, LOSSES))} or a "
            f"function of (outputs, targets); got {loss!r}."
        )
    function: Loss = loss
    return function


def scalar(value: Any, who: str) -> jax.Array:
    """`value` as a scalar of at least float32.

    Raises:
        TrainingError: If it is no single floating-point number.
    """
    if not hasattr(value, "dtype") and not isinstance(value, (int, float)):
        raise TrainingError(
            f"{who} is a {type(value).__name__}, not a scalar. Return one floating-point number."
        )
    array = jnp.asarray(value)
    if array.size != 1 or not jnp.issubdtype(array.dtype, jnp.floating):
        raise TrainingError(
            f"{who} has shape {list(array.shape)} and type {array.dtype}; a loss is one "
            "floating-point number. Take the mean over the batch."
        )
    return array.reshape(()).astype(jnp.promote_types(array.dtype, jnp.float32))


def own_loss(interface: Interface, shapes: Sequence[tuple[int, ...]]) -> int:
    """Which output of the graph is the model's own loss.

    It is `.loss` or ["loss"] of the outputs, or the output itself if that is a scalar, or the first
    of a tuple if that is one.

    Raises:
        TrainingError: If there is none.
    """
    outputs = interface.unflatten(list(range(len(shapes))))
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    if found is None and isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    found = outputs if found is None else found
    if isinstance(found, int) and all(size == 1 for size in shapes[found]):
        return found
    raise TrainingError(
        f"The model returns no loss: its outputs have the shapes {[list(s) for s in shapes]}. "
        "Return a scalar (or an object with a scalar `.loss`; transformers' models do so if the "
        "batch holds labels), or pass loss='cross_entropy', 'mse' or a function of (outputs, "
        "targets) to xrt.compile_training."
    )


def _single(outputs: Any, who: str) -> Any:
    """The one array of `outputs`, or its `.logits`."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    found = getattr(outputs, "logits", None) if logits is None else logits
    if found is None and isinstance(outputs, (tuple, list)) and len(outputs) == 1:
        found = outputs[0]
    found = outputs if found is None else found
    if not hasattr(found, "dtype"):
        raise TrainingError(
            f"The loss {who!r} takes one array; the model returns a {type(found).__name__}. Pass a "
            "function of (outputs, targets) that picks what it needs."
        )
    return found


def _same_shape(who: str, got: Sequence[int], want: Sequence[int]) -> None:
    if tuple(got) != tuple(want):
        raise TrainingError(
            f"The loss {who!r} got outputs of shape {list(got)} and targets of shape {list(want)}."
            " Give the targets the shape of the outputs."
        )
