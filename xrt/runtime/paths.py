"""Paths that users name, and errors that say what could not be written there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from xrt.errors import OptionError, ProgramWriteError


def path_of(path: str | os.PathLike[str], who: str) -> Path:
    """The path that was given to `who`.

    Raises:
        OptionError: If it is none.
    """
    given = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(given, str) or "\0" in given:
        raise OptionError(
            f"{who}: the path of a file is a str or a pathlib.Path, without null characters; "
            f"got {path!r}."
        )
    return Path(given)


@contextlib.contextmanager
def writing(path: Path, noun: str) -> Iterator[None]:
    """Make what goes wrong while the body writes a file an error that names it.

    Raises:
        ProgramWriteError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if not os.path.isdir(path.parent):
            reason = f"there is no folder {path.parent}"
        raise ProgramWriteError(f"The {noun} could not be written to {path}: {reason}.") from error
