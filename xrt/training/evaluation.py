"""Evaluation: the loss of the model in eval() mode, with the weights of a trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from xrt.engines.xla import device as D
from xrt.engines.xla import keys as K
from xrt.engines.xla.ops.memory import partitioned
from xrt.errors import OptionError
from xrt.importers import import_for_training, is_torch_module
from xrt.importers.training import TrainingModel
from xrt.training.batches import Batch, split_batch
from xrt.training.forward import Arrays, Forward
from xrt.training.placement import Placement
from xrt.training.prepare import evaluation_graph, prepare
from xrt.training.step import Recipe, seed_words


class Evaluator:
    """The forward pass in eval() mode, compiled once for the loss and once for each metric.

    A torch module is exported anew, in eval() mode; in the graph of an ONNX model dropout goes and
    BatchNorm takes its running statistics.
    """

    def __init__(
        self, model: Any, source: TrainingModel, recipe: Recipe, placement: Placement, example: Any
    ) -> None:
        own = recipe.loss is None
        args, kwargs, _ = split_batch(example, not own)
        trainable = tuple(sorted(source.trainable))
        modes = {m: m.training for m in model.modules()} if is_torch_module(model) else {}
        for module in modes:
            module.training = False
        try:
            found = import_for_training(model, args, dict(kwargs), None if modes else trainable)
        finally:
            for module, mode in modes.items():
                module.training = mode
        if not modes:
            evaluation_graph(found.model)
        found = prepare(found, args, kwargs, own=own)
        self._placement, self._names = placement, source.names
        known = {*source.weights, *source.constants, *source.spare}
        self._own = {n: w for n, w in found.weights.items() if self._names.get(n, n) not in known}
        self._recipe = replace(recipe, forward=Forward(found), interface=found.interface)
        self._constants = placement.put(self._recipe.forward.constants)
        self._compiled: dict[Any, Any] = {}

    def __call__(
        self, weights: Arrays, batch: Batch, metric: Callable[[Any, Any], Any] | None
    ) -> float:
        """The loss, or `metric`, of one batch.

        Args:
            weights: The weights of the training graph, and by its name what only eval() uses.
            batch: Inputs and targets.
            metric: In place of the loss.
        """
        if metric is not None and self._recipe.loss is None:
            raise OptionError(
                "evaluate() takes a metric only where a loss function is given: the model's own "
                "loss leaves no targets. Use trainer.program() to compute others."
            )
        forward = self._recipe.forward
        with D.isolated():
            used = {name: self._weight(name, weights) for name in forward.weights}
            placed = self._placement.put_batch(batch)
            function = self._compiled.get(metric)
            if function is None:
                function = self._compiled[metric] = self._compile(metric)
            return float(function(used, self._constants, *placed))

    def _weight(self, name: str, weights: Arrays) -> Any:
        """A weight of the graph in eval() mode; the state dict lacks non-persistent buffers."""
        key = self._names.get(name, name)
        array = weights[key] if key in weights else self._own[name]
        return array if isinstance(array, jax.Array) else self._placement.put(array)

    def _compile(self, metric: Callable[[Any, Any], Any] | None) -> Any:
        recipe = self._recipe if metric is None else replace(self._recipe, loss=metric)

        def run(weights: Arrays, constants: Any, inputs: Any, targets: Any) -> Any:
            key = K.from_data(seed_words(recipe.options.seed))
            outputs, _ = recipe.forward(weights, constants, inputs, key)
            return recipe.loss_of(outputs, targets)

        if self._placement.mesh is not None:
            run = partitioned()(run)
        flags = self._placement.compiler_options(recipe.options.xla.compiler_options)
        return jax.jit(run, compiler_options=flags or None)
