"""The lowerings of ONNX operators to JAX, by family; importing a module registers its operators."""

from xrt.engines.xla.ops import (
    activation,
    attention,
    cast,
    conv,
    elementwise,
    gather,
    gradient,
    grid_sample,
    matmul,
    normalization,
    pooling,
    reduction,
    resize,
    scatter,
    shape,
    slicing,
)

__all__ = [
    "activation",
    "attention",
    "cast",
    "conv",
    "elementwise",
    "gather",
    "gradient",
    "grid_sample",
    "matmul",
    "normalization",
    "pooling",
    "reduction",
    "resize",
    "scatter",
    "shape",
    "slicing",
]
