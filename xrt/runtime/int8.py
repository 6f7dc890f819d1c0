"""int8: calibrate in full precision on the first calls, or on batches given, then quantize.

A model that is not calibrated yet is built in fp32 with its activations as further outputs; every
call answers in fp32 and shows them to observers. Once enough batches were seen the next call, of
whichever thread, gets the quantized model; calls under way finish as they began.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from xrt import passes
from xrt.engines.cache import open_cache
from xrt.errors import CalibrationError, InputError
from xrt.graph import digest
from xrt.importers import Imported, split_example
from xrt.kernels import host
from xrt.options import CompileOptions, QuantizationOptions
from xrt.passes.correct_bias import corrected_values
from xrt.passes.quantization_plan import is_prequantized, plan_quantization
from xrt.passes.quantize import Group, QuantizePass, watched_values
from xrt.process import new_lock
from xrt.progress import progress
from xrt.quantization import Calibration, data_digest
from xrt.quantization.accuracy import compare, signal_to_noise
from xrt.runtime import arrays
from xrt.runtime.accuracy import Choice, Switchboard, holds, is_bounded
from xrt.runtime.build import Built
from xrt.runtime.inputs import Entry, Signature, admits, entry_for
from xrt.runtime.precision import Conversion, Job, Observe, Precision

if TYPE_CHECKING:
    from xrt.runtime.program import Program

_TIMED_CALLS = 5
_MOST_TRIALS = 8  # of models built for good that may miss a bound which they met switched
_CACHE_VERSION = 1  # of what a calibration means: thresholds of watched values by name


@dataclass
class _State:
    """What is known about one imported model."""

    imported: Imported
    calibration: Calibration
    wanted: int
    samples: list[list[Any]] = field(default_factory=list)
    ready: bool = False
    choice: Choice | None = None
    report: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Int8(Precision):
    """int8 by static quantization; see `passes.QuantizePass`. Safe to call from several threads."""

    name = "int8"

    def __init__(self, options: CompileOptions, weight_bits: int) -> None:
        """Create it, not calibrated.

        Args:
            options: The options of the program.
            weight_bits: Bits of weights that the device computes with exactly.
        """
        self._options = options
        self._weight_bits = options.quantization.weight_bits or weight_bits
        self._states: dict[int, _State] = {}
        self._lock = new_lock()

    def stage(self, imported: Imported) -> int:
        """1 once the model is calibrated."""
        state = self._states.get(id(imported))
        return 1 if state is not None and state.ready else 0

    def build(self, job: Job) -> tuple[Built, Conversion, Observe | None]:
        """Build the quantized model, or the one in fp32 that calibrates."""
        if is_prequantized(job.model.graph):
            notes = ("The model is quantized already and runs as it is.",)
            return job.build(job.model), Conversion(self.name, notes=notes), None
        state = self.state(job.imported)
        return self._quantized(job, state) if state.ready else self._calibrating(job, state)

    def state(self, imported: Imported) -> _State:
        """What is known about `imported`."""
        with self._lock:
            found = self._states.get(id(imported))
            if found is None:
                chosen = self._options.quantization
                calibration = Calibration(chosen.observer, percentile=chosen.percentile)
                found = _State(imported, calibration, self._options.calibration_batches)
                self._states[id(imported)] = found
            return found

    def _calibrating(self, job: Job, state: _State) -> tuple[Built, Conversion, Observe | None]:
        self._equalize(job.model)
        names = watched_values(job.model.graph)
        if not names:
            raise CalibrationError(_nothing(job.model.graph))
        channels = self._channels(job.model.graph)
        count = len(job.model.graph.outputs)
        taps = _expose(job.model, names)

        def observe(leaves: Sequence[Any], results: list[Any]) -> list[Any]:
            found = {n: arrays.on_host(leaves[i] if of_input else results[i])
                     for n, (of_input, i) in taps.items()}  # fmt: skip
            self._observe(state, leaves, found, channels)
            return results[:count]

        notes = ("Calibrating: it answers in fp32 and watches its activations.",)
        return job.runnable(job.model), Conversion(self.name, notes=notes), observe

    def _observe(
        self,
        state: _State,
        leaves: Sequence[Any],
        values: dict[str, Any],
        channels: dict[str, int],
    ) -> None:
        with self._lock:
            if state.ready:
                return  # this call began before the last batch of another thread
            state.calibration.observe(values, channels)
            state.samples.append([_copied(leaf) for leaf in leaves])
            state.ready = state.calibration.batches >= state.wanted

    def _quantized(self, job: Job, state: _State) -> tuple[Built, Conversion, Observe | None]:
        self._equalize(job.model)
        original = job.model.clone()
        with self._lock:
            samples = [s for s in state.samples if admits(job.signature, _signature(s, job))]
            if samples and is_bounded(self._options) and state.choice is None:
                board = Switchboard(
                    job, original, partial(self._pass, state), samples, self._options
                )
                state.choice = board.choose()
                built, pass_ = self._validated(job, original, state, samples)
            else:
                model, pass_ = self._quantize(original, state)
                built = job.build(model)
            if samples and self._options.quantization.report:
                pair = _Pair(job, original, job.runnable(built.model, built))
                state.report = pair.report(samples, pass_.groups)
                state.notes += pair.notes
            if samples:
                _check_coverage(pass_)
                state.samples = []  # they have served, and may be large
        return built, self._conversion(state, pass_, original.graph), None

    def _validated(
        self, job: Job, original: ir.Model, state: _State, samples: Sequence[list[Any]]
    ) -> tuple[Built, QuantizePass]:
        """The model as it will run, with more groups back in floating point if it must be."""
        reference = job.runnable(original)
        wanted = [reference.schedule.run(leaves) for leaves in samples]
        choice = state.choice
        assert choice is not None
        for _ in range(_MOST_TRIALS):
            model, pass_ = self._quantize(original, state)
            built = job.build(model)
            run, base = job.runnable(model, built).schedule.run, reference.schedule.run
            comparison = compare(wanted, [run(leaves) for leaves in samples])
            if holds(self._options, job, comparison, run, base):
                return built, pass_
            choice = state.choice = choice.stricter()
        raise CalibrationError(
            f"The bound cannot be met: with {len(choice.exclude)} of {len(choice.harm)} operators "
            f"in floating point, {comparison.mismatches} of {comparison.predictions} predictions "
            "differ. Loosen the bound, give more calibration data, or use precision='bf16'."
        )

    def _equalize(self, model: ir.Model) -> None:
        if self._options.quantization.equalize:
            passes.run([passes.EqualizeWeightsPass], model)

    def _channels(self, graph: ir.Graph) -> dict[str, int]:
        return corrected_values(graph) if self._options.quantization.correct_bias else {}

    def _pass(self, state: _State, *, switches: bool = False) -> QuantizePass:
        return QuantizePass(
            state.calibration.thresholds(),
            exclude=state.choice.exclude if state.choice else (),
            weight_bits=self._weight_bits,
            switches=switches,
        )

    def _quantize(self, original: ir.Model, state: _State) -> tuple[ir.Model, QuantizePass]:
        """A quantized copy of `original`."""
        model, pass_ = original.clone(), self._pass(state)
        correct = passes.CorrectBiasPass(
            state.calibration.means(), exclude=pass_.exclude, weight_bits=self._weight_bits
        )
        passes.run([correct, pass_, *passes.CLEAN], model, evaluate=host.evaluate)
        if not pass_.groups:
            listed = "; ".join(f"{name!r}: {why}" for name, why in list(pass_.refused.items())[:5])
            raise CalibrationError(f"No operator could be quantized. {listed}.")
        return model, pass_

    def _conversion(self, state: _State, pass_: QuantizePass, graph: ir.Graph) -> Conversion:
        reverted = dict.fromkeys(state.choice.exclude if state.choice else ())
        ops = {str(value.name): node.op_type for node in graph for value in node.outputs}
        kept = [(n, ops[n], reason) for n, reason in pass_.refused.items() if n not in reverted]
        kept += [(name, ops[name], _why_reverted(state, name)) for name in reverted]
        report = {"groups": len(pass_.groups), **state.report}
        if state.choice:
            harm = state.choice.harm
            report["reverted"] = [{"name": n, "harm": harm[n]} for n in reverted]
        return Conversion(self.name, tuple(kept), tuple(state.notes), report)


def _check_coverage(pass_: QuantizePass) -> None:
    """Raise if calibration, on this very signature, never saw an activation."""
    if pass_.unseen:
        raise CalibrationError(
            f"Calibration never saw {', '.join(map(repr, pass_.unseen[:5]))}: no batch gave "
            f"{'it' if len(pass_.unseen) == 1 else 'them'} an element. Add batches that do."
        )


def _why_reverted(state: _State, name: str) -> str:
    assert state.choice is not None
    return f"to hold the bound: its error alone is {state.choice.harm[name]:.2g} of the output"


class _Pair:
    """A quantized model, built, beside the same in fp32, on calibration data."""

    def __init__(self, job: Job, original: ir.Model, built: Built) -> None:
        self.notes: list[str] = []
        self._job, self._original, self._built = job, original, built
        self._reference = job.runnable(original)

    def report(self, samples: Sequence[list[Any]], groups: Sequence[Group]) -> dict[str, Any]:
        """Predictions that differ, noise of the output and of each layer, and time."""
        wanted = [self._reference.schedule.run(leaves) for leaves in samples]
        got = [self._built.schedule.run(leaves) for leaves in samples]
        report = {
            **compare(wanted, got).to_dict(),
            "batches": len(samples),
            "layers": self._layers(samples[0], groups),
        }
        if self._job.build_here is not None:
            return report  # times on this machine say nothing of the target's
        ours, theirs = _times(self._built, self._reference, samples[0])
        if ours > theirs:
            self.notes.append(
                f"int8 is slower than fp32 on this device: {ours:.3g} ms against {theirs:.3g} ms, "
                "measured on a calibration batch."
            )
        return {**report, "int8_ms": ours, "fp32_ms": theirs}

    def _layers(self, leaves: list[Any], groups: Sequence[Group]) -> list[dict[str, Any]]:
        """Signal to noise of what each group takes and has not rounded itself, on one batch."""
        names = list(dict.fromkeys(name for group in groups for name in group.inputs))
        wanted = self._values(self._original, leaves, names)
        got = self._values(self._built.model, leaves, names)
        noise = {name: signal_to_noise(wanted[name], got[name]) for name in wanted if name in got}
        return [
            {
                "name": group.name,
                "op": group.op,
                "signal_to_noise": min(noise[n] for n in group.inputs if n in noise),
            }
            for group in groups
            if any(name in noise for name in group.inputs)
        ]

    def _values(
        self, model: ir.Model, leaves: list[Any], names: Sequence[str]
    ) -> dict[str, np.ndarray[Any, Any]]:
        model = model.clone()
        made = {str(value.name) for node in model.graph for value in node.outputs}
        taps = _expose(model, [name for name in names if name in made])
        results = self._job.runnable(model).schedule.run(leaves)
        return {name: np.asarray(results[place]) for name, (_, place) in taps.items()}


def _expose(model: ir.Model, names: Sequence[str]) -> dict[str, tuple[bool, int]]:
    """Make values outputs of `model`; where each is: (among the inputs, its position)."""
    graph = model.graph
    inputs = {str(value.name): i for i, value in enumerate(graph.inputs)}
    outputs = {str(value.name): i for i, value in enumerate(graph.outputs)}
    values = {str(value.name): value for node in graph for value in node.outputs}
    taps: dict[str, tuple[bool, int]] = {}
    for name in names:
        if name in inputs:
            taps[name] = True, inputs[name]
            continue
        if name not in outputs:
            outputs[name] = len(graph.outputs)
            graph.outputs.append(values[name])
        taps[name] = False, outputs[name]
    return taps


def _nothing(graph: ir.Graph) -> str:
    _, refused = plan_quantization(graph)
    if not refused:
        return (
            "This model has no operator to quantize: no Conv, ConvTranspose, Gemm, MatMul or "
            "Attention on float32. Compile it with precision='fp32'."
        )
    listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(refused.items())[:5])
    return f"No operator of this model can be quantized ({listed}). Use precision='fp32'."


def _copied(leaf: Any) -> Any:
    """A leaf that the caller may change after the call, in memory of its own."""
    return leaf if leaf is None else np.array(arrays.on_host(leaf))


def _signature(leaves: Sequence[Any], job: Job) -> Signature:
    inputs = zip(leaves, job.imported.model.graph.inputs, job.signature, strict=True)
    return tuple(entry_for(leaf, value, bind=entry[2] is not None) for leaf, value, entry in inputs)


def _times(built: Built, reference: Built, leaves: Sequence[Any]) -> tuple[float, float]:
    """Median milliseconds of a call of each, taken in turn after one of its own."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(_TIMED_CALLS):
        for taken, each in zip(seconds, (built, reference), strict=True):
            each.schedule.run(leaves)
            begin = time.perf_counter()
            each.schedule.run(leaves)
            taken.append(time.perf_counter() - begin)
    ours, theirs = (float(np.median(taken)) * 1000 for taken in seconds)
    return ours, theirs


def calibrate(program: Program, precision: Int8, batches: Any, options: CompileOptions) -> None:
    """Calibrate a program on batches, and build it quantized for their shape.

    What was found is kept in the compile cache, by the model, the observer and the data.

    Args:
        program: The program, not calibrated.
        precision: Its precision.
        batches: Any iterable; each batch a tuple of inputs, a dict of inputs by name, or one input.
        options: The options of the program.

    Raises:
        CalibrationError: No batch, batches that differ in shape or dtype, NaN or infinity, or a
            model in which nothing can be quantized.
    """
    if isinstance(batches, (str, bytes)) or not isinstance(batches, Iterable):
        raise CalibrationError(
            f"calibration must be an iterable of batches; got a {type(batches).__name__}."
        )
    work = [split_example(batch) for batch in batches]
    if not work:
        raise CalibrationError("calibration= holds no batch. Pass at least one.")
    imported, flat = _flat(program, work)
    if is_prequantized(imported.model.graph):
        program.prepare(*work[0][0], **work[0][1])
        return
    state = precision.state(imported)
    state.wanted = len(work)
    cache = open_cache(options, "calibration")
    key = _cache_key(state, flat, options.quantization)
    known = cache.get(key) if cache else None
    if known is not None:
        state.calibration = Calibration.from_json(known)
        state.samples, state.ready = flat, True
    else:
        with progress("Calibrating", len(work), options.progress) as advance:
            for number, (args, kwargs) in enumerate(work):
                try:
                    program(*args, **kwargs)
                except InputError as error:
                    raise _misfit(number, error) from error
                advance(f"batch {number + 1} of {len(work)}")
        if cache:
            cache.put(key, state.calibration.to_json())
    program.prepare(*work[0][0], **work[0][1])


_Call = tuple[tuple[Any, ...], Mapping[str, Any]]


def _flat(program: Program, work: Sequence[_Call]) -> tuple[Imported, list[list[Any]]]:
    """The imported model that all batches fit, and their inputs as NumPy arrays."""
    flat: list[list[Any]] = []
    first: tuple[Imported, Signature] | None = None
    for number, (args, kwargs) in enumerate(work):
        try:
            imported, leaves = program.flatten(args, kwargs)
        except InputError as error:
            raise _misfit(number, error) from error
        flat.append([_copied(leaf) for leaf in leaves])
        inputs = imported.model.graph.inputs
        signature = tuple(map(entry_for, leaves, inputs))
        first = first or (imported, signature)
        for value, leaf, entry, want in zip(inputs, flat[-1], signature, first[1], strict=True):
            _check_leaf(str(value.name), leaf, number, entry, want)
    assert first is not None
    return first[0], flat


def _misfit(number: int, error: InputError) -> CalibrationError:
    return CalibrationError(f"Calibration batch {number} does not fit: {error}")


def _check_leaf(name: str, leaf: Any, number: int, entry: Entry, want: Entry) -> None:
    if entry != want:
        raise CalibrationError(
            f"Calibration batch {number} has {name!r} of {entry[1]}{list(entry[0] or ())}; "
            f"batch 0 has {want[1]}{list(want[0] or ())}. Give batches of one shape and dtype: "
            "drop a last one that is smaller."
        )
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
        raise CalibrationError(f"Calibration batch {number} has NaN or infinity in {name!r}.")


def _cache_key(state: _State, flat: list[list[Any]], options: QuantizationOptions) -> str:
    chosen = (*state.calibration.settings, options.equalize, options.correct_bias)
    parts = (digest(state.imported.model.graph), chosen, data_digest(flat), _CACHE_VERSION)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
