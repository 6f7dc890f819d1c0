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
    from xrt import data as data
    from xrt import onnx_backend as onnx_backend
    from xrt.compile import compile as compile
    from xrt.custom import CudaKernel as CudaKernel
    from xrt.custom import register_kernel as register_kernel
    from xrt.engines import engines as engines
    from xrt.errors import XrtError as XrtError
    from xrt.load import load as load
    from xrt.options import CompileOptions as CompileOptions
    from xrt.options import InputNormalization as InputNormalization
    from xrt.options import QuantizationOptions as QuantizationOptions
    from xrt.options import TensorRTOptions as TensorRTOptions
    from xrt.options import TrainingOptions as TrainingOptions
    from xrt.options import XlaOptions as XlaOptions
    from xrt.runtime.explanation import Explanation as Explanation
    from xrt.runtime.program import Program as Program
    from xrt.runtime.trace import Trace as Trace
    from xrt.runtime.verification import verify as verify
    from xrt.training.compile import compile_training as compile_training
    from xrt.training.trainer import Trainer as Trainer

_HOMES = {
    "compile": "xrt.compile",
    "compile_training": "xrt.training.compile",
    "data": "xrt.data",
    "engines": "xrt.engines",
    "load": "xrt.load",
    "register_kernel": "xrt.custom",
    "CudaKernel": "xrt.custom",
    "onnx_backend": "xrt.onnx_backend",
    "XrtError": "xrt.errors",
    "CompileOptions": "xrt.options",
    "InputNormalization": "xrt.options",
    "QuantizationOptions": "xrt.options",
    "TensorRTOptions": "xrt.options",
    "TrainingOptions": "xrt.options",
    "XlaOptions": "xrt.options",
    "Explanation": "xrt.runtime.explanation",
    "Program": "xrt.runtime.program",
    "Trace": "xrt.runtime.trace",
    "Trainer": "xrt.training.trainer",
    "verify": "xrt.runtime.verification",
}

__all__ = ["__version__", *_HOMES]


class _Package(types.ModuleType):
    """Keeps `xrt.compile` and `xrt.load` functions: importing their modules would bind those."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in ("compile", "load") and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'xrt' has no attribute {name!r}")
    module = importlib.import_module(home)
    if name in ("data", "engines", "onnx_backend"):  # modules; engines can be called, too
        return module
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
