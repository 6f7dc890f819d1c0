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
from xrt.runtime.explanation import Explanation, explain
from xrt.runtime.inputs import Signature, entry_for, leaf_for, unbound
from xrt.runtime.schedule import Schedule
from xrt.runtime.trace import Trace, profile


@dataclass(frozen=True, eq=False)
class Specialization:
    """A program at one input signature.

    Attributes:
        imported: The model it was made from, and its calling convention.
        signature: Shapes and dtypes of the inputs.
        partition: Clusters, where every node went and why, and the outlined model.
        executables: What the engines built, by cluster name.
        schedule: What a call runs.
        seconds: What compiling took, by stage.
    """

    imported: Imported
    signature: Signature
    partition: Partition
    executables: Mapping[str, Executable]
    schedule: Schedule
    seconds: Mapping[str, float]


class Program:
    """A compiled model. Made by `xrt.compile`; may be called from several threads.

    Args:
        source: Gives the imported model for the arguments of a call, and its flat inputs.
        specialize: Compiles an imported model at a signature.
        engines: The engines that its clusters may go to.
        options: The options that it was compiled with.
    """

    def __init__(
        self,
        source: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Imported, list[Any]]],
        specialize: Callable[[Imported, Signature], Specialization],
        engines: Sequence[Engine],
        options: CompileOptions,
    ) -> None:
        self._source = source
        self._specialize = specialize
        self._engines = {engine.name: engine for engine in engines}
        self._options = options
        self._specializations: OrderedDict[Any, Specialization] = OrderedDict()
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
        results = specialization.schedule.run([arrays.take(leaf) for leaf in leaves])
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
        imported, flat = self._source(args, kwargs)
        values = imported.model.graph.inputs
        leaves = [leaf_for(given, value) for given, value in zip(flat, values, strict=True)]
        bound = imported.shape_inputs if self._binds_values else ()
        signature = tuple(
            entry_for(leaf, value, bind=value.name in bound)
            for leaf, value in zip(leaves, values, strict=True)
        )
        return self.prepare_signature(imported, signature), leaves

    def prepare_signature(self, imported: Imported, signature: Signature) -> Specialization:
        """The specialization of `imported` at `signature`, compiled if it is new."""
        if imported.shape_inputs:
            signature = self._admit(imported, signature)
        key = (id(imported), signature)
        found = self._specializations.get(key)
        if found is None:
            with self._lock:  # calls with signatures that are known do not wait for it
                found = self._specializations.get(key)
                if found is None:
                    found = self._specializations[key] = self._specialize(imported, signature)
                    while len(self._specializations) > self._options.max_specializations:
                        self._specializations.popitem(last=False)
        else:
            with contextlib.suppress(KeyError):  # another thread may just have dropped it
                self._specializations.move_to_end(key)
        self._latest = found
        return found

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
