"""Input data: folders of images, decoded in threads into batches that a program can take.

    folder = xrt.data.ImageFolder("imagenet/val", batch_size=32)
    batches = iter(folder)
    for scores, labels in zip(program.stream(batches), batches.labels):
        ...

Needs Pillow (``pip install 'xrt[image]'``) and neither torch nor torchvision.
"""

from __future__ import annotations

from xrt.data.batches import Batch, Batches
from xrt.data.folder import IMAGENET_MEAN, IMAGENET_STD, CorruptFile, ImageFolder
from xrt.errors import CorruptImageError, CorruptImageWarning

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Batches",
    "CorruptFile",
    "CorruptImageError",
    "CorruptImageWarning",
    "ImageFolder",
]
