"""Optimizers: an optax transformation, or what a torch optimizer or scheduler says.

An `Optimizer` changes weights inside the step. Numbers that change from step to step on the host's
side, torch's learning rates, come as an argument.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import jax
import jax.numpy as jnp

from xrt.errors import OptionError

Arrays = dict[str, Any]


class Optimizer(ABC):
    """How gradients change weights; pure functions of arrays by name.

    Attributes:
        by_weight: Whether `update` may be called for every weight alone, and gives the same then.
        weights: The weights that it changes; None for all.
    """

    by_weight = False
    weights: set[str] | None = None

    @abstractmethod
    def init(self, weights: Arrays) -> Any:
        """The state before the first update, a pytree of arrays."""

    @abstractmethod
    def update(self, gradients: Arrays, state: Any, weights: Arrays, rates: Any) -> tuple[Any, Any]:
        """The new weights and the new state."""

    def rates(self) -> list[float]:
        """The learning rates of the next update."""
        return []

    def advance(self) -> None:  # noqa: B027  (most have nothing to do)
        """Tell that an update was made."""

    def identity(self) -> dict[str, Any]:
        """What kind of "optimizer" and "scheduler" it is, and its settings, as plain data."""
        return {"optimizer": type(self).__name__, "scheduler": None}

    def state_dict(self) -> dict[str, Any]:
        """What `rates` follow from, as plain data."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Put back what `state_dict` gave."""


class OptaxOptimizer(Optimizer):
    """An optax transformation; it sees the weights as a dict by name."""

    def __init__(self, transformation: Any) -> None:
        self._transformation = transformation

    def identity(self) -> dict[str, Any]:
        """Of a transformation only the structure of its state is known, which arrays tell."""
        return {"optimizer": "an optax transformation", "scheduler": None}

    def init(self, weights: Arrays) -> Any:
        """The transformation's own state."""
        return self._transformation.init(weights)

    def update(self, gradients: Arrays, state: Any, weights: Arrays, rates: Any) -> tuple[Any, Any]:
        """Weights plus the transformation's updates."""
        updates, state = self._transformation.update(gradients, state, weights)
        added = jax.tree.map(lambda w, u: jnp.asarray(w + u).astype(w.dtype), weights, updates)
        return added, state


def resolve_optimizer(optimizer: Any, names: dict[int, str]) -> Optimizer:
    """The optimizer for what a user passes.

    Args:
        optimizer: An optax transformation, a torch.optim.Optimizer, or a torch scheduler.
        names: id of a torch parameter -> the name of its weight.

    Raises:
        OptionError: If it is something else, or has settings that cannot be read.
    """
    if callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None)):
        return OptaxOptimizer(optimizer)
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(optimizer).__mro__}
    if kinds & {"torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler"}:
        from xrt.training.torch_optimizers import read

        return read(optimizer, names)
    hint = ""
    if isinstance(optimizer, str):
        hint = f" For example optax.{optimizer}(learning_rate=1e-3)."
    raise OptionError(
        f"optimizer {optimizer!r:.80} is unknown. Known optimizers: an optax transformation, a "
        f"torch.optim.Optimizer, or a torch.optim.lr_scheduler of one.{hint}"
    )
