"""Calibration: does a confidence of 80 % mean right eight times out of ten?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..errors import DataError

__all__ = ["BINS", "Reliability", "reliability", "top1_of_logits"]

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
    place = np.clip(np.ceil(confidences * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    empty = np.where(counts == 0, np.nan, counts)
    return Reliability(
        counts=counts.astype(np.int64),
        confidence=np.bincount(place, weights=confidences, minlength=bins) / empty,
        accuracy=np.bincount(place, weights=correct, minlength=bins) / empty,
    )
