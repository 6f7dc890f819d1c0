"""Spectra: Fourier transforms of a signal or of its frames, windows and the mel scale.

ONNX stores complex numbers as pairs: the last dimension is 2, or 1 for a real signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from xrt import graph as G
from xrt.engines.xla.lowering import Context, lowering
from xrt.engines.xla.ops.numerics import wide
from xrt.graph import Support
from xrt.kernels.host import signal as host


def _complex(x: Any) -> Any:
    """Pairs as complex numbers, a real signal as real ones."""
    return x[..., 0] if x.shape[-1] == 1 else lax.complex(x[..., 0], x[..., 1])


def _pairs(x: Any) -> Any:
    """Complex numbers as pairs."""
    return jnp.stack([x.real, x.imag], axis=-1)


def _spectrum(x: Any, length: int, axis: int, onesided: bool) -> Any:
    """The transform of a real or complex signal, cropped or padded to `length`.

    That of a real signal is half computed and half mirrored, which costs half, and its first and
    middle elements come out exactly real.
    """
    bins = length // 2 + 1
    if jnp.iscomplexobj(x):
        full = jnp.fft.fft(x, length, axis)
        return lax.slice_in_dim(full, 0, bins, axis=axis) if onesided else full
    half = jnp.fft.rfft(x, length, axis)
    if onesided:
        return half
    mirrored = lax.slice_in_dim(half, 1, length - bins + 1, axis=axis)
    return jnp.concatenate([half, jnp.conj(jnp.flip(mirrored, axis))], axis=axis)


def _supports_dft(node: ir.Node) -> Support:
    shape = G.static_shape(node.inputs[0]) or ()
    if len(shape) < 2 or shape[-1] not in (1, 2):
        return Support.no(f"DFT of shape {list(shape)}; the last dimension must be 1 or 2")
    if 0 in shape or 0 in (G.static_shape(node.outputs[0]) or ()):
        return Support.no("DFT of a tensor without elements")
    return Support.yes()


@lowering("DFT", static=(1, 2), supports=_supports_dft)
def dft(
    ctx: Context,
    x: Any,
    dft_length: np.ndarray[Any, Any] | None = None,
    axis: np.ndarray[Any, Any] | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Any:
    """The discrete Fourier transform along an axis, or its inverse."""
    signal = _complex(wide(x))
    place = (-2 if axis is None else host.scalar(axis)) % np.ndim(x)
    length = host.dft_length(np.shape(x)[place], dft_length, bool(inverse and onesided))
    if not inverse:
        result = _pairs(_spectrum(signal, length, place, bool(onesided)))
    elif onesided:
        result = jnp.fft.irfft(signal, length, place)[..., None]
    elif jnp.iscomplexobj(signal):
        result = _pairs(jnp.fft.ifft(signal, length, place))
    else:
        result = _pairs(jnp.conj(_spectrum(signal, length, place, False)) / length)
    return result.astype(x.dtype)


def _supports_stft(node: ir.Node) -> Support:
    shape = G.static_shape(node.inputs[0]) or ()
    if len(shape) != 3 or shape[-1] not in (1, 2):
        return Support.no(
            f"STFT of shape {list(shape)}; it takes (batch, samples, 1) or (batch, samples, 2)"
        )
    found = G.static_shape(node.outputs[0]) or ()
    if 0 in shape or 0 in found:
        return Support.no("STFT of a tensor without elements")
    window, given = (*node.inputs, None, None)[2:4]
    length = _frame_length(shape, G.static_shape(window), G.constant(given))
    onesided = "onesided" not in node.attributes or node.attributes["onesided"].as_int()
    bins = length // 2 + 1 if onesided else length
    if found[2] != bins:
        return Support.no(f"STFT gives {bins} frequencies, where the model declares {found[2]}")
    return Support.yes()


def _frame_length(
    signal: Sequence[int], window: Sequence[int] | None, given: np.ndarray[Any, Any] | None
) -> int:
    """Samples of a frame, from the shapes of signal and window and the length, if it is given."""
    if given is not None:
        return host.scalar(given)
    return signal[1] if window is None else window[0]


@lowering("STFT", static=(1, 3), supports=_supports_stft)
def stft(
    ctx: Context,
    signal: Any,
    frame_step: np.ndarray[Any, Any],
    window: Any = None,
    frame_length: np.ndarray[Any, Any] | None = None,
    *,
    onesided: int = 1,
) -> Any:
    """The Fourier transforms of overlapping, weighted frames of a signal."""
    count = ctx.output_shape()[1]
    shape = None if window is None else np.shape(window)
    length = _frame_length(np.shape(signal), shape, frame_length)
    frames = _frames(_complex(wide(signal)), count, length, host.scalar(frame_step))
    if window is not None:
        frames = frames * wide(window)
    spectrum = _spectrum(frames, length, 2, bool(onesided))
    return _pairs(spectrum).astype(signal.dtype)


def _frames(signal: Any, count: int, length: int, step: int) -> Any:
    """(batch, count, length) frames of (batch, samples), `step` samples apart.

    One slice for each start is six times faster than indices of single samples, or than
    concatenated hops.
    """
    starts = np.arange(count) * step
    return jax.vmap(lambda at: lax.dynamic_slice_in_dim(signal, at, length, 1), out_axes=1)(starts)


@lowering("HannWindow", "HammingWindow", "BlackmanWindow", static=(0,))
def window(ctx: Context, size: np.ndarray[Any, Any], **attributes: int) -> Any:
    """A window of raised cosines."""
    return jnp.asarray(host.WINDOWS[ctx.node.op_type](size, **attributes))


@lowering("MelWeightMatrix", static=(0, 1))
def mel_weight_matrix(
    ctx: Context,
    num_mel_bins: np.ndarray[Any, Any],
    dft_length: np.ndarray[Any, Any],
    sample_rate: Any,
    lower_edge_hertz: Any,
    upper_edge_hertz: Any,
    *,
    output_datatype: int = 1,
) -> Any:
    """Triangles that are as wide as the ear resolves: (frequencies of a DFT, bands).

    In float64 whatever the types are: a band's edge is a rounded frequency.
    """
    bands, size = host.scalar(num_mel_bins), host.scalar(dft_length)
    rate, low, high = (
        jnp.reshape(value, ()).astype(np.float64)
        for value in (sample_rate, lower_edge_hertz, upper_edge_hertz)
    )
    first, last = (2595 * jnp.log10(1 + edge / 700) for edge in (low, high))
    mels = first + np.arange(bands + 2) * ((last - first) / (bands + 2))
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = jnp.floor((size + 1) * hertz / rate)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(size // 2 + 1, dtype=np.float64)[:, None]
    rising = (at - left) / jnp.maximum(centre - left, 1)
    falling = (right - at) / jnp.maximum(right - centre, 1)
    weight = jnp.where((at >= left) & (at < centre), rising, 0)
    weight = jnp.where((at > centre) & (at < right), falling, weight)
    return jnp.where(at == centre, 1.0, weight).astype(ctx.output_dtype())
