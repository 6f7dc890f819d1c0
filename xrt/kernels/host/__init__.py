"""NumPy kernels, by operator family, for every operator of ONNX at the opset of xrt.

`find(node)` resolves a node once to a function of arrays; what has no kernel here runs through
`onnx.reference`. See `registry` for how a kernel is declared.
"""

from xrt.kernels.host import (
    affine_grid,
    attention,
    classical,
    control,
    conv,
    detection,
    elementwise,
    flex_attention,
    image,
    indexing,
    linear_attention,
    losses,
    matmul,
    normalization,
    optimizers,
    pooling,
    quantization,
    random,
    recurrent,
    reduction,
    resize,
    scatter,
    sequence,
    shape,
    signal,
    strings,
    tfidf,
    unique,
    vision,
)
from xrt.kernels.host.registry import HostKernel, evaluate, find, is_native, kernel

__all__ = ["HostKernel", "evaluate", "find", "is_native", "kernel"]

# Importing a family registers its kernels.
FAMILIES = (
    affine_grid,
    attention,
    classical,
    control,
    conv,
    detection,
    elementwise,
    flex_attention,
    image,
    indexing,
    linear_attention,
    losses,
    matmul,
    normalization,
    optimizers,
    pooling,
    quantization,
    random,
    recurrent,
    reduction,
    resize,
    scatter,
    sequence,
    shape,
    signal,
    strings,
    tfidf,
    unique,
    vision,
)
