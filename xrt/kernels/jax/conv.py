"""Convolution algorithms, channels-last, and the choice between them.

An `Algorithm` says which `ConvSpec` it serves, lays its weight out once at compile time, and applies
it while the cluster is traced. `choose` is the rule; its table was measured by
``benchmarks/ops/conv.py`` on XLA's CPU backend (jaxlib 0.10.2, one AVX-512 core, batch 1 and 8, bias
and ReLU fused behind, time relative to ONNX Runtime's own convolution, lower is better)::

@TABLE@
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from xrt.kernels.jax.winograd import winograd, winograd_weight

_SPATIAL = "DHW"


def accumulator(dtype: np.dtype | type) -> np.dtype:
    """Return the dtype in which sums of products of `dtype` are kept: at least fp32 or int32."""
    base = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32
    return np.dtype(jnp.promote_types(dtype, base))


@dataclass(frozen=True)
class ConvSpec:
    """What a 2-D convolution is, apart from its values.

    `pads` is in ONNX's order (top, left, bottom, right) and explicit: resolve auto_pad first.
    A 1-D convolution is the 2-D one with h = 1; 3-D goes to `direct`.
    """

    n: int
    h: int
    w: int
    c_in: int
    c_out: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    dtype: str = "float32"

    @property
    def out_hw(self) -> tuple[int, int]:
        """Height and width of the output; never negative."""
        size = []
        for axis, extent in enumerate((self.h, self.w)):
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            room = extent + self.pads[axis] + self.pads[axis + 2] - reach
            size.append(max(0, room // self.strides[axis] + 1))
        return size[0], size[1]

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape [N, H', W', O] of the output."""
        return (self.n, *self.out_hw, self.c_out)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the definition, whatever the algorithm."""
        return math.prod(self.out_shape) * math.prod(self.kernel) * self.c_in // self.groups


@dataclass(frozen=True)
class Algorithm:
    """One way to compute a convolution.

    `exact` algorithms differ from the definition only by the order of their sums; the others are
    never chosen unless asked for.
    """

    name: str
    applicable: Callable[[ConvSpec], bool]
    prepare_weight: Callable[[np.ndarray, ConvSpec], np.ndarray]  # from OIHW, once, at compile time
    apply: Callable[[jax.Array, jax.Array, ConvSpec], jax.Array]  # x [N,H,W,C] -> [N,H',W',O]
    exact: bool = True


def direct(
    x: jax.Array,
    w: jax.Array,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int = 1,
) -> jax.Array:
    """Convolve x [N, *spatial, C] with w [*kernel, C / groups, O], one to three spatial dimensions.

    `pads` holds all beginnings, then all ends (ONNX). XLA's own convolution: the YNNPACK library
    for one group, a naive loop for several. Returns x's dtype, accumulated as `accumulator` says.
    """
    rank = len(strides)
    names = _SPATIAL[3 - rank :]
    y = lax.conv_general_dilated(
        x,
        w,
        window_strides=tuple(strides),
        padding=list(zip(pads[:rank], pads[rank:], strict=True)),
        rhs_dilation=tuple(dilations),
        dimension_numbers=(f"N{names}C", f"{names}IO", f"N{names}C"),
        feature_group_count=groups,
        preferred_element_type=accumulator(x.dtype),
    )
    return y.astype(x.dtype)


def pointwise(x: jax.Array, w: jax.Array, *, strides: Sequence[int] = (1, 1)) -> jax.Array:
    """Convolve x [N, H, W, C] with a 1x1 kernel w [C, O]: one matrix product, strided by a slice."""
    if any(step != 1 for step in strides):
        x = x[:, :: strides[0], :: strides[1]]
    return _dot(x, w)


def depthwise(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve each channel of x [N, H, W, C] by itself with w [kh, kw, C * multiplier].

    Shifted multiply-adds over the taps: XLA makes one loop of them, vectorised along the channels,
    that also takes the bias and activation behind it.
    """
    multiplier = spec.c_out // spec.c_in
    kind = accumulator(x.dtype)
    if multiplier > 1:
        x = jnp.repeat(x, multiplier, axis=-1)
    x, w = _pad(x, spec).astype(kind), w.astype(kind)
    if any(spec.pads) or multiplier > 1:
        # Without the barrier the padding is fused into every tap, as a compare and a select there.
        x = lax.optimization_barrier(x)
    rows, columns = spec.kernel
    y = sum(_tap(x, spec, i, j) * w[i, j] for i in range(rows) for j in range(columns))
    return jnp.asarray(y).astype(spec.dtype)


def grouped(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve in groups: x [N, H, W, C], w [blocks, kh, kw, C / blocks, O / blocks].

    `_block_weight` merged neighbouring groups into blocks wide enough for the direct convolution;
    the blocks run one after the other and are joined along the channels.
    """
    width = spec.c_in // w.shape[0]
    parts = [
        direct(
            x[..., b * width : (b + 1) * width],
            w[b],
            strides=spec.strides,
            pads=spec.pads,
            dilations=spec.dilations,
        )
        for b in range(w.shape[0])
    ]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def im2col(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve x [N, H, W, C] as one matrix product of its patches with w [kh * kw * C, O]."""
    padded = lax.optimization_barrier(_pad(x, spec))
    rows, columns = spec.kernel
    taps = [_tap(padded, spec, i, j) for i in range(rows) for j in range(columns)]
    return _dot(jnp.concatenate(taps, axis=-1), w)


def space_to_depth(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve with stride s as stride 1 on s x s times the channels; w [kh', kw', s*s*C, O].

    For stems: 7x7 with stride 2 on 3 channels becomes 4x4 with stride 1 on 12 (the trick of the
    MLPerf ResNet submissions), which leaves the direct convolution longer rows to multiply.
    """
    (sh, sw), (kh, kw) = spec.strides, w.shape[:2]
    out_h, out_w = spec.out_hw
    blocks_h, blocks_w = out_h + kh - 1, out_w + kw - 1
    low = spec.pads[:2]
    high = (blocks_h * sh - spec.h - low[0], blocks_w * sw - spec.w - low[1])
    config = [(0, 0, 0), (low[0], high[0], 0), (low[1], high[1], 0), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), config)  # a negative high end crops what no tap reads
    x = x.reshape(-1, blocks_h, sh, blocks_w, sw, spec.c_in).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(-1, blocks_h, blocks_w, sh * sw * spec.c_in)
    return direct(x, w, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1))


def patchify(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve without overlap (stride = kernel): a reshape and one product with w [kh*kw*C, O]."""
    (out_h, out_w), (kh, kw) = spec.out_hw, spec.kernel
    x = x[:, : out_h * kh, : out_w * kw]
    x = x.reshape(-1, out_h, kh, out_w, kw, spec.c_in).transpose(0, 1, 3, 2, 4, 5)
    return _dot(x.reshape(-1, out_h, out_w, kh * kw * spec.c_in), w)


def convolve(x: jax.Array, w: jax.Array, spec: ConvSpec, algorithm: Algorithm) -> jax.Array:
    """Apply `algorithm`; an empty output, which no algorithm need care about, is answered here."""
    if 0 in spec.out_shape:
        return jnp.zeros(spec.out_shape, x.dtype)
    return algorithm.apply(x, w, spec)


def _dot(x: jax.Array, w: jax.Array) -> jax.Array:
    dims = (((x.ndim - 1,), (0,)), ((), ()))
    y = lax.dot_general(x, w, dims, preferred_element_type=accumulator(x.dtype))
    return y.astype(x.dtype)


def _pad(x: jax.Array, spec: ConvSpec) -> jax.Array:
    if not any(spec.pads):
        return x
    top, left, bottom, right = spec.pads
    config = [(0, 0, 0), (top, bottom, 0), (left, right, 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _tap(padded: jax.Array, spec: ConvSpec, i: int, j: int) -> jax.Array:
    """Return the [N, H', W', C] inputs that meet tap (i, j) of the kernel."""
    (out_h, out_w), (sh, sw) = spec.out_hw, spec.strides
    top, left = i * spec.dilations[0], j * spec.dilations[1]
    limit = (padded.shape[0], top + (out_h - 1) * sh + 1, left + (out_w - 1) * sw + 1)
    return lax.slice(padded, (0, top, left, 0), (*limit, padded.shape[3]), (1, sh, sw, 1))


def _hwio(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    return np.ascontiguousarray(w.transpose(2, 3, 1, 0))


def _matrix(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    return np.ascontiguousarray(w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]))


def _per_channel(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    return np.ascontiguousarray(w[:, 0].transpose(1, 2, 0))


def _blocks(spec: ConvSpec) -> int:
    """Return into how many blocks of whole groups to cut: the narrowest of `_BLOCK` channels up."""
    width = spec.c_in // spec.groups
    for merge in range(1, spec.groups + 1):
        if spec.groups % merge == 0 and merge * width >= _BLOCK:
            return spec.groups // merge
    return 1


def _block_weight(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """Return [blocks, kh, kw, I, O]: block-diagonal where a block holds several groups."""
    blocks, (o, i) = _blocks(spec), w.shape[:2]
    merge, o_group = spec.groups // blocks, o // spec.groups
    out = np.zeros((blocks, *w.shape[2:], merge * i, merge * o_group), w.dtype)
    split = w.reshape(blocks, merge, o_group, i, *w.shape[2:]).transpose(0, 1, 4, 5, 3, 2)
    for q in range(merge):
        out[..., q * i : (q + 1) * i, q * o_group : (q + 1) * o_group] = split[:, q]
    return out


def _depth_weight(w: np.ndarray, spec: ConvSpec) -> np.ndarray:
    """Return [kh', kw', sh*sw*C, O]: the kernel, padded with zeros to whole strides, regrouped."""
    o, c, kh, kw = w.shape
    sh, sw = spec.strides
    rows, columns = -(-kh // sh), -(-kw // sw)
    full = np.zeros((rows * sh, columns * sw, c, o), w.dtype)
    full[:kh, :kw] = w.transpose(2, 3, 1, 0)
    full = full.reshape(rows, sh, columns, sw, c, o).transpose(0, 2, 1, 3, 4, 5)
    return np.ascontiguousarray(full.reshape(rows, columns, sh * sw * c, o))


def _apply_direct(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    return direct(
        x,
        w,
        strides=spec.strides,
        pads=spec.pads,
        dilations=spec.dilations,
        groups=spec.groups,
    )


def _is_pointwise(spec: ConvSpec) -> bool:
    return spec.kernel == (1, 1) and spec.groups == 1 and not any(spec.pads)


def _is_depthwise(spec: ConvSpec) -> bool:
    return spec.groups == spec.c_in and spec.c_out % spec.c_in == 0


def _is_patchify(spec: ConvSpec) -> bool:
    dense = spec.groups == 1 and spec.dilations == (1, 1) and not any(spec.pads)
    return dense and spec.strides == spec.kernel


def _is_strided(spec: ConvSpec) -> bool:
    dense = spec.groups == 1 and spec.dilations == (1, 1)
    return dense and max(spec.strides) > 1 and spec.kernel != (1, 1)


def _is_winograd(spec: ConvSpec) -> bool:
    plain = spec.groups == 1 and spec.dilations == (1, 1) and spec.strides == (1, 1)
    return plain and spec.kernel == (3, 3) and jnp.issubdtype(spec.dtype, jnp.floating)


def _winograd(m: int) -> Algorithm:
    return Algorithm(
        f"winograd_f{m}",
        _is_winograd,
        lambda w, spec: winograd_weight(w, m),
        lambda x, u, spec: winograd(x, u, m=m, pads=spec.pads),
        exact=False,
    )


# Groups are merged until a block has this many input channels: narrower than one or two vectors, the
# direct convolution spends more on bookkeeping than the zeros of the merged blocks cost.
_BLOCK = 32

DIRECT = Algorithm("direct", lambda spec: True, _hwio, _apply_direct)
POINTWISE = Algorithm(
    "pointwise", _is_pointwise, _matrix, lambda x, w, spec: pointwise(x, w, strides=spec.strides)
)
DEPTHWISE = Algorithm("depthwise", _is_depthwise, _per_channel, depthwise)
GROUPED = Algorithm("grouped", lambda spec: spec.groups > 1, _block_weight, grouped)
IM2COL = Algorithm("im2col", lambda spec: spec.groups == 1, _matrix, im2col)
SPACE_TO_DEPTH = Algorithm("space_to_depth", _is_strided, _depth_weight, space_to_depth)
PATCHIFY = Algorithm("patchify", _is_patchify, _matrix, patchify)
WINOGRAD_F2 = _winograd(2)
WINOGRAD_F4 = _winograd(4)
ALGORITHMS = {
    a.name: a
    for a in (
        DIRECT,
        POINTWISE,
        DEPTHWISE,
        GROUPED,
        IM2COL,
        SPACE_TO_DEPTH,
        PATCHIFY,
        WINOGRAD_F2,
        WINOGRAD_F4,
    )
}


def candidates(spec: ConvSpec) -> tuple[Algorithm, ...]:
    """Return every algorithm that computes `spec`, exact or not."""
    return tuple(a for a in ALGORITHMS.values() if a.applicable(spec))


def choose(spec: ConvSpec) -> Algorithm:
    """Return the algorithm for `spec` by the table above; always an exact one."""
    for algorithm in (DEPTHWISE, GROUPED, POINTWISE, PATCHIFY):
        if algorithm.applicable(spec):
            return algorithm
    return DIRECT
