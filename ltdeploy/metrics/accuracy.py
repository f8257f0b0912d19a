"""Accuracy per class, and per group of classes averaged over classes and over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import DataError

__all__ = [
    "GroupAccuracy",
    "Strata",
    "average_accuracy",
    "harmonic_mean",
    "per_class_accuracy",
    "strata_of",
]


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracies of a group of classes, in percent; None where there is nothing to average.

    Parameters
    ----------
    classes : classes of the group, with images or without.
    images : images of these classes.
    class_averaged : mean of the accuracies of the classes that have images: every class counts
        the same, as in the field's "many / medium / few" figures (Liu et al. 2019, arXiv
        1904.05160, §4.1).
    image_averaged : share of the group's images that are right: frequent classes count more.
    worst : label of the class with the lowest accuracy, the lowest label where several tie.
    without_images : labels of the classes that have no image and are in no average.
    """

    classes: int
    images: int
    class_averaged: float | None
    image_averaged: float | None
    worst: int | None
    without_images: tuple[int, ...]


def per_class_accuracy(
    labels: IntArray, predictions: IntArray, classes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count the images of each class and those that are right.

    Parameters
    ----------
    labels, predictions : arrays of shape (N,), integers.
    classes : number of classes C of the class table, which need not all occur.

    Returns
    -------
    images and correct, arrays of shape (C,), int64.

    Raises
    ------
    DataError
        If the lengths differ or a label is not in 0..C−1.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise DataError(
            f"Labels have the shape {labels.shape} and predictions {predictions.shape}; expected "
            "one label and one prediction per image."
        )
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise DataError(
            f"{len(outside)} images have a label outside 0..{classes - 1}, for example "
            f"{int(outside[0])}; the class table has {classes} classes. Align the data set's "
            "labels with the class table, or pass the table it belongs to."
        )
    images = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels[labels == predictions], minlength=classes)
    return images.astype(np.int64), correct.astype(np.int64)


def average_accuracy(images: IntArray, correct: IntArray, members: IntArray) -> GroupAccuracy:
    """Average the accuracy over the classes ``members``.

    Parameters
    ----------
    images, correct : arrays of shape (C,), as `per_class_accuracy` returns them.
    members : labels of the group's classes.
    """
    own = images[members]
    measured = members[own > 0]
    missing = tuple(int(label) for label in members[own == 0])
    if not len(measured):
        return GroupAccuracy(len(members), 0, None, None, None, missing)
    accuracy = correct[measured] / images[measured]
    return GroupAccuracy(
        classes=len(members),
        images=int(own.sum()),
        class_averaged=100.0 * float(accuracy.mean()),
        image_averaged=100.0 * float(correct[measured].sum() / own.sum()),
        worst=int(measured[np.argmin(accuracy)]),
        without_images=missing,
    )


@dataclass(frozen=True, eq=False)
class Strata:
    """The images of each group, and how much each of them counts.

    Parameters
    ----------
    names : the groups that have images, from the most frequent to the least.
    rows : of each group its images, arrays of shape (n_g,).
    weights : of each of them ``1 / (K_g n_c)``, which makes the group's accuracy an average over
        its classes, arrays of shape (n_g,) that sum to one.
    classes, images : how many of a group's classes have images, and how many images they have,
        arrays of shape (G,).
    """

    names: tuple[str, ...]
    rows: tuple[IntArray, ...]
    weights: tuple[npt.NDArray[np.float64], ...]
    classes: npt.NDArray[np.float64]
    images: npt.NDArray[np.float64]


def strata_of(labels: IntArray, table: ClassTable) -> Strata:
    """Return the groups that have images, with their images.

    Parameters
    ----------
    labels : array of shape (N,).

    Raises
    ------
    DataError
        If there are no images, or a label is not in 0..C−1.
    """
    labels = np.asarray(labels)
    images, _ = per_class_accuracy(labels, labels, len(table))
    if not len(labels):
        raise DataError("There are no images; expected at least one to measure on.")
    group = np.array(table.groups)
    names, rows, weights, classes = [], [], [], []
    for name in table.rule.names:
        own = np.flatnonzero(group[labels] == name)
        if len(own):
            measured = int(np.count_nonzero(images[group == name]))
            names.append(name)
            rows.append(own)
            weights.append(1.0 / (measured * images[labels[own]]))
            classes.append(measured)
    sizes = np.array([len(own) for own in rows], dtype=np.float64)
    return Strata(
        tuple(names), tuple(rows), tuple(weights), np.array(classes, dtype=np.float64), sizes
    )


def harmonic_mean(accuracies: FloatArray) -> npt.NDArray[np.float64]:
    """Return the harmonic mean over the first axis, zero where any is zero.

    It is taken over groups and not over classes as in Du & Wu 2023 (*No one left behind*, arXiv
    2303.03630): with a few images per class some class is at zero by chance, and so is then the
    harmonic mean over classes, of every model.

    Parameters
    ----------
    accuracies : array of shape (G, ...), one row per group.
    """
    low = accuracies.min(axis=0)
    shares = np.divide(low, accuracies, out=np.ones_like(accuracies), where=accuracies > 0)
    return np.asarray(low * len(accuracies) / shares.sum(axis=0), dtype=np.float64)
