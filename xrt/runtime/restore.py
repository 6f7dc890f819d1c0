"""Reads what `package` wrote: models, clusters and executables, as far as they are still valid."""

from __future__ import annotations

import contextlib
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from xrt import graph as G
from xrt import passes
from xrt.engines import prepared
from xrt.engines.engine import Engine, Executable
from xrt.errors import (
    EngineBuildError,
    InputError,
    ProgramFileError,
    StaleProgramWarning,
    XrtError,
)
from xrt.graph import Cluster
from xrt.importers import Imported
from xrt.importers.interface import OnnxInterface
from xrt.importers.saved import interface_from
from xrt.kernels import host
from xrt.options import CompileOptions
from xrt.passes.outline_clusters import cluster_of, inline_clusters
from xrt.passes.partition import Partition, cuts
from xrt.runtime import plain
from xrt.runtime.archive import Archive
from xrt.runtime.build import Built, assemble, build
from xrt.runtime.inputs import Signature
from xrt.runtime.memory import mark_inner
from xrt.runtime.packing import MappedWeights
from xrt.runtime.precision import Precision
from xrt.runtime.program import Specialization
from xrt.runtime.ranges import Open, closed

_WITHOUT_MODEL = (
    "A torch module is exported for the calls that it gets, and a saved program is without it: "
    "compile it with dynamic_shapes, or call it like this too, then save it."
)


class Package:
    """A saved program's file, opened. Keeps it mapped.

    Attributes:
        options: The options that the program was compiled with.
        engines: Names of its engines, in order of preference.
        precision: Name of its precision.
    """

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """Open a file; `verify` as for `Archive`.

        Raises:
            ProgramFileError: If it cannot be read.
        """
        self._archive = Archive(path, verify=verify)
        manifest = self._archive.manifest
        with self._reading():
            # Engines share weights by their digests: what was not verified has names of its own.
            self._mark = "" if verify else f"unverified {uuid.uuid4()} "
            digests = {place: f"{self._mark}{d}" for place, d in manifest["digests"].items()}
            self._weights = MappedWeights(self._archive.view, digests, self._archive.fail)
            self.options: CompileOptions = plain.options_from(manifest["options"])
            self.engines = [str(engine["name"]) for engine in manifest["engines"]]
            self.precision = str(manifest["precision"])
            self._identities = {e["name"]: dict(e["identity"]) for e in manifest["engines"]}
            self._prepared = {e["name"]: list(e["prepared"]) for e in manifest["engines"]}
            self._imports = [self._import(entry) for entry in manifest["imports"]]
            self._entries = {
                (
                    int(entry["import"]),
                    plain.signature_from(entry["signature"]),
                    plain.ranges_from(entry["ranges"]),
                ): entry
                for entry in manifest["specializations"]
            }
            number, signature, ranges = list(self._entries)[-1]
            latest = self._imports[number]
            self.latest = latest, closed(latest, signature, ranges)
        self._offered: dict[str, list[Any]] = {}

    def source(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Imported, list[Any]]:
        """The saved model that fits a call, and the arrays of the call in its inputs' order.

        Raises:
            InputError: If the program was not saved for such a call.
        """
        first = self._imports[0]
        if isinstance(first.interface, OnnxInterface):
            return first, first.interface.flatten(args, kwargs)
        for imported in self._imports:
            leaves = imported.match(args, kwargs)
            if leaves is not None:
                return imported, leaves
        raise self._misfit(args, kwargs)

    def _misfit(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> InputError:
        """Why a call fits none of the models."""
        misfits: list[InputError] = []
        for imported in reversed(self._imports):
            try:
                leaves = imported.interface.flatten(args, kwargs)
            except InputError as error:
                misfits.append(error)
                continue
            pairs = zip(leaves, imported.model.graph.inputs, strict=True)
            shapes = [f"{v.name!r} has shape {list(leaf.shape)}, not {v.shape}" for leaf, v in pairs
                      if list(leaf.shape) != list(v.shape or ())]  # fmt: skip
            return InputError(
                f"This program was saved for other shapes: {'; '.join(shapes)}. {_WITHOUT_MODEL}"
            )
        if len(misfits) == 1:
            return misfits[0]
        listed = " ".join(dict.fromkeys(map(str, misfits)))
        return InputError(
            f"This call is like none of the {len(misfits)} that the program was saved with. "
            f"{listed} {_WITHOUT_MODEL}"
        )

    def ranges(self) -> list[tuple[Imported, Open]]:
        """The ranges of dimensions that stay open, of every specialization."""
        return [(self._imports[number], ranges) for number, _, ranges in self._entries]

    def calibrate(self, precision: Precision) -> None:
        """Tell `precision` what calibration found."""
        with self._reading():
            for entry, imported in zip(
                self._archive.manifest["imports"], self._imports, strict=True
            ):
                plain.restore_calibration(entry["calibration"], precision, imported)

    def restore(
        self,
        imported: Imported,
        signature: Signature,
        ranges: Open,
        engines: Sequence[Engine],
        options: CompileOptions,
    ) -> Specialization | None:
        """What was saved for a signature and ranges, if anything; compiled anew where it must be.

        Where `engines` are not those of the file, the clusters are formed anew.

        Raises:
            ProgramFileError: If it cannot be read.
            EngineBuildError: If a build fails and `options.strict` is set.
        """
        self._archive.verified()  # before anything is made of the weights, here or by the caller
        numbers = [number for number, each in enumerate(self._imports) if each is imported]
        entry = self._entries.get((numbers[0], signature, ranges)) if numbers else None
        if entry is None:
            return None
        begin = time.perf_counter()
        with self._reading():
            model = self._weights.unpack(self._archive.view(entry["graph"]))
            clusters = self._clusters(model, entry)
            placements = plain.placements_from(entry["placements"])
            conversion = plain.conversion_from(entry["conversion"])
            saved = {str(each["name"]): each for each in entry["clusters"]}
        users = [self._user(engine, saved, options) for engine in engines]
        flat = model.clone()
        inline_clusters(flat)
        if [engine.name for engine in engines] == self.engines:
            parts = Partition(clusters, placements, cuts(model.graph), model)
            built = _assembled(flat, parts, users, options)
        else:
            built = _cut_anew(flat, users, options)
        self._warn(users, len(clusters))
        seconds = {"load": time.perf_counter() - begin}
        return Specialization(imported, signature, built, conversion, seconds, None, ranges)

    def _import(self, entry: Mapping[str, Any]) -> Imported:
        model = self._weights.unpack(self._archive.view(entry["graph"]))
        interface = interface_from(entry["interface"], model)
        ranges = {str(name): tuple(map(int, each)) for name, each in entry["ranges"].items()}
        inputs = frozenset(map(str, entry["shape_inputs"]))
        return Imported(model, interface, shape_inputs=inputs, ranges=ranges)

    def _clusters(self, model: ir.Model, entry: Mapping[str, Any]) -> tuple[Cluster, ...]:
        """The clusters in a model, in the order of the file."""
        found = {}
        for node in model.graph.all_nodes():
            if G.is_cluster(node):
                cluster = cluster_of(node)
                found[cluster.name] = cluster
                assert isinstance(node.graph, ir.Graph)
                node.graph.opset_imports.update(model.graph.opset_imports)
        names = [str(each["name"]) for each in entry["clusters"]]
        if sorted(names) != sorted(found):
            self._archive.fail("its clusters are not those of its manifest")
        return tuple(found[name] for name in names)

    def _user(self, engine: Engine, saved: Mapping[str, Any], options: CompileOptions) -> _Reusing:
        """An engine that takes what was saved where that is valid."""
        name = engine.name
        then, now = self._identities.get(name, {}), dict(engine.identity(options))
        changes = [
            f"{key} was {then.get(key)!s:.16}, is {now.get(key)!s:.16}"
            for key in dict.fromkeys((*then, *now))
            if then.get(key) != now.get(key)
        ]
        if not changes and name not in self._offered:
            self._offered[name] = list(self._offer(name))
        return _Reusing(engine, saved, self._archive.view, ", ".join(changes))

    def _offer(self, engine: str) -> Iterator[Any]:
        with self._reading():
            for entry in self._prepared.get(engine, ()):
                array = self._weights.array(entry)
                digest, preparation = entry["key"]
                key = (f"{self._mark}{digest}", str(preparation))
                prepared.offer(engine, key, array)
                yield array

    def _warn(self, users: Sequence[_Reusing], clusters: int) -> None:
        anew = {name for user in users for name in user.reasons}
        if anew:
            reasons = dict.fromkeys(reason for user in users for reason in user.reasons.values())
            warnings.warn(
                f"{self._archive.path}: {len(anew)} of {clusters} clusters compiled anew, since "
                f"{'; '.join(reasons)}. Save the program again to load it quickly.",
                StaleProgramWarning,
                stacklevel=6,  # who calls xrt.load
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """What is missing in the manifest, or of another type, is an error of the file."""
        try:
            yield
        except ProgramFileError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, XrtError) as error:
            self._archive.fail(f"its manifest is not valid ({type(error).__name__}: {error})")


class _Reusing:
    """An engine, in whose place what it built before is taken where that is still valid.

    Attributes:
        reasons: Why it built anew, by the name of each cluster that was saved.
    """

    def __init__(
        self,
        engine: Engine,
        saved: Mapping[str, Mapping[str, Any]],
        view: Callable[[str], memoryview],
        changes: str,
    ) -> None:
        self.reasons: dict[str, str] = {}
        self._engine, self._saved, self._view, self._changes = engine, saved, view, changes

    def __getattr__(self, name: str) -> Any:
        """All else is the engine's."""
        return getattr(self._engine, name)

    def compile(self, cluster: Cluster, options: CompileOptions) -> Executable:
        """What was saved under the cluster's name, if it loads; else what the engine builds."""
        saved = self._saved.get(cluster.name)
        if saved is not None:
            try:
                return self._load(saved, cluster, options)
            except EngineBuildError as error:
                self.reasons[cluster.name] = f"{self.name!r}: {error.reason}"
        return self._engine.compile(cluster, options)

    def _load(
        self, saved: Mapping[str, Any], cluster: Cluster, options: CompileOptions
    ) -> Executable:
        if self._changes:
            raise EngineBuildError(self.name, self._changes)
        if saved.get("payload") is None:
            raise EngineBuildError(self.name, str(saved.get("reason")))
        data = bytes(self._view(str(saved["payload"])))
        try:
            return self._engine.deserialize(data, cluster, options)
        except EngineBuildError:
            raise
        except Exception as error:  # engines of others may fail in any way
            raise EngineBuildError(self.name, f"{type(error).__name__}: {error}") from error


def _cut_anew(flat: ir.Model, users: Sequence[_Reusing], options: CompileOptions) -> Built:
    """The program cut for other engines, which may want functions inlined."""
    if users:
        passes.run(
            [passes.InlineFunctionsPass, *passes.CLEAN, NameFixPass],
            flat,
            evaluate=host.evaluate,
            supports=lambda node: any(user.supports(node) for user in users),
        )
    return build(flat, users, options)  # type: ignore[arg-type]


def _assembled(
    flat: ir.Model, parts: Partition, users: Sequence[_Reusing], options: CompileOptions
) -> Built:
    """The program as it was cut; cut anew if an engine cannot build what it built before."""
    by_name = {user.name: user for user in users}
    if options.keep_memory:
        mark_inner(parts.model)
    try:
        executables = {
            cluster.name: by_name[cluster.engine].compile(cluster, options)
            for cluster in parts.clusters
        }
    except EngineBuildError:
        if options.strict:
            raise
        return _cut_anew(flat, users, options)
    return assemble(flat, parts, executables, options)
