"""Convolution algorithms, channels-last, and the choice between them.

An `Algorithm` says which `ConvSpec` it serves, lays its weight out once at compile time, and
applies it while the cluster is traced. `choose` is the rule; its table was measured by
``benchmarks/ops/conv.py`` on XLA's CPU backend (jaxlib 0.10.2, one AVX-512 core, batch 1 and 8,
bias and ReLU fused behind, time relative to ONNX Runtime's own convolution, lower is better)::

  =============================  ======  =======================================  =================
  layer                          direct  the others                               chosen
  =============================  ======  =======================================  =================
  1x1, any size                  .9-1.7  pointwise .75-1.03                       pointwise
  3x3, 64 wide, 56 px            1.06    winograd_f2 .84                          f2; batch 8 direct
  3x3, 128 wide, 28 px           1.10    winograd_f2 .79 (batch 8: 1.0)           winograd_f2
  3x3, 256 wide, 14 px           1.21    winograd_f2 .69 (batch 8: .6-.7)         winograd_f2
  3x3, 256 wide, 56 px           1.18    winograd_f2 .74                          winograd_f2
  3x3, 512 wide, 28 / 14 px      1.2-1.4 winograd_f2 .66-.69                      winograd_f2
  3x3, 512 wide, 7 px, batch 1   1.91    im2col 1.06, winograd_f2 .99             im2col
  3x3 / 2, 512 wide, 14 px       1.75    im2col 1.11                              im2col
  3x3, 3 -> 64, 224 px           .56     im2col 1.42                              direct
  7x7 / 2, 3 -> 64, 224 px       .97     space_to_depth 1.89, im2col 5.65         direct
  3x3 / 2, 3 -> 32               2.4-2.8 space_to_depth 1.5-1.6, im2col 1.6-1.7   space_to_depth
  16x16 / 16, 3 -> 768           3.94    patchify 1.10                            patchify
  depthwise 3x3                  11-26   depthwise .5-.75 (dilated 1.08)          depthwise
  depthwise 7x7                  30-38   depthwise 2.0-2.4 (7 px: 3.5)            depthwise
  3x3, 32 groups, 56 / 28 px     9.4/4.9 grouped 1.7/1.4, grouped_dot 9/2.6       grouped
  3x3, 32 groups, 14 / 7 px      3.5/2.4 grouped 2.1-7, grouped_dot 2.3/1.1       grouped_dot
  =============================  ======  =======================================  =================

The machine was shared and noisy: differences below 10 % mean nothing.

What bounds winograd_f2 from above are its temporaries, the transformed input and the products. Its
time relative to direct on 3x3 layers, as tuning measures it, on two cores (MB: temporaries; above
32 MB in huge pages, `xrt.engines.xla.launch`, without which it loses there)::

  ===============================  =====  ====  ===============================  =====  =======
  layer                            MB     / d.  layer                            MB     / d.
  ===============================  =====  ====  ===============================  =====  =======
  1 x 56 px, 64 -> 64              6      .73   8 x 28 px, 192 -> 192            37     .72
  4 x 56 px, 64 -> 64              24     .60   8 x 35 px, 192 -> 192            57     .84
  8 x 56 px, 64 -> 64              49     1.1   4 x 56 px, 192 -> 192            74     .77
  16 x 56 px, 64 -> 64             98     .94   8 x 28 px, 256 -> 256            49     .79
  1 x 112 px, 64 -> 128            37     1.3   8 x 56 px, 256 -> 256            196    .83
  1 x 224 px, 64 -> 64             98     1.4   1 x 128 px, 256 -> 256           128    .80
  1 x 73 px, 80 -> 192             22     .91   4 x 100 px, 256 -> 256           312    .82
  8 x 28 px, 128 -> 128            24     .98   1 x 256 px, 256 -> 256           512    .83
  16 x 28 px, 128 -> 128           49     1.1   8 x 28 px, 256 -> 512            74     .67
  8 x 56 px, 128 -> 128            98     1.1   8 x 14 px, 512 -> 512            24     .53
  8 x 112 px, 128 -> 128           392    1.2   4 x 28 px, 512 -> 512            49     .60
  8 x 28 px, 160 -> 160            31     .64   8 x 28 px, 512 -> 512            98     .66
  ===============================  =====  ====  ===============================  =====  =======
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

    An `exact` one is as close to the definition as a plain sum in the same precision (below 1e-6 of
    the largest output in fp32); the others are never chosen unless asked for.
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
    """Convolve x [N, H, W, C] with a 1x1 kernel w [C, O]: one product, strided by a slice."""
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
        x = lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
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


def grouped_dot(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve in groups by one batched product of patches with w as `grouped` takes it.

    For small maps, where `grouped`'s blocks are too little work each.
    """
    blocks, (rows, columns) = w.shape[0], spec.kernel
    padded = lax.optimization_barrier(_pad(x, spec))  # type: ignore[no-untyped-call]
    shape = (math.prod(spec.out_shape[:3]), blocks, spec.c_in // blocks)
    taps = [_tap(padded, spec, i, j).reshape(shape) for i in range(rows) for j in range(columns)]
    patches = jnp.concatenate(taps, axis=-1)
    matrices = w.reshape(blocks, -1, w.shape[-1])
    dims = (((2,), (1,)), ((1,), (0,)))
    y = lax.dot_general(patches, matrices, dims, preferred_element_type=accumulator(x.dtype))
    return y.transpose(1, 0, 2).reshape(spec.out_shape).astype(x.dtype)


def im2col(x: jax.Array, w: jax.Array, spec: ConvSpec) -> jax.Array:
    """Convolve x [N, H, W, C] as one matrix product of its patches with w [kh * kw * C, O]."""
    padded = lax.optimization_barrier(_pad(x, spec))  # type: ignore[no-untyped-call]
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
        # Measured: F(2,3) 4e-7 to 9e-7, direct 2e-7 to 1.1e-6; F(4,3) 3e-6 to 2e-5.
        exact=m == 2,
    )


# Groups are merged until a block has this many input channels: narrower than one or two vectors,
# the direct convolution spends more on bookkeeping than the zeros of the merged blocks cost.
_BLOCK = 32
# Outputs up to which a few hundred columns of patches beat the direct convolution's blocking.
_SMALL_MAP = 400
# Channels, and inputs (batch x height x width), from which Winograd's 16 products pay.
_WINOGRAD_WIDTH = 64
_WINOGRAD_MAP = 64
# Bytes of Winograd's temporaries beyond which their traffic eats what the arithmetic saves. Layers
# of `_DEEP` channels compute more on every byte: only what memory they may take bounds them.
_WINOGRAD_BYTES = 32 << 20
_DEEP, _DEEP_BYTES = 192, 256 << 20
# Where temporaries get no huge pages, their traffic costs more.
_DEEP_IN_SMALL_PAGES, _DEEP_BYTES_IN_SMALL_PAGES = 512, 128 << 20

DIRECT = Algorithm("direct", lambda spec: True, _hwio, _apply_direct)
POINTWISE = Algorithm(
    "pointwise", _is_pointwise, _matrix, lambda x, w, spec: pointwise(x, w, strides=spec.strides)
)
DEPTHWISE = Algorithm("depthwise", _is_depthwise, _per_channel, depthwise)
GROUPED = Algorithm("grouped", lambda spec: spec.groups > 1, _block_weight, grouped)
GROUPED_DOT = Algorithm("grouped_dot", lambda spec: spec.groups > 1, _block_weight, grouped_dot)
IM2COL = Algorithm("im2col", lambda spec: spec.groups == 1, _matrix, im2col)
SPACE_TO_DEPTH = Algorithm("space_to_depth", _is_strided, _depth_weight, space_to_depth)
PATCHIFY = Algorithm("patchify", _is_patchify, _matrix, patchify)
WINOGRAD_F2 = _winograd(2)
WINOGRAD_F4 = _winograd(4)
_PLAIN = (DIRECT, POINTWISE, DEPTHWISE, GROUPED, GROUPED_DOT, IM2COL, SPACE_TO_DEPTH, PATCHIFY)
ALGORITHMS = {a.name: a for a in (*_PLAIN, WINOGRAD_F2, WINOGRAD_F4)}


def candidates(spec: ConvSpec) -> tuple[Algorithm, ...]:
    """Return every algorithm that computes `spec`, exact or not."""
    return tuple(a for a in ALGORITHMS.values() if a.applicable(spec))


def choose(spec: ConvSpec, *, huge_pages: bool = True) -> Algorithm:
    """Return the algorithm for `spec` by the tables above; always an exact one.

    `huge_pages` tells whether large temporaries lie in such.
    """
    out_h, out_w = spec.out_hw
    if DEPTHWISE.applicable(spec):
        return DEPTHWISE
    if spec.groups > 1:
        return GROUPED_DOT if spec.n * out_h * out_w <= _SMALL_MAP else GROUPED
    for algorithm in (POINTWISE, PATCHIFY):
        if algorithm.applicable(spec):
            return algorithm
    if _is_winograd(spec) and _pays_winograd(spec, huge_pages):
        return WINOGRAD_F2
    if spec.n * out_h * out_w <= _SMALL_MAP and spec.c_in >= 256:
        return IM2COL
    if SPACE_TO_DEPTH.applicable(spec) and spec.c_in <= 4 and max(spec.kernel) <= 3:
        return SPACE_TO_DEPTH
    return DIRECT


def _pays_winograd(spec: ConvSpec, huge_pages: bool) -> bool:
    """Tell whether F(2x2,3x3) beats direct: fp32, wide layers, maps that are not small.

    On smaller maps the 16 weight matrices cost more than they save. On larger ones the temporaries
    (four times the input and four times the output) leave the cache, which deep layers bear.
    """
    if spec.dtype != "float32" or spec.n * spec.h * spec.w < _WINOGRAD_MAP:
        return False
    narrowest = min(spec.c_in, spec.c_out)
    temporaries = 16 * spec.n * (spec.h * spec.w * spec.c_in + math.prod(spec.out_hw) * spec.c_out)
    deep, most = _DEEP, _DEEP_BYTES
    if not huge_pages:
        deep, most = _DEEP_IN_SMALL_PAGES, _DEEP_BYTES_IN_SMALL_PAGES
    limit = most if narrowest >= deep else _WINOGRAD_BYTES
    return narrowest >= _WINOGRAD_WIDTH and temporaries <= limit
