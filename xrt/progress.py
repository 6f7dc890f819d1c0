"""Progress of long work, on stderr, when somebody watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

Advance = Callable[[str], None]


@contextlib.contextmanager
def progress(title: str, total: int | None, show: bool | None) -> Iterator[Advance]:
    """A bar titled `title` over `total` pieces of work (None: unknown); yields "one more is done".

    `show` None means: if stderr is a terminal. Without the package rich nothing is shown.
    """
    wanted = sys.stderr.isatty() if show is None else show
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda label: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[label]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, label="")
        yield lambda label: bar.update(task, advance=1, label=label)
