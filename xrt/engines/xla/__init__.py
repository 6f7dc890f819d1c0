"""The XLA engine."""

from xrt.engines.xla.engine import XlaEngine, XlaExecutable

__all__ = ["XlaEngine", "XlaExecutable"]
