"""Spectra: Fourier transforms, windows and the mel scale.

ONNX stores complex numbers as pairs: the last dimension is 2, or 1 for a real signal.
"""

# mypy: disable-error-code="no-any-return"
# NumPy's stubs answer Any for arithmetic on arrays of unknown dtype.

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from xrt.kernels.host.common import Array, in_float32, normalize_axes, numpy_dtype
from xrt.kernels.host.registry import kernel


def scalar(value: Array) -> int:
    """The one element of an integer tensor."""
    return int(value.reshape(()))


def dft_length(size: int, given: Array | None, halved: bool) -> int:
    """Length of a transform over `size` elements, which are half a spectrum if `halved`.

    Raises ValueError for a length below one.
    """
    length = scalar(given) if given is not None else 2 * (size - 1) if halved else size
    if length < 1:
        raise ValueError(f"a transform of length {length}; it must be 1 or more")
    return length


def _complex(x: Array) -> Array:
    """Pairs as complex numbers, a real signal as real ones."""
    if x.shape[-1] == 1:
        return x[..., 0]
    if x.shape[-1] == 2:
        return x[..., 0] + 1j * x[..., 1]
    raise ValueError(f"a signal of shape {x.shape}; its last dimension must be 1 or 2")


def _pairs(x: Array) -> Array:
    """Complex numbers as pairs."""
    return np.stack([x.real, x.imag], axis=-1)


def _spectrum(x: Array, length: int, axis: int, onesided: bool) -> Array:
    """The transform of a real or complex signal, cropped or padded to `length`."""
    if not onesided:
        return np.fft.fft(x, length, axis)
    if not np.iscomplexobj(x):
        return np.fft.rfft(x, length, axis)
    half = [slice(None)] * x.ndim
    half[axis] = slice(length // 2 + 1)
    return np.fft.fft(x, length, axis)[tuple(half)]


@kernel("DFT")
@in_float32
def dft(
    x: Array,
    length: Array | None = None,
    axis: Array | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
) -> Array:
    """The discrete Fourier transform along an axis, or its inverse."""
    (place,) = normalize_axes((-2 if axis is None else scalar(axis),), x.ndim)
    if place == x.ndim - 1:
        raise ValueError("the last axis holds real and imaginary parts; it has no transform")
    size = dft_length(x.shape[place], length, bool(inverse and onesided))
    signal = _complex(x)
    if not inverse:
        result = _pairs(_spectrum(signal, size, place, bool(onesided)))
    elif onesided:
        result = np.fft.irfft(signal, size, place)[..., None]
    else:
        result = _pairs(np.fft.ifft(signal, size, place))
    return result.astype(x.dtype, copy=False)


@kernel("STFT")
@in_float32
def stft(
    signal: Array,
    frame_step: Array,
    window: Array | None = None,
    frame_length: Array | None = None,
    *,
    onesided: int = 1,
) -> Array:
    """The Fourier transforms of overlapping, weighted frames of a signal."""
    length = signal.shape[1] if window is None else window.size
    if frame_length is not None:
        length = scalar(frame_length)
    step = scalar(frame_step)
    if not 1 <= length <= signal.shape[1] or step < 1:
        raise ValueError(
            f"frames of {length} samples every {step} of a signal of {signal.shape[1]} samples"
        )
    view = np.lib.stride_tricks.sliding_window_view(_complex(signal), length, axis=1)
    frames = view[:, ::step]
    if window is not None:
        frames = frames * window
    spectrum = _spectrum(frames, length, 2, bool(onesided))
    return _pairs(spectrum).astype(signal.dtype, copy=False)


@kernel("MelWeightMatrix")
def mel_weight_matrix(
    num_mel_bins: Array,
    length: Array,
    sample_rate: Array,
    lower_edge_hertz: Array,
    upper_edge_hertz: Array,
    *,
    output_datatype: int = 1,
) -> Array:
    """Triangles that are as wide as the ear resolves: (frequencies of a DFT, bands).

    In float64 whatever the types are: a band's edge is a rounded frequency.
    """
    bands, size = scalar(num_mel_bins), scalar(length)
    low, high = (
        2595 * math.log10(1 + float(edge.reshape(())) / 700)
        for edge in (lower_edge_hertz, upper_edge_hertz)
    )
    mels = low + np.arange(bands + 2) * ((high - low) / (bands + 2))
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = np.floor((size + 1) * hertz / scalar(sample_rate))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = np.arange(size // 2 + 1)[:, None]
    rising = (at - left) / np.maximum(centre - left, 1)
    falling = (right - at) / np.maximum(right - centre, 1)
    weight = np.where((at >= left) & (at < centre), rising, 0)
    weight = np.where((at > centre) & (at < right), falling, weight)
    return np.where(at == centre, 1.0, weight).astype(numpy_dtype(output_datatype))


def _raised_cosine(a0: float, a1: float, a2: float) -> Callable[..., Array]:
    """A window a0 - a1 cos(2 pi n / N) + a2 cos(4 pi n / N)."""

    def window(size: Array, *, output_datatype: int = 1, periodic: int = 1) -> Array:
        count = scalar(size)
        dtype = numpy_dtype(output_datatype)
        angle = np.arange(count) * (2 * math.pi) / np.float64(count if periodic else count - 1)
        result = a0 - a1 * np.cos(angle) + a2 * np.cos(2 * angle)
        if dtype != np.float64:  # before an integer truncates it: 0.9999999999999999 is a one
            result = result.astype(np.float32)
        return result.astype(dtype)

    return window


WINDOWS = {
    "HannWindow": _raised_cosine(0.5, 0.5, 0.0),
    "HammingWindow": _raised_cosine(25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": _raised_cosine(0.42, 0.5, 0.08),
}
"""Kernel by operator: size -> window, with ONNX's attributes."""

for _name, _window in WINDOWS.items():
    kernel(_name)(_window)
