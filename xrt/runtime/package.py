"""A program in one file: `Program.save`.

    manifest.json            versions, engines, options, interfaces, signatures, digests
    model-0.onnx             an imported model, prepared: what new shapes are compiled from
    specialization-0.onnx    a model at one input signature, cut into clusters
    payload-0.bin            what an engine made of a cluster
    weights-0.bin            arrays of all these graphs, and as engines prepared them

The container and its checks are in `archive`, graphs and weights in `packing`; `restore` reads.
"""

from __future__ import annotations

import itertools
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xrt
from xrt.engines.engine import Engine, Executable
from xrt.errors import XrtError
from xrt.importers import Imported
from xrt.options import CompileOptions
from xrt.runtime import plain
from xrt.runtime.archive import Member, member, write
from xrt.runtime.packing import Weights
from xrt.runtime.precision import Precision

if TYPE_CHECKING:
    from xrt.runtime.program import Specialization

_PACKAGES = ("numpy", "onnx", "onnx-ir", "jax", "jaxlib", "torch", "tensorrt", "tensorrt-rtx")


def save(
    path: str | os.PathLike[str],
    specializations: Sequence[Specialization],
    engines: Mapping[str, Engine],
    options: CompileOptions,
    precision: Precision,
    *,
    prepared: bool = True,
) -> None:
    """Write a program; see `Program.save`.

    Args:
        path: The file.
        specializations: What was compiled; the last is what the program starts with.
        engines: Its engines, in order of preference.
        options: Its options.
        precision: What its numbers became.
        prepared: Keep constants also as the engines prepared them.

    Raises:
        XrtError: If it is still calibrating, or holds what cannot be written down.
        ProgramWriteError: If the file cannot be written.
    """
    _check_calibrated(specializations, precision)
    writer = _Writer(engines, options, precision)
    content = writer.program(specializations, prepared)
    write(Path(path), writer.members(), content)


def _check_calibrated(specializations: Sequence[Specialization], precision: Precision) -> None:
    for each in specializations:
        if each.observe is not None:
            state = precision.state(each.imported)  # type: ignore[attr-defined]
            raise XrtError(
                f"This program is still calibrating: it saw {state.calibration.batches} of "
                f"{state.wanted} batches. Call it on the others first, or compile it with "
                "calibration=batches, then save it."
            )


class _Writer:
    """Collects the members of a file."""

    def __init__(
        self, engines: Mapping[str, Engine], options: CompileOptions, precision: Precision
    ) -> None:
        self._engines, self._options, self._precision = engines, options, precision
        self._weights = Weights()
        self._members: list[Member] = []
        self._payloads = itertools.count()

    def members(self) -> Iterator[Member]:
        """All members but the manifest."""
        yield from self._members
        yield from self._weights.members()

    def program(self, specializations: Sequence[Specialization], prepared: bool) -> dict[str, Any]:
        """The manifest of the program."""
        imports = {id(each.imported): each.imported for each in specializations}
        numbers = {key: number for number, key in enumerate(imports)}
        content = {
            "xrt": xrt.__version__,
            "versions": dict(_versions()),
            "platform": {"system": platform.system(), "machine": platform.machine()},
            "precision": self._precision.name,
            "options": plain.plain_options(self._options),
            "imports": [self._import(*each) for each in enumerate(imports.values())],
            "specializations": [
                self._specialization(number, each, numbers[id(each.imported)])
                for number, each in enumerate(specializations)
            ],
            "engines": [
                {
                    "name": name,
                    "identity": dict(engine.identity(self._options)),
                    "prepared": self._prepared(name, specializations) if prepared else [],
                }
                for name, engine in self._engines.items()
            ],
        }
        return {**content, "digests": self._weights.digests}

    def _add(self, name: str, content: bytes) -> str:
        self._members.append(member(name, content))
        return name

    def _import(self, number: int, imported: Imported) -> dict[str, Any]:
        return {
            "graph": self._add(f"model-{number}.onnx", self._weights.pack(imported.model)),
            "interface": imported.interface.to_plain(),
            "shape_inputs": sorted(imported.shape_inputs),
            "ranges": {name: list(bounds) for name, bounds in imported.ranges.items()},
            "calibration": plain.plain_calibration(self._precision, imported),
        }

    def _specialization(self, number: int, each: Specialization, source: int) -> dict[str, Any]:
        parts = each.partition
        packed = self._weights.pack(parts.model)
        return {
            "import": source,
            "signature": plain.plain_signature(each.signature),
            "ranges": plain.plain_ranges(each.ranges),
            "graph": self._add(f"specialization-{number}.onnx", packed),
            "conversion": plain.plain_conversion(each.conversion),
            "placements": plain.plain_placements(parts.placements),
            "clusters": [
                {"name": cluster.name, **self._payload(each.executables[cluster.name])}
                for cluster in parts.clusters
            ],
        }

    def _payload(self, executable: Executable) -> dict[str, Any]:
        try:
            content = bytes(executable.serialize())
        except Exception as error:  # engines of others may fail in any way
            return {"payload": None, "reason": f"it could not be saved: {error}"}
        return {"payload": self._add(f"payload-{next(self._payloads)}.bin", content)}

    def _prepared(
        self, engine: str, specializations: Sequence[Specialization]
    ) -> list[dict[str, Any]]:
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for each in specializations:
            for cluster in each.partition.clusters:
                if cluster.engine != engine:
                    continue
                for key, array in each.executables[cluster.name].prepared().items():
                    if key not in found:
                        entry = self._weights.add(f"{engine}: {key}", array)
                        found[key] = {"key": list(key), **entry}
        return list(found.values())


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
