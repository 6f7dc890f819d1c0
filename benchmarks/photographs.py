"""A folder of JPEG files that decode like photographs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WARM = "warm"
"""The part of the folder that is for warming up."""

_SIZES = ((500, 375), (500, 333), (375, 500), (500, 400), (480, 360))
"""Width and height as they are common in ImageNet."""


def write_folder(root: Path, images: int, parts: int, warm: int) -> int:
    """Write JPEG files that decode like photographs; returns their bytes."""
    canvases = [_canvas(np.random.default_rng(seed)) for seed in range(4)]
    jobs = [(f"part{number * parts // images:02}", number) for number in range(images)]
    jobs += [(WARM, images + number) for number in range(warm)]
    for part in {part for part, _ in jobs}:
        (root / part).mkdir(parents=True)

    def write(job: tuple[str, int]) -> int:
        part, number = job
        path = root / part / f"{number:05}.jpg"
        _photograph(canvases[number % 4], number).save(path, quality=90)
        return path.stat().st_size

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(pool.map(write, jobs))


def _canvas(rng: np.random.Generator) -> Array:
    """Noise whose power falls with frequency, as in photographs, with colour changing slowly."""
    from PIL import Image

    size = 2048
    canvas = np.full((size, size, 3), 128, np.float32)
    for octave in range(3, 11):
        count = 2**octave
        bright, colour = (
            rng.standard_normal((count, count, 1)),
            rng.standard_normal((count, count, 3)),
        )
        noise = (bright + 0.3 * colour).astype(np.float32)
        planes = [
            Image.fromarray(noise[..., channel]).resize((size, size), Image.Resampling.BICUBIC)
            for channel in range(3)
        ]
        canvas += np.stack([np.asarray(plane) for plane in planes], axis=-1) * (160 / count**0.6)
    return canvas


def _photograph(canvas: Array, number: int) -> Any:
    """A piece of a canvas under a gradient, with the noise of a sensor."""
    from PIL import Image

    rng = np.random.default_rng([1, number])
    width, height = _SIZES[number % len(_SIZES)]
    left, top = (int(rng.integers(0, 2048 - side)) for side in (width, height))
    pixels = canvas[top : top + height, left : left + width]
    start, stop = (float(level) for level in rng.uniform(-40, 40, 2))
    light = np.linspace(start, stop, width, dtype=np.float32)[None, :, None]
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * 7
    return Image.fromarray(np.clip(pixels + light + noise, 0, 255).astype(np.uint8))
