"""The program that users hold: call it, look into it."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from xrt.engines.engine import Engine, Executable
from xrt.errors import XrtError
from xrt.graph import Cluster
from xrt.importers.interface import Imported
from xrt.options import CompileOptions
from xrt.passes.partition import Partition
from xrt.runtime import arrays
from xrt.runtime.build import Built
from xrt.runtime.explanation import Explanation, explain
from xrt.runtime.inputs import Signature, entry_for, leaf_for, unbound
from xrt.runtime.precision import Conversion, Observe, Precision
from xrt.runtime.schedule import Record, Schedule
from xrt.runtime.trace import Trace, profile

_Key = tuple[int, Signature, int]
"""Id of the imported model, signature, and stage of the precision."""


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
    """

    imported: Imported
    signature: Signature
    built: Built
    conversion: Conversion
    seconds: Mapping[str, float]
    observe: Observe | None = None

    @property
    def partition(self) -> Partition:
        """Clusters, where every node went and why, and the outlined model."""
        return self.built.partition

    @property
    def executables(self) -> Mapping[str, Executable]:
        """What the engines built, by cluster name."""
        return self.built.executables

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
        specialize: Compiles an imported model at a signature, and, if at hand, inputs of it.
        engines: The engines that its clusters may go to.
        options: The options that it was compiled with.
        precision: What its numbers become.
    """

    def __init__(
        self,
        source: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Imported, list[Any]]],
        specialize: Callable[[Imported, Signature, Sequence[Any] | None], Specialization],
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
        self._latest: Specialization | None = None
        self._lock = threading.RLock()

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
        key = (id(imported), signature, self._precision.stage(imported))
        found = self._specializations.get(key)
        if found is None:
            with self._lock:  # calls with signatures that are known do not wait for it
                key = (*key[:2], self._precision.stage(imported))
                found = self._specializations.get(key)
                if found is None:
                    found = self._specialize(imported, signature, leaves)
                    self._keep(key, found)
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._specializations.move_to_end(key)
        self._latest = found
        return found

    def _keep(self, key: _Key, found: Specialization) -> None:
        """Add a specialization; what it replaces goes, and the least recently used beyond a bound.

        A stage that is over has no more use.
        """
        for known in [k for k in self._specializations if k[0] == key[0] and k[2] < key[2]]:
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

    def profile(self, batches: Iterable[Any]) -> Trace:
        """Run `batches` one after the other and measure every launch and the gaps between.

        Args:
            batches: Each a tuple of inputs, a dict of inputs by name, or a single input.
        """
        return profile(self, batches)

    def __reduce__(self) -> NoReturn:
        raise XrtError(
            "A program cannot be pickled or copied: it holds machine code. Compile the model where "
            "it is needed; the compile cache makes that quick."
        )

    def __repr__(self) -> str:
        if self._latest is None:
            return "<xrt.Program, not compiled yet>"
        names = ", ".join(cluster.name for cluster in self.clusters) or "none"
        return f"<xrt.Program, clusters: {names}>"
