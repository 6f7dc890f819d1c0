"""The XLA engine."""

from xrt.engines.xla.engine import XlaEngine
from xrt.engines.xla.executable import XlaExecutable

__all__ = ["XlaEngine", "XlaExecutable"]
