"""Convolution and its transpose, channels-last, by the algorithm `xrt.kernels.jax.conv` chooses.

The algorithm follows from the node's static shapes, so a constant weight is put into that
algorithm's own layout once, before it goes to the device. ConvTranspose is a convolution too: with
stride s, each of the s phases of the output is a stride-1 convolution by every s-th tap, all phases
are computed as one convolution with s times the channels, and a depth-to-space interleaves them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla import device as D
from xrt.engines.xla.lowering import Context, Operand, Prepared, attributes, lowering
from xrt.engines.xla.ops import windows
from xrt.graph import Support
from xrt.kernels.jax import conv as kernels

Array = np.ndarray[Any, Any]

ALGORITHM = "xrt.algorithm"
"""Metadata of a node: the algorithm that tuning found fastest for it (see `xla.tune`)."""


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
        dtype: Name of the dtype.
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
        return kernels.choose(spec) if D.device().platform == "cpu" else kernels.DIRECT

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
    """An OI... weight in the layout of the algorithm that is chosen for `geometry`."""
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
    spec = geometry.spec
    if spec is not None and prepared:
        planar = jnp.reshape(x, (spec.n, spec.h, spec.w, spec.c_in))
        result = kernels.convolve(planar, weight, spec, geometry.algorithm)
        return jnp.reshape(result, result_shape)
    if not prepared:
        weight = jnp.moveaxis(weight, (0, 1), (-1, -2))
    return kernels.direct(
        x,
        weight,
        strides=geometry.strides,
        pads=geometry.pads,
        dilations=geometry.dilations,
        groups=geometry.groups,
    )


def _supports(node: ir.Node) -> Support:
    return windows.check_rank(node)


def _shapes(node: ir.Node) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str]:
    x, w, y = (G.static_shape(v) for v in (node.inputs[0], node.inputs[1], node.outputs[0]))
    dtype = node.inputs[0].dtype if node.inputs[0] is not None else None
    assert x is not None
    assert w is not None
    assert y is not None
    assert dtype is not None
    return x, w, y, dtype.numpy().name


def conv_geometry(node: ir.Node) -> Geometry:
    """The geometry of a Conv node."""
    x, w, y, dtype = _shapes(node)
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


def _key(geometry: Geometry) -> str:
    name = geometry.algorithm.name
    return f"conv {name} groups={geometry.groups} strides={geometry.strides}"


def tunable(node: ir.Node) -> Geometry | None:
    """The geometry of a convolution that several algorithms may compute, else None.

    It is 2-D (or as good as), not empty, and its weight is constant.
    """
    if not G.is_standard(node, "Conv", "ConvTranspose"):
        return None
    weight = node.inputs[1]
    if weight is None or weight.const_value is None:
        return None
    geometry = conv_geometry(node) if node.op_type == "Conv" else transposed(node).geometry
    spec = geometry.spec
    return None if spec is None or spec.macs == 0 else geometry


def _prepare_conv(node: ir.Node) -> Prepared:
    geometry = conv_geometry(node)
    return Prepared(_key(geometry), lambda weight: prepared_weight(geometry, weight))


def _is_constant(ctx: Context) -> bool:
    weight = ctx.node.inputs[1]
    return weight is not None and weight.const_value is not None


@lowering("Conv", supports=_supports, layouts=True, prepare={1: _prepare_conv})
def conv(ctx: Context, x: Operand, w: Operand, b: Operand | None = None, **_: Any) -> Operand:
    """Convolution; takes and gives channels-last."""
    geometry = conv_geometry(ctx.node)
    weight = w.array if _is_constant(ctx) else w.plain()
    result = convolve(geometry, jnp.asarray(x.last()), weight, prepared=_is_constant(ctx))
    return Operand(result if b is None else result + b.plain(), True)


@dataclass(frozen=True)
class Transposed:
    """A ConvTranspose as a convolution to several phases, which are then interleaved and cut.

    Attributes:
        geometry: The convolution; its output channels are (group, phases..., channels of a group).
        phases: Stride of the ConvTranspose along each dimension.
        inflate: Dilation that has to be written into the kernel as zeros.
        begins: What is cut from the beginning of the interleaved output.
        output: Output sizes.
    """

    geometry: Geometry
    phases: tuple[int, ...]
    inflate: tuple[int, ...]
    begins: tuple[int, ...]
    output: tuple[int, ...]


def transposed(node: ir.Node) -> Transposed:
    """How a ConvTranspose node is computed."""
    x, w, y, dtype = _shapes(node)
    given = attributes(node)
    rank = len(x) - 2
    phases = tuple(given.get("strides") or (1,) * rank)
    dilations = tuple(given.get("dilations") or (1,) * rank)
    groups = int(given.get("group", 1))
    # Where every stride is 1, the convolution itself can be dilated.
    inflate = (1,) * rank if set(phases) == {1} else dilations
    steps = dilations if set(phases) == {1} else (1,) * rank
    spans = [(k - 1) * d + 1 for k, d in zip(w[2:], inflate, strict=True)]
    kernel = tuple(-(-span // s) for span, s in zip(spans, phases, strict=True))
    pads = tuple((k - 1) * d for k, d in zip(kernel, steps, strict=True))
    geometry = Geometry(
        x[0],
        x[2:],
        x[1],
        math.prod(phases) * w[1] * groups,
        kernel,
        (1,) * rank,
        pads + pads,
        steps,
        groups,
        dtype,
        node.metadata_props.get(ALGORITHM, ""),
    )
    return Transposed(geometry, phases, inflate, _begins(given, x, w, y), y[2:])


def _begins(
    given: dict[str, Any], x: Sequence[int], w: Sequence[int], y: Sequence[int]
) -> tuple[int, ...]:
    """The padding at the beginning of each dimension, as ONNX derives it."""
    rank = len(x) - 2
    mode = given.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return (0,) * rank
    if mode == "NOTSET" and not given.get("output_shape"):
        return tuple(given.get("pads") or (0,) * 2 * rank)[:rank]
    ones, zeros = (1,) * rank, (0,) * rank
    totals = (
        s * (size - 1) + extra + (k - 1) * d + 1 - out
        for size, out, k, s, d, extra in zip(
            x[2:],
            y[2:],
            w[2:],
            given.get("strides") or ones,
            given.get("dilations") or ones,
            given.get("output_padding") or zeros,
            strict=True,
        )
    )
    upper = "SAME_UPPER" if mode == "SAME_UPPER" else "SAME_LOWER"
    return tuple(windows.same_pads(total, upper)[0] for total in totals)


def phase_weight(plan: Transposed, weight: Any) -> Any:
    """A ConvTranspose weight (I, O / groups, ...) as the OI... weight of the phases' convolution.

    Works on NumPy and on traced arrays.
    """
    numpy: Any = np if isinstance(weight, np.ndarray) else jnp
    groups, rank = plan.geometry.groups, len(plan.phases)
    c_in, c_group = weight.shape[:2]
    for axis, step in enumerate(plan.inflate):
        weight = _inflated(numpy, weight, axis + 2, step)
    widths = [(0, 0), (0, 0)] + [
        (0, taps * phase - weight.shape[axis + 2])
        for axis, (taps, phase) in enumerate(zip(plan.geometry.kernel, plan.phases, strict=True))
    ]
    split = [size for pair in zip(plan.geometry.kernel, plan.phases, strict=True) for size in pair]
    parts = numpy.reshape(numpy.pad(weight, widths), (groups, c_in // groups, c_group, *split))
    taps = [3 + 2 * axis for axis in range(rank)]
    phases = [4 + 2 * axis for axis in range(rank)]
    parts = numpy.transpose(numpy.flip(parts, taps), (0, *phases, 2, 1, *taps))
    return numpy.reshape(parts, (plan.geometry.c_out, c_in // groups, *plan.geometry.kernel))


def _inflated(numpy: Any, weight: Any, axis: int, step: int) -> Any:
    """`weight` with `step - 1` zeros between its taps along `axis`."""
    if step == 1:
        return weight
    size = weight.shape[axis]
    wide = numpy.expand_dims(weight, axis + 1)
    widths = [(0, 0)] * wide.ndim
    widths[axis + 1] = (0, step - 1)
    shape = (*weight.shape[:axis], size * step, *weight.shape[axis + 1 :])
    full = numpy.reshape(numpy.pad(wide, widths), shape)
    cut = [slice(None)] * weight.ndim
    cut[axis] = slice(0, (size - 1) * step + 1)
    return full[tuple(cut)]


def _prepare_transposed(node: ir.Node) -> Prepared:
    plan = transposed(node)
    return Prepared(
        f"transposed {plan.phases} {plan.inflate} {_key(plan.geometry)}",
        lambda weight: prepared_weight(plan.geometry, phase_weight(plan, weight)),
    )


@lowering("ConvTranspose", supports=_supports, layouts=True, prepare={1: _prepare_transposed})
def conv_transpose(
    ctx: Context, x: Operand, w: Operand, b: Operand | None = None, **_: Any
) -> Operand:
    """Transposed convolution; takes and gives channels-last."""
    plan = transposed(ctx.node)
    constant = _is_constant(ctx)
    weight = w.array if constant else phase_weight(plan, jnp.asarray(w.plain()))
    result = convolve(plan.geometry, jnp.asarray(x.last()), weight, prepared=constant)
    result = _interleaved(plan, result)
    return Operand(result if b is None else result + b.plain(), True)


def _interleaved(plan: Transposed, result: Any) -> Any:
    """The phases of each dimension side by side, cut to the output."""
    n, *blocks, channels = result.shape
    rank, groups = len(blocks), plan.geometry.groups
    if math.prod(plan.phases) > 1:
        c_group = channels // groups // math.prod(plan.phases)
        result = jnp.reshape(result, (n, *blocks, groups, *plan.phases, c_group))
        order = [0]
        for axis in range(rank):
            order += [1 + axis, 2 + rank + axis]
        result = jnp.transpose(result, (*order, 1 + rank, 2 + 2 * rank))
    sizes = [block * phase for block, phase in zip(blocks, plan.phases, strict=True)]
    result = jnp.reshape(result, (n, *sizes, channels // math.prod(plan.phases)))
    config = [(0, 0, 0)]
    for size, begin, out in zip(sizes, plan.begins, plan.output, strict=True):
        config.append((-begin, out + begin - size, 0))
    return lax.pad(result, np.zeros((), result.dtype), [*config, (0, 0, 0)])
