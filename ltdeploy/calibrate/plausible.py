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
_ROUNDING = 1e-2  # of a sum of float16 probabilities
# Standard errors by which own logits must stand out. Of labels dealt at random two sets in a
# hundred get there; of labels that belong to the logits all but tiny sets do.
_LEAST_EVIDENCE = 2.0
_CLEAR_EVIDENCE = 4.0
_FEWEST_IMAGES = 50
# The largest difference over the largest logit: float16 features give 1e-3, other images' give 1.
_LARGEST_DIFFERENCE = 0.1
_FORCE = "Add --force (force=True in Python) if it is meant."


def refuse_probabilities(name: str, logits: FloatArray) -> None:
    """Refuse probabilities, of a softmax or of sigmoids, where logits are expected.

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
    raise DataError(
        f"'{name}' are probabilities: every value is in 0…1. Give what stands before the sigmoid, "
        "or numpy.log(p / (1 - p)), and the activation 'sigmoid'."
    )


def refuse_unrelated_labels(logits: FloatArray, labels: IntArray) -> None:
    """Refuse labels that say nothing about the logits: shifted, shuffled, or of other images.

    An image's logit for its own class stands above what images of other classes get there, on
    average over classes or over images, for any model that knows anything, however strongly it
    leans. Fewer than 50 images can be of a model that knows little, and pass.

    Raises
    ------
    DataError
        If it does not, naming a shift of all labels by one where that explains it.
    """
    if len(labels) < _FEWEST_IMAGES or _evidence(logits, labels) >= _LEAST_EVIDENCE:
        return
    right = 100.0 * float((np.asarray(logits).argmax(axis=1) == labels).mean())
    cause = "Rows may be sorted otherwise than the labels, columns otherwise than the classes."
    for shift, word in ((-1, "lower"), (1, "higher")):
        moved = labels + shift
        inside = (moved >= 0) & (moved < logits.shape[1])
        if _evidence(logits[inside], moved[inside]) >= _CLEAR_EVIDENCE:
            cause = f"They do if every label is {word} by one."
    raise DataError(
        f"Labels and logits do not belong together: the model is right on {right:.1f} % of the "
        f"{len(labels):,} images (guessing: {100 / logits.shape[1]:.2g} %), and images of a class "
        f"get no higher logit for it than others do. {cause} {_FORCE}"
    )


def _evidence(logits: FloatArray, labels: IntArray) -> float:
    """Return by how many standard errors own logits exceed those of other images, class by class.

    Each image's logits are centred first. The larger figure of two: every class weighing the same,
    and every image.
    """
    images, classes = logits.shape
    counts = np.bincount(labels, minlength=classes)
    if images < 2 or (counts > 0).sum() < 2:
        return 0.0
    own = np.empty(images)
    total = np.zeros(classes)
    for start in range(0, images, _BLOCK):
        block = np.asarray(logits[start : start + _BLOCK], dtype=np.float64)
        block = block - block.mean(axis=1, keepdims=True)
        total += block.sum(axis=0)
        own[start : start + len(block)] = block[
            np.arange(len(block)), labels[start : start + len(block)]
        ]
    own_total = np.bincount(labels, weights=own, minlength=classes)
    others = (total - own_total) / np.maximum(images - counts, 1)
    above = own - others[labels]
    by_class, by_image = 1.0 / counts[labels], np.ones(images)
    return max(_standard_errors(above, weights) for weights in (by_class, by_image))


def _standard_errors(above: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """Return a weighted mean in units of its standard error."""
    weights = weights / weights.sum()
    mean = float(weights @ above)
    error = float(np.sqrt((weights**2) @ (above - mean) ** 2))
    return mean / max(error, 1e-300)


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
    given = np.asarray(logits[:_BLOCK], dtype=np.float64)
    expected = np.asarray(features[:_BLOCK], dtype=np.float64) @ head.weight.T
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
            f"{off[row]:.3g} in row {row}. Give what the head itself was given, for the same "
            f"images in the same order, with this head's 'weight' and 'bias'. {_FORCE}"
        )
