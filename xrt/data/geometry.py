"""Resize and crop as torchvision does, but only of the pixels that the crop needs.

torchvision's evaluation transform is ``Resize(256), CenterCrop(224)``: Pillow resizes the whole
image, and half of the result is cut away. Here Pillow's `box` confines the resizing to the crop,
unless `exact` asks for the very same steps: the box is kept in float32, so that one pixel in a
thousand comes out one level higher or lower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Size = tuple[int, int]
"""Width and height, as Pillow has it."""


@dataclass(frozen=True)
class Geometry:
    """How images become inputs.

    Attributes:
        crop: Size of the centre that is cut out of the resized image.
        resize: Length of the resized image's shorter side, or its size.
        filter: Pillow's resampling filter.
        exact: Give torchvision's numbers bit for bit.
    """

    crop: Size
    resize: int | Size
    filter: int
    exact: bool

    def resized(self, size: Size) -> Size:
        """The size of an image of `size` after resizing."""
        if not isinstance(self.resize, int):
            return self.resize
        width, height = size
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def apply(self, image: Any, size: Size) -> Any:
        """The centre crop of a resized image.

        Args:
            image: The image; one that was decoded at a reduced scale has fewer pixels than `size`.
            size: Its full size, which decides the size after resizing.
        """
        target = self.resized(size)
        left, top = (_centre(target[axis], self.crop[axis]) for axis in (0, 1))
        right, bottom = left + self.crop[0], top + self.crop[1]
        if self.exact or image.size == target:
            resized = image if image.size == target else image.resize(target, self.filter)
            return (
                resized if resized.size == self.crop else resized.crop((left, top, right, bottom))
            )
        across, down = image.width / target[0], image.height / target[1]
        box = left * across, top * down, right * across, bottom * down
        return image.resize(self.crop, self.filter, box)


def _centre(size: int, length: int) -> int:
    """Where a centre crop begins, as torchvision rounds it: half to even."""
    return round((size - length) / 2.0)
