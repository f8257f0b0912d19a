"""Intervals of 95 %: Wilson's for accuracies, the bootstrap's for what is not an average.

The bootstrap draws images within groups, not within classes: with one image per class a class
could only be drawn as it is. What differs between the classes of a group therefore counts as
chance, for Wilson's interval as well, and the intervals are on the wide side for a fixed set of
classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from .accuracy import Strata, harmonic_mean, strata_of

__all__ = [
    "REPLICATES",
    "Bootstrap",
    "basic_interval",
    "error_interval",
    "harmonic_interval",
    "wilson_interval",
]

Float64 = npt.NDArray[np.float64]

CONFIDENCE = 0.95
REPLICATES = 400
_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


def wilson_interval(share: npt.ArrayLike, images: npt.ArrayLike) -> tuple[Float64, Float64]:
    """Return Wilson's score interval of a share, which is never empty, at 0 and 1 either.

    Wilson 1927, JASA 22, 209–212. For an average with the weights w, ``images`` is the effective
    number ``(Σ w)² / Σ w²``: K² / Σ (1 / n_c) for an average over K classes.

    Parameters
    ----------
    share : in 0..1.
    images : above zero, need not be whole.
    """
    p, n = np.asarray(share, dtype=np.float64), np.asarray(images, dtype=np.float64)
    centre = p + _Z**2 / (2 * n)
    half = _Z * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    total = 1 + _Z**2 / n
    return np.clip((centre - half) / total, 0.0, p), np.clip((centre + half) / total, p, 1.0)


def harmonic_interval(accuracies: Float64, low: Float64, high: Float64) -> tuple[float, float]:
    """Return the interval of the harmonic mean of groups' accuracies, from their intervals.

    Each group is moved to an end of its interval alone, and the moves of the figure are added in
    squares, since groups have no image in common: ``L = θ − √Σ_g (θ − θ(a_g → l_g))²``, and so for
    U (Zou & Donner 2008, Statistics in Medicine 27, 1693–1702, for sums). Unlike the bootstrap it
    does not collapse where a group is at zero, and the harmonic mean with it. Groups at zero are
    moved together: alone, none of two would move the harmonic mean.

    Parameters
    ----------
    accuracies, low, high : arrays of shape (G,), one element per group.
    """
    value = harmonic_mean(accuracies)
    zero = accuracies == 0
    moved = [np.arange(len(zero)) == g for g in np.flatnonzero(~zero)]
    moved += [zero] if zero.any() else []

    def distance(ends: Float64) -> float:
        moves = [harmonic_mean(np.where(m, ends, accuracies)) for m in moved]
        return float(np.sqrt(np.square(np.array(moves) - value).sum()))

    # The sum of moves knows no bounds, accuracies do.
    return max(0.0, float(value) - distance(low)), min(1.0, float(value) + distance(high))


@final
@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Replicates of a set of images, drawn once and shared by all figures and models.

    Parameters
    ----------
    labels : array of shape (N,).
    table : the classes and their groups.
    replicates : how many, B.
    seed : of the draw.

    Raises
    ------
    DataError
        If there are no images, or a label is not in 0..C−1.
    """

    labels: IntArray
    table: ClassTable
    replicates: int = REPLICATES
    seed: int = 0

    @cached_property
    def strata(self) -> Strata:
        """The groups that have images."""
        return strata_of(self.labels, self.table)

    @cached_property
    def multiplicities(self) -> npt.NDArray[np.float32]:
        """How often each image is drawn, shape (B, N); each group keeps its number of images."""
        random = np.random.default_rng(self.seed)
        times = np.empty((self.replicates, len(self.labels)), dtype=np.float32)
        for rows in self.strata.rows:
            for replicate in times:
                drawn = random.integers(len(rows), size=len(rows))
                replicate[rows] = np.bincount(drawn, minlength=len(rows))
        return times


def basic_interval(value: float, replicates: FloatArray) -> tuple[float, float]:
    """Return ``θ + quantiles(θ* − mean θ*)``.

    Parameters
    ----------
    value : the estimate θ.
    replicates : θ*, array of shape (B,).
    """
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(replicates - replicates.mean(), [tail, 1.0 - tail])
    return value + min(float(low), 0.0), value + max(float(high), 0.0)


def error_interval(value: float, replicates: FloatArray) -> tuple[float, float]:
    """Return the interval of a calibration error, in 0..1, whose low end allows for its bias.

    Such an error is a sum of absolute values, which chance alone makes positive: it falls as
    images are added. A bin whose gap is all chance, of standard deviation σ, adds ``σ √(2/π)`` to
    the error and ``√2 − 1`` times that again to its replicates. So the low end of
    `basic_interval` is moved down by ``(1 + √2) (mean θ* − θ)``; bins with a true gap add to
    neither. Where most bins hold a single image replicates do not show the bias, and the interval
    is of the error that is found with so few images.

    Parameters
    ----------
    value : the estimate θ.
    replicates : θ*, array of shape (B,).
    """
    low, high = basic_interval(value, replicates)
    bias = max(float(replicates.mean()) - value, 0.0)
    return max(low - (1.0 + np.sqrt(2.0)) * bias, 0.0), min(high, 1.0)
