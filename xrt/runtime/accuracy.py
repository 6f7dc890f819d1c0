"""Holds a bound on what int8 costs: which operators go back to floating point, found by measuring.

All is measured on one model whose groups are switched by an input (see `passes.QuantizePass`), so
that trying a set of groups takes a run and no compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from xrt import passes
from xrt.errors import CalibrationError, InputError
from xrt.kernels import host
from xrt.options import CompileOptions
from xrt.passes.quantize import Group, QuantizePass
from xrt.progress import progress
from xrt.quantization.accuracy import Comparison, compare
from xrt.quantization.search import Reversion, rank, revert
from xrt.runtime import arrays
from xrt.runtime.inputs import admits, entry_for, leaf_for, unbound
from xrt.runtime.precision import Job

_RANKING_BATCHES = 2


@dataclass(frozen=True)
class Choice:
    """What goes back to floating point.

    Attributes:
        exclude: The groups, most harmful first.
        harm: Of every group alone: the energy of the error that it makes in the main output, as a
            part of the energy of that output.
    """

    exclude: tuple[str, ...]
    harm: dict[str, float]

    def stricter(self) -> Choice:
        """The same with the next most harmful group back in floating point too."""
        following = [name for name in self.harm if name not in self.exclude][:1]
        return Choice((*self.exclude, *following), self.harm)


class Switchboard:
    """A model whose groups can be switched between int8 and fp32, run on calibration data."""

    def __init__(
        self,
        job: Job,
        original: ir.Model,
        make: Callable[..., QuantizePass],
        samples: Sequence[list[Any]],
        options: CompileOptions,
    ) -> None:
        """Build it.

        Args:
            job: What is built.
            original: Its model in fp32, which stays.
            make: Makes the pass that quantizes it, given `switches`.
            samples: Flat inputs of calibration batches.
            options: The bounds.
        """
        model = original.clone()
        pass_ = make(switches=True)
        passes.run([pass_, *passes.CLEAN], model, evaluate=host.evaluate)
        self.groups: tuple[Group, ...] = pass_.groups
        self._job, self._samples, self._options = job, list(samples), options
        self._schedule = job.runnable(model).schedule
        self._wanted = [self.run(leaves, frozenset()) for leaves in self._samples]

    def run(self, leaves: Sequence[Any], on: frozenset[str]) -> list[Any]:
        """The outputs with the groups `on` on int8."""
        flags = np.array([group.name in on for group in self.groups])
        return self._schedule.run([*leaves, flags])

    def choose(self) -> Choice:
        """The fewest of the most harmful groups without which the bounds hold.

        Raises:
            CalibrationError: If they hold for no set of groups.
        """
        names = [group.name for group in self.groups]
        with progress("Ranking operators", len(names), self._options.progress) as advance:
            ranked = rank(names, lambda name: self._harm(name, advance))
        order = [name for name, _ in ranked]
        exclude: tuple[str, ...] = ()
        for measure, bound, metric in self._bounds():
            rest = [name for name in order if name not in exclude]
            found: Reversion = revert(
                rest,
                lambda more, kept=exclude, loss=measure: loss(frozenset(kept) | more),  # type: ignore[misc]
                bound,
                metric=metric,
            )
            exclude += found.groups
        return Choice(exclude, dict(ranked))

    def _harm(self, name: str, advance: Callable[[str], None]) -> float:
        samples = self._samples[:_RANKING_BATCHES]
        got = [self.run(leaves, frozenset({name})) for leaves in samples]
        advance(name)
        noise = compare(self._wanted[: len(samples)], got).signal_to_noise
        return float(10 ** (-noise / 10))

    def _bounds(self) -> list[tuple[Callable[[frozenset[str]], float], float, str]]:
        options = self._options
        bounds: list[tuple[Callable[[frozenset[str]], float], float, str]] = []
        if options.max_mismatch is not None:
            bounds.append(
                (self._mismatch, options.max_mismatch, "a share of predictions differing")
            )
        if options.max_accuracy_drop is not None:
            base = self._accuracy(frozenset(group.name for group in self.groups))
            bounds.append(
                (
                    lambda reverted: base - self._accuracy(reverted),
                    options.max_accuracy_drop,
                    "a drop of accuracy",
                )
            )
        return bounds

    def _on(self, reverted: frozenset[str]) -> frozenset[str]:
        return frozenset(group.name for group in self.groups) - reverted

    def _mismatch(self, reverted: frozenset[str]) -> float:
        on = self._on(reverted)
        got = [self.run(leaves, on) for leaves in self._samples]
        return mismatch(compare(self._wanted, got))

    def _accuracy(self, reverted: frozenset[str]) -> float:
        on = self._on(reverted)
        return measured(self._options, self._job, lambda leaves: self.run(leaves, on))


def mismatch(comparison: Comparison) -> float:
    """The share of predictions that differ."""
    return 1.0 - comparison.agreement


def measured(options: CompileOptions, job: Job, run: Callable[[list[Any]], list[Any]]) -> float:
    """What the user's `accuracy_fn` says of a callable with the interface of the program.

    Args:
        options: Holds `accuracy_fn`.
        job: Of the program; the callable takes inputs of its signature only.
        run: Flat inputs to the outputs of the graph.

    Raises:
        CalibrationError: If the function gives no number.
    """
    assert options.accuracy_fn is not None
    inputs = job.imported.model.graph.inputs

    def call(*args: Any, **kwargs: Any) -> Any:
        flat = job.imported.interface.flatten(args, kwargs)
        leaves = [leaf_for(given, value) for given, value in zip(flat, inputs, strict=True)]
        got = tuple(map(entry_for, leaves, inputs))
        if not admits(unbound(job.signature), got):
            raise InputError(
                f"accuracy_fn called the program with inputs {[entry[:2] for entry in got]}; it "
                f"is calibrated for {[entry[:2] for entry in job.signature]}."
            )
        kind = arrays.kind_of(leaves)
        results = run([arrays.take(leaf) for leaf in leaves])
        return job.imported.interface.unflatten([arrays.give(r, kind) for r in results])

    accuracy = options.accuracy_fn(call)
    try:
        return float(accuracy)
    except (TypeError, ValueError):
        raise CalibrationError(
            f"accuracy_fn gave {accuracy!r:.60}; it must return a number, higher being better."
        ) from None


def holds(options: CompileOptions, job: Job, comparison: Comparison, run: Any, base: Any) -> bool:
    """Whether the bounds hold for a program as built.

    Args:
        options: The bounds.
        job: What was built.
        comparison: Its predictions beside those of fp32.
        run: It: flat inputs to outputs.
        base: The same in fp32.
    """
    if options.max_mismatch is not None and mismatch(comparison) > options.max_mismatch:
        return False
    if options.max_accuracy_drop is None:
        return True
    drop = measured(options, job, base) - measured(options, job, run)
    return drop <= options.max_accuracy_drop


def is_bounded(options: CompileOptions) -> bool:
    """Whether a bound is asked for."""
    return options.max_mismatch is not None or options.max_accuracy_drop is not None
