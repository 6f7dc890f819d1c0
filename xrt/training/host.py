"""The engine "host": a step without clusters, one executable an operator.

Every node's forward pass is compiled by itself; it gives its results and what its backward pass
needs. The backward passes, the sums of gradients, the loss and the update of every weight are
executables of their own, too. What a step costs beyond engine "xla" is what clusters save:
launches, and results that go to memory in between. The numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt.engines.xla import keys as K
from xrt.process import return_freed_memory
from xrt.training.forward import Arrays, reached
from xrt.training.nodes import NodeFunction, is_float, moving, signature
from xrt.training.placement import Placement
from xrt.training.step import Recipe, seed_words, select


class _Compiled:
    """The executables of one kind of node."""

    def __init__(
        self, function: NodeFunction, wanted: Sequence[bool], given: Sequence[bool], flags: Any
    ) -> None:
        """Compile at the first call.

        Args:
            function: The node.
            wanted: For each array that it reads, whether its gradient is wanted.
            given: For each result, whether it is a floating-point number.
            flags: Compile options of XLA.
        """
        self.function = function

        def plain(arrays: Any, constants: Any, key: Any) -> Any:
            return tuple(function(arrays, constants, key))

        def forward(arrays: Any, constants: Any, key: Any) -> Any:
            inner = [array for array, want in zip(arrays, wanted, strict=True) if want]

            def of(chosen: Sequence[Any]) -> Any:
                rest = iter(chosen)
                every = [
                    next(rest) if want else array
                    for array, want in zip(arrays, wanted, strict=True)
                ]
                results = function(every, constants, key)
                floats = [r for r, is_given in zip(results, given, strict=False) if is_given]
                return floats, tuple(results)

            _, backward, results = jax.vjp(of, inner, has_aux=True)
            return results, backward

        self.differentiated = any(wanted) and any(given)
        chosen: Callable[..., Any] = forward if self.differentiated else plain
        self.forward = jax.jit(chosen, compiler_options=flags or None)


class HostStep:
    """The step of a recipe, operator by operator; called as `XlaStep` is."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        carry: Any,
        frozen: Arrays,
        batch: Any,
        flags: dict[str, Any],
    ) -> None:
        self._recipe, self._placement, self._flags = recipe, placement, flags
        forward = recipe.forward
        self._constants = placement.put(forward.constants)
        self._words = placement.put(seed_words(recipe.options.seed))
        graph = forward.graph
        count = len(graph.outputs) - len(forward.state)
        self._needed = reached(graph, list(graph.outputs)[:count])
        self._active = _active(graph, [forward.weight_values[n] for n in carry["trainable"]])
        self._compiled: dict[Any, _Compiled] = {}
        self._kinds: dict[tuple[ir.Node, tuple[bool, ...]], _Compiled] = {}
        jit = self._jit
        self._key = jit(lambda words, number: jax.random.fold_in(K.from_data(words), number))
        self._fold = jit(jax.random.fold_in)
        self._backward = jit(lambda backward, cotangents: backward(cotangents)[0])
        self._plain = jit(lambda array: jnp.moveaxis(array, -1, 1))
        self._last = jit(lambda array: jnp.moveaxis(array, 1, -1))
        self._add = jit(jnp.add)
        self._loss = jit(jax.value_and_grad(self._objective, has_aux=True))
        self._norm = jit(recipe.norm)
        self._rescaled = jit(recipe.rescaled)
        self._update = jit(self._one_update)
        self._select = jit(select)
        self._stack = jit(
            lambda loss, norm, scale, finite: jnp.stack(
                [loss, norm, scale, finite.astype(jnp.float32)]
            )
        )

    def _jit(self, function: Callable[..., Any]) -> Any:
        return jax.jit(function, compiler_options=self._flags or None)

    def memory(self) -> dict[str, int]:
        """Nothing: there is no plan for the whole step."""
        return {}

    def __call__(self, carry: Any, frozen: Arrays, batch: Any, number: int) -> tuple[Any, Any]:
        """Run it; `carry` stays valid."""
        key = self._key(self._words, self._placement.put(np.uint32(number)))
        parts = self._recipe.options.accumulate
        loss, state, compiled = None, carry["state"], len(self._compiled)
        total: Arrays = {}
        for part in range(parts):
            mine = _part(batch, part, parts)
            own = key if parts == 1 else self._fold(key, self._placement.put(np.uint32(part)))
            now = {**carry, "state": state}
            more, gradients, state = self._gradients(now, frozen, mine, own)
            loss = more if loss is None else self._add(loss, more)
            for name, gradient in gradients.items():
                known = total.get(name)
                total[name] = gradient if known is None else self._add(known, gradient)
        made = self._apply(carry, loss, total, state, parts)
        if len(self._compiled) > compiled:
            return_freed_memory()  # 4.8 of 7.8 GB after the first step of BERT-base
        return made

    def _gradients(
        self, carry: Any, frozen: Arrays, batch: Any, key: Any
    ) -> tuple[Any, Arrays, Arrays]:
        """The loss, the gradients and the new state."""
        forward, (inputs, targets) = self._recipe.forward, batch
        weights = {**frozen, **carry["state"], **carry["trainable"]}
        given = [*inputs, *(weights[name] for name in forward.weights)]
        values = dict(zip(forward.graph.inputs, given, strict=True))
        layouts: dict[ir.Value, bool] = {}
        tape: list[tuple[ir.Node, Any]] = []
        for node in forward.nodes:
            if node in forward.plan.absorbed:
                continue
            kind = self._kind(node, layouts)
            arrays = [values[value] for value in moving(node)]
            results = kind.forward(arrays, self._constants, key)
            if kind.differentiated:
                results, backward = results
                tape.append((node, backward))
            values.update(zip(node.outputs, results, strict=False))
            layouts.update(zip(node.outputs, kind.function.layouts, strict=False))
        outputs = [self._give(values, layouts, value) for value in forward.outputs]
        state = [
            self._give(values, layouts, value)
            for value in list(forward.graph.outputs)[len(outputs) :]
        ]
        scale = carry["scaling"].get("scale", np.float32(1))
        floats, rest = _split(outputs)
        (_, loss), found = self._loss(floats, rest, targets, scale)
        places = [i for i, each in enumerate(outputs) if jnp.issubdtype(each.dtype, jnp.floating)]
        cotangents: dict[ir.Value, Any] = {}
        for place, gradient in zip(places, found, strict=True):
            value = forward.outputs[place]
            gradient = self._last(gradient) if layouts.get(value) else gradient
            self._collect(cotangents, value, gradient)
        self._walk_back(tape, values, cotangents)
        gradients = {}
        for name, weight in carry["trainable"].items():
            gradient = cotangents.get(forward.weight_values[name])
            gradients[name] = jnp.zeros_like(weight) if gradient is None else gradient
        return loss, gradients, dict(zip(forward.state, state, strict=True))

    def _walk_back(
        self,
        tape: list[tuple[ir.Node, Any]],
        values: dict[ir.Value, Any],
        cotangents: dict[ir.Value, Any],
    ) -> None:
        """Run the backward passes, last node first; fills in `cotangents`."""
        while tape:
            node, backward = tape.pop()
            given = [value for value in node.outputs if is_float(value) and value in values]
            if not any(value in cotangents for value in given):
                continue
            mine = [
                cotangents.pop(value) if value in cotangents else jnp.zeros_like(values[value])
                for value in given
            ]
            found = self._backward(backward, mine)
            wanted = [value for value in moving(node) if self._wants(value)]
            for value, gradient in zip(wanted, found, strict=True):
                self._collect(cotangents, value, gradient)

    def _collect(self, cotangents: dict[ir.Value, Any], value: ir.Value, gradient: Any) -> None:
        known = cotangents.get(value)
        cotangents[value] = gradient if known is None else self._add(known, gradient)

    def _wants(self, value: ir.Value) -> bool:
        return value in self._active and is_float(value)

    def _kind(self, node: ir.Node, layouts: dict[ir.Value, bool]) -> _Compiled:
        read = moving(node)
        given = tuple(layouts.get(value, False) for value in read)
        found = self._kinds.get((node, given))
        if found is None:
            wanted = tuple(self._wants(v) and bool(self._needed & {*node.outputs}) for v in read)
            forward = self._recipe.forward
            key = (signature(forward, node, given), wanted)
            found = self._compiled.get(key)
            if found is None:
                floats = [is_float(value) for value in node.outputs]
                function = NodeFunction(forward, node, given)
                found = self._compiled[key] = _Compiled(function, wanted, floats, self._flags)
            self._kinds[node, given] = found
        return found

    def _give(
        self, values: dict[ir.Value, Any], layouts: dict[ir.Value, bool], value: ir.Value
    ) -> Any:
        if value not in values:
            assert value.const_value is not None
            return self._placement.put(value.const_value.numpy())
        return self._plain(values[value]) if layouts.get(value) else values[value]

    def _objective(self, floats: Any, rest: Any, targets: Any, scale: Any) -> tuple[Any, Any]:
        loss = self._recipe.loss_of(_join(floats, rest), targets)
        return loss * scale, loss

    def _apply(
        self, carry: Any, loss: Any, total: Arrays, state: Arrays, parts: int
    ) -> tuple[Any, Any]:
        scaling = carry["scaling"]
        scale = scaling.get("scale", np.float32(1))
        if parts > 1:
            share = np.float32(1 / parts)
            loss = loss * share
            total = {name: gradient * share for name, gradient in total.items()}
        norm, factor, finite = self._norm(loss, total, scale)
        rates = self._placement.put(np.array(self._recipe.optimizer.rates(), np.float64))
        trainable, moments = carry["trainable"], carry["optimizer"]
        weights, new = self._updated(total, moments, trainable, rates, (factor, finite))
        result = {
            "trainable": weights,
            "optimizer": new,
            "state": self._select(finite, state, carry["state"]),
            "scaling": self._rescaled(scaling, finite),
        }
        return result, self._stack(loss, norm, scale, finite)

    def _updated(
        self, total: Arrays, moments: Any, trainable: Arrays, rates: Any, measured: Any
    ) -> tuple[Arrays, Any]:
        """New weights and state of the optimizer: by weight where the optimizer can do that."""
        if not self._recipe.optimizer.by_weight:
            weights, new = self._update(total, moments, trainable, rates, measured)
            return weights, new
        weights, new = {}, {}
        for name, weight in trainable.items():
            mine = ({name: total.pop(name)}, {name: moments[name]}, {name: weight})
            one, slots = self._update(*mine, rates, measured)
            weights.update(one)
            new.update(slots)
        return weights, new

    def _one_update(
        self, gradients: Arrays, moments: Any, weights: Arrays, rates: Any, measured: Any
    ) -> tuple[Arrays, Any]:
        factor, finite = measured
        scaled = {name: g * factor.astype(g.dtype) for name, g in gradients.items()}
        new, slots = self._recipe.optimizer.update(scaled, moments, weights, rates)
        return select(finite, new, weights), select(finite, slots, moments)


def _active(graph: ir.Graph, weights: Sequence[ir.Value]) -> set[ir.Value]:
    """The values that depend on `weights`."""
    found = set(weights)
    for node in graph:
        if not found.isdisjoint(moving(node)):
            found.update(node.outputs)
    return found


def _part(batch: Any, part: int, parts: int) -> Any:
    if parts == 1:
        return batch
    inputs, targets = batch

    def one(array: Any) -> Any:
        if not array.ndim:  # what all samples share
            return array
        size = array.shape[0] // parts
        return array[part * size : (part + 1) * size]

    return [one(each) for each in inputs], jax.tree.map(one, targets)


def _split(outputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The floating-point arrays, and all with None in place of those."""
    rest: list[Any] = []
    floats = []
    for each in outputs:
        is_given = jnp.issubdtype(each.dtype, jnp.floating)
        floats.extend([each] if is_given else [])
        rest.append(None if is_given else each)
    return floats, rest


def _join(floats: Sequence[Any], rest: Sequence[Any]) -> list[Any]:
    remaining = iter(floats)
    return [next(remaining) if each is None else each for each in rest]
