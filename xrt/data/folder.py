"""`ImageFolder`: batches of the images in a folder."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xrt.data.batches import Batches, Plan
from xrt.data.buffers import Pool
from xrt.data.decode import FILTERS, Decoder, filter_of, writer
from xrt.data.files import scan
from xrt.data.geometry import Geometry, Size
from xrt.data.workers import Workers
from xrt.errors import OptionError
from xrt.options import InputNormalization
from xrt.process import core_count

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images in red, green and blue, on a scale from 0 to 1."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Their standard deviation."""

Pair = tuple[int, int]


class CorruptFile(NamedTuple):
    """A file that could not be decoded, and why."""

    path: Path
    reason: str


class ImageFolder:
    """The images of a folder, in batches. Each `iter` decodes them anew, in threads.

    A file is decoded, resized and cropped as by torchvision's ``Resize``, ``CenterCrop``,
    ``ToTensor`` and ``Normalize``. Grey, palette, CMYK and 16-bit images become RGB; of an image
    with transparency the colours are taken, of an animation the first frame.

    A corrupt file is left out; the images after it move up, so that only the last batch can have
    fewer than `batch_size`. The order never depends on the number of threads.

    The memory of a batch is used again when nobody holds its array, or a view of it, any more.

    Args:
        path: A folder that has a folder for each class, as ImageNet does, or just images.
        size: Height and width of the crop: a number, or (height, width).
        batch_size: Images in a batch.
        resize: What the shorter side is resized to, or (height, width). None resizes to 8/7 of
            `size`: 256 for 224.
        interpolation: "bilinear", "bicubic" or "lanczos".
        exact: Give torchvision's numbers bit for bit. Otherwise JPEG files at least four times as
            large as what they are resized to are decoded at a reduced scale, which is several times
            as fast, and of others one pixel in a thousand differs by one level.
        upright: Turn photographs as their EXIF orientation says. torchvision does not.
        dtype: "float32" gives normalized numbers; "uint8" the pixels, a quarter of the bytes, for a
            program that normalizes: ``CompileOptions(normalization=folder.normalization)``.
        mean: Subtracted from pixels on a scale from 0 to 1, for each channel.
        std: What they are divided by then.
        layout: "NCHW" or "NHWC".
        shuffle: Take the files in another order in every pass; `seed` and the number of the pass
            decide which.
        seed: See `shuffle`.
        last: What becomes of images at the end that fill no batch: "keep" gives a smaller batch,
            "drop" leaves them out, "pad" adds black images with the label -1.
        classes: Names of classes, in the order of their indices. None takes all folders, sorted.
        on_corrupt: "report" leaves a corrupt file out, adds it to `corrupt` and warns at the end of
            the pass; "raise" raises CorruptImageError in its place.
        workers: Threads that decode. None takes as many as the process has cores.
        prefetch: Batches that are decoded ahead.

    Attributes:
        paths: The image files, sorted by class and name.
        labels: int64, the index of each file's class; None in a folder without classes.
        classes: Names of the classes.
        ignored: Files in the folder that are no images by their names.
        normalization: What makes `dtype` "uint8" the same as "float32", for `CompileOptions`.

    Raises:
        MissingDependencyError: If Pillow is not installed.
        DataNotFoundError: If there is no such folder.
        DataError: If it holds no images, or one of the classes has none, or it cannot be read.
        OptionError: If an argument has a value that is not known.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: int | Pair = 224,
        batch_size: int = 32,
        *,
        resize: int | Pair | None = None,
        interpolation: str = "bilinear",
        exact: bool = False,
        upright: bool = True,
        dtype: str = "float32",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        layout: str = "NCHW",
        shuffle: bool = False,
        seed: int = 0,
        last: str = "keep",
        classes: Sequence[str] | None = None,
        on_corrupt: str = "report",
        workers: int | None = None,
        prefetch: int = 2,
    ) -> None:
        _check_choices(
            interpolation=(interpolation, FILTERS),
            dtype=(str(dtype), ("float32", "uint8")),
            layout=(layout, ("NCHW", "NHWC")),
            last=(last, ("keep", "drop", "pad")),
            on_corrupt=(on_corrupt, ("report", "raise")),
        )
        batch_size = _whole("batch_size", batch_size, 1)
        prefetch = _whole("prefetch", prefetch, 0)
        seed = _whole("seed", seed, 0)
        self._workers = _whole("workers", core_count() if workers is None else workers, 1)
        self.batch_size = batch_size
        self.normalization = _normalization(mean, std, layout)
        geometry = _geometry(size, resize, filter_of(interpolation), exact)
        write = writer(layout, dtype, self.normalization.mean, self.normalization.std)
        self._decoder = Decoder(geometry, write, upright)
        self._pool = Pool(_shape(batch_size, geometry.crop, layout), dtype, keep=prefetch + 4)
        self._seed = seed if shuffle else None
        self._passes = itertools.count()
        self._last, self._raising = last, on_corrupt == "raise"
        self._prefetch = prefetch
        self._corrupt: dict[Path, str] = {}
        self.path = _folder(path)
        files = scan(self.path, classes)
        self.paths, self.classes, self.ignored = files.paths, files.classes, files.ignored
        self.labels = None if files.labels is None else np.array(files.labels, np.int64)

    def __len__(self) -> int:
        """Batches of a pass in which every file can be decoded."""
        whole, rest = divmod(len(self.paths), self.batch_size)
        return whole + int(rest > 0 and self._last != "drop")

    def __iter__(self) -> Batches:
        """A pass over all images. Its threads start with the first batch that is asked for."""
        number = next(self._passes)
        order = np.arange(len(self.paths))
        if self._seed is not None:
            order = np.random.default_rng([self._seed, number]).permutation(order)
        paths = [self.paths[index] for index in order]
        plan = Plan(
            paths,
            None if self.labels is None else self.labels[order],
            self.batch_size,
            self._last,
            self._prefetch,
            self._raising,
            self._report,
        )
        threads = min(self._workers, len(paths))
        workers = Workers(self._decoder, paths, self._pool, self.batch_size, threads)
        return Batches(plan, workers, self._pool)

    def _report(self, path: Path, reason: str) -> None:
        self._corrupt[path] = reason

    @property
    def corrupt(self) -> list[CorruptFile]:
        """The files that could not be decoded so far, in the order in which they were found."""
        return [CorruptFile(path, reason) for path, reason in self._corrupt.copy().items()]

    def __repr__(self) -> str:
        kinds = f" of {len(self.classes)} classes" if self.classes else ""
        ignored = f", {len(self.ignored)} other files ignored" if self.ignored else ""
        return (
            f"<xrt.data.ImageFolder {str(self.path)!r}: {len(self.paths)} images{kinds}{ignored}>"
        )


def _folder(path: Any) -> Path:
    try:
        return Path(path)
    except TypeError:
        raise OptionError(
            f"ImageFolder: path must be a string or a path; got {path!r} of type "
            f"{type(path).__name__}."
        ) from None


def _normalization(mean: Sequence[float], std: Sequence[float], layout: str) -> InputNormalization:
    try:
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError):
        means = stds = ()
    if len(means) != 3 or len(stds) != 3:
        raise OptionError(
            "ImageFolder: mean and std need three numbers, for red, green and blue; got "
            f"{mean!r} and {std!r}."
        )
    return InputNormalization(mean=means, std=stds, layout=layout)


def _shape(batch_size: int, crop: Size, layout: str) -> tuple[int, ...]:
    width, height = crop
    image = (3, height, width) if layout == "NCHW" else (height, width, 3)
    return (batch_size, *image)


def _geometry(size: int | Pair, resize: int | Pair | None, kernel: int, exact: bool) -> Geometry:
    """The geometry of (height, width) arguments, in which the crop is within what it is cut of."""
    height, width = _pair("size", size)
    if resize is None:
        resize = round(max(height, width) * 8 / 7)
    chosen: int | Size
    if hasattr(resize, "__index__"):
        chosen = _whole("resize", resize, 1)
        fits = max(height, width) <= chosen
    else:
        full = _pair("resize", resize)
        fits = height <= full[0] and width <= full[1]
        chosen = (full[1], full[0])
    if not fits:
        raise OptionError(
            f"ImageFolder: size={size} cannot be cut out of images that are resized to {resize}: "
            "resize to at least as much, or to None."
        )
    return Geometry((width, height), chosen, kernel, exact)


def _pair(name: str, value: int | Pair) -> Pair:
    pair = (value, value) if hasattr(value, "__index__") else value
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise OptionError(
            f"ImageFolder: {name} must be a number or (height, width); got {value!r}."
        )
    return _whole(name, pair[0], 1), _whole(name, pair[1], 1)


def _whole(name: str, value: Any, least: int) -> int:
    """A whole number of any library, as an int."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise OptionError(
            f"ImageFolder: {name} must be a whole number of at least {least}; got {value!r}."
        )
    return number


def _check_choices(**choices: tuple[str, Sequence[str]]) -> None:
    for name, (value, known) in choices.items():
        if value not in known:
            raise OptionError(
                f"ImageFolder: {name} {value!r} is unknown. Known: {', '.join(known)}."
            )
