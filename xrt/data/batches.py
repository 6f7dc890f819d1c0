"""One pass over the images of a folder: the batches in order, and their labels beside them."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xrt.data.buffers import Pool
from xrt.data.decode import UnreadableImageError
from xrt.data.workers import Group, Workers
from xrt.errors import CorruptImageError, CorruptImageWarning, DataError

Array = np.ndarray[Any, Any]


class Batch(tuple[Array]):
    """The inputs of a program, a tuple of one array, and what is known of its images.

    Attributes:
        labels: int64 ``[N]``, the index of each image's class, -1 where a padded batch has no
            image; None in a folder without classes.
        paths: The images' files.
    """

    labels: Array | None
    paths: tuple[Path, ...]

    def __new__(cls, images: Array, labels: Array | None, paths: Sequence[Path]) -> Batch:
        """A batch of ``[N, ...]`` images."""
        batch = super().__new__(cls, (images,))
        batch.labels, batch.paths = labels, tuple(paths)
        return batch

    @property
    def images(self) -> Array:
        """The array: ``[N, 3, H, W]`` or ``[N, H, W, 3]``."""
        return self[0]

    def __repr__(self) -> str:
        return f"<xrt.data.Batch, {self.images.dtype} {list(self.images.shape)}>"


@dataclass(frozen=True, eq=False)
class Plan:
    """What a pass is to do.

    Attributes:
        paths: The files, in the order of the pass.
        labels: Their labels; None in a folder without classes.
        batch_size: Images in a batch.
        last: What becomes of images that do not fill a batch: "keep", "drop" or "pad".
        ahead: Batches that are decoded before they are asked for.
        raising: Raise at a corrupt file.
        report: Told of each corrupt file and what is wrong with it.
    """

    paths: Sequence[Path]
    labels: Array | None
    batch_size: int
    last: str
    ahead: int
    raising: bool
    report: Callable[[Path, str], None]


class _Pass:
    """What a pass gives, for several who walk along: batches, their labels and their files."""

    def __init__(self, plan: Plan, workers: Workers, pool: Pool) -> None:
        self._batches = _assemble(plan, workers, pool)
        self._workers = workers
        self._queues: tuple[deque[Any], ...] = (deque(), deque(), deque())
        self._lock = threading.RLock()
        self._begun = False
        self._process = os.getpid()
        self._stop = weakref.finalize(self, workers.stop)

    def pull(self, which: int) -> Any:
        """The next of what is asked for: 0 batches, 1 labels, 2 files."""
        with self._lock:
            queue = self._queues[which]
            if not queue:
                batch = self._advance()
                for other, item in zip(
                    self._queues, (batch, batch.labels, batch.paths), strict=True
                ):
                    other.append(item)
            return queue.popleft()

    def close(self) -> None:
        """Stop the threads and wait until they have ended."""
        self._stop()
        self._workers.join()

    def _advance(self) -> Batch:
        if not self._stop.alive:
            raise StopIteration
        if os.getpid() != self._process:
            raise DataError(
                "This pass over an ImageFolder was made in another process, whose threads decode "
                "for it: call iter(folder) in this one."
            )
        try:
            if not self._begun:
                self._begun = True
                self._workers.start()
            return next(self._batches)
        except BaseException:  # the end among them
            self.close()
            raise


class _Side(Iterator[Any]):
    """One of those who walk along."""

    def __init__(self, source: _Pass, which: int) -> None:
        self._source = source
        self._which = which

    def __next__(self) -> Any:
        return self._source.pull(self._which)


class Batches(Iterator[Batch]):
    """The batches of one pass, in order. Safe to use from several threads.

    The pass ends, and its threads with it, after the last batch, at an error, on `close`, and when
    nobody holds it any more.

    Attributes:
        labels: An iterator over the labels of the batches, to walk beside what is computed:
            ``zip(program.stream(batches), batches.labels)``.
        paths: The same of their files.
    """

    def __init__(self, plan: Plan, workers: Workers, pool: Pool) -> None:
        self._pass = _Pass(plan, workers, pool)
        self.labels: Iterator[Array | None] = _Side(self._pass, 1)
        self.paths: Iterator[tuple[Path, ...]] = _Side(self._pass, 2)

    def __next__(self) -> Batch:
        batch: Batch = self._pass.pull(0)
        return batch

    def close(self) -> None:
        """End the pass before its last batch; asking for more finds the end."""
        self._pass.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _assemble(plan: Plan, workers: Workers, pool: Pool) -> Iterator[Batch]:
    """Batches of what the workers decode, without gaps: later images move up.

    A batch is what was decoded into its memory in the first place; only behind a corrupt file
    images move, within the memory of their group and into the end of the one before.
    """
    out: Array | None = None
    members: list[int] = []
    corrupt: list[str] = []
    for number in range(workers.count):
        workers.allow(number + 1 + plan.ahead)
        group = workers.wait(number)
        if group is None:
            return
        lent = False
        for slot in _good_slots(plan, group, corrupt):
            if out is None:
                out = group.memory
            if out is not group.memory or len(members) != slot:
                np.copyto(out[len(members)], group.memory[slot])
            members.append(group.first + slot)
            if len(members) == plan.batch_size:
                lent |= out is group.memory
                yield _batch(plan, pool.lend(out), members)
                out, members = None, []
        if not lent and out is not group.memory:
            pool.give(group.memory)
    if out is not None and plan.last != "drop":
        yield _last(plan, out, pool, members)
    if corrupt:
        _warn(plan, corrupt)


def _good_slots(plan: Plan, group: Group, corrupt: list[str]) -> list[int]:
    """The slots of a group that hold an image; what is wrong with others is told."""
    for slot, failure in sorted(group.failures.items()):
        if not isinstance(failure, UnreadableImageError):
            raise failure
        path = plan.paths[group.first + slot]
        plan.report(path, str(failure))
        if plan.raising:
            raise CorruptImageError(str(path), str(failure)) from failure.__cause__
        corrupt.append(f"{path}: {failure}")
    return [slot for slot in range(group.count) if slot not in group.failures]


def _last(plan: Plan, memory: Array, pool: Pool, members: Sequence[int]) -> Batch:
    """A batch of less images than others, or padded to their number."""
    images = pool.lend(memory)
    if plan.last == "pad":
        images[len(members) :] = 0
        return _batch(plan, images, members)
    return _batch(plan, images[: len(members)], members)


def _batch(plan: Plan, images: Array, members: Sequence[int]) -> Batch:
    labels = None
    if plan.labels is not None:
        labels = np.full(len(images), -1, np.int64)
        labels[: len(members)] = plan.labels[list(members)]
    return Batch(images, labels, [plan.paths[each] for each in members])


def _warn(plan: Plan, corrupt: Sequence[str]) -> None:
    """At the end of a pass: say that files were left out.

    Raises:
        DataError: If all of them were.
    """
    text = (
        f"ImageFolder: {len(corrupt)} of {len(plan.paths)} files could not be read and were left "
        f"out. ImageFolder.corrupt lists them; the first: {corrupt[0]}."
    )
    if len(corrupt) == len(plan.paths):
        raise DataError(text)
    warnings.warn(text, CorruptImageWarning, stacklevel=2)
