"""A folder of class folders, in torchvision's order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import DataError, did_you_mean
from .base import Dataset

__all__ = ["IMAGE_SUFFIXES", "FolderDataset", "images_under"]

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


class FolderDataset(Dataset):
    """Images of ``folder/CLASS/**/IMAGE``; classes are the folder names, sorted.

    The labels and the order are those of torchvision's ``ImageFolder``, so a model trained on it
    finds its classes. A class folder without images stays a class. Names that begin with a dot are
    passed over; files that do not end like an image are too, and counted.

    Parameters
    ----------
    folder : the folder of class folders, or of splits that are such folders.
    split : which split to take where the folder holds several.

    Attributes
    ----------
    ignored_files : how many files in class folders do not end like an image.
    empty_classes : names of the class folders without images.

    Raises
    ------
    DataError
        If there are no class folders or no images, or a split must be chosen.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        self._folder = _choose_split(folder, split)
        names = _class_names(self._folder)
        self._paths: list[str] = []
        self.ignored_files = 0
        labels: list[int] = []
        for label, name in enumerate(names):
            found, ignored = images_under(self._folder / name)
            self._paths += [os.path.join(name, path) for path in found]
            labels += [label] * len(found)
            self.ignored_files += ignored
        if not labels:
            raise DataError(
                f"{self._folder} has {len(names)} class folders and no image in them "
                f"({self.ignored_files} other files); expected FOLDER/CLASS/IMAGE with images that "
                f"end in {', '.join(sorted(IMAGE_SUFFIXES))}."
            )
        super().__init__(self._folder.name, names, np.array(labels, dtype=np.int64))
        self.empty_classes = tuple(
            name for name, count in zip(names, self.counts(), strict=True) if count == 0
        )

    def source(self, index: int) -> Path:
        return self._folder / self._paths[index]

    def identifier(self, index: int) -> str:
        return f"{self.name}/{Path(self._paths[index]).as_posix()}"


def _choose_split(folder: Path, split: str | None) -> Path:
    folder = folder.resolve()
    children = _folders(folder)
    if split is not None and split in children:
        return folder / split
    splits = [name for name in children if name.lower() in _SPLITS]
    if splits and splits == children and not any(_has_images(folder / name) for name in splits):
        if split is None:
            raise DataError(
                f"{folder} holds the splits {', '.join(splits)}, not classes. Name one of them, "
                f"for example {folder / splits[-1]}."
            )
        raise DataError(
            f"{folder} has no split {split!r}; it holds {', '.join(splits)}."
            f"{did_you_mean(split, splits)}"
        )
    return folder


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folders(folder)
    if names:
        return tuple(names)
    if _has_images(folder):
        raise DataError(
            f"{folder} holds images but no class folders, so their classes are not known; expected "
            "FOLDER/CLASS/IMAGE. For images without labels use 'ltdeploy predict'."
        )
    tables = sorted(path.name for path in folder.iterdir() if path.suffix == ".parquet")
    hint = f" Name one of its files, for example {folder / tables[0]}." if tables else ""
    raise DataError(f"{folder} has no class folders; expected FOLDER/CLASS/IMAGE.{hint}")


def _folders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image(entry.name) and entry.is_file() for entry in entries)


def images_under(folder: Path) -> tuple[list[str], int]:
    """Return the images below ``folder`` relative to it, and how many other files there are.

    Links to folders are followed, but no folder is entered twice, nor one that holds ``folder``.

    Raises
    ------
    DataError
        If a folder cannot be read.
    """
    images: list[str] = []
    ignored = 0
    entered = {str(above) for above in folder.resolve().parents}
    for parent, children, files in os.walk(folder, onerror=_refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            children.clear()
            continue
        entered.add(real)
        children[:] = sorted(name for name in children if not name.startswith("."))
        relative = os.path.relpath(parent, folder)
        for name in files:
            if _is_image(name):
                images.append(name if relative == os.curdir else os.path.join(relative, name))
            elif not name.startswith("."):
                ignored += 1
    # torchvision sorts by folder first and by file inside it.
    images.sort(key=os.path.split)
    return images, ignored


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"The folder {error.filename} cannot be read: {error.strerror or error}. Make it readable, "
        "or name the folders and images that are meant one by one."
    ) from error
