"""Does a model still lean towards frequent classes? Measured, where nobody recorded its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable

__all__ = ["Lean", "measure_lean"]

_BLOCK = 1024
_CLASSES_NEEDED = 5
# The cross-entropy model on CIFAR-100-LT in docs has 0.46 and 0.50; with half of its log prior
# taken off it has −0.04 and −0.05.
_LEAST_SLOPE, _LEAST_CORRELATION = 0.15, 0.25


@dataclass(frozen=True)
class Lean:
    """How a model's mean logit follows the log of the training count.

    Parameters
    ----------
    slope : logits per unit of log count: up to 1 for a model that says its training prior, near or
        below 0 for one that was corrected, or where the counts belong to other classes.
    correlation : Pearson's, between the mean logits and the log counts.
    """

    slope: float
    correlation: float

    @property
    def corrected(self) -> bool:
        """Whether the model looks corrected already, so that another correction would be double."""
        return self.slope < _LEAST_SLOPE or self.correlation < _LEAST_CORRELATION

    def sentence(self) -> str:
        """Return what was measured and what follows from it."""
        measured = (
            f"mean logit against log count: slope {self.slope:.2f}, correlation "
            f"{self.correlation:.2f}"
        )
        if self.corrected:
            return (
                f"The model does not lean towards frequent classes ({measured}). Either it was "
                "trained with a balanced loss or sampler, and a prior correction would correct "
                "twice (say --trained-with if you know), or the training counts do not stand in "
                "the order of the labels."
            )
        return f"The model leans towards frequent classes ({measured})."


def measure_lean(logits: FloatArray, labels: IntArray, classes: ClassTable) -> Lean | None:
    """Regress each class's mean logit, over images of all *other* classes, on its log count.

    Every image's logits are centred, and every class of images weighs the same, so that neither a
    common shift nor the make-up of the validation data shows. A class's own images are left out:
    there the logit says how well the class is known, and not how readily it is named.

    Returns
    -------
    None where the counts are equal, or there are too few classes to tell.
    """
    log_counts = np.log(classes.prior())
    if len(classes) < _CLASSES_NEEDED or np.ptp(log_counts) < np.log(2):
        return None
    counts = np.bincount(labels, minlength=len(classes))
    weights = 1.0 / np.maximum(counts, 1)[labels]
    total = np.zeros(len(classes))
    mass = np.zeros(len(classes))
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = np.asarray(logits[rows], dtype=np.float64)
        block = block - block.mean(axis=1, keepdims=True)
        share = np.repeat(weights[rows, None], len(classes), axis=1)
        share[np.arange(len(block)), labels[rows]] = 0.0
        total += (share * block).sum(axis=0)
        mass += share.sum(axis=0)
    mean = total / np.maximum(mass, 1e-300)
    centred = log_counts - log_counts.mean()
    slope = float(centred @ mean / (centred @ centred))
    spread = float(np.std(mean) * np.std(log_counts))
    correlation = 0.0 if spread == 0 else float(np.mean(centred * (mean - mean.mean())) / spread)
    return Lean(slope, correlation)
