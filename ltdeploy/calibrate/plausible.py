"""Arrays that fit together in shape and not in sense: caught before a fix is chosen on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import DataError
from ..models.head import Head

__all__ = ["refuse_foreign_features", "refuse_probabilities", "refuse_unrelated_labels"]

_BLOCK = 1024
_ROUNDING = 0.1  # of a sum of probabilities that were halves, or rounded to three digits
# Standard errors by which own logits must stand out, of classes dealt at random two sets in a
# hundred do; with many classes they are the sample, and three are not too much to ask.
_LEAST_EVIDENCE, _EVIDENCE_OF_MANY, _CLEAR_EVIDENCE = 2.0, 3.0, 4.0
_ENOUGH_CLASSES, _MANY_CLASSES = 5, 20
_FEWEST_IMAGES, _FEWEST_OF_SECOND = 50, 10
_RIGHT_ENOUGH = 3.0  # times as often as guessing, or answering the same always
# The largest difference over the largest logit: float16 features give 1e-3, other images' give 1.
_LARGEST_DIFFERENCE = 0.1
_FORCE = "Add --force (force=True in Python) if it is meant."


def refuse_probabilities(name: str, logits: FloatArray, *, force: bool = False) -> None:
    """Refuse probabilities, of a softmax or of sigmoids, where logits are expected.

    Parameters
    ----------
    force : allow values in 0…1 whose rows do not sum to one, as cosines may be.

    Raises
    ------
    DataError
        If every value is in 0…1 and not all are the same.
    """
    first = np.asarray(logits[:_BLOCK])
    if first.min() < 0 or first.max() > 1:
        return  # nearly always: no need to pass over all of them
    if logits.min() < 0 or logits.max() > 1 or logits.min() == logits.max():
        return
    sums = first.astype(np.float64).sum(axis=1)
    if (np.abs(sums - 1) < _ROUNDING).all():
        raise DataError(
            f"'{name}' are probabilities: every row sums to 1. Give what stands before the "
            "softmax, or numpy.log of these, which serves as well."
        )
    if not force:
        raise DataError(
            f"Every value of '{name}' is in 0…1. If they are probabilities of sigmoids, give what "
            "stands before, or numpy.log(p / (1 - p)), and the activation 'sigmoid'. If they are "
            f"cosines, give them times the scale that the softmax is taken of. {_FORCE}"
        )


def refuse_unrelated_labels(logits: FloatArray, labels: IntArray) -> None:
    """Refuse labels that say nothing about the logits: shifted, shuffled, or of other classes.

    An image's logit for its own class stands above what images of other classes get there, on
    average over classes, for any model that knows anything, however strongly it leans. Let pass
    are models that are right three times as often as guessing, and data too few to tell.

    Raises
    ------
    DataError
        If it does not, naming a shift of all labels by one where that explains it.
    """
    images, classes = logits.shape
    counts = np.sort(np.bincount(labels, minlength=classes))[::-1]
    if images < _FEWEST_IMAGES or counts[1] < _FEWEST_OF_SECOND <= counts[0]:
        return
    right = float((np.asarray(logits).argmax(axis=1) == labels).mean())
    guessing = max(1.0 / classes, counts[0] / images)
    present = np.count_nonzero(counts)
    least = _EVIDENCE_OF_MANY if present >= _MANY_CLASSES else _LEAST_EVIDENCE
    if right >= _RIGHT_ENOUGH * guessing or _evidence(logits, labels) >= least:
        return
    cause = "Rows may be sorted otherwise than the labels, columns otherwise than the classes."
    for shift, word in ((-1, "lower"), (1, "higher")):
        moved = labels + shift
        inside = (moved >= 0) & (moved < classes)
        if _evidence(logits[inside], moved[inside]) >= _CLEAR_EVIDENCE:
            cause = f"They do if every label is {word} by one."
    raise DataError(
        f"Labels and logits do not belong together: the model is right on {100 * right:.1f} % of "
        f"the {images:,} images (guessing: {100 * guessing:.2g} %), and images of a class get no "
        f"higher logit for it than others do. {cause} {_FORCE}"
    )


def _evidence(logits: FloatArray, labels: IntArray) -> float:
    """Return by how many standard errors own logits exceed those of other images, class by class.

    Each image's logits are standardised first, so that no image counts more than others. The sample
    are the classes: under a wrong order of columns all images of a class err together. With fewer
    than five classes it is the images.
    """
    images, classes = logits.shape
    counts = np.bincount(labels, minlength=classes)
    present = counts > 0
    if images < 2 or present.sum() < 2:
        return 0.0
    own = np.empty(images)
    total = np.zeros(classes)
    for start in range(0, images, _BLOCK):
        block = np.asarray(logits[start : start + _BLOCK], dtype=np.float64)
        block = block - block.mean(axis=1, keepdims=True)
        block /= np.maximum(block.std(axis=1, keepdims=True), 1e-300)
        total += block.sum(axis=0)
        own[start : start + len(block)] = block[
            np.arange(len(block)), labels[start : start + len(block)]
        ]
    own_total = np.bincount(labels, weights=own, minlength=classes)
    others = (total - own_total) / np.maximum(images - counts, 1)
    above = own - others[labels]
    if present.sum() >= _ENOUGH_CLASSES:
        above = (own_total / np.maximum(counts, 1) - others)[present]
    return float(above.mean() / max(above.std(ddof=1) / np.sqrt(len(above)), 1e-300))


def refuse_foreign_features(
    logits: FloatArray, features: npt.NDArray[Any] | None, head: Head | None
) -> None:
    """Refuse features that the head does not turn into the logits: of other images or layers.

    Raises
    ------
    DataError
        If ``W x + b`` of a linear head differs from the logits.
    """
    if features is None or head is None or head.kind != "linear" or not head.weight.shape[1]:
        return
    rows = np.unique(np.linspace(0, len(logits) - 1, _BLOCK).astype(np.int64))
    given = np.asarray(logits[rows], dtype=np.float64)
    expected = np.asarray(features[rows], dtype=np.float64) @ head.weight.T
    if head.bias is not None:
        expected += head.bias
    # Logits that were centred or normalised (a log-softmax) are the same but for one number a row.
    difference = given - expected
    difference -= difference.mean(axis=1, keepdims=True)
    spread = np.abs(given - given.mean(axis=1, keepdims=True)).max()
    off = np.abs(difference).max(axis=1)
    if off.max() > _LARGEST_DIFFERENCE * spread:
        row = int(np.flatnonzero(off > _LARGEST_DIFFERENCE * spread)[0])
        raise DataError(
            f"'features' do not give the logits: features @ weight.T + bias is off by "
            f"{off[row]:.3g} in row {rows[row]}. Give what the head itself was given, for the same "
            "images in the same order, with this head's 'weight' and 'bias'. Logits that were "
            "divided by a temperature, or are of a cosine head, have other weights: leave features "
            f"and weight out. {_FORCE}"
        )
