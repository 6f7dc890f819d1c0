"""The image files of a folder, in the order in which torchvision's ImageFolder has them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from xrt.errors import DataError, DataNotFoundError, OptionError

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
"""What makes a file an image, in lower case."""

_LISTED = 20
"""Most names in an error: ImageNet has a thousand."""


@dataclass(frozen=True)
class Files:
    """Files of images.

    Attributes:
        paths: The files.
        labels: For each file the index of its class; None in a folder without classes.
        classes: Names of the classes.
        ignored: Files that are no images by their names.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...]
    ignored: tuple[Path, ...]


def scan(root: Path, classes: Sequence[str] | None) -> Files:
    """The image files under `root`.

    Args:
        root: A folder with a folder for each class, or with images.
        classes: The classes to take, in the order of their indices. None takes all, sorted.

    Raises:
        DataNotFoundError: If there is no such folder.
        DataError: If it holds no images, a class does not exist or has none, or one of the folders
            cannot be read.
        OptionError: If a class is named twice.
    """
    try:
        return _scan(root, classes)
    except OSError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"ImageFolder: {error.filename or str(root)!r} cannot be read: {error.strerror}."
        ) from error


def _scan(root: Path, classes: Sequence[str] | None) -> Files:
    if not root.is_dir():
        what = "is no folder" if root.exists() else "does not exist"
        raise DataNotFoundError(f"ImageFolder: {str(root)!r} {what}.")
    folders = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name)
    )
    if classes is not None:
        folders = _chosen(classes, root, folders)
    if not folders:
        return _flat(root)
    paths: list[Path] = []
    labels: list[int] = []
    ignored = [] if classes is not None else _split(_files(root, deep=False))[1]
    for number, name in enumerate(folders):
        images, others = _split(_files(root / name, deep=True))
        if not images:
            raise DataError(
                f"ImageFolder: the class {name!r} has no images: {_found(others)} in "
                f"{str(root / name)!r}. Remove the folder, or choose with classes=[...]."
            )
        paths += images
        labels += [number] * len(images)
        ignored += others
    return Files(tuple(paths), tuple(labels), tuple(folders), tuple(ignored))


def _chosen(classes: Sequence[str], root: Path, folders: Sequence[str]) -> list[str]:
    chosen = list(classes)
    for name in chosen:
        if name not in folders:
            raise DataError(_unknown_class(name, root, folders))
        if chosen.count(name) > 1:
            raise OptionError(f"ImageFolder: classes names {name!r} more than once.")
    return chosen


def _unknown_class(name: str, root: Path, folders: Sequence[str]) -> str:
    known = ", ".join(folders[:_LISTED]) or "none"
    if len(folders) > _LISTED:
        known += f" and {len(folders) - _LISTED} more"
    return f"ImageFolder: class {name!r} is unknown. The folders in {str(root)!r}: {known}."


def _flat(root: Path) -> Files:
    images, others = _split(_files(root, deep=False))
    if not images:
        raise DataError(
            f"ImageFolder: there are no images in {str(root)!r}: {_found(others)}, no folders of "
            f"classes. Images end in {', '.join(EXTENSIONS)}."
        )
    return Files(tuple(images), None, (), tuple(others))


def _files(folder: Path, *, deep: bool) -> Iterator[Path]:
    """The files of a folder, sorted, and with `deep` those of its folders, folder by folder."""
    walk = os.walk(folder, onerror=_fail, followlinks=True)
    for place, _, names in sorted(walk if deep else [next(walk)]):
        for name in sorted(names):
            yield Path(place, name)


def _fail(error: OSError) -> None:
    raise error


def _split(files: Iterator[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and others."""
    images: list[Path] = []
    others: list[Path] = []
    for path in files:
        is_image = path.suffix.lower() in EXTENSIONS and not _is_hidden(path.name)
        (images if is_image else others).append(path)
    return images, others


def _is_hidden(name: str) -> bool:
    """What tools leave behind: .DS_Store, ._photo.jpg, .ipynb_checkpoints."""
    return name.startswith(".")


def _found(others: Sequence[Path]) -> str:
    if not others:
        return "no files"
    return f"{len(others)} other files, such as {others[0].name!r}"
