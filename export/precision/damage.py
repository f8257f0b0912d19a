"""How much each layer's loss of precision costs the tail: the margins of few-shot images.

The margin of an image is its own class's logit less the best other one; it is negative where the
model is wrong. A layer's damage is what its low precision alone, all others in float32, takes from
the margins of the rare classes' images, on average over images and counting losses only: gains and
losses are both noise, and it is losses that turn into errors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.classes import ClassTable

from .sampling import class_balanced

__all__ = ["damage_of", "margins", "tail_images"]


def margins(logits: FloatArray, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return each image's margin, array of shape (N,).

    Parameters
    ----------
    logits : array of shape (N, C); labels : array of shape (N,).
    """
    rows = np.arange(len(labels))
    own = logits[rows, labels].astype(np.float64)
    others = logits.astype(np.float64)
    others[rows, labels] = -np.inf
    return np.asarray(own - others.max(axis=1))


def damage_of(reference: FloatArray, candidate: FloatArray, labels: npt.NDArray[np.int64]) -> float:
    """Return the mean loss of margin, ``mean(max(0, m_reference − m_candidate))``, in logits.

    Infinite where the candidate's logits are not finite: such a layer comes first.
    """
    if not np.isfinite(candidate).all():
        return float("inf")
    lost = margins(reference, labels) - margins(candidate, labels)
    return float(np.maximum(lost, 0.0).mean())


def tail_images(
    labels: npt.NDArray[np.int64], classes: ClassTable, budget: int, *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return places of images to rank layers on: class-balanced, of the rarest groups first.

    The rarest group alone where it has ``budget`` images, else the next rarer ones fill up.
    """
    chosen: list[npt.NDArray[np.int64]] = []
    left = budget
    for group in reversed(classes.rule.names):
        inside = np.flatnonzero(np.isin(labels, classes.members(group)))
        taken = inside[class_balanced(labels[inside], left, seed=seed)]
        chosen.append(taken)
        left -= len(taken)
        if not left:
            break
    return np.concatenate(chosen)
