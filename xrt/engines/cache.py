"""A cache of built executables on disk: plain files, written atomically, checked when read.

An entry is a file `KEY.xrtcache` in a folder per engine (or other user of the cache):

    xrt-cache 1 <SHA-256 of all that follows this line>
    {"created": ..., what the entry is, as JSON on one line}
    payload

Readers trust nothing else: a file whose digest does not fit is dropped and built again. Never
pickle. Only files of that suffix and the cache's own temporary files are ever removed, so a folder
that holds other things too loses none of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from xrt.errors import CacheWarning
from xrt.options import CACHE_BYTES, CompileOptions

SUFFIX = ".xrtcache"

LOCK_SECONDS = 600.0
"""How long a process waits for another that builds the same entry, before it builds one too."""

_MAGIC = b"xrt-cache 1 "
_WRITING = ".writing-"
_STALE_SECONDS = 3600.0
"""A temporary file this old was left by a process that died."""
_HEADER_BYTES = 1 << 16
"""More than the two lines before a payload take."""


@dataclass(frozen=True)
class Entry:
    """A file of the cache.

    Attributes:
        path: Where it is.
        bytes: Its size.
        used: When it was written or read last, in seconds since the epoch.
        about: What its writer said of it: "created" and, of an executable, cluster and versions.
            Empty if the file is damaged.
    """

    path: Path
    bytes: int
    used: float
    about: Mapping[str, Any]

    @property
    def section(self) -> str:
        """The name of its folder: the engine that wrote it."""
        return self.path.parent.name


def cache_folder(options: CompileOptions | None = None) -> Path:
    """The folder of the compile caches: the option, `XRT_CACHE_DIR`, or the user's cache folder."""
    chosen = (options and options.cache_dir) or os.environ.get("XRT_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("xrt"))


def open_cache(options: CompileOptions, section: str) -> DiskCache | None:
    """The part of the cache that belongs to an engine, or None if `options` want no cache."""
    if not options.cache:
        return None
    root = cache_folder(options)
    return DiskCache(root / section, root=root, limit_bytes=options.cache_bytes)


def entries(root: Path) -> list[Entry]:
    """All entries below `root`, the least recently used first."""
    found = []
    for path in root.glob(f"*/*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append(Entry(path, status.st_size, status.st_mtime, _about(path)))
    return sorted(found, key=lambda entry: entry.used)


def clear(root: Path, section: str | None = None) -> tuple[int, int]:
    """Remove all entries below `root`, or those of one section; return how many and their bytes."""
    removed, freed = 0, 0
    for entry in entries(root):
        if section in (None, entry.section):
            with contextlib.suppress(OSError):
                entry.path.unlink()
                removed, freed = removed + 1, freed + entry.bytes
    for path in root.glob(f"{section or '*'}/{_WRITING}*"):
        with contextlib.suppress(OSError):  # its writer, if it lives, gives up
            path.unlink()
    return removed, freed


class DiskCache:
    """Bytes by key in a folder, shared by processes.

    A cache that cannot be written (read-only folder, full disk) only costs time: `put` says so in
    a `CacheWarning` and leaves no partial file.

    Args:
        folder: Where the entries are.
        root: The folder of all sections, which `limit_bytes` is about; by default `folder` alone.
        limit_bytes: The least recently used entries go when those in `root` take more than this.
    """

    def __init__(
        self, folder: Path, *, root: Path | None = None, limit_bytes: int = CACHE_BYTES
    ) -> None:
        self.folder = folder
        self.root = root or folder
        self.limit_bytes = limit_bytes

    def get(self, key: str) -> bytes | None:
        """The payload stored under `key`, or None if there is none or it is damaged."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        start = content.find(b"\n") + 1
        digest = hashlib.sha256(memoryview(content)[start:]).hexdigest()
        if content[:start] != _MAGIC + digest.encode() + b"\n":
            self.drop(key)
            warnings.warn(
                f"The file {str(path)!r} of the compile cache was damaged. It is removed, and what "
                "it held is built anew.",
                CacheWarning,
                stacklevel=2,
            )
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content[content.index(b"\n", start) + 1 :]

    def put(self, key: str, payload: bytes, about: Mapping[str, Any] | None = None) -> None:
        """Store `payload` under `key`.

        Args:
            key: Fit for the name of a file.
            payload: What `get` returns.
            about: What `xrt cache info` and people who look into the file are told; fit for JSON.
        """
        told = json.dumps({"created": round(time.time(), 3), **(about or {})}).encode() + b"\n"
        digest = hashlib.sha256(told)
        digest.update(payload)
        first = _MAGIC + digest.hexdigest().encode() + b"\n"
        try:
            self._write(self.path(key), (first, told, payload))
        except OSError as error:
            warnings.warn(
                f"The compile cache in {str(self.folder)!r} cannot be written: "
                f"{error.strerror or error}. What is built now is built again in the next "
                "process. Choose another folder with XRT_CACHE_DIR or CompileOptions(cache_dir), "
                "or none with CompileOptions(cache=False).",
                CacheWarning,
                stacklevel=2,
            )
            return
        self._shrink()

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with contextlib.suppress(OSError):
            self.path(key).unlink()

    def path(self, key: str) -> Path:
        """The file of `key`."""
        return self.folder / f"{key}{SUFFIX}"

    @contextlib.contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Hold the right to build `key`, which one thread of one process has at a time.

        It saves work and guards nothing: who cannot have it (a read-only folder, a holder that
        hangs) goes on without. It ends with its process, however that dies. Look for the entry
        again once inside.
        """
        # A few files for all keys: each stays behind, since removing a lock's file breaks the lock.
        stripe = hashlib.sha256(key.encode()).hexdigest()[:2]
        with _locked(self.folder / f".lock-{stripe}", LOCK_SECONDS):
            yield

    def _write(self, path: Path, parts: tuple[bytes, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=_WRITING)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
            os.replace(name, path)
        except BaseException:  # an interrupt too leaves nothing behind
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def _shrink(self) -> None:
        """Remove what dead writers left, and the least recently used beyond the limit."""
        files, total = self._files()
        if total <= self.limit_bytes:
            return
        with _locked(self.root / ".lock-shrink", 10.0):  # two at once would remove too much
            files, total = self._files()
            for _, size, path in sorted(files):
                if total <= self.limit_bytes:
                    return
                with contextlib.suppress(OSError):
                    path.unlink()
                total -= size

    def _files(self) -> tuple[list[tuple[float, int, Path]], int]:
        """Time of last use, size and path of every entry of `root`, and the sum of the sizes."""
        files = []
        for path in self.root.glob("*" if self.root == self.folder else "*/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if path.suffix == SUFFIX:
                    files.append((status.st_mtime, status.st_size, path))
                elif path.name.startswith(_WRITING) and _is_stale(status.st_mtime):
                    path.unlink()
        return files, sum(size for _, size, _ in files)


@contextlib.contextmanager
def _locked(path: Path, seconds: float) -> Iterator[None]:
    """Hold the lock on `path`, for which others wait at most `seconds`; without one if need be."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=seconds)
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, NotImplementedError, Timeout):
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock)
        yield


def _is_stale(written: float) -> bool:
    return time.time() - written > _STALE_SECONDS


def _about(path: Path) -> dict[str, Any]:
    """What an entry's writer said of it; empty if that cannot be read."""
    try:
        with path.open("rb") as file:
            magic, second = file.readline(_HEADER_BYTES), file.readline(_HEADER_BYTES)
        about = json.loads(second)
    except (OSError, ValueError):
        return {}
    return about if magic.startswith(_MAGIC) and isinstance(about, dict) else {}
