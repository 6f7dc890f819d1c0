"""Checkpoints: the state of a trainer in one file, from which training goes on to the bit.

The container is that of saved programs (`runtime.archive`): checksummed, written in one step, no
pickle. Random numbers need no state: the key of a step is made of the seed and its number.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xrt.engines.xla import device as D
from xrt.errors import (
    CheckpointWarning,
    InputError,
    OptionError,
    ProgramFileError,
    ProgramNotFoundError,
)
from xrt.runtime.archive import Archive, Kind, write
from xrt.runtime.packing import MappedWeights, Weights

KIND = Kind(
    "xrt checkpoint",
    "checkpoint",
    "Trainer.load reads what Trainer.save wrote.",
    "Load it with the version of xrt that wrote it.",
)

_NAME = re.compile(r"step-(\d{8,})\.xrt")
_VERSIONS = ("jax", "jaxlib", "numpy", "optax")
"""Packages whose version may change the last bits."""

_KINDS = ("optimizer", "scheduler")
"""Parts of an identity that must be alike: what they keep means nothing to others."""

_TAG = "xrt.pairs"
"""Marks a mapping that JSON lacks, one with keys that are no strings: [name of its type, pairs]."""

_MAPPINGS: dict[str, Any] = {"dict": dict, "Counter": Counter}


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What a checkpoint holds.

    Attributes:
        trees: Trees of arrays.
        plain: Plain data.
        identity: What decides the numbers of further steps, as plain data. The kinds of optimizer
            and scheduler must be alike; of the rest a difference is said.
    """

    trees: dict[str, Any]
    plain: dict[str, Any]
    identity: dict[str, Any]


def save(snapshot: Snapshot, path: str | Path, keep: int | None) -> Path:
    """Write a snapshot; see `Trainer.save`."""
    file = target(snapshot, path, keep)
    if keep is not None:
        with contextlib.suppress(FileExistsError):  # of a file there, writing will complain
            file.parent.mkdir(parents=True, exist_ok=True)
    weights, listed = Weights(), {}
    for name, array in _flat(snapshot.trees).items():
        listed[name] = weights.add(name, np.asarray(array))
    try:
        plain = _encoded(snapshot.plain)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"The state of the optimizer's schedule cannot be written down: {error}. Use a "
            "schedule whose state is numbers, such as torch's own, or an optax schedule."
        ) from error
    manifest = {
        "arrays": listed,
        "plain": plain,
        "identity": _encoded(snapshot.identity),
        "versions": _versions(),
    }
    write(file, weights.members(), manifest, KIND)
    if keep is not None:
        for old in _files(file.parent)[keep:]:
            old.unlink(missing_ok=True)
    return file


def target(snapshot: Snapshot, path: str | Path, keep: int | None) -> Path:
    """The file that `save` writes."""
    if keep is None:
        return Path(path)
    if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
        raise OptionError(f"keep must be a whole number of at least 1, or None; got {keep!r}.")
    return Path(path) / f"step-{snapshot.plain['steps']:08d}.xrt"


def load(path: str | Path, wanted: Snapshot) -> Snapshot:
    """The snapshot at `path`, of the structure that `wanted` has; see `Trainer.load`."""
    path = Path(path)
    if not path.is_dir():
        return _read(path, wanted)
    files = _files(path)
    for file in files:
        try:
            return _read(file, wanted)
        except ProgramFileError as error:
            warnings.warn(f"{error} Looking for an older one.", CheckpointWarning, stacklevel=3)
    raise ProgramNotFoundError(
        f"The folder {path} holds no checkpoint that can be read"
        + (f", out of {len(files)}." if files else ": there is no file step-*.xrt in it.")
    )


def _files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first."""
    found = {file: _NAME.fullmatch(file.name) for file in folder.iterdir()}
    numbered = [(int(match[1]), file) for file, match in found.items() if match]
    return [file for _, file in sorted(numbered, reverse=True)]


def _read(path: Path, wanted: Snapshot) -> Snapshot:
    archive = Archive(path, kind=KIND)
    archive.verified()
    manifest = archive.manifest
    arrays = MappedWeights(archive.view, {}, archive.fail)
    expected = _flat(wanted.trees)
    try:
        found = {name: arrays.array(entry) for name, entry in manifest["arrays"].items()}
        plain, identity, versions = (manifest[key] for key in ("plain", "identity", "versions"))
        plain = _decoded(plain)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        archive.fail(f"its manifest is incomplete ({error!r})")
    _compare(path, found, expected)
    changed = {
        name: (known.get(name), now.get(name))
        for known, now in ((identity, _encoded(wanted.identity)), (versions, _versions()))
        for name in {**now, **known}
        if known.get(name) != now.get(name)
    }
    for name in _KINDS:
        if name in changed:
            old, new = changed[name]
            raise InputError(
                f"{path} is a checkpoint of another {name}: {old or 'none'} there and "
                f"{new or 'none'} here. Compile the training with the {name} that it was saved "
                "with, or take over the weights alone with load_state_dict."
            )
    if changed:
        what = ", ".join(f"{name} was {old}, is {new}" for name, (old, new) in changed.items())
        warnings.warn(
            f"Training goes on from {path}, but not to the bit: {what}.",
            CheckpointWarning,
            stacklevel=4,
        )
    structure = jax.tree.structure(wanted.trees)
    trees = jax.tree.unflatten(structure, [found[name] for name in expected])
    return Snapshot(trees, plain, identity)


def _compare(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Arrays of the same names, shapes and dtypes.

    Raises:
        InputError: If they differ.
    """
    ours, theirs = ({n: _kind(a) for n, a in each.items()} for each in (expected, found))
    different = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
    if different:
        name = different[0]
        raise InputError(
            f"{path} is a checkpoint of another model, optimizer or precision: {name} is "
            f"{theirs.get(name, 'missing')} there and {ours.get(name, 'unknown')} here"
            + (f", and {len(different) - 1} more differ." if len(different) > 1 else ".")
        )


def _encoded(value: Any) -> Any:
    """Plain data as JSON gives it back, mappings of all keys as pairs.

    Raises:
        TypeError: If something is no plain data.
    """
    return json.loads(json.dumps(_tagged(value)))


def _tagged(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _TAG not in value:
            return {key: _tagged(each) for key, each in value.items()}
        kind = "Counter" if isinstance(value, Counter) else "dict"
        return {_TAG: [kind, [[_tagged(key), _tagged(each)] for key, each in value.items()]]}
    if isinstance(value, (list, tuple)):
        return [_tagged(each) for each in value]
    return value


def _decoded(value: Any) -> Any:
    """What `_encoded` was given, with lists for tuples."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: _decoded(each) for key, each in value.items()}
    kind, pairs = value[_TAG]
    return _MAPPINGS[kind]({_decoded(key): _decoded(each) for key, each in pairs})


def _kind(array: Any) -> str:
    return f"{array.dtype.name}{list(np.shape(array))}"


def _flat(trees: Any) -> dict[str, Any]:
    """The arrays of trees by their path in them, in the order of the leaves."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(trees)}


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    found["device"] = str(D.device().device_kind)
    return found
