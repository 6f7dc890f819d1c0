"""The step: forward, backward and update as one function, and as one executable of XLA.

`Recipe` holds what a step computes, as pure functions; `XlaStep` compiles them into one executable
whose state is donated, so that weights and optimizer state are updated in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xrt.engines.xla import keys as K
from xrt.engines.xla import launch
from xrt.errors import TrainingError, XrtError
from xrt.importers import Interface
from xrt.options import TrainingOptions
from xrt.training.forward import Arrays, Forward
from xrt.training.losses import Loss, scalar
from xrt.training.optimizers import Optimizer
from xrt.training.parallel import step_function
from xrt.training.placement import Placement

METRICS = ("loss", "grad_norm", "loss_scale", "finite")
"""What a step measures, in the order of its vector."""

_CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a step computes.

    Attributes:
        forward: The forward pass.
        interface: How its outputs are structured.
        loss: A function of outputs and targets; None if the forward pass gives the loss alone.
        optimizer: What changes the weights.
        options: The options.
        scaled: Whether the loss is scaled, for fp16.
        parts: The sharding of a batch that is cut into parts, [parts, samples, ...], if any.
        precision: What the forward pass computes in, "fp32", "bf16" or "fp16".
    """

    forward: Forward
    interface: Interface
    loss: Loss | None
    optimizer: Optimizer
    options: TrainingOptions
    scaled: bool = False
    parts: Any = None
    precision: str = "fp32"

    def carry(self, weights: Arrays, trainable: Sequence[str]) -> tuple[dict[str, Any], Arrays]:
        """The state that steps change, and the weights that they do not."""
        trained = {name: jnp.asarray(weights[name]) for name in trainable}
        state = {name: weights[name] for name in self.forward.state}
        frozen = {n: w for n, w in weights.items() if n not in trained and n not in state}
        scaling: Arrays = {}
        if self.scaled:
            scale = np.float32(self.options.loss_scale)
            scaling = {"scale": scale, "good": np.zeros((), np.int32)}
        carry = {
            "trainable": trained,
            "state": state,
            "optimizer": self.optimizer.init(trained),
            "scaling": scaling,
        }
        return carry, frozen

    def loss_of(self, outputs: Sequence[Any], targets: Any) -> jax.Array:
        """The loss, of the outputs of the graph.

        Raises:
            TrainingError: If it is no scalar, or the function fails.
        """
        if self.loss is None:
            return scalar(outputs[0], "The model's loss")
        try:
            value = self.loss(self.interface.unflatten(outputs), targets)
        except XrtError:
            raise
        except Exception as error:
            shapes = [list(each.shape) for each in outputs]
            raise TrainingError(
                f"The loss function failed on outputs of the shapes {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return scalar(value, "The result of the loss function")

    def gradients(
        self,
        carry: dict[str, Any],
        frozen: Arrays,
        constants: Sequence[Any],
        inputs: Sequence[Any],
        targets: Any,
        key: Any,
    ) -> tuple[jax.Array, Arrays, Arrays]:
        """The loss, the gradients, times the loss scale, and the new state, for one part."""
        scale = carry["scaling"].get("scale", 1)

        def objective(trainable: Arrays) -> tuple[jax.Array, tuple[jax.Array, Arrays]]:
            weights = {**frozen, **carry["state"], **trainable}
            outputs, state = self.forward(weights, constants, inputs, key)
            loss = self.loss_of(outputs, targets)
            return loss * scale, (loss, state)

        (_, (loss, state)), gradients = jax.value_and_grad(objective, has_aux=True)(
            carry["trainable"]
        )
        return loss, gradients, state

    def accumulated(
        self,
        carry: dict[str, Any],
        frozen: Arrays,
        constants: Sequence[Any],
        inputs: Sequence[Any],
        targets: Any,
        key: Any,
    ) -> tuple[jax.Array, Arrays, Arrays]:
        """As `gradients`, the mean over the parts of a batch."""
        count = self.options.accumulate
        if count == 1:
            return self.gradients(carry, frozen, constants, inputs, targets, key)
        parts = jax.tree.map(self._cut, (list(inputs), targets))

        def one(known: Any, part: Any) -> tuple[Any, None]:
            loss, total, state = known
            number, (inputs, targets) = part
            now = {**carry, "state": state}
            own = jax.random.fold_in(key, number)
            more, gradients, state = self.gradients(now, frozen, constants, inputs, targets, own)
            return (loss + more, jax.tree.map(jnp.add, total, gradients), state), None

        zeros = jax.tree.map(jnp.zeros_like, carry["trainable"])
        first = (jnp.zeros((), jnp.float32), zeros, carry["state"])
        (loss, total, state), _ = jax.lax.scan(one, first, (jnp.arange(count), parts))
        return loss / count, jax.tree.map(lambda g: g / count, total), state

    def _cut(self, array: jax.Array) -> jax.Array:
        """An array of a batch as [parts, samples, ...]; what all samples share, for each part."""
        count = self.options.accumulate
        if not array.ndim:
            return jnp.broadcast_to(array, (count,))
        found = array.reshape(count, -1, *array.shape[1:])
        if self.parts is None:
            return found
        return jax.lax.with_sharding_constraint(  # type: ignore[no-any-return, no-untyped-call]
            found, self.parts
        )

    def apply(
        self, carry: dict[str, Any], loss: Any, gradients: Arrays, state: Arrays, rates: Any
    ) -> tuple[dict[str, Any], jax.Array]:
        """The new state, and the metrics; nothing changes if loss or gradients are not finite."""
        scaling = carry["scaling"]
        scale = scaling.get("scale", jnp.ones((), jnp.float32))
        norm, factor, finite = self.norm(loss, gradients, scale)
        gradients = jax.tree.map(lambda g: g * factor.astype(g.dtype), gradients)
        weights, moments = self.updated(gradients, carry, rates, finite)
        new = {
            "trainable": weights,
            "optimizer": moments,
            "state": select(finite, state, carry["state"]),
            "scaling": self.rescaled(scaling, finite),
        }
        return new, jnp.stack([loss, norm, scale, finite.astype(jnp.float32)])

    def updated(
        self, gradients: Arrays, carry: dict[str, Any], rates: Any, finite: Any
    ) -> tuple[Arrays, Any]:
        """The weights and the state of the optimizer after an update, or as they were.

        The optimizer is traced twice, so that the old state is read for the new one after it was
        read for the weights. XLA can then write both in place; else it copies the whole state.
        Where the new state also depends on the weights, by a decay that is part of the gradient,
        XLA copies those.
        """
        old, before = carry["optimizer"], carry["trainable"]
        weights, _ = self.optimizer.update(gradients, old, before, rates)
        weights = select(finite, weights, before)
        barrier: Any = jax.lax.optimization_barrier
        weights, old = barrier((weights, old))
        _, moments = self.optimizer.update(gradients, old, before, rates)
        return weights, select(finite, moments, old)

    def norm(self, loss: Any, gradients: Arrays, scale: Any) -> tuple[Any, Any, Any]:
        """The norm of the gradients, what to multiply them by, and whether all is finite."""
        squares = [jnp.sum(jnp.square(g.astype(jnp.float32) / scale)) for g in gradients.values()]
        norm = jnp.sqrt(sum(squares, jnp.zeros((), jnp.float32)))
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        factor = 1 / scale
        if self.options.clip_norm is not None:
            limit = self.options.clip_norm / (norm + _CLIP_EPSILON)
            factor = factor * jnp.minimum(limit, 1)
        return norm, factor, finite

    def rescaled(self, scaling: Arrays, finite: Any) -> Arrays:
        """The next loss scale: half after an overflow, twice after many good steps."""
        if not scaling:
            return {}
        good = jnp.where(finite, scaling["good"] + 1, 0)
        grown = good >= self.options.scale_growth_steps
        scale = jnp.where(grown, scaling["scale"] * 2, scaling["scale"])
        return {
            "scale": jnp.where(finite, scale, jnp.maximum(scaling["scale"] / 2, 1)),
            "good": jnp.where(grown, 0, good).astype(jnp.int32),
        }

    def key(self, words: Any, number: Any) -> Any:
        """The key of the step of a number, of the words of the seed."""
        return jax.random.fold_in(K.from_data(words), number)

    def step(
        self,
        carry: dict[str, Any],
        frozen: Arrays,
        constants: Sequence[Any],
        batch: Any,
        rates: Any,
        words: Any,
        number: Any,
    ) -> tuple[dict[str, Any], jax.Array]:
        """One step: the new state and the metrics."""
        inputs, targets = batch
        key = self.key(words, number)
        loss, gradients, state = self.accumulated(carry, frozen, constants, inputs, targets, key)
        return self.apply(carry, loss, gradients, state, rates)


def select(finite: Any, changed: Any, kept: Any) -> Any:
    """One of two trees, in the types of the second."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b).astype(b.dtype), changed, kept)


class XlaStep:
    """The step of a recipe as one executable.

    Args:
        recipe: What it computes.
        placement: Where.
        carry: The state, to take shapes from.
        frozen: The weights that stay.
        batch: Inputs and targets, whole and placed, to take shapes from.
        flags: Compile options of XLA.

    Raises:
        TrainingError: If a node cannot be traced or differentiated.
    """

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        carry: Any,
        frozen: Arrays,
        batch: Any,
        flags: dict[str, Any],
    ) -> None:
        self._recipe = recipe
        self._placement = placement
        self._constants = placement.put(recipe.forward.constants)
        self._words = placement.put(seed_words(recipe.options.seed))
        scalars = (self._rates(), self._words, np.zeros((), np.uint32))
        specs = (
            *map(placement.spec, (carry, frozen, self._constants)),
            placement.spec(batch, batch=True),
            *map(placement.spec, scalars),
        )
        try:
            function = step_function(recipe, placement, batch)
            jitted = jax.jit(
                function,
                donate_argnums=(0,),
                keep_unused=True,
                out_shardings=placement.replicated,
            )
            lowered = jitted.lower(*specs)
            self._compiled = lowered.compile(compiler_options=flags or None)
        except XrtError:
            raise
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            raise TrainingError(explain_failure(recipe.forward, error)) from error

    def __call__(self, carry: Any, frozen: Arrays, batch: Any, number: int) -> tuple[Any, Any]:
        """Run it; `carry` is gone afterwards."""
        rates, count = map(self._placement.put, (self._rates(), np.uint32(number)))
        return launch.run(  # type: ignore[no-any-return]
            self._compiled, carry, frozen, self._constants, batch, rates, self._words, count
        )

    def _rates(self) -> np.ndarray[Any, Any]:
        return np.array(self._recipe.optimizer.rates(), np.float64)

    def memory(self) -> dict[str, int]:
        """Bytes that XLA plans for a step: arguments, outputs, temporaries, and what is shared."""
        stats: Any = self._compiled.memory_analysis()
        return {
            "arguments": int(stats.argument_size_in_bytes),
            "outputs": int(stats.output_size_in_bytes),
            "temporaries": int(stats.temp_size_in_bytes),
            "shared": int(stats.alias_size_in_bytes),
        }


def seed_words(seed: int) -> np.ndarray[Any, Any]:
    """The words of the key of a seed."""
    return np.array([seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)


def explain_failure(forward: Forward, error: Exception) -> str:
    """What to say when a step cannot be built: the node whose derivative fails, if one does."""
    from xrt.training.nodes import first_failure

    found = first_failure(forward)
    if found is None:
        return f"XLA could not build the training step: {type(error).__name__}: {error}"
    return found
