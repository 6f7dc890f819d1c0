"""The command line: a thin layer over the library."""

from xrt.errors import MissingDependencyError

try:
    import rich as _rich  # noqa: F401
    import typer as _typer  # noqa: F401
except ImportError as error:
    raise MissingDependencyError("typer", "cli", "The command line") from error

from xrt.cli.app import app, main

__all__ = ["app", "main"]
