"""A cache of built executables on disk: plain files, written atomically, checked when read.

A file is 64 hexadecimal characters of SHA-256, a newline and the payload. Readers trust nothing
else: a file whose digest does not fit is dropped and built again. Never pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from xrt.options import CompileOptions

LIMIT_BYTES = 4 << 30
"""The least recently used files go when a cache grows beyond this."""


def cache_folder(options: CompileOptions) -> Path:
    """The folder of the compile caches: the option, `XRT_CACHE_DIR`, or the user's cache folder."""
    chosen = options.cache_dir or os.environ.get("XRT_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("xrt"))


class DiskCache:
    """Bytes by key in a folder, shared by processes.

    A cache that cannot be written (read-only folder, full disk) only costs time: `put` gives up
    silently and leaves no partial file.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes

    def get(self, key: str) -> bytes | None:
        """The payload stored under `key`, or None if there is none or it is damaged."""
        path = self.folder / key
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, _, payload = content.partition(b"\n")
        if digest != hashlib.sha256(payload).hexdigest().encode():
            self.drop(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> None:
        """Store `payload` under `key`."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, prefix=".writing-")
        except OSError:
            return
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
            os.replace(name, self.folder / key)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            return
        self._shrink()

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with contextlib.suppress(OSError):
            (self.folder / key).unlink()

    def _shrink(self) -> None:
        files = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files, key=lambda entry: entry[0]):
            if total <= self.limit_bytes:
                return
            self.drop(path.name)
            total -= size
