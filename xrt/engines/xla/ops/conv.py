"""Convolution, channels-last, by the algorithm that `xrt.kernels.jax.conv` chooses.

The algorithm follows from the node's static shapes, so a constant weight is put into that
algorithm's own layout once, before it goes to the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from xrt import graph as G
from xrt.engines.xla import denormals, launch
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, Prepared, attributes, lowering
from xrt.engines.xla.ops import quantized as Q
from xrt.engines.xla.ops import windows
from xrt.engines.xla.ops.matmul import factor_dtype
from xrt.graph import Support
from xrt.kernels.jax import conv as kernels
from xrt.kernels.jax import integer, integer_conv

Array = np.ndarray[Any, Any]

_FEW_CHANNELS = 4

ALGORITHM = "xrt.algorithm"
"""Metadata of a node: the algorithm that tuning found fastest for it (see `xla.tune`)."""


def rule(spec: kernels.ConvSpec) -> kernels.Algorithm:
    """What is chosen on this machine for a convolution that was not tuned."""
    huge_pages = launch.has_huge_pages() and denormals.kept(D.device())
    return kernels.choose(spec, huge_pages=huge_pages)


@dataclass(frozen=True)
class Geometry:
    """A convolution over one to three spatial dimensions, apart from its values.

    Attributes:
        n: Batch size.
        spatial: Input sizes.
        c_in: Input channels.
        c_out: Output channels.
        kernel: Kernel sizes.
        strides: Strides.
        pads: Padding, all beginnings and then all ends.
        dilations: Dilations.
        groups: Groups of channels.
        dtype: Name of the dtype that it is computed in: see `matmul.factor_dtype`.
        tuned: Name of the algorithm that tuning found; empty for the rule of thumb.
    """

    n: int
    spatial: tuple[int, ...]
    c_in: int
    c_out: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    dtype: str
    tuned: str = ""

    @property
    def planar(self) -> tuple[int, int] | None:
        """The two sizes under which `spatial` is a 2-D problem; None where it is not."""
        if len(self.spatial) == 2:
            return self.spatial[0], self.spatial[1]
        if len(self.spatial) == 1:
            return 1, self.spatial[0]
        plain = set(self.kernel) == set(self.strides) == {1} and not any(self.pads)
        return (math.prod(self.spatial[:-1]), self.spatial[-1]) if plain else None

    @property
    def spec(self) -> kernels.ConvSpec | None:
        """The 2-D specification, or None for a 3-D convolution."""
        planar = self.planar
        if planar is None:
            return None
        rank = len(self.spatial)
        return kernels.ConvSpec(
            self.n,
            *planar,
            self.c_in,
            self.c_out,
            kernel=_pair(self.kernel),
            strides=_pair(self.strides),
            pads=(*_pair(self.pads[:rank], 0), *_pair(self.pads[rank:], 0)),
            dilations=_pair(self.dilations),
            groups=self.groups,
            dtype=self.dtype,
        )

    @property
    def algorithm(self) -> kernels.Algorithm:
        """What computes it where the weight is constant; `direct` in three dimensions."""
        spec = self.spec
        if spec is None:
            return kernels.DIRECT
        tuned = kernels.ALGORITHMS.get(self.tuned)
        if tuned and tuned.applicable(spec):
            return tuned
        # The rule was measured on CPUs. Elsewhere XLA calls the vendor's library, which chooses.
        return rule(spec) if D.device().platform == "cpu" else kernels.DIRECT

    @property
    def output(self) -> tuple[int, ...]:
        """Output sizes."""
        rank = len(self.spatial)
        return tuple(
            max(0, (size + low + high - (k - 1) * d - 1) // stride + 1)
            for size, low, high, k, d, stride in zip(
                self.spatial,
                self.pads[:rank],
                self.pads[rank:],
                self.kernel,
                self.dilations,
                self.strides,
                strict=True,
            )
        )


def _pair(values: Sequence[int], fill: int = 1) -> tuple[int, int]:
    """`values` of one or two dimensions, or of three equal ones, as those of a 2-D problem."""
    if len(values) == 1:
        return fill, values[0]
    return values[-2], values[-1]


def prepared_weight(geometry: Geometry, weight: Array) -> Array:
    """An OI... weight in the dtype and the layout of the algorithm chosen for `geometry`."""
    weight = weight.astype(geometry.dtype, copy=False)
    spec = geometry.spec
    if spec is None:
        return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-1, -2)))
    planar = weight.reshape(*weight.shape[:2], *spec.kernel)
    return geometry.algorithm.prepare_weight(planar, spec)


def convolve(geometry: Geometry, x: Any, weight: Any, *, prepared: bool) -> Any:
    """Convolve a channels-last array; `weight` is `prepared_weight`, or traced and in OI...."""
    result_shape = (geometry.n, *geometry.output, geometry.c_out)
    if 0 in result_shape or 0 in geometry.spatial:
        return jnp.zeros(result_shape, x.dtype)
    dtype, x = x.dtype, x.astype(geometry.dtype)
    spec = geometry.spec
    if spec is not None and prepared:
        planar = jnp.reshape(x, (spec.n, spec.h, spec.w, spec.c_in))
        result = kernels.convolve(planar, weight, spec, geometry.algorithm)
        return jnp.reshape(result, result_shape).astype(dtype)
    if not prepared:
        weight = jnp.moveaxis(weight, (0, 1), (-1, -2)).astype(geometry.dtype)
    result = kernels.direct(
        x,
        weight,
        strides=geometry.strides,
        pads=geometry.pads,
        dilations=geometry.dilations,
        groups=geometry.groups,
    )
    return result.astype(dtype)


def _supports(node: ir.Node) -> Support:
    return windows.check_rank(node)


def shapes(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str]:
    """Shapes of a node's input, weight and output, and the name of the dtype to compute in."""
    x, w, y = (G.static_shape(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    assert x is not None
    assert w is not None
    assert y is not None
    assert dtype is not None
    return x, w, y, factor_dtype(dtype.numpy()).name


def conv_geometry(node: ir.Node) -> Geometry:
    """The geometry of a Conv node."""
    x, w, y, dtype = shapes(node)
    given = attributes(node)
    window = windows.resolve(
        x[2:],
        y[2:],
        w[2:],
        given.get("strides"),
        given.get("dilations"),
        given.get("pads"),
        given.get("auto_pad", "NOTSET"),
    )
    pads = (*(low for low, _ in window.pads), *(high for _, high in window.pads))
    return Geometry(
        x[0],
        x[2:],
        x[1],
        w[0],
        w[2:],
        window.strides,
        pads,
        window.dilations,
        int(given.get("group", 1)),
        dtype,
        node.metadata_props.get(ALGORITHM, ""),
    )


def geometry_key(geometry: Geometry) -> str:
    """Names what `prepared_weight` does for `geometry`."""
    name = geometry.algorithm.name
    return f"conv {name} groups={geometry.groups} strides={geometry.strides}"


GEOMETRIES: dict[str, Callable[[ir.Node], Geometry | None]] = {"Conv": conv_geometry}
"""Operator -> the geometry of the one convolution that computes a node, or None for several."""


def tunable(node: ir.Node) -> Geometry | None:
    """The geometry of a convolution that several algorithms may compute, else None.

    It is 2-D (or as good as), not empty, and its weight is constant.
    """
    if not G.is_standard(node, *GEOMETRIES):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    geometry = GEOMETRIES[node.op_type](node)
    spec = geometry.spec if geometry is not None else None
    return None if spec is None or spec.macs == 0 else geometry


def _prepare_conv(node: ir.Node) -> Prepared:
    geometry = conv_geometry(node)
    return Prepared(geometry_key(geometry), lambda weight: prepared_weight(geometry, weight))


def is_constant(ctx: Context) -> bool:
    """Whether the weight of the node is constant."""
    weight = ctx.node.inputs[1]
    return weight is not None and weight.const_value is not None


def _prepare_levels(node: ir.Node) -> Prepared | None:
    weight = Q.levels(node.inputs[1])
    if weight is None:
        return None
    geometry = conv_geometry(node)
    if _runs_on_bytes(node, geometry, weight):
        return Prepared("integer conv", integer_conv.conv_weight)
    key = f"{geometry_key(geometry)} dequantized {weight.digest}"
    return Prepared(key, lambda _: prepared_weight(geometry, weight.values()))


def _runs_on_bytes(node: ir.Node, geometry: Geometry, weight: Q.Levels) -> bool:
    """Whether a Conv of dequantized values is computed in integers, which follows from the graph.

    Groups have no fast integer form, nor have few channels where convolutions are no products of
    patches: those compute in floating point.
    """
    few = geometry.c_in < _FEW_CHANNELS and not D.integer_form().columns
    return (
        geometry.groups == 1
        and not few
        and weight.axis in (None, 0)
        and weight.array.dtype.itemsize == 1
        and Q.is_bytes(node.inputs[0])
        and Q.fits(geometry.c_in * math.prod(geometry.kernel))
        and 0 not in (geometry.n, geometry.c_out, *geometry.spatial, *geometry.output)
    )


def _on_bytes(geometry: Geometry, x: Operand, w: Operand, weight: Q.Levels, bias: Any) -> Any:
    """The convolution of the bytes behind `x` with prepared bytes, dequantized."""
    behind = x.quantized
    assert behind is not None
    product, excess = integer_conv.conv_terms(
        Operand(behind.array, x.channels_last).last(),
        behind.zero,
        w.array,
        integer.signed_zero(weight.array.dtype, weight.zero),
        strides=geometry.strides,
        pads=geometry.pads,
        dilations=geometry.dilations,
        w_sums=integer.sums(weight.array, range(1, weight.array.ndim)),
        form=D.integer_form(),
    )
    return Q.scaled(product, excess, behind.scale * weight.scale, bias)


@lowering(
    "Conv",
    supports=_supports,
    layouts=True,
    prepare={1: _prepare_conv},
    levels={1: _prepare_levels},
)
def conv(ctx: Context, x: Operand, w: Operand, b: Operand | None = None, **_: Any) -> Operand:
    """Convolution; takes and gives channels-last."""
    geometry = conv_geometry(ctx.node)
    weight = Q.levels(ctx.node.inputs[1])
    if weight is not None and _runs_on_bytes(ctx.node, geometry, weight):
        bias = None if b is None else Q.known(ctx.node.inputs[2])
        bias = b.plain() if b is not None and bias is None else bias
        return Operand(_on_bytes(geometry, x, w, weight, bias), True)
    prepared = is_constant(ctx) or ctx.levels(1)
    array = w.array if prepared else w.plain()
    result = convolve(geometry, jnp.asarray(x.last()), array, prepared=prepared)
    return Operand(result if b is None else result + b.plain(), True)
