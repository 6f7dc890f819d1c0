"""The container of what xrt saves: a zip file, stored, that can be memory-mapped.

Members are not compressed and start at multiples of 64 bytes, so that arrays lie in the mapped file
as the engines want them. The comment of the zip file holds the format's version and the SHA-256 of
`manifest.json`, which holds size and SHA-256 of every other member. A reader trusts nothing before
it has checked it: names against a pattern, places and sizes against the size of the file, contents
against their digests. Nothing is unpacked, so no path can escape and nothing can grow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from xrt.errors import ProgramFileError, ProgramNotFoundError, ProgramWriteError
from xrt.process import umask

FORMAT = 1
"""Version of the format; a reader takes this one only."""

ALIGNMENT = 64
"""Members start at multiples of so many bytes, as do the arrays in them."""

MANIFEST = "manifest.json"

_NAMES = re.compile(r"manifest\.json|(model|specialization)-\d{1,6}\.onnx|payload-\d{1,6}\.bin"
                    r"|weights-\d{1,6}\.bin")  # fmt: skip
_MOST_MEMBERS = 100_000
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of the name and of the extra field that follow."""
_PADDING_ID = 0xD935
"""Extra field for alignment, as Android's zipalign writes it."""
_BLOCK = 1 << 24
_LARGE = 1 << 30
"""A larger member gets 20 bytes for sizes of 64 bits; zip wants them from 4 GiB on."""

_STALE = 3600.0
"""Seconds after which a file that nobody wrote to is one that nobody writes."""

Chunk = bytes | memoryview


@dataclass(frozen=True)
class Kind:
    """What a file holds.

    Attributes:
        magic: How it names itself.
        noun: What messages call it.
        hint: What reads it, and what to do with another file.
        again: What to do with a file of an older format.
    """

    magic: str
    noun: str
    hint: str
    again: str


PROGRAM = Kind(
    "xrt program",
    "saved program",
    "xrt.load reads what Program.save wrote; models are compiled by xrt.compile.",
    "Compile the model and save it again.",
)


@dataclass(frozen=True)
class Member:
    """What is to be written.

    Attributes:
        name: Its name.
        size: Bytes of all chunks.
        chunks: Gives the content.
    """

    name: str
    size: int
    chunks: Callable[[], Iterable[Chunk]]


def member(name: str, content: bytes) -> Member:
    """A member of known content."""
    return Member(name, len(content), lambda: [content])


def write(
    path: Path, members: Iterable[Member], manifest: Mapping[str, Any], kind: Kind = PROGRAM
) -> None:
    """Write a file in one step: `path` is the old file, or none, until the new one is complete.

    Args:
        path: The file; a link stays one.
        members: All but the manifest, which gets their sizes and digests under "members".
        manifest: Plain data.
        kind: What the file holds.

    Raises:
        ProgramWriteError: If it cannot be written; what was there stays.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder; name a file in it")
        with _replacing(target) as temporary:
            _write(temporary, members, manifest, kind)
    except OSError as error:
        reason = error.strerror or str(error)
        if not os.path.isdir(target.parent):
            reason = f"there is no folder {target.parent}"
        there = os.path.isfile(target)
        raise ProgramWriteError(
            f"The {kind.noun} could not be written to {path}: {reason}. "
            + ("The file that was there is as it was." if there else "Nothing is left.")
        ) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[int]:
    """A descriptor of a new file that takes the place of `target` at the end, or goes."""
    _sweep(target)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-", suffix=".saving")
    try:
        try:
            yield handle
            os.fsync(handle)
            os.chmod(name, _mode(target))
        finally:
            os.close(handle)
        os.replace(name, target)
    except BaseException:  # an interrupt too leaves nothing behind
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    with contextlib.suppress(OSError):  # so that the new name survives a power failure, too
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(target: Path) -> None:
    """Delete what processes that were killed left of `target`."""
    left = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}\.saving")
    with contextlib.suppress(OSError):  # what cannot be deleted does not matter here
        for entry in os.scandir(target.parent):
            if left.fullmatch(entry.name) and entry.stat().st_mtime < time.time() - _STALE:
                os.unlink(entry)


def _mode(target: Path) -> int:
    """Permissions of the file that is replaced, or those of any new file."""
    with contextlib.suppress(OSError):
        return target.stat().st_mode & 0o777
    return 0o666 & ~umask()


def _write(handle: int, members: Iterable[Member], manifest: Mapping[str, Any], kind: Kind) -> None:
    table: dict[str, dict[str, Any]] = {}
    with os.fdopen(os.dup(handle), "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for each in members:
            table[each.name] = {"size": each.size, "sha256": _add(archive, each)}
        content = json.dumps({**manifest, "members": table}, separators=(",", ":")).encode()
        digest = _add(archive, member(MANIFEST, content))
        archive.comment = f"{kind.magic} {FORMAT} {digest}".encode()


def _add(archive: zipfile.ZipFile, each: Member) -> str:
    """Write a member at an aligned place; its SHA-256."""
    assert _NAMES.fullmatch(each.name), each.name
    info = zipfile.ZipInfo(each.name)  # of 1980, so that equal programs make equal files
    info.file_size = each.size
    info.external_attr = 0o644 << 16
    large = each.size > _LARGE
    assert archive.fp is not None
    start = archive.fp.tell() + 30 + len(each.name) + (20 if large else 0)
    missing = -(start + 4) % ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING_ID, missing) + bytes(missing)
    digest = hashlib.sha256()
    with archive.open(info, "w", force_zip64=large) as file:
        for chunk in each.chunks():
            for begin in range(0, len(chunk), _BLOCK):
                block = chunk[begin : begin + _BLOCK]
                digest.update(block)
                file.write(block)
    info.extra = b""  # the directory needs no padding
    return digest.hexdigest()


class Archive:
    """A file that `write` wrote, mapped into memory and checked.

    Attributes:
        path: Where it was.
        manifest: The manifest, without the table of members.
    """

    def __init__(self, path: Path, *, verify: bool = True, kind: Kind = PROGRAM) -> None:
        """Open and check all but the weights, for which `verified` waits.

        Args:
            path: The file.
            verify: Read the weights too, and check their digests.
            kind: What it should hold.

        Raises:
            ProgramNotFoundError: If there is no file.
            ProgramFileError: If it holds something else, in another format, or is damaged.
        """
        self.path = path
        self._kind = kind
        self._memory = self._map()
        self._places: dict[str, slice] = {}
        self._pending: dict[str, tuple[Future[str], Any]] = {}
        table = self._directory()
        self.manifest = self._manifest(table)
        self._check(self.manifest.pop("members", None), verify)

    def view(self, name: str) -> memoryview:
        """The content of a member, in the mapped file.

        Raises:
            ProgramFileError: If there is none of that name.
        """
        if name not in self._places:
            self.fail(f"it lacks the member {name!r}")
        return memoryview(self._memory)[self._places[name]]

    def verified(self) -> None:
        """Wait until the weights were read and found to be what was written, if that is asked for.

        Raises:
            ProgramFileError: If they are not.
        """
        for name, (digest, wanted) in self._pending.items():
            self._compare(name, digest.result(), wanted)
        if self._pending and hasattr(mmap, "MADV_DONTNEED"):
            # What was read to be checked is no memory of this process until it is used.
            self._memory.madvise(mmap.MADV_DONTNEED)
        self._pending = {}

    def fail(self, what: str) -> NoReturn:
        """Raise a ProgramFileError: the file is damaged."""
        raise ProgramFileError(f"{self.path} is damaged: {what}. Copy or save it again.")

    def _map(self) -> mmap.mmap:
        try:
            if self.path.is_dir():
                raise ProgramFileError(f"{self.path} is a folder, not a {self._kind.noun}.")
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = file.read(4)
                if size == 0:
                    raise ProgramFileError(f"{self.path} is empty. Copy or save it again.")
                if start != b"PK\x03\x04":
                    self._foreign("it is no zip file")
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ProgramNotFoundError(
                f"There is no file {self.path}. Check the path of the {self._kind.noun}."
            ) from None
        except OSError as error:
            raise ProgramFileError(
                f"{self.path} could not be read: {error.strerror or error}."
            ) from error

    def _foreign(self, why: str) -> NoReturn:
        raise ProgramFileError(f"{self.path} is no {self._kind.noun}: {why}. {self._kind.hint}")

    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        """The directory of the zip file, after the format was found to be known."""
        if b"PK\x05\x06" not in self._memory[-(1 << 16) - 22 :]:
            self.fail(f"it was cut short, to {len(self._memory)} bytes")
        try:
            with zipfile.ZipFile(cast("IO[bytes]", self._memory)) as archive:
                listed, comment, end = archive.infolist(), archive.comment, archive.start_dir
        except Exception as error:  # zipfile raises many kinds for a directory that is damaged
            self.fail(f"its directory cannot be read ({type(error).__name__}: {error})")
        self._check_format(comment)
        if self._memory[len(self._memory) - len(comment) :] != comment:
            self.fail("something follows its end")
        if len(listed) > _MOST_MEMBERS:
            self.fail(f"it has {len(listed)} members")
        table = {info.filename: info for info in listed}
        if len(table) < len(listed):
            self.fail("it has two members of one name")
        for info in listed:
            self._places[info.filename] = self._place(info, end)
        last = 0
        for place in sorted(self._places.values(), key=lambda each: (each.start, each.stop)):
            if place.start < last:
                self.fail("its members overlap")
            last = place.stop
        return table

    def _check_format(self, comment: bytes) -> None:
        magic = self._kind.magic
        known = re.fullmatch(rf"{magic} (\d{{1,6}}) ([0-9a-f]{{64}})".encode(), comment)
        if known is None:
            newer = re.match(rf"{magic} (\d{{1,6}})\b".encode(), comment)
            if newer is None or int(newer[1]) == FORMAT:
                self._foreign("it is a zip file of something else, or its end is damaged")
            known = newer
        version = int(known[1])
        if version != FORMAT:
            raise ProgramFileError(
                f"{self.path} is of format {version}; this version of xrt reads format {FORMAT}. "
                + ("Update xrt." if version > FORMAT else self._kind.again)
            )
        self._manifest_digest = known[2].decode()

    def _place(self, info: zipfile.ZipInfo, end: int) -> slice:
        """Where the content of a member lies, which is before the directory."""
        name = info.filename
        if not _NAMES.fullmatch(name):
            self.fail(f"it has a member {name!r:.80}, which no {self._kind.noun} has")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1:
            self.fail(f"its member {name!r} is compressed or encrypted")
        if info.file_size != info.compress_size or info.file_size < 0:
            self.fail(f"its member {name!r} has two sizes")
        start = info.header_offset
        if not 0 <= start <= end - _LOCAL_HEADER.size:
            self.fail(f"its member {name!r} lies outside")
        signature, name_size, extra_size = _LOCAL_HEADER.unpack_from(self._memory, start)
        start += _LOCAL_HEADER.size
        written = self._memory[start : start + name_size]
        start += name_size + extra_size
        if signature != b"PK\x03\x04" or written != name.encode():
            self.fail(f"its member {name!r} is not where the directory says")
        if start + info.file_size > end:
            self.fail(f"its member {name!r} of {info.file_size} bytes does not fit into it")
        if start % ALIGNMENT:
            self.fail(f"its member {name!r} is not aligned; was it packed anew?")
        return slice(start, start + info.file_size)

    def _manifest(self, table: Mapping[str, zipfile.ZipInfo]) -> dict[str, Any]:
        content = bytes(self.view(MANIFEST))
        if hashlib.sha256(content).hexdigest() != self._manifest_digest:
            self.fail("its manifest does not fit its digest")
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError) as error:
            self.fail(f"its manifest is no JSON ({error})")
        if not isinstance(manifest, dict):
            self.fail("its manifest is no table")
        return manifest

    def _check(self, listed: Any, verify: bool) -> None:
        """Every member is listed with its size and its digest, which the content has."""
        others = self._places.keys() - {MANIFEST}
        if not isinstance(listed, dict) or listed.keys() != others:
            self.fail("its members are not those of its manifest")
        large: dict[str, Any] = {}
        for name, entry in listed.items():
            if not isinstance(entry, dict) or entry.get("size") != len(self.view(name)):
                self.fail(f"its member {name!r} has not the size that the manifest says")
            if name.startswith("weights"):
                large[name] = entry.get("sha256")
            else:
                self._compare(name, self._digest(name), entry.get("sha256"))
        if verify and large:
            pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), "xrt-verify")
            self._pending = {name: (pool.submit(self._digest, name), large[name]) for name in large}
            pool.shutdown(wait=False)

    def _digest(self, name: str) -> str:
        return hashlib.sha256(self.view(name)).hexdigest()

    def _compare(self, name: str, got: str, wanted: Any) -> None:
        if got != wanted:
            self.fail(f"the content of {name!r} does not fit its digest")
