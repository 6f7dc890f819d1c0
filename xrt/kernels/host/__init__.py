"""NumPy kernels, by operator family, for every operator of ONNX at the opset of xrt.

`find(node)` resolves a node once to a function of arrays; what has no kernel here runs through
`onnx.reference`. See `registry` for how a kernel is declared.
"""

from xrt.kernels.host import (
    attention,
    control,
    conv,
    elementwise,
    indexing,
    matmul,
    normalization,
    pooling,
    quantization,
    reduction,
    resize,
    sequence,
    shape,
)
from xrt.kernels.host.registry import HostKernel, evaluate, find, is_native, kernel

__all__ = ["HostKernel", "evaluate", "find", "is_native", "kernel"]

# Importing a family registers its kernels.
FAMILIES = (
    attention,
    control,
    conv,
    elementwise,
    indexing,
    matmul,
    normalization,
    pooling,
    quantization,
    reduction,
    resize,
    sequence,
    shape,
)
