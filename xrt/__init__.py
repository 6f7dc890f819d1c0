"""xrt: a graph-compiler runtime for neural networks.

    program = xrt.compile(model, example_inputs)
    outputs = program(*inputs)

The names below are the public ones. They load what they need on first use, so that ``import xrt``
is quick and needs neither torch nor jax.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xrt import onnx_backend as onnx_backend
    from xrt.compile import compile as compile
    from xrt.engines import engines as engines
    from xrt.errors import XrtError as XrtError
    from xrt.options import CompileOptions as CompileOptions
    from xrt.options import QuantizationOptions as QuantizationOptions
    from xrt.options import XlaOptions as XlaOptions
    from xrt.runtime.explanation import Explanation as Explanation
    from xrt.runtime.program import Program as Program
    from xrt.runtime.trace import Trace as Trace
    from xrt.runtime.verification import verify as verify

_HOMES = {
    "compile": "xrt.compile",
    "engines": "xrt.engines",
    "onnx_backend": "xrt.onnx_backend",
    "XrtError": "xrt.errors",
    "CompileOptions": "xrt.options",
    "QuantizationOptions": "xrt.options",
    "XlaOptions": "xrt.options",
    "Explanation": "xrt.runtime.explanation",
    "Program": "xrt.runtime.program",
    "Trace": "xrt.runtime.trace",
    "verify": "xrt.runtime.verification",
}

__all__ = ["__version__", *_HOMES]


class _Package(types.ModuleType):
    """Keeps `xrt.compile` the function: importing the module of that name would bind it here."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "compile" and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'xrt' has no attribute {name!r}")
    module = importlib.import_module(home)
    if name in ("engines", "onnx_backend"):  # modules; the first can be called, too
        return module
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
