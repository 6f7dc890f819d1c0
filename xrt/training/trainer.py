"""The trainer: what users hold while they train."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xrt.engines.xla import device as D
from xrt.errors import InputError, OptionError, TrainingError
from xrt.graph import digest
from xrt.importers import is_torch_module
from xrt.importers.training import TrainingModel, without_weights
from xrt.process import interrupts_deferred, return_freed_memory
from xrt.progress import progress
from xrt.training import checkpoint
from xrt.training.batches import BatchReader, samples, whole
from xrt.training.deploy import deploy, to_user
from xrt.training.evaluation import Evaluator
from xrt.training.host import HostStep
from xrt.training.placement import Placement
from xrt.training.step import Recipe, XlaStep


@dataclass(frozen=True)
class Metrics:
    """What the last step measured.

    Attributes:
        step: Its number, from 1.
        loss: The loss before the update.
        grad_norm: The global norm of the gradients, before clipping.
        loss_scale: What the loss was multiplied by in precision "fp16"; else 1.
        skipped: Whether the weights stayed as they were, because something was not finite.
        skipped_steps: How many steps that happened to so far.
        learning_rates: Of each group of a torch optimizer.
        seconds: Wall time of the step.
        samples_per_second: Samples of the batch, by that time.
    """

    step: int
    loss: float
    grad_norm: float
    loss_scale: float
    skipped: bool
    skipped_steps: int
    learning_rates: tuple[float, ...]
    seconds: float
    samples_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        return asdict(self)


class Trainer:
    """A model, its optimizer and their state; made by `xrt.compile_training`."""

    def __init__(
        self,
        model: Any,
        source: TrainingModel,
        recipe: Recipe,
        trainable: list[str],
        reader: BatchReader,
        placement: Placement,
        engine: str,
        example: Any,
    ) -> None:
        self._model, self._source, self._recipe = model, without_weights(source), recipe
        self._reader, self._placement, self._engine = reader, placement, engine
        self._example = whole(example, placement.processes)
        self._spare = dict(source.spare)
        self._count = self._skipped = 0
        self._metrics: Metrics | None = None
        self._evaluator: Evaluator | None = None
        batch = placement.put_batch(reader(example))
        carry, frozen = recipe.carry(dict(source.weights), trainable)
        placement.check_alike(f"{digest(source.model.graph)} {engine} {recipe.options}")
        self._carry, self._frozen = placement.put(placement.agreed((carry, frozen)))
        del carry, frozen  # whose memory the compiler can have
        options = recipe.options
        with progress("Compiling the step", None, options.progress):
            make: Callable[..., Any] = XlaStep if engine == "xla" else HostStep
            flags = placement.compiler_options(options.xla.compiler_options)
            self._step = make(recipe, placement, self._carry, self._frozen, batch, flags)
        return_freed_memory()

    def step(self, batch: Any) -> float:
        """Train on one batch.

        Args:
            batch: As the example batch: the model's inputs, or (inputs, targets).

        Returns:
            The loss before the update.

        Raises:
            InputError: If the batch is not of the shapes that the step was compiled for.
            TrainingError: If the loss or a gradient is not finite and `options.nonfinite` is
                "raise"; the weights are as before the step. Or, once the step is made, if the
                scheduler has no learning rate for the next one.
            KeyboardInterrupt: On Ctrl-C, once the step is made.
        """
        begin = time.perf_counter()
        read = self._reader(batch)
        # The step takes the state's memory: in between there is none to go on with.
        with D.isolated(), interrupts_deferred():
            return self._make(self._placement.put_batch(read), begin)

    def _make(self, placed: Any, begin: float) -> float:
        """A step on a batch that is on the devices; the loss. It started at `begin`."""
        optimizer = self._recipe.optimizer
        rates = tuple(optimizer.rates())
        self._carry, measured = self._step(self._carry, self._frozen, placed, self._count)
        loss, norm, scale, finite = (float(each) for each in np.asarray(measured))
        seconds = time.perf_counter() - begin
        self._count += 1
        self._skipped += not finite
        self._metrics = Metrics(
            self._count,
            loss,
            norm,
            scale,
            not finite,
            self._skipped,
            rates,
            seconds,
            samples(placed) / seconds,
        )
        if finite:
            optimizer.advance()
        else:
            self._complain(self._metrics)
        return loss

    def _complain(self, measured: Metrics) -> None:
        overflow = self._recipe.scaled and math.isfinite(measured.loss) and measured.loss_scale > 1
        if overflow or self._recipe.options.nonfinite == "skip":
            return
        what = "gradients" if math.isfinite(measured.loss) else "loss"
        raise TrainingError(
            f"Step {measured.step}: the {what} is not finite (loss {measured.loss}, norm of the "
            f"gradients {measured.grad_norm}). The weights are as before the step. Check the "
            "batch (labels and indices out of range give NaN too), lower the learning rate, set "
            "TrainingOptions.clip_norm, or set TrainingOptions.nonfinite='skip' to leave such "
            "batches out."
        )

    def fit(self, batches: Iterable[Any], *, steps: int | None = None) -> list[float]:
        """Train on `batches`, at most `steps` of them, with a progress bar; the losses.

        No more than `steps` batches are taken from an iterator, so that the next call goes on.

        Raises:
            OptionError: If `steps` is negative.
        """
        if steps is not None and steps < 0:
            raise OptionError(f"steps must be at least 0, or None for all batches; got {steps}.")
        total = len(batches) if steps is None and isinstance(batches, Sized) else steps
        losses: list[float] = []
        with progress("Training", total, self._recipe.options.progress) as advance:
            for batch in islice(batches, steps):
                losses.append(self.step(batch))
                speed = self.metrics.samples_per_second
                advance(f"loss {losses[-1]:.4g}, {speed:.1f} samples/s")
        return losses

    @property
    def metrics(self) -> Metrics:
        """What the last step measured.

        Raises:
            TrainingError: If there was none.
        """
        if self._metrics is None:
            raise TrainingError("There are no metrics before the first step: call trainer.step.")
        return self._metrics

    @property
    def steps(self) -> int:
        """How many steps were made, skipped ones included."""
        return self._count

    def memory(self) -> dict[str, int]:
        """Bytes of a step, as XLA plans it; what "host" holds is not known ahead."""
        found: dict[str, int] = self._step.memory()
        return found

    def evaluate(
        self, batches: Iterable[Any], metric: Callable[[Any, Any], Any] | None = None
    ) -> float:
        """The mean over samples of the loss, or of `metric`, with the model in eval() mode.

        Args:
            batches: As `step` takes them, of the same shapes.
            metric: In place of the loss: a function of (outputs, targets) in JAX that gives a
                scalar, such as an accuracy. Only with a loss function.

        Raises:
            InputError: If there is no batch, or one does not fit.
        """
        if self._evaluator is None:
            self._evaluator = Evaluator(
                self._model, self._source, self._recipe, self._placement, self._example
            )
        known = {**self._source.constants, **self._spare, **self.weights()}
        total, count = 0.0, 0
        for batch in batches:
            read = self._reader(batch)
            size = samples(read)
            total += size * self._evaluator(known, read, metric)
            count += size
        if not count:
            raise InputError("evaluate() got no batches.")
        return total / count

    def weights(self) -> dict[str, Any]:
        """All weights of the graph by name: JAX arrays that the next step may overwrite."""
        return {**self._frozen, **self._carry["state"], **self._carry["trainable"]}

    def state_dict(self) -> dict[str, Any]:
        """The model's state dict: copies, in torch's names and order.

        Tensors for a torch module, whose `load_state_dict(..., strict=True)` takes them; NumPy
        arrays by the names of the initializers for an ONNX model.
        """
        weights = self.weights()
        known = {**self._source.constants, **self._spare}
        arrays = {
            name: np.array(known[name] if name in known else weights[weight], copy=True)
            for name, weight in self._source.names.items()
        }
        return to_user(arrays, torch=is_torch_module(self._model))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights; the state of the optimizer stays.

        Raises:
            InputError: If names, shapes or dtypes differ from `state_dict()`'s, tied weights differ
                from each other, or a buffer that became a constant of the step differs.
        """
        from xrt.training.deploy import checked

        found, self._spare = checked(state, self._source)
        with D.isolated():
            placed = self._placement.put(self._placement.agreed(found))
        for group in (self._frozen, self._carry["state"], self._carry["trainable"]):
            group.update({name: placed[name] for name in group})

    def save(self, path: str | Path, *, keep: int | None = None) -> Path:
        """Write all that training goes on from: weights, optimizer, schedule, steps, loss scale.

        Of several processes the first writes, and all return when the file is there.

        Args:
            path: A file, which is replaced in one step. With `keep` a folder: the file in it is
                named after the number of steps, and older ones go.
            keep: How many files of the folder stay.

        Returns:
            The file.

        Raises:
            ProgramWriteError: If it cannot be written; what was there stays.
            OptionError: If `keep` is no whole number of at least 1.
        """
        snapshot = self._snapshot()
        self._placement.by_first(lambda: checkpoint.save(snapshot, path, keep))
        return checkpoint.target(snapshot, path, keep)

    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote; with the same batches every number comes out as it would.

        Args:
            path: The file, or the folder, of which the newest file that is whole counts.

        The settings of the optimizer are this trainer's; a schedule and its rates are the file's.

        Raises:
            ProgramNotFoundError: If there is none.
            ProgramFileError: If it is no checkpoint, or damaged.
            InputError: If it is of another model, or another kind of optimizer or scheduler. The
                trainer stays as it was. Other differences are told by a CheckpointWarning.
        """
        found = checkpoint.load(path, self._snapshot())
        with D.isolated():
            trees = self._placement.put(self._placement.agreed(found.trees))
        self._recipe.optimizer.load_state_dict(found.plain["optimizer"])
        self._carry, self._frozen = trees["carry"], trees["frozen"]
        self._spare = {name: np.array(array) for name, array in found.trees["spare"].items()}
        self._count, self._skipped = found.plain["steps"], found.plain["skipped"]
        self._metrics = None

    def _snapshot(self) -> checkpoint.Snapshot:
        options = self._recipe.options
        trees = {"carry": self._carry, "frozen": self._frozen, "spare": self._spare}
        plain = {
            "steps": self._count,
            "skipped": self._skipped,
            "optimizer": self._recipe.optimizer.state_dict(),
        }
        identity = {
            "graph": digest(self._source.model.graph),
            "seed": options.seed,
            "accumulate": options.accumulate,
            "devices": len(self._placement.devices),
            "batch_norm": options.batch_norm,
            "clip_norm": options.clip_norm,
            "segments": options.segments,
            "scale_growth_steps": options.scale_growth_steps,
            "engine": self._engine,
            "precision": self._recipe.precision,
            **self._recipe.optimizer.identity(),
        }
        return checkpoint.Snapshot(trees, plain, identity)

    def program(
        self,
        example_inputs: Any = None,
        *,
        precision: str = "fp32",
        engine: Any = "auto",
        calibration: Any = None,
        options: Any = None,
    ) -> Any:
        """The trained model as an `xrt.Program`, in eval() mode; the arguments are its own.

        Args:
            example_inputs: As `xrt.compile` takes them; without it a torch module is compiled at
                the first call.
            precision: "fp32", "fp16", "bf16" or "int8".
            engine: Engine or engines, in order of preference.
            calibration: Batches of inputs, for int8.
            options: `xrt.CompileOptions`.
        """
        return deploy(
            self._model,
            self._source,
            self.state_dict(),
            example_inputs,
            precision=precision,
            engine=engine,
            calibration=calibration,
            options=options,
        )

    def __repr__(self) -> str:
        trainable = self._carry["trainable"]
        count = sum(math.prod(jax.numpy.shape(array)) for array in trainable.values())
        return f"<xrt.Trainer, {count} trainable numbers, {self._count} steps>"
