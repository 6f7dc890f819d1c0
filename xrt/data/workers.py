"""Threads that decode the files of one pass, a bounded number of batches ahead of its user."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from xrt.data.buffers import Pool
from xrt.data.decode import Decoder

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Group:
    """Files that are decoded into the memory of one batch.

    Attributes:
        first: Number of the first file.
        count: How many.
        memory: Where they go, a slot each.
        failures: What kept files from being decoded, by slot; what is there is undefined.
        is_done: Whether all of them were tried.
    """

    first: int
    count: int
    memory: Array
    failures: dict[int, BaseException] = field(default_factory=dict)
    is_done: bool = False
    finished: Iterator[int] = field(default_factory=lambda: itertools.count(1))


class Workers:
    """Decodes files in groups, in order. Who takes them is not known to the threads.

    So a pass that nobody holds any more is collected, which stops it. Between the threads are only
    queues, into which the collector may put something wherever it strikes.

    Args:
        decoder: Decodes one file.
        paths: The files, in order.
        pool: Gives memory for a group.
        size: Files in a group; the last one may have less.
        threads: How many.
    """

    def __init__(
        self, decoder: Decoder, paths: Sequence[Path], pool: Pool, size: int, threads: int
    ) -> None:
        self.count = -(-len(paths) // size)
        self._decoder = decoder
        self._paths = paths
        self._pool = pool
        self._size = size
        self._groups: list[Group | None] = []
        self._stopped = False
        self._files: SimpleQueue[tuple[Group, int] | None] = SimpleQueue()
        self._done: SimpleQueue[Group | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"xrt-decode-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def allow(self, groups: int) -> None:
        """Let the threads decode the first `groups` groups, and give those memory."""
        while len(self._groups) < min(groups, self.count):
            first = len(self._groups) * self._size
            group = Group(first, min(self._size, len(self._paths) - first), self._pool.take())
            self._groups.append(group)
            for slot in range(group.count):
                self._files.put((group, slot))
            if len(self._groups) == self.count:
                self._dismiss()

    def wait(self, number: int) -> Group | None:
        """A group that was allowed, when it is done; it can be had once. None after `stop`."""
        group = self._groups[number]
        assert group is not None
        while not group.is_done:
            done = self._done.get()
            if done is None:
                return None
            done.is_done = True
        self._groups[number] = None
        return group

    def stop(self) -> None:
        """Let the threads end after the files that they are at."""
        self._stopped = True
        self._dismiss()
        self._done.put(None)

    def join(self) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def _dismiss(self) -> None:
        for _ in self._threads:
            self._files.put(None)

    def _work(self) -> None:
        while (item := self._files.get()) is not None and not self._stopped:
            group, slot = item
            try:
                self._decoder(self._paths[group.first + slot], group.memory[slot])
            except BaseException as error:
                group.failures[slot] = error
            if next(group.finished) == group.count:
                self._done.put(group)
            del item, group  # an idle thread holds no memory
