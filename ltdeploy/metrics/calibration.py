"""Calibration: does a confidence of 80 % mean right eight times out of ten?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray, log_softmax
from ..errors import DataError

__all__ = [
    "BINS",
    "Reliability",
    "bin_of",
    "classwise_error",
    "negative_log_likelihood",
    "reliability",
    "top1_of_logits",
]

BINS = 15
_ROUNDING = 1e-5  # what float32 probabilities may sum above one


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: images by confidence, in M equal-width bins.

    Bin m holds the confidences in ``((m − 1) / M, m / M]``; the first one holds 0 as well.

    Parameters
    ----------
    counts : array of shape (M,), int64: images per bin.
    confidence, accuracy : arrays of shape (M,), float64, in 0..1: their mean confidence and the
        share that is right; NaN where a bin is empty.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def error(self) -> float | None:
        """Expected calibration error in 0..1, ``Σ_m n_m / n |accuracy_m − confidence_m|``.

        Guo et al. 2017, arXiv 1706.04599, eq. 3, with 15 bins as there; None without images.
        """
        if not self.counts.any():
            return None
        filled = self.counts > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(gaps @ self.counts[filled] / self.counts.sum())


def top1_of_logits(logits: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the top-1 label of each row and its softmax probability; ties go to the lower label.

    Parameters
    ----------
    logits : array of shape (N, C).
    """
    best = logits.argmax(axis=-1)
    highest = np.take_along_axis(logits, best[:, None], axis=-1)
    total = np.exp(logits - highest).sum(axis=-1, dtype=np.float64)
    return best.astype(np.int64), (1.0 / total).astype(np.float32)


def reliability(
    confidences: FloatArray, correct: npt.NDArray[np.bool_] | IntArray, bins: int = BINS
) -> Reliability:
    """Sort images into equal-width bins of confidence.

    Parameters
    ----------
    confidences : array of shape (N,), in 0..1: the probability of the predicted class.
    correct : array of shape (N,): whether the prediction is right.
    bins : how many, at least one.

    Raises
    ------
    DataError
        If the lengths differ, a confidence is outside 0..1 or not a number, or `bins` is below 1.
    """
    confidences = np.asarray(confidences, dtype=np.float64)
    if confidences.shape != np.shape(correct) or confidences.ndim != 1:
        raise DataError(
            f"Confidences have the shape {confidences.shape} and correctness {np.shape(correct)}; "
            "expected one of each per image."
        )
    if bins < 1:
        raise DataError(f"The number of bins is {bins}; expected at least 1.")
    valid = (confidences >= 0.0) & (confidences <= 1.0 + _ROUNDING)
    if not valid.all():
        raise DataError(
            f"{int((~valid).sum())} confidences are not in 0..1, for example "
            f"{confidences[~valid][0]}; expected the probability of the predicted class."
        )
    place = bin_of(confidences, bins)
    counts = np.bincount(place, minlength=bins)
    empty = np.where(counts == 0, np.nan, counts)
    return Reliability(
        counts=counts.astype(np.int64),
        confidence=np.bincount(place, weights=confidences, minlength=bins) / empty,
        accuracy=np.bincount(place, weights=correct, minlength=bins) / empty,
    )


def bin_of(probabilities: FloatArray, bins: int = BINS) -> npt.NDArray[np.int64]:
    """Return the bin 0..M−1 of each probability; bins are closed above, the first one below too."""
    return np.clip(np.ceil(probabilities * bins).astype(np.int64) - 1, 0, bins - 1)


def negative_log_likelihood(
    logits: FloatArray, labels: IntArray, weights: npt.NDArray[np.float64] | None = None
) -> float:
    """Return ``−Σ_i w_i log softmax(z_i)[y_i] / Σ_i w_i``, in nats.

    Parameters
    ----------
    logits : array of shape (N, C).
    labels : array of shape (N,).
    weights : array of shape (N,), not negative; None counts all images alike, ``1 / n_c`` all
        classes.

    Raises
    ------
    DataError
        If there is no image that counts.
    """
    if not len(labels) or (weights is not None and not np.sum(weights) > 0):
        raise DataError("There are no images that count; expected at least one to measure on.")
    likely = log_softmax(np.asarray(logits, dtype=np.float64))[np.arange(len(labels)), labels]
    return -float(np.average(likely, weights=weights))


def classwise_error(probabilities: FloatArray, labels: IntArray, bins: int = BINS) -> float | None:
    """Return the class-wise expected calibration error in 0..1; None without images.

    ``1/K Σ_k Σ_m n_mk / n |share of class k in bin m of class k − mean probability of k in it|``:
    each class is a problem of its own, whether it is predicted or not. Kull et al. 2019, *Beyond
    temperature scaling*, arXiv 1910.12656 (classwise-ECE); with equal-width bins it is the static
    calibration error of Nixon et al. 2019, *Measuring calibration in deep learning*, arXiv
    1904.01685.

    Parameters
    ----------
    probabilities : array of shape (N, K).
    labels : array of shape (N,).
    """
    images, classes = probabilities.shape
    if not images:
        return None
    gaps = -np.asarray(probabilities, dtype=np.float64)
    gaps[np.arange(images), labels] += 1.0
    cells = bin_of(probabilities, bins) + bins * np.arange(classes)
    sums = np.bincount(cells.ravel(), weights=gaps.ravel(), minlength=classes * bins)
    return float(np.abs(sums).sum() / (images * classes))
