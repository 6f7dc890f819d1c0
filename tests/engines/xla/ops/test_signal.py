"""Fourier transforms, windows and the mel scale against NumPy, PyTorch and SciPy."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import scipy.signal.windows
import torch

from tests.engines.xla.ops_support import check, run_node, support
from tests.support import assert_close

RNG = np.random.default_rng(0)
FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def _f(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.normal(size=shape).astype(dtype)


def _i(value: Any, dtype: Any = np.int64) -> np.ndarray[Any, Any]:
    return np.asarray(value, dtype)


def _complex(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = x.astype(np.float64)
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def _pairs(x: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
    return np.stack([x.real, x.imag], -1).astype(dtype)


@pytest.mark.parametrize(("axis", "length"), [(None, None), (1, 1), (-3, 4), (0, 12), (-2, 7)])
@pytest.mark.parametrize("parts", [1, 2])
def test_dft_and_its_inverse(axis: int | None, length: int | None, parts: int) -> None:
    x = _f(5, 6, 7, parts)
    inputs = [x, *(None if v is None else _i(v) for v in (length, axis))]
    place = 2 if axis is None else axis % 4
    for inverse, transform in enumerate((np.fft.fft, np.fft.ifft)):
        want = _pairs(transform(_complex(x), length, place), np.float32)
        check("DFT", inputs, want=[want], constants=(1, 2), inverse=inverse, layouts=length == 7)


@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("length", [None, 4, 5, 9])
def test_onesided(size: int, length: int | None) -> None:
    x, z = _f(3, size, 1), _f(3, size, 2)
    inputs = [None if length is None else _i(length, np.int32), _i(1)]
    half = _pairs(np.fft.rfft(_complex(x), length, 1), np.float32)
    check("DFT", [x, *inputs], want=[half], constants=(1, 2), onesided=1, layouts=False)
    if length or size > 1:
        back = np.fft.irfft(_complex(z), length, 1)[..., None].astype(np.float32)
        both = {"onesided": 1, "inverse": 1}
        check("DFT", [z, *inputs], want=[back], constants=(1, 2), layouts=False, **both)


@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_of_the_dft(dtype: Any) -> None:
    x = _f(2, 16, 2, dtype=dtype)
    check("DFT", [x], want=[_pairs(np.fft.fft(_complex(x)), dtype)])
    half = x[:, :, :1]
    want = _pairs(np.fft.rfft(_complex(half)), dtype)
    check("DFT", [half], want=[want], onesided=1)


def test_a_real_signal_has_exactly_real_ends() -> None:
    (y,) = run_node("DFT", [_f(4, 10, 1)])
    assert not y[:, [0, 5], 1].any()


def test_nan_reaches_the_whole_spectrum() -> None:
    x = _f(2, 8, 1)
    x[0, 3] = np.nan
    (y,) = run_node("DFT", [x])
    assert np.isnan(y[0]).any(axis=1).all()
    assert np.isfinite(y[1]).all()


def test_what_the_dft_refuses() -> None:
    length = _i(4)
    assert "compile time" in support("DFT", [_f(2, 8, 1), length], declared=[_f(2, 4, 2)]).reason
    answer = support("DFT", [_f(2, 0, 1)])
    assert "without elements" in answer.reason


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize(("length", "step"), [(16, 4), (15, 7), (8, 11)])
@pytest.mark.parametrize("windowed", [False, True])
def test_stft(onesided: int, length: int, step: int, windowed: bool) -> None:
    x = _f(2, 64, 1)
    window = _f(length) if windowed else None
    options = {"center": False, "onesided": bool(onesided), "return_complex": True}
    weights = torch.ones(length) if window is None else torch.from_numpy(window)
    spectrum = torch.stft(torch.from_numpy(x[..., 0]), length, step, length, weights, **options)
    want = torch.view_as_real(spectrum.transpose(1, 2)).numpy()
    for given in (None, _i(length)) if windowed else (_i(length),):
        inputs = [x, _i(step), window, given]
        check("STFT", inputs, want=[want], constants=(1, 3), onesided=onesided, layouts=False)


@pytest.mark.parametrize("dtype", FLOATS)
def test_stft_of_complex_signals(dtype: Any) -> None:
    x, window = _f(2, 32, 2, dtype=dtype), _f(8, dtype=dtype)
    frames = np.lib.stride_tricks.sliding_window_view(_complex(x), 8, axis=1)[:, ::4]
    want = _pairs(np.fft.fft(frames * window.astype(np.float64)), dtype)
    check("STFT", [x, _i(4), window], want=[want], constants=(1,), onesided=0)


def test_stft_whose_declared_shape_contradicts_its_attributes_is_refused() -> None:
    # ONNX 1.23's inference takes an absent `onesided` for 0; its default is 1.
    answer = support("STFT", [_f(1, 32, 1), _i(4), None, _i(8)], constants=(1, 3))
    assert not answer
    assert "5 frequencies" in answer.reason


@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE])
def test_windows(periodic: int, kind: int) -> None:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    wants = {
        "HannWindow": scipy.signal.windows.hann,
        "HammingWindow": lambda n, sym: scipy.signal.windows.general_hamming(n, 25 / 46, sym),
        "BlackmanWindow": scipy.signal.windows.blackman,
    }
    for op, function in wants.items():
        want = function(17, sym=not periodic).astype(dtype)
        inputs = [_i(17, np.int32)]
        options = {"constants": (0,), "periodic": periodic, "output_datatype": kind}
        check(op, inputs, want=[want], **options)


@pytest.mark.parametrize("moving", [False, True])
def test_mel_weights(moving: bool) -> None:
    for edges in ((0, 4096), (125.5, 3800)):
        inputs = [_i(8), _i(64), _i(8192), *(np.asarray(e, np.float64) for e in edges)]
        constants = (0, 1) if moving else (0, 1, 2, 3, 4)
        check("MelWeightMatrix", inputs, constants=constants)
        check("MelWeightMatrix", inputs, constants=constants, output_datatype=11)


def test_mel_weights_of_many_bands_have_their_peaks() -> None:
    inputs = [_i(40), _i(512), _i(16000), np.float32(20), np.float32(8000)]
    (y,) = run_node("MelWeightMatrix", [np.asarray(v) for v in inputs], constants=(0, 1))
    assert y.shape == (257, 40)
    np.testing.assert_array_equal(y.max(axis=0), 1)


def test_mel_weights_as_integers_keep_the_peaks_alone() -> None:
    inputs = [_i(8), _i(64), _i(8192), np.float32(0), np.float32(4096)]
    arrays = [np.asarray(v) for v in inputs]
    (y,) = run_node("MelWeightMatrix", arrays, constants=(0, 1), output_datatype=2)
    assert_close(y.sum(axis=0), np.ones(8, np.uint64))
