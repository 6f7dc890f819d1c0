"""Decoding of images of every format that ONNX lists."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest

from tests.kernels.host.support import run
from xrt.errors import KernelError, MissingDependencyError

Image = pytest.importorskip("PIL.Image")

LOSSLESS = ["BMP", "PNG", "PPM", "TIFF", "JPEG2000"]
PIXELS = np.random.default_rng(31).integers(0, 256, (6, 9, 3), np.uint8)


def _encoded(image: Any, form: str, **options: Any) -> Any:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return np.frombuffer(stream.getvalue(), np.uint8)


@pytest.mark.parametrize("form", [*LOSSLESS, "WEBP"])
def test_lossless_formats_give_back_the_pixels(form: str) -> None:
    data = _encoded(Image.fromarray(PIXELS), form, **({"lossless": True} if form == "WEBP" else {}))
    (rgb,) = run("ImageDecoder", data)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, PIXELS)
    (bgr,) = run("ImageDecoder", data, pixel_format="BGR")
    np.testing.assert_array_equal(bgr, PIXELS[:, :, ::-1])
    (gray,) = run("ImageDecoder", data, pixel_format="Grayscale")
    assert gray.shape == (6, 9, 1)
    luma = PIXELS @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(gray[:, :, 0] - luma).max() <= 1


def test_jpeg_is_near_the_pixels() -> None:
    smooth = np.add.outer(np.arange(0, 160, 5), np.arange(0, 96, 3))[:, :, None] + np.zeros(3)
    data = _encoded(Image.fromarray(smooth.astype(np.uint8)), "JPEG", quality=95)
    (rgb,) = run("ImageDecoder", data)
    assert rgb.shape == smooth.shape
    assert np.abs(rgb - smooth).max() <= 4


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_gray_images_have_as_many_channels_as_asked(form: str) -> None:
    plane = PIXELS[:, :, 0]
    data = _encoded(Image.fromarray(plane), form)
    (rgb,) = run("ImageDecoder", data)
    np.testing.assert_array_equal(rgb, np.repeat(plane[:, :, None], 3, axis=2))
    (gray,) = run("ImageDecoder", data, pixel_format="Grayscale")
    np.testing.assert_array_equal(gray[:, :, 0], plane)


def test_palettes_alpha_and_bits() -> None:
    opaque = Image.fromarray(np.dstack([PIXELS, PIXELS[:, :, :1]]), "RGBA")
    (rgb,) = run("ImageDecoder", _encoded(opaque, "PNG"))
    np.testing.assert_array_equal(rgb, PIXELS)
    colors = Image.fromarray(PIXELS[:2, :2]).quantize(4)
    (rgb,) = run("ImageDecoder", _encoded(colors, "PNG"))
    np.testing.assert_array_equal(rgb, np.asarray(colors.convert("RGB")))
    bits = PIXELS[:, :, 0] > 127
    (gray,) = run("ImageDecoder", _encoded(Image.fromarray(bits), "PPM"), pixel_format="Grayscale")
    np.testing.assert_array_equal(gray[:, :, 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_samples_of_16_bits_keep_their_upper_byte(form: str) -> None:
    deep = PIXELS[:, :, 0].astype(np.uint16) * 256 + PIXELS[:, :, 1]
    (gray,) = run("ImageDecoder", _encoded(Image.fromarray(deep), form), pixel_format="Grayscale")
    np.testing.assert_array_equal(gray[:, :, 0], PIXELS[:, :, 0])


@pytest.mark.parametrize(("pixel_format", "channels"), [("RGB", 3), ("BGR", 3), ("Grayscale", 1)])
def test_what_cannot_be_decoded_is_an_empty_image(pixel_format: str, channels: int) -> None:
    whole = _encoded(Image.fromarray(PIXELS), "PNG")
    gif = _encoded(Image.fromarray(PIXELS), "GIF")  # not in the list of the standard
    for data in (whole[:40], np.zeros(0, np.uint8), np.arange(99, dtype=np.uint8), gif):
        (none,) = run("ImageDecoder", data, pixel_format=pixel_format)
        assert none.shape == (0, 0, channels)
        assert none.dtype == np.uint8


def test_an_unknown_pixel_format_is_refused() -> None:
    with pytest.raises(KernelError, match="'CMYK' is unknown; known: BGR, Grayscale, RGB"):
        run("ImageDecoder", _encoded(Image.fromarray(PIXELS), "PNG"), pixel_format="CMYK")


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _encoded(Image.fromarray(PIXELS), "PNG")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"xrt\[image\]"):
        run("ImageDecoder", data)
