"""The step on several devices.

Synchronized, it is the step of one device: XLA's partitioner shares the work out along the batch
and puts in the reductions. Or each device runs forward and backward pass on its share, with its own
statistics of batch normalization and its own random numbers, and the mean of the gradients is what
all of them apply, as torch's DistributedDataParallel does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from xrt.engines.xla import denormals, launch
from xrt.engines.xla import device as D
from xrt.engines.xla import trace as T
from xrt.engines.xla.ops.memory import partitioned
from xrt.training.placement import AXIS, Placement

if TYPE_CHECKING:
    from xrt.training.step import Recipe

Step = Callable[..., Any]


def step_function(recipe: Recipe, placement: Placement, batch: Any) -> Step:
    """`recipe.step` for the devices of `placement`, to be compiled.

    Args:
        recipe: What a step computes.
        placement: Where.
        batch: Arrays or shapes of a whole batch.
    """
    if placement.mesh is None:
        return _headed(recipe, placement.devices[0])
    if recipe.options.batch_norm == "synchronized":
        return partitioned()(recipe.step)

    def step(
        carry: Any, frozen: Any, constants: Any, batch: Any, rates: Any, words: Any, number: Any
    ) -> Any:
        inputs, targets = batch
        key = jax.random.fold_in(recipe.key(words, number), lax.axis_index(AXIS))
        loss, gradients, state = recipe.accumulated(carry, frozen, constants, inputs, targets, key)
        loss, gradients = _mean((loss, gradients))
        state = jax.tree.map(_common, state)
        return recipe.apply(carry, loss, gradients, state, rates)

    whole = PartitionSpec()  # type: ignore[no-untyped-call]
    return jax.shard_map(
        step,
        mesh=placement.mesh,
        in_specs=(whole, whole, whole, placement.axes(batch), whole, whole, whole),
        out_specs=whole,
        check_vma=False,  # gradients of replicated weights are added up here, not by JAX
    )


def _headed(recipe: Recipe, device: jax.Device) -> Step:
    """`recipe.step`, on xrt's own CPU device after what a program does first (`xla.launch`).

    Only what reads the batch has to wait for that: the state is donated, and stays so.
    """
    if device != D.device() or not denormals.kept(device):
        return recipe.step
    temporary = T.largest_temporary(recipe.forward.graph, recipe.forward.plan)

    def step(carry: Any, frozen: Any, constants: Any, batch: Any, *rest: Any) -> Any:
        leaves, tree = jax.tree.flatten(batch)
        results = [array.nbytes for array in jax.tree.leaves(carry)]
        batch = jax.tree.unflatten(tree, launch.head(leaves, temporary, results))
        return recipe.step(carry, frozen, constants, batch, *rest)

    return step


def _mean(tree: Any) -> Any:
    return lax.pmean(tree, AXIS)  # type: ignore[no-untyped-call]


def _common(state: Any) -> Any:
    """One state for all devices: the mean of numbers, the first device's of what is counted."""
    if jnp.issubdtype(state.dtype, jnp.floating):
        return _mean(state)
    first = jnp.where(lax.axis_index(AXIS) == 0, state, jnp.zeros_like(state))
    every = lax.psum(first.astype(jnp.int64), AXIS)  # type: ignore[no-untyped-call]
    return every.astype(state.dtype)
