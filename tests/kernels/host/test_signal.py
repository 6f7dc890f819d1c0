"""Fourier transforms, windows and the mel scale."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.fft
import scipy.signal.windows
import torch

from tests.kernels.host.support import assert_close, compare, run
from xrt.errors import KernelError

RNG = np.random.default_rng(3)


def _x(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def _i(value: int) -> Any:
    return np.array(value, np.int64)


def _pairs(x: Any, dtype: Any) -> Any:
    return np.stack([x.real, x.imag], -1).astype(dtype)


@pytest.mark.parametrize("length", [None, 1, 5, 8, 13])
@pytest.mark.parametrize("axis", [0, 1, -2])
def test_dft(length: int | None, axis: int) -> None:
    x = _x(6, 7, 8, 2)
    z = x[..., 0].astype(np.float64) + 1j * x[..., 1]
    real = x[..., :1]
    place = axis if axis >= 0 else 2
    inputs = (None if length is None else _i(length), _i(axis))
    for inverse, transform in enumerate((scipy.fft.fft, scipy.fft.ifft)):
        want = _pairs(transform(z, length, place), np.float32)
        assert_close(run("DFT", x, *inputs, inverse=inverse)[0], want)
        want = _pairs(transform(z.real, length, place), np.float32)
        assert_close(run("DFT", real, *inputs, inverse=inverse)[0], want)
    want = _pairs(scipy.fft.rfft(z.real, length, place), np.float32)
    assert_close(run("DFT", real, *inputs, onesided=1)[0], want)
    want = scipy.fft.irfft(z, length, place)[..., None].astype(np.float32)
    assert_close(run("DFT", x, *inputs, onesided=1, inverse=1)[0], want)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_dtypes_of_the_dft(dtype: Any) -> None:
    x = _x(3, 9, 1).astype(dtype)
    want = _pairs(scipy.fft.fft(x[..., 0].astype(np.float64)), dtype)
    assert_close(run("DFT", x)[0], want)


def test_a_transform_that_cannot_be_is_an_error() -> None:
    for inputs, reason in (
        ((_x(2, 4, 3),), "last dimension"),
        ((_x(2, 4, 1), _i(0)), "length 0"),
        ((_x(2, 4, 1), None, _i(-1)), "last axis"),
        ((_x(2, 4, 1), None, _i(5)), "out of range"),
    ):
        with pytest.raises(KernelError, match=reason):
            run("DFT", *inputs)


@pytest.mark.parametrize(("length", "step"), [(16, 4), (15, 7), (8, 11), (50, 50)])
@pytest.mark.parametrize("onesided", [0, 1])
def test_stft(length: int, step: int, onesided: int) -> None:
    x, window = _x(2, 50, 1), _x(length)
    options = {"center": False, "onesided": bool(onesided), "return_complex": True}
    spectrum = torch.stft(
        torch.from_numpy(x[..., 0]), length, step, window=torch.from_numpy(window), **options
    )
    want = torch.view_as_real(spectrum.transpose(1, 2)).numpy()
    assert_close(run("STFT", x, _i(step), window, onesided=onesided)[0], want)
    both = run("STFT", x, _i(step), window, _i(length), onesided=onesided)
    assert_close(both[0], want)


def test_stft_without_a_window_or_of_complex_signals() -> None:
    x = _x(2, 32, 1)
    compare("STFT", x, _i(4), None, _i(8))
    compare("STFT", x, _i(4), onesided=1)
    compare("STFT", _x(2, 32, 2), _i(4), None, _i(8), onesided=0)
    with pytest.raises(KernelError, match="frames of 40 samples"):
        run("STFT", x, _i(4), None, _i(40))


@pytest.mark.parametrize("periodic", [0, 1])
def test_windows(periodic: int) -> None:
    sym = not periodic
    wants = {
        "HannWindow": scipy.signal.windows.hann(12, sym),
        "HammingWindow": scipy.signal.windows.general_hamming(12, 25 / 46, sym),
        "BlackmanWindow": scipy.signal.windows.blackman(12, sym),
    }
    for op_type, want in wants.items():
        attributes = {"periodic": periodic}
        assert_close(run(op_type, _i(12), **attributes)[0], want.astype(np.float32))
        (double,) = run(op_type, _i(12), output_datatype=11, **attributes)
        np.testing.assert_allclose(double, want, atol=1e-15)


def test_a_window_of_integers_has_its_peak() -> None:
    (y,) = run("HammingWindow", _i(8), output_datatype=6)
    np.testing.assert_array_equal(y, np.eye(8, dtype=np.int32)[4])


@pytest.mark.parametrize("kind", [1, 11, 10, 2])
def test_mel_weights(kind: int) -> None:
    for edges in ((0, 4096), (125.5, 3800), (300, 301)):
        arrays = [np.array(e, np.float64) for e in edges]
        compare("MelWeightMatrix", _i(8), _i(64), _i(8192), *arrays, output_datatype=kind)
