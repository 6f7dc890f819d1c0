"""This process: its locks, also after it was forked, the cores it may use, and its umask."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LOCKS: weakref.WeakSet[Any] = weakref.WeakSet()


def new_lock() -> contextlib.AbstractContextManager[bool]:
    """A lock that its thread may take again, and that no thread of a parent process holds.

    Of the threads only the one that forks goes on in the child. Whatever another one held there
    would stay locked for ever.
    """
    made = threading.RLock()
    _LOCKS.add(made)
    return made


def _after_fork() -> None:
    for each in list(_LOCKS):
        if not each._is_owned():  # the thread that forked goes on, and will release it
            each._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def core_count() -> int:
    """How many cores the process may use; where the system does not tell, how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def return_freed_memory() -> None:
    """Give back to the system what the C library keeps of freed memory, after a compiler has run.

    Elsewhere than with glibc nothing happens.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done; on other threads than the main one it never comes.

    For what must not be left half done, such as taking the place of memory that was given away.
    """
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (None, signal.SIG_IGN):
        yield
        return
    came: list[Any] = []
    signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def umask() -> int:
    """The permissions that new files do not get."""
    with contextlib.suppress(OSError):
        found = re.search(r"^Umask:\s*([0-7]+)$", Path("/proc/self/status").read_text(), re.M)
        if found:
            return int(found[1], 8)
    mask = os.umask(0o077)  # not Linux: it can only be read by setting it
    os.umask(mask)
    return mask
