"""The gate for average precision: a paired bootstrap over photographs, group by group.

Average precision is not a mean over images, so no closed form gives its interval. Both sides are
resampled together: a replicate draws as many photographs as there are, with repetition, and each
side's AP is computed from the matches of those (Efron and Tibshirani 1993, ch. 13, percentile
intervals). A class that a replicate does not draw takes no part in it, on either side.

The verdicts are those of :mod:`..gate`: ``pass`` where the interval's lower end is above −margin,
``fail`` where the difference is at or below −margin and the interval excludes zero, corrected for
the number of strata, else ``inconclusive``. With a handful of photographs per rare class such
intervals are too narrow: the report says how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from ...arrays import IntArray
from ...metrics import Figure
from ...metrics.detection import average_precision, mean_precision
from ...metrics.matching import Matches
from ..gate import ALPHA, Verdict, bundle_verdict, covers_half

__all__ = [
    "REPLICATES",
    "SAME_AP",
    "StratumDecision",
    "decide",
    "overall_verdict",
    "precision_figures",
]

REPLICATES = 1000
SAME_AP = 0.05  # points: what boxes that change places at equal scores may do
_SEED = 0
_FEWEST_IMAGES = 10  # a bootstrap of fewer has hardly any replicates that differ
Float64 = npt.NDArray[np.float64]
Strata: TypeAlias = dict[str, Float64]


@dataclass(frozen=True)
class StratumDecision:
    """AP of both sides in percent, their difference with a 95 % interval, and the verdict.

    None stands where no class of the stratum has an object to find.

    Attributes
    ----------
    classes, images : classes with objects to find, and photographs that hold any of them.
    images_to_decide : where the verdict is inconclusive, about how many photographs of this stratum
        would decide it if the difference stayed and the interval shrank as ``1 / √n``; None where
        it is classes that lack photographs.
    """

    classes: int
    images: int
    reference: float | None
    candidate: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: Verdict
    images_to_decide: int | None = None


def decide(
    reference: Matches,
    candidate: Matches,
    strata: Mapping[str, IntArray],
    margin: float,
    *,
    equivalent: bool = False,
    replicates: int = REPLICATES,
) -> dict[str, StratumDecision]:
    """Judge a candidate's average precision in each stratum.

    Parameters
    ----------
    reference, candidate : the matches of both on the same photographs.
    strata : labels of the classes of each; ``overall`` holds all.
    margin : points of AP that a stratum may lose.
    equivalent : whether both show the same boxes with the same scores; then a stratum passes whose
        AP is the same too, however few photographs it has. Boxes with scores below what is shown
        count in AP: a rare class may live there alone.
    """
    sides = [average_precision(side) for side in (reference, candidate)]
    weights = _weights(reference.images, replicates)
    drawn_before, drawn_after = (
        _replicates(side, strata, weights) for side in (reference, candidate)
    )
    tested = [name for name, labels in strata.items() if not np.isnan(sides[0][labels, 0]).all()]
    looks = max(1, len(tested) - (len(tested) == 2))  # one group with objects is the whole
    decisions = {}
    for name, labels in strata.items():
        there = labels[~np.isnan(sides[0][labels, 0])]
        images = np.unique(reference.truth_image[np.isin(reference.truth_label, there)])
        if not len(there):
            verdict: Verdict = "pass" if equivalent else "inconclusive"
            decisions[name] = StratumDecision(0, 0, None, None, None, None, None, verdict)
            continue
        before, after = (100 * float(mean_precision(side, labels)) for side in sides)
        drawn = drawn_after[name] - drawn_before[name]
        drawn = drawn[~np.isnan(drawn)]
        low, high = np.quantile(drawn, (ALPHA / 2, 1 - ALPHA / 2))
        fail_high = float(np.quantile(drawn, 1 - ALPHA / looks))
        pass_low = float(np.quantile(drawn, ALPHA))
        covered = covers_half(len(there), len(labels))
        verdict = "inconclusive"
        if equivalent and abs(after - before) <= SAME_AP:
            verdict = "pass"
        elif len(images) >= _FEWEST_IMAGES:
            if after - before <= -margin and fail_high < 0:
                verdict = "fail"
            elif pass_low > -margin and covered:
                verdict = "pass"
        wanted = None
        if verdict == "inconclusive" and covered:
            wanted = _images_to_decide(len(images), after - before, pass_low, fail_high, margin)
        decisions[name] = StratumDecision(
            classes=len(there),
            images=len(images),
            reference=before,
            candidate=after,
            difference=after - before,
            ci_low=float(low),
            ci_high=float(high),
            verdict=verdict,
            images_to_decide=wanted,
        )
    return decisions


def precision_figures(matches: Matches, strata: Mapping[str, IntArray]) -> dict[str, Figure | None]:
    """Return a detector's average precision in each stratum, in percent, with its interval.

    The interval is a bootstrap's over photographs, as that of a difference is. None stands where no
    class of the stratum has an object to find.
    """
    precision = average_precision(matches)
    drawn = _replicates(matches, strata, _weights(matches.images, REPLICATES))
    figures: dict[str, Figure | None] = {}
    for name, labels in strata.items():
        figures[name] = None
        value = 100 * float(mean_precision(precision, labels))
        if not np.isnan(value):
            low, high = np.nanquantile(drawn[name], (ALPHA / 2, 1 - ALPHA / 2))
            figures[name] = Figure(value, float(low), float(high))
    return figures


def overall_verdict(decisions: Sequence[StratumDecision]) -> Verdict:
    """Return fail if any stratum fails, pass if all pass, else inconclusive."""
    verdicts = np.array([one.verdict for one in decisions])
    return cast(Verdict, bundle_verdict(verdicts).item())


def _images_to_decide(
    images: int, difference: float, pass_low: float, fail_high: float, margin: float
) -> int | None:
    """Return how many photographs would bring a limit to its threshold, the difference staying."""
    if difference <= -margin:
        now, wanted = fail_high - difference, -difference
    else:
        now, wanted = difference - pass_low, difference + margin
    if not (math.isfinite(now) and wanted > 1e-3 * margin):
        return None  # on the margin itself no number decides
    return max(_FEWEST_IMAGES, math.ceil(images * (now / wanted) ** 2))


def _weights(images: int, replicates: int) -> Float64:
    """Return how often each replicate draws each photograph, shape (B, images)."""
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=replicates)
    return drawn.astype(np.float64)


def _replicates(matches: Matches, strata: Mapping[str, IntArray], weights: Float64) -> Strata:
    """Return each replicate's AP in each stratum, shapes (B,), in percent."""
    parts: dict[str, list[Float64]] = {name: [] for name in strata}
    rows = max(1, (1 << 22) // max(1, matches.classes * 10))
    for start in range(0, len(weights), rows):
        precision = average_precision(matches, weights[start : start + rows])
        for name, labels in strata.items():
            parts[name].append(100 * mean_precision(precision, labels))
    return {name: np.concatenate(found) for name, found in parts.items()}
