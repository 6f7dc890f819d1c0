"""Every exception and warning that xrt raises.

A message says who raised it, what was got, what is known, and what to do about it. All errors
derive from `XrtError`; each also derives from the built-in exception a Python programmer would
expect, so that ``except ValueError`` and the like keep working.
"""

from __future__ import annotations

from collections.abc import Iterable


class XrtError(Exception):
    """Base of every error that xrt raises."""


class ModelImportError(XrtError, ValueError):
    """A model could not be read or converted to the graph IR."""


class ModelNotFoundError(ModelImportError, FileNotFoundError):
    """The file of a model, or of its external data, does not exist."""


class UnsupportedOpError(ModelImportError):
    """An operator, operator domain or opset is not known to xrt."""


class InputError(XrtError, ValueError):
    """The inputs of a call do not fit the program: name, count, rank, dtype or shape."""


class OptionError(XrtError, ValueError):
    """An option, engine, precision or argument has a value that xrt does not know."""


class CalibrationError(XrtError, ValueError):
    """Calibration data does not fit or does not suffice, or a bound on accuracy cannot be met."""


class EngineUnavailableError(XrtError, RuntimeError):
    """An engine that was asked for cannot run on this machine."""


class EngineBuildError(XrtError, RuntimeError):
    """An engine could not build an executable for a cluster.

    Args:
        engine: Name of the engine.
        reason: Why the build failed, in the engine's own words.
        op: The operator at which it failed, where that is known.
        place: The name of the node at which it failed, where that is known.
    """

    def __init__(self, engine: str, reason: str, *, op: str = "", place: str = "") -> None:
        self.engine, self.reason, self.op, self.place = engine, reason, op, place
        where = f" at {op} {place!r}" if op else ""
        super().__init__(f"Engine {engine!r} could not build a cluster{where}: {reason}")


class TrainingError(XrtError, RuntimeError):
    """A model cannot be trained as asked, or a step gave a loss or a gradient that is no number."""


class ProgramFileError(XrtError, ValueError):
    """The file of a saved program cannot be read: foreign, damaged, or of a newer format."""


class ProgramNotFoundError(ProgramFileError, FileNotFoundError):
    """The file of a saved program does not exist."""


class ProgramWriteError(XrtError, OSError):
    """A program, a checkpoint, a trace or a report could not be written to a file.

    For programs and checkpoints, what was there before is as it was.
    """


class EngineRunError(XrtError, RuntimeError):
    """An engine failed while a program ran; the program can be called again."""


class DeviceMemoryError(EngineRunError, MemoryError):
    """The memory of a GPU does not suffice; the program can be called again."""


class DataError(XrtError, ValueError):
    """Input data cannot be read as asked."""


class DataNotFoundError(DataError, FileNotFoundError):
    """A folder of input data does not exist."""


class CorruptImageError(DataError):
    """A file that should be an image cannot be decoded.

    Args:
        path: The file.
        reason: What is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"The image {path!r} cannot be read: {reason}. Remove it, or leave such files out with "
            "on_corrupt='report'."
        )


class KernelError(XrtError, RuntimeError):
    """A host kernel failed while a program ran."""


class VerificationError(XrtError, AssertionError):
    """A graph breaks an invariant of the IR between two passes: a bug in xrt."""


class MissingDependencyError(XrtError, ImportError):
    """An optional package is needed and not installed; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'xrt[{extra}]'"
        )


class CacheWarning(UserWarning):
    """A file of the compile cache was damaged, or the cache cannot be written."""


class CheckpointWarning(UserWarning):
    """Training goes on from a checkpoint, but not from the newest, or not to the bit."""


class StaleProgramWarning(UserWarning):
    """A saved program was made for another device, version or engine: parts are compiled anew."""


class CorruptImageWarning(UserWarning):
    """Files of a folder of images could not be decoded, and were left out."""


class EngineFallbackWarning(UserWarning):
    """A cluster moved to the next engine in order because its build failed."""


def unknown(kind: str, got: object, known: Iterable[object]) -> str:
    """The text for an unknown name: ``Engine 'tpu' is unknown. Known engines: host, xla.``"""
    listed = ", ".join(sorted(str(name) for name in known))
    return f"{kind} {got!r} is unknown. Known {kind.lower()}s: {listed or 'none'}."
