"""`load`: from a file to a program; `Program.save` writes the file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from xrt.compile import precision_for, specialize
from xrt.engines import resolve
from xrt.engines.engine import Engine
from xrt.errors import EngineUnavailableError, OptionError, StaleProgramWarning
from xrt.importers import Imported
from xrt.options import CompileOptions
from xrt.runtime.inputs import Signature
from xrt.runtime.paths import path_of
from xrt.runtime.program import Program, Specialization
from xrt.runtime.ranges import Open
from xrt.runtime.restore import Package


def load(
    path: str | os.PathLike[str],
    *,
    engine: str | Sequence[str] | None = None,
    options: CompileOptions | None = None,
    verify: bool = True,
) -> Program:
    """Load a program that `Program.save` wrote.

    The file stays mapped: its weights are read where they lie, and processes share them. Nothing in
    it is executed before the program is called. What was built for another device or another
    version of a library is compiled anew, with a warning that says why.

    Args:
        path: The file.
        engine: As for `xrt.compile`; the clusters are formed anew if that is not what the program
            was compiled with. None takes the same engines. "host" runs no machine code of the file.
        options: By default those that the program was compiled with, less what is about a machine:
            caches and progress.
        verify: Check the weights against their digests, which reads them all. The rest is always
            checked.

    Raises:
        ProgramNotFoundError: If there is no file.
        ProgramFileError: If the file is no saved program, of a newer format, or damaged.
        OptionError: If an argument has a value that is not known.
        EngineUnavailableError: If an engine asked for by name cannot run here, or one of the
            program's cannot and `options.strict` is set.
    """
    if options is not None and not isinstance(options, CompileOptions):
        raise OptionError(f"options must be an xrt.CompileOptions; got {options!r}.")
    package = Package(path_of(path, "xrt.load"), verify=verify)
    chosen = package.options if options is None else options
    engines = _engines(package, chosen.strict) if engine is None else resolve(engine)
    numbers = precision_for(package.precision, chosen, engines)
    package.calibrate(numbers)

    def specialize_for(
        imported: Imported, signature: Signature, leaves: Sequence[Any] | None, ranges: Open
    ) -> Specialization:
        saved = package.restore(imported, signature, ranges, engines, chosen)
        if saved is not None:
            return saved
        return specialize(imported, signature, engines, chosen, numbers, leaves, ranges)

    program = Program(package.source, specialize_for, engines, chosen, numbers)
    for imported, ranges in package.ranges():
        program.keep_open(imported, ranges)
    program.prepare_signature(*package.latest)
    return program


def _engines(package: Package, strict: bool) -> tuple[Engine, ...]:
    """The engines of the program that can run here; if none can, what "auto" finds."""
    found: list[Engine] = []
    for name in package.engines:
        try:
            found += resolve(name)
        except (EngineUnavailableError, OptionError) as error:
            if strict:
                raise EngineUnavailableError(f"The program needs it: {error}") from error
            warnings.warn(
                f"An engine of this program cannot run here, so other engines or the host take "
                f"over its clusters. {error}",
                StaleProgramWarning,
                stacklevel=3,
            )
    return tuple(found) if found or not package.engines else resolve("auto")
