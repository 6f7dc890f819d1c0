"""Images for the tests of `xrt.data`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours and some noise, as in a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray(
        np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    )


def write(path: Path, image: Image.Image, **options: Any) -> Path:
    """Save an image, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def flat(value: int, size: int = 8) -> Image.Image:
    """An image of one grey."""
    return Image.new("RGB", (size, size), (value, value, value))


def greys(root: Path, count: int, size: int = 8) -> Path:
    """A folder of images without classes: number n is of grey n."""
    for number in range(count):
        write(root / f"{number:04}.png", flat(number, size))
    return root


def torchvision(image: Image.Image, size: int, resize: int, kernel: Any = None) -> Array:
    """Resize(resize), CenterCrop(size) as torchvision defines them, in Pillow's own words."""
    image = image.convert("RGB")
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = resize, int(resize * long / short)
    new = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize(new, Image.Resampling.BILINEAR if kernel is None else kernel)
    top = round((new[1] - size) / 2.0)
    left = round((new[0] - size) / 2.0)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def normalized(pixels: Array, mean: Any, std: Any) -> Array:
    """ToTensor and Normalize: [3, H, W], each step rounded to float32."""
    tensor = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    means, stds = (np.array(each, np.float32).reshape(3, 1, 1) for each in (mean, std))
    return (tensor - means) / stds
