"""Decoding of images, which Pillow does."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from xrt.errors import MissingDependencyError
from xrt.kernels.host.common import Array
from xrt.kernels.host.registry import kernel

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What ONNX lists; PPM stands for all portable formats. Pillow tries no other."""

CHANNELS = {"RGB": 3, "BGR": 3, "Grayscale": 1}


@kernel("ImageDecoder")
def image_decoder(encoded_stream: Array, *, pixel_format: str = "RGB") -> Array:
    """The pixels of an encoded image, (height, width, channels) in uint8.

    What cannot be decoded gives an image of no pixels, and so does what Pillow takes for a
    decompression bomb. Alpha is dropped; 16-bit samples keep their upper byte.

    Raises:
        MissingDependencyError: Pillow is not installed.
    """
    if pixel_format not in CHANNELS:
        raise ValueError(
            f"pixel_format {pixel_format!r} is unknown; known: {', '.join(sorted(CHANNELS))}"
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError("pillow", "image", "ImageDecoder") from error
    mode = "L" if pixel_format == "Grayscale" else "RGB"
    try:
        with Image.open(io.BytesIO(encoded_stream.tobytes()), formats=FORMATS) as image:
            pixels = np.asarray(_eight_bits(image).convert(mode))
    except Exception:
        # ONNX: "If it can't decode for any reason [...] it will return an empty matrix". Pillow
        # raises errors of many kinds for corrupted streams, from struct.error to SyntaxError.
        return np.zeros((0, 0, CHANNELS[pixel_format]), np.uint8)
    if pixel_format == "Grayscale":
        return pixels[:, :, None]
    return np.ascontiguousarray(pixels[:, :, ::-1]) if pixel_format == "BGR" else pixels


def _eight_bits(image: Image) -> Image:
    """The image, if its samples have 16 bits with 8; Pillow would clip them."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image as Pillow

    return Pillow.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
