"""Calibration of a detector: of the boxes with a score of 0.8, are eight in ten right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .assignment import IGNORED, TRUE
from .calibration import BINS, Reliability, reliability
from .matching import Matches

__all__ = ["DetectionCalibration", "detection_calibration"]


@dataclass(frozen=True, eq=False)
class DetectionCalibration:
    """How well scores tell the precision at IoU 0.5.

    The error of a diagram is the detection calibration error, ``Σ_m n_m / n |precision_m −
    score_m|`` over bins of the score: Küppers et al. 2020, *Multivariate confidence calibration for
    object detection*, arXiv 2004.13546 (D-ECE), with the score alone.

    Parameters
    ----------
    overall : the diagram of all detections.
    by_group : that of each group of classes.
    by_class : array of shape (F,): the error of each class in 0..1, NaN without a detection that
        counts.
    """

    overall: Reliability
    by_group: dict[str, Reliability]
    by_class: npt.NDArray[np.float64]

    @property
    def class_averaged(self) -> float | None:
        """The mean error of the classes that have detections: rare classes count like others."""
        known = self.by_class[~np.isnan(self.by_class)]
        return float(known.mean()) if len(known) else None


def detection_calibration(
    matches: Matches, groups: Sequence[str], bins: int = BINS
) -> DetectionCalibration:
    """Sort detections into bins of their score and compare with the share that is right.

    Ignored detections (of crowds, or where the annotation is silent) are in no bin. A detection
    takes one object at most, so duplicates are wrong.

    Parameters
    ----------
    matches : the outcomes of detections.
    groups : the group of each class, F of them.
    bins : of equal width.

    Raises
    ------
    DataError
        If a score is outside 0..1.
    """
    outcome = matches.outcome[0, 0]
    counts = outcome != IGNORED
    score, right = matches.score[counts], outcome[counts] == TRUE
    label = matches.label[counts]
    names = np.array(groups)
    ends = np.searchsorted(label, np.arange(matches.classes), side="right")
    by_class = np.full(matches.classes, np.nan)
    for c in np.unique(label):
        own = slice(ends[c - 1] if c else 0, ends[c])
        error = reliability(score[own], right[own], bins).error
        by_class[c] = np.nan if error is None else error
    return DetectionCalibration(
        overall=reliability(score, right, bins),
        by_group={
            group: reliability(score[own], right[own], bins)
            for group in dict.fromkeys(groups)
            for own in [names[label] == group]
        },
        by_class=by_class,
    )
