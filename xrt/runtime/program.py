"""The program that users hold: call it, look into it."""

from __future__ import annotations

import contextlib
import functools
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NoReturn

from xrt.engines.engine import Engine, Executable
from xrt.errors import XrtError
from xrt.graph import Cluster
from xrt.importers.interface import Imported
from xrt.options import CompileOptions
from xrt.passes.partition import Partition
from xrt.process import new_lock
from xrt.runtime import arrays
from xrt.runtime.build import Built
from xrt.runtime.explanation import Explanation, explain
from xrt.runtime.inputs import Signature, entry_for, leaf_for, unbound
from xrt.runtime.paths import path_of
from xrt.runtime.pipeline import Stream, Submitter
from xrt.runtime.precision import Conversion, Observe, Precision
from xrt.runtime.profiling import profile
from xrt.runtime.ranges import Open, Ranges, closed
from xrt.runtime.schedule import Record, Schedule, Step
from xrt.runtime.trace import Trace

_Key = tuple[int, Signature, int, Open]
"""Id of the imported model, signature, stage of the precision, and ranges of open dimensions."""


@dataclass(frozen=True, eq=False)
class Specialization:
    """A program at one input signature.

    Attributes:
        imported: The model it was made from, and its calling convention.
        signature: Shapes and dtypes of the inputs.
        built: Clusters, executables and schedule.
        conversion: What became of its numbers.
        seconds: What compiling took, by stage.
        observe: Looks at the inputs and results of each call and returns the model's outputs; None
            where the results are the outputs.
        ranges: Symbolic dimensions that stay open, with the sizes that are served.
    """

    imported: Imported
    signature: Signature
    built: Built
    conversion: Conversion
    seconds: Mapping[str, float]
    observe: Observe | None = None
    ranges: Open = ()

    @property
    def partition(self) -> Partition:
        """Clusters, where every node went and why, and the outlined model."""
        return self.built.partition

    @property
    def executables(self) -> Mapping[str, Executable]:
        """What the engines built, by cluster name."""
        return self.built.executables

    @functools.cached_property
    def concurrent(self) -> bool:
        """Whether the launches of two batches may run at once, and gain by it."""
        schedule = self.schedule
        steps = schedule.steps[schedule.middle.start : schedule.middle.stop]
        launches = bool(steps) and all(step.engine for step in steps)  # no kernels of the user's
        return launches and all(each.concurrent for each in self.executables.values())

    @property
    def schedule(self) -> Schedule:
        """What a call runs."""
        return self.built.schedule

    def run(self, leaves: Sequence[Any], record: Record | None = None) -> list[Any]:
        """The outputs of the graph for the flat inputs of a call."""
        taken = [arrays.take(leaf) for leaf in leaves]
        results = self.schedule.run(taken, record)
        return results if self.observe is None else self.observe(taken, results)


class Program:
    """A compiled model. Made by `xrt.compile`; may be called from several threads.

    Args:
        source: Gives the imported model for the arguments of a call, and its flat inputs.
        specialize: Compiles an imported model at a signature, with, if at hand, inputs of it, and
            the ranges of the dimensions that the signature leaves open.
        engines: The engines that its clusters may go to.
        options: The options that it was compiled with.
        precision: What its numbers become.
    """

    def __init__(
        self,
        source: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Imported, list[Any]]],
        specialize: Callable[[Imported, Signature, Sequence[Any] | None, Open], Specialization],
        engines: Sequence[Engine],
        options: CompileOptions,
        precision: Precision,
    ) -> None:
        self._source = source
        self._specialize = specialize
        self._engines = {engine.name: engine for engine in engines}
        self._options = options
        self._precision = precision
        self._specializations: OrderedDict[_Key, Specialization] = OrderedDict()
        self._binds_values = bool(engines)
        self._bound_values: dict[tuple[int, Signature], set[Signature]] = {}
        self._ranges = (
            Ranges(options.ranges, widen=options.widen_ranges)
            if any(engine.takes_ranges for engine in engines)
            else None
        )
        self._latest: Specialization | None = None
        self._lock = new_lock()
        self._submitter: Submitter | None = None
        self._submitting = new_lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            args: Inputs by position, as the model takes them: torch, NumPy or JAX arrays.
            kwargs: Inputs by name.

        Returns:
            The model's own output structure, of arrays of the library that the inputs are of.

        Raises:
            InputError: If the inputs do not fit; the program stays usable.
        """
        specialization, leaves = self.locate(args, kwargs)
        kind = arrays.kind_of(leaves)
        results = specialization.run(leaves)
        return specialization.imported.interface.unflatten(
            [arrays.give(result, kind) for result in results]
        )

    def prepare(self, *args: Any, **kwargs: Any) -> Specialization:
        """Compile for the shapes and dtypes of these inputs, without running."""
        return self.locate(args, kwargs)[0]

    def locate(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Specialization, list[Any]]:
        """The specialization for a call, compiled if it is new, and the call's flat inputs."""
        imported, leaves = self.flatten(args, kwargs)
        values = imported.model.graph.inputs
        bound = imported.shape_inputs if self._binds_values else ()
        signature = tuple(
            entry_for(leaf, value, bind=value.name in bound)
            for leaf, value in zip(leaves, values, strict=True)
        )
        return self.prepare_signature(imported, signature, leaves), leaves

    def flatten(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Imported, list[Any]]:
        """The imported model for a call, and the call's flat inputs.

        Raises:
            InputError: If the model cannot be called like this.
        """
        imported, flat = self._source(args, kwargs)
        values = imported.model.graph.inputs
        return imported, [leaf_for(given, value) for given, value in zip(flat, values, strict=True)]

    def prepare_signature(
        self, imported: Imported, signature: Signature, leaves: Sequence[Any] | None = None
    ) -> Specialization:
        """The specialization of `imported` at `signature`, compiled if it is new.

        Args:
            imported: The model.
            signature: Shapes and dtypes of its inputs.
            leaves: Inputs of that signature, for what is decided by example.
        """
        if imported.shape_inputs:
            signature = self._admit(imported, signature)
        ranges: Open = ()
        if self._ranges is not None:
            signature, ranges = self._ranges.open(imported, signature)
        key = (id(imported), signature, self._precision.stage(imported), ranges)
        found = self._specializations.get(key)
        if found is None:
            with self._lock:  # calls with signatures that are known do not wait for it
                key = (*key[:2], self._precision.stage(imported), ranges)
                found = self._specializations.get(key)
                if found is None:
                    found = self._specialize(imported, signature, leaves, ranges)
                    self._keep(key, found)
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._specializations.move_to_end(key)
        self._latest = found
        return found

    def _keep(self, key: _Key, found: Specialization) -> None:
        """Add a specialization; what it replaces goes, and the least recently used beyond a bound.

        A stage that is over has no more use, nor has a narrower range.
        """
        for known in list(self._specializations):
            narrower = known[:3] == key[:3] and known[3] != key[3]
            if known[0] == key[0] and (known[2] < key[2] or narrower):
                del self._specializations[known]
        self._specializations[key] = found
        while len(self._specializations) > self._options.max_specializations:
            self._specializations.popitem(last=False)

    def _admit(self, imported: Imported, signature: Signature) -> Signature:
        """`signature`, its contents left open if too many others were bound for its shapes."""
        general = unbound(signature)
        if general == signature:
            return signature
        known = self._bound_values.setdefault((id(imported), general), set())
        if signature not in known:
            with self._lock:
                if len(known) >= self._options.max_bound_values:
                    return general
                known.add(signature)
        return signature

    @property
    def specialization(self) -> Specialization:
        """The one that was compiled or called last.

        Raises:
            XrtError: If the program has not been compiled for any inputs yet.
        """
        if self._latest is None:
            raise XrtError(
                "This program is compiled at its first call, when the input shapes are known. "
                "Call it first, or pass example_inputs to xrt.compile."
            )
        return self._latest

    @property
    def clusters(self) -> list[Cluster]:
        """The clusters of the latest specialization, in the order in which they run."""
        return list(self.specialization.partition.clusters)

    def explain(self) -> Explanation:
        """Where every node of the latest specialization runs, and why."""
        return explain(self.specialization)

    def build(self, cluster: Cluster) -> Executable:
        """Build a cluster by its engine, under the program's options."""
        return self._engines[cluster.engine].compile(cluster, self._options)

    def stream(self, batches: Iterable[Any], depth: int = 2, *, on_error: str = "cancel") -> Stream:
        """Run batches with several in flight; iterate over the result for the outputs, in order.

        While the launches of one batch run, the next one is read, copied and prepared, and the
        outputs of the last one are made, on threads of the stream. Each batch is copied as it is
        read, so that an iterator may fill the same arrays again.

        Args:
            batches: Any iterable; each batch a tuple of inputs, a dict of inputs by name, or a
                single input. It is read on a thread, one batch at a time.
            depth: Most batches that are in flight: read, and their outputs not yet taken. From 3
                on two of them compute at once where that gains, as with XLA on a CPU, at the price
                of the latency of each, and of memory for the temporaries of both.
            on_error: What a batch that fails does to those after it, once its error was raised at
                its place: "cancel" ends the stream, with "continue" the next batch is next. That
                goes for errors of the iterator, too: "continue" asks it again.

        Raises:
            OptionError: If depth or on_error is unknown.
            InputError: If `batches` is not iterable.
        """
        return Stream(self, batches, depth, on_error=on_error)

    def submit(self, batch: Any) -> Future[Any]:
        """Run a batch after those submitted before, and return at once.

        Its arrays must stay as they are until the future is done. A batch that fails leaves the
        others alone. Callbacks of the future run on a thread of the program.

        Args:
            batch: A tuple of inputs, a dict of inputs by name, or a single input.
        """
        with self._submitting:
            if self._submitter is None or not self._submitter.pipeline.is_ours:
                self._submitter = Submitter()
                # Its threads do not refer to the program, unless they work for it.
                self._ending = weakref.finalize(self, self._submitter.end)
                self._ending.atexit = False
            return self._submitter.submit(self, batch)

    def close(self) -> None:
        """Wait for what was submitted and end the threads; the program stays usable."""
        with self._submitting:
            submitter, self._submitter = self._submitter, None
            if submitter is not None:
                self._ending.detach()  # it holds the buffers
        if submitter is not None and submitter.pipeline.is_ours:
            submitter.end()
            submitter.pipeline.join()

    def profile(self, batches: Iterable[Any], depth: int | None = None) -> Trace:
        """Run `batches` and measure reading, copies, every step, and the gaps between.

        Args:
            batches: Each a tuple of inputs, a dict of inputs by name, or a single input. A list is
                compiled for before the clock starts; of other iterables the first batch is.
            depth: Most batches in flight, as in `stream`. None runs one after the other.

        Raises:
            InputError: If there is no batch, or one does not fit the program.
        """
        return profile(self, batches, depth)

    def is_on_gpu(self, step: Step) -> bool:
        """Whether a step of the program is enqueued on a GPU, on a stream of xrt's."""
        if step.kind != "launch":
            return False
        # A launch of no engine is a kernel of the user's.
        return step.engine not in self._engines or self._engines[step.engine].gpu

    def keep_open(self, imported: Imported, ranges: Open) -> None:
        """Keep dimensions of a model open within `ranges`, as if calls had come with such sizes."""
        if self._ranges is not None:
            self._ranges.restore(imported, ranges)

    def save(self, path: str | os.PathLike[str], *, prepared: bool = True) -> None:
        """Write the program to one file, which `xrt.load` reads, on other machines too.

        The file holds the model, all that was compiled for, and what calibration found. The old
        file stays until the new one is complete; programs that were loaded from it go on.

        Args:
            path: The file.
            prepared: Keep weights also as the engines prepared them for this device: the program
                then loads faster and processes share that memory, for a larger file.

        Raises:
            XrtError: If the program is not compiled yet, still calibrates, or has arguments or
                results that cannot be written down.
            OptionError: If `path` is no path.
            ProgramWriteError: If the file cannot be written, because of a full disk for example.
        """
        from xrt.runtime.package import save

        target = path_of(path, "Program.save")
        with self._lock:
            latest = self.specialization
            if latest.observe is not None:  # it may have seen its last batch
                signature = closed(latest.imported, latest.signature, latest.ranges)
                self.prepare_signature(latest.imported, signature)
            compiled = list(self._specializations.values())
        save(target, compiled, self._engines, self._options, self._precision, prepared=prepared)

    def __reduce__(self) -> NoReturn:
        raise XrtError(
            "A program cannot be pickled or copied: it holds machine code. Save it to a file and "
            "load that where it is needed: program.save('model.xrt'), xrt.load('model.xrt')."
        )

    def __repr__(self) -> str:
        if self._latest is None:
            return "<xrt.Program, not compiled yet>"
        names = ", ".join(cluster.name for cluster in self.clusters) or "none"
        return f"<xrt.Program, clusters: {names}>"
