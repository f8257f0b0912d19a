"""Which images precision is measured on: as many of a rare class as of a frequent one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ltdeploy.datasets import Dataset
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.errors import DataError, ImageError
from ltdeploy.images import load_prepared
from ltdeploy.preprocessing import Preprocessing

__all__ = ["CalibrationImages", "class_balanced", "read_balanced", "read_first"]


@dataclass(frozen=True, eq=False)
class CalibrationImages:
    """Prepared images and where they came from.

    Attributes
    ----------
    images : array of shape (K, H, W, 3), uint8.
    indices : array of shape (K,): their places in the data set.
    unreadable : identifier and reason of those that could not be used; others took their place.
    classes : how many they show.
    """

    images: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    unreadable: tuple[tuple[str, str], ...]
    classes: int


def class_balanced(
    labels: npt.NDArray[np.int64], budget: int | None = None, *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return places in ``labels``, one of every class, then a second of every class, and so on.

    A class that has no more images is passed over, so that the budget is used up where there are
    enough images at all. The order within a class and of the classes within a round is random.

    Parameters
    ----------
    labels : array of shape (N,).
    budget : how many; None gives all N in that order.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    starts = np.flatnonzero(np.diff(labels[by_class], prepend=-1))
    rounds = np.arange(len(labels)) - np.repeat(starts, np.diff(starts, append=len(labels)))
    turns = np.lexsort((rng.permutation(len(labels)), rounds))
    return by_class[turns][:budget]


def read_balanced(
    dataset: Dataset, labels: npt.NDArray[np.int64], preprocessing: Preprocessing, budget: int
) -> CalibrationImages:
    """Read a class-balanced choice of images; an unreadable one is replaced by the next.

    Parameters
    ----------
    labels : array of shape (N,), aligned to the model's class table.
    budget : images wanted; fewer where the data set has fewer.

    Raises
    ------
    DataError
        If no image is readable.
    """
    order = class_balanced(labels)

    def load(index: int, name: str) -> npt.NDArray[np.uint8]:
        return load_prepared(dataset.source(index), preprocessing, name=name)

    images, places, unreadable = read_first(dataset, order, budget, load)
    return CalibrationImages(images, places, unreadable, len(np.unique(labels[places])))


def read_first(
    dataset: Dataset | BoxDataset,
    order: npt.NDArray[np.int64],
    budget: int,
    load: Callable[[int, str], npt.NDArray[np.uint8]],
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], tuple[tuple[str, str], ...]]:
    """Read the first images of an order that are readable.

    Parameters
    ----------
    load : reads the image at an index, given what errors call it.

    Returns
    -------
    the images, array of shape (K, H, W, 3), their places, and identifier and reason of the others.

    Raises
    ------
    DataError
        If no image is readable.
    """
    ready: list[npt.NDArray[np.uint8]] = []
    places: list[int] = []
    unreadable: list[tuple[str, str]] = []
    for index in order.tolist():
        if len(ready) == budget:
            break
        name = dataset.identifier(index)
        try:
            ready.append(load(index, name))
        except ImageError as error:
            unreadable.append((name, str(error)))
        else:
            places.append(index)
    if not ready:
        raise DataError(
            f"None of the {len(order)} images of {dataset.name} is readable; the first is "
            f"{unreadable[0][0]}: {unreadable[0][1]}"
        )
    return np.stack(ready), np.array(places), tuple(unreadable)
