"""From the file of an image to numbers in a batch, by Pillow."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xrt.data.geometry import Geometry, Size
from xrt.errors import MissingDependencyError

Array = np.ndarray[Any, Any]
Write = Callable[[Any, Array], None]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its name says."""

FILTERS = ("bilinear", "bicubic", "lanczos")

_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

_SIDEWAYS = (5, 6, 7, 8)
"""Its values that swap width and height."""

_TURNS = dict(zip(range(2, 9), (0, 3, 1, 5, 4, 6, 2), strict=True))
"""For each of its values but 1, the number of Pillow's transposition."""

_DRAFT = 2
"""A reduced JPEG keeps at least so many times the pixels of the result, along each side."""


_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImageError(Exception):
    """A file is no image that can be decoded; the message is the reason."""


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        MissingDependencyError: If Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("pillow", "image", "xrt.data.ImageFolder") from None
    return Image


def filter_of(name: str) -> int:
    """Pillow's number of a resampling filter."""
    return int(getattr(pillow().Resampling, name.upper()))


@dataclass(frozen=True, eq=False)
class Decoder:
    """Decodes files into slots of a batch. Safe to use from several threads.

    Attributes:
        geometry: Resize and crop. Unless it is to be exact, a JPEG of many pixels is decoded at a
            reduced scale.
        write: Writes the pixels into a slot.
        upright: Turn photographs as their EXIF orientation says.
    """

    geometry: Geometry
    write: Write
    upright: bool

    def __call__(self, path: Path, slot: Array) -> None:
        """Decode a file into `slot`.

        Raises:
            UnreadableImageError: If the file cannot be read or is no complete image.
        """
        try:
            image, size = self._load(path)
        except MemoryError:
            raise
        except Exception as error:  # of Pillow's plugins: OSError, SyntaxError, struct.error, ...
            if isinstance(error, OSError) and error.errno in _NOT_THE_FILES_FAULT:
                raise
            raise UnreadableImageError(_reason(error)) from error
        self.write(self.geometry.apply(image, size), slot)

    def _load(self, path: Path) -> tuple[Any, Size]:
        """The image in RGB, and the size that it has when it is not reduced."""
        module = pillow()
        with module.open(path, formats=FORMATS) as image:
            _check_size(image.size, module.MAX_IMAGE_PIXELS)
            # Pillow turns TIFF files itself.
            turned = self.upright and image.format != "TIFF"
            orientation = image.getexif().get(_ORIENTATION, 1) if turned else 1
            size = image.size[::-1] if orientation in _SIDEWAYS else image.size
            if not self.geometry.exact and image.format in ("JPEG", "MPO"):
                width, height = self.geometry.resized(size)
                wanted = (height, width) if orientation in _SIDEWAYS else (width, height)
                image.draft("RGB", (wanted[0] * _DRAFT, wanted[1] * _DRAFT))
            reduced = image.size
            image.load()
            if image.size != reduced:  # a TIFF that was turned
                size = image.size
            if orientation in _TURNS:
                image = image.transpose(_TURNS[orientation])
            return _rgb(image), size


def _check_size(size: Size, limit: int | None) -> None:
    if limit is not None and size[0] * size[1] > limit:
        raise UnreadableImageError(
            f"it has {size[0]} x {size[1]} pixels, more than PIL.Image.MAX_IMAGE_PIXELS, {limit}"
        )


def _rgb(image: Any) -> Any:
    """An image in RGB, as Pillow converts it, but for 16 bits of grey, which it would clip."""
    if image.mode.startswith("I;16"):
        image = pillow().fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"its pixels, of Pillow's mode {image.mode}, have no known range"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    """What a plugin of Pillow said, in one line."""
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if type(error).__name__ == "UnidentifiedImageError":
        return "it is none of " + ", ".join(FORMATS)
    text = " ".join(str(error).split())
    return text or type(error).__name__


def writer(layout: str, dtype: str, mean: Sequence[float], std: Sequence[float]) -> Write:
    """What writes an RGB image into a slot of a batch.

    Args:
        layout: "NCHW" or "NHWC".
        dtype: "uint8" writes the pixels, "float32" (pixel / 255 - mean) / std, in float32 and in
            this order, as torchvision's ToTensor and Normalize do.
        mean: For each channel, on a scale from 0 to 1.
        std: For each channel.
    """
    planar = layout == "NCHW"
    shape = (3, 1, 1) if planar else (3,)
    means = np.asarray(mean, np.float32).reshape(shape)
    stds = np.asarray(std, np.float32).reshape(shape)

    def pixels(image: Any) -> Array:
        width, height = image.size
        if not planar:
            return np.frombuffer(image.tobytes(), np.uint8).reshape(height, width, 3)
        # Rows of one colour: NumPy converts them several times as fast as every third byte.
        rows = np.frombuffer(image.tobytes("raw", "RGB;L"), np.uint8)
        return rows.reshape(height, 3, width).transpose(1, 0, 2)

    def write(image: Any, slot: Array) -> None:
        if dtype == "uint8":
            np.copyto(slot, pixels(image))
            return
        np.divide(pixels(image), np.float32(255), out=slot)
        np.subtract(slot, means, out=slot)
        np.divide(slot, stds, out=slot)

    return write
