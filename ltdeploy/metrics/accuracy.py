"""Accuracy per class, and per group of classes averaged over classes and over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..errors import DataError

__all__ = ["GroupAccuracy", "average_accuracy", "per_class_accuracy"]


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
