"""The drawn species: photographs of invented moths, long-tailed, made from a seed.

Nothing is downloaded and nothing is stored: an image is drawn when it is asked for, from the seed,
its split, its species and its number alone, so it is the same whoever asks, in whatever order and
from however many threads.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import DataError, UsageError, did_you_mean
from ..files import replacing
from ..progress import Tracker, silent
from .base import Dataset
from .species_body import draw_moth
from .species_catalogue import CATALOGUE
from .species_scene import photograph

__all__ = [
    "SIZE_PX",
    "SPECIES",
    "SPLITS",
    "SpeciesDataset",
    "Split",
    "contact_sheet",
    "draw",
    "split_counts",
    "write_folders",
]

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPECIES = tuple(species.name for species in CATALOGUE)
SIZE_PX = 96

_MOST, _FEWEST = 300, 3
_PER_SPECIES = {"val": 20, "test": 60}
_JPEG_QUALITY = 92
# Finer than any close-up shows a moth (0.43 of the size per forewing), so none is enlarged.
_UNIT_PER_SIZE = 0.6


def split_counts(split: Split) -> npt.NDArray[np.int64]:
    """Return the images per species of a split, shape (28,), int64.

    ``train`` falls exponentially, ``n_c = 300 · (3/300)^(c / 27)``, as the long-tailed CIFAR sets
    do (Cui et al. 2019, arXiv 1901.05555, §5.1); ``val`` and ``test`` are balanced.
    """
    if split == "train":
        shares = np.linspace(0, 1, len(CATALOGUE))
        return np.rint(_MOST * (_FEWEST / _MOST) ** shares).astype(np.int64)
    return np.full(len(CATALOGUE), _PER_SPECIES[split], dtype=np.int64)


def draw(
    species: int, split: Split = "train", number: int = 0, *, seed: int = 0, size_px: int = SIZE_PX
) -> npt.NDArray[np.uint8]:
    """Draw one photograph.

    Parameters
    ----------
    species : label, 0 (the most frequent) to 27.
    split, number : which individual; numbers go on beyond the split's own count.
    seed : another seed gives other photographs of the same species.
    size_px : width and height.

    Returns
    -------
    array of shape (size_px, size_px, 3), uint8.
    """
    random = np.random.default_rng([seed, SPLITS.index(split), species, number])
    kind = CATALOGUE[species]
    moth = draw_moth(
        kind.fore,
        kind.hind,
        kind.body,
        random,
        unit_px=_UNIT_PER_SIZE * size_px,
        fore_turn_deg=random.uniform(-8, 28),
        hind_turn_deg=random.uniform(-4, 10),
    )
    return photograph(moth, random, size_px)


class SpeciesDataset(Dataset):
    """A split of the drawn species, the most frequent species first.

    Parameters
    ----------
    split : ``"train"`` (1,900 images, 300 down to 3 per species), ``"val"`` (20 per species) or
        ``"test"`` (60 per species).
    seed : as for :func:`draw`.
    size_px : width and height of each image.

    Raises
    ------
    UsageError
        For an unknown split, a negative seed, or a size below 32.

    Examples
    --------
    >>> SpeciesDataset("val").identifier(0)
    'val/Ocelvera regina/000.jpg'
    """

    def __init__(self, split: str = "test", *, seed: int = 0, size_px: int = SIZE_PX) -> None:
        known = next((name for name in SPLITS if name == split), None)
        if known is None:
            raise UsageError(
                f"The drawn species have no split {split!r}; known are {', '.join(SPLITS)}."
                f"{did_you_mean(split, SPLITS)}"
            )
        if seed < 0:
            raise UsageError(f"The seed is {seed}; expected 0 or more.")
        if size_px < 32:
            raise UsageError(f"The size is {size_px} px; expected at least 32, or no moth is seen.")
        counts = split_counts(known)
        labels = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        super().__init__(f"species:{known}", SPECIES, labels)
        self.split = known
        self.seed = seed
        self.size_px = size_px
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def _number(self, index: int) -> int:
        return int(index - self._first[self.labels[index]])

    def source(self, index: int) -> npt.NDArray[np.uint8]:
        """Draw the image, shape (size_px, size_px, 3), uint8."""
        return draw(
            int(self.labels[index]),
            self.split,
            self._number(index),
            seed=self.seed,
            size_px=self.size_px,
        )

    def identifier(self, index: int) -> str:
        """Return ``split/species/number.jpg``, where :func:`write_folders` puts the image."""
        return f"{self.split}/{SPECIES[self.labels[index]]}/{self._number(index):03d}.jpg"


def write_folders(
    out: str | os.PathLike[str],
    split: Split,
    *,
    seed: int = 0,
    size_px: int = SIZE_PX,
    tracker: Tracker = silent,
) -> Path:
    """Write a split as JPEG photographs, ``out/split/species/number.jpg``, and return that folder.

    The folder appears when the last photograph is in it: one that exists is complete.

    Raises
    ------
    DataError
        If the folder exists, or cannot be written.
    """
    dataset = SpeciesDataset(split, seed=seed, size_px=size_px)
    target = Path(out) / split
    if target.exists():
        raise DataError(f"{target} exists; remove it, or write to another folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=target.parent) as folder:
            _write_photographs(dataset, Path(folder), tracker)
            Path(folder, split).rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}.") from error
    return target


def _write_photographs(dataset: SpeciesDataset, folder: Path, tracker: Tracker) -> None:
    for name in SPECIES:
        (folder / dataset.split / name).mkdir(parents=True)

    def write(index: int) -> None:
        photo = Image.fromarray(dataset.source(index))
        photo.save(folder / dataset.identifier(index), quality=_JPEG_QUALITY)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        written = pool.map(write, range(len(dataset)))
        for _ in tracker(written, total=len(dataset), label=f"Drawing {dataset.name}"):
            pass


def contact_sheet(
    path: str | os.PathLike[str], *, columns: int = 7, size_px: int = 2 * SIZE_PX, seed: int = 0
) -> None:
    """Write one photograph of each species, the most frequent first, as a picture to look at.

    The file appears complete or not at all; the end of its name says which format it has.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    target = Path(path)
    kind = Image.registered_extensions().get(target.suffix.lower())
    if kind not in Image.SAVE:
        raise DataError(
            f"{target} cannot be written as a picture: no format is called {target.suffix!r}; "
            "expected a name that ends in .png or .jpg."
        )
    rows = -(-len(SPECIES) // columns)
    sheet = Image.new("RGB", (columns * size_px, rows * size_px))
    for species in range(len(SPECIES)):
        row, column = divmod(species, columns)
        photo = Image.fromarray(draw(species, "test", 0, seed=seed, size_px=size_px))
        sheet.paste(photo, (column * size_px, row * size_px))
    try:
        with replacing(target) as temporary:
            sheet.save(temporary, format=kind)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{target} cannot be written as a picture: {reason}.") from error
