"""The gate: has the tail survived, group by group, at a margin of accuracy points?

* ``pass``: the 95 % interval's lower end is above −margin (non-inferiority).
* ``fail``: the difference is at or below −margin, and the interval excludes zero.
* ``inconclusive``: neither; more images would decide it. Also where it would pass, but fewer than
  half of the classes have images: those cannot speak for the others.

The bundle passes when every group and the whole pass, and fails when any of them fails. Passing
needs no correction for their number: a bundle with one bad group passes only if that group does
(an intersection-union test, Berger 1982, Technometrics 24, 295–300). Failing does, or four looks
at an innocent bundle would be four chances to condemn it: the interval that must exclude zero has
the confidence ``1 − 0.05 / S`` for S tested strata (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..errors import DataError, UsageError
from .statistics import PairedFlips, lower_limit, paired_flips, score_interval, upper_limit

__all__ = [
    "ALPHA",
    "Decision",
    "Judgement",
    "Verdict",
    "bundle_verdict",
    "check_margin",
    "covers_half",
    "images_to_decide",
    "judge",
    "stratum_verdicts",
]

Verdict = Literal["pass", "fail", "inconclusive"]

ALPHA = 0.05
_LARGEST_FACTOR = 1e9


@dataclass(frozen=True)
class Decision:
    """What the gate says of one stratum; differences in points of class-averaged accuracy.

    ``None`` stands where the stratum has no image. ``ci_low`` and ``ci_high`` are the 95 %
    interval; ``fail_high``, the upper end of the ``1 − 0.05 / S`` one, is what must be below zero
    to fail. ``images_to_decide`` is set where the verdict is inconclusive: images of this stratum,
    in the present mix of classes, that would decide it if the flip rates stayed as they are; an
    estimate, and None where no number would, or where it is classes that lack images.
    """

    difference: float | None
    ci_low: float | None
    ci_high: float | None
    fail_high: float | None
    verdict: Verdict
    images_to_decide: int | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict of a bundle, of its whole and of its groups; a group without classes is None."""

    verdict: Verdict
    overall: Decision
    groups: Mapping[str, Decision | None]


def check_margin(margin: float) -> float:
    """Return the margin, in points of accuracy, if it is one.

    Raises
    ------
    UsageError
        If it is not above 0 and below 100: at 0 nothing can ever pass, at 100 nothing ever fails.
    """
    if not 0.0 < margin < 100.0:
        raise UsageError(
            f"The margin is {margin}; expected points of accuracy above 0 and below 100. Use 1.0 "
            "for 'at most one point worse'; a model that may not lose at all needs no statistics, "
            "only a comparison of its outputs."
        )
    return float(margin)


def covers_half(measured: int, classes: int) -> bool:
    """Tell whether enough classes of a stratum have images to show that it survived."""
    return 2 * measured >= classes


def stratum_verdicts(flips: PairedFlips, margin: float, strata: int) -> npt.NDArray[np.str_]:
    """Return the verdict of each stratum, shape (..., S).

    Parameters
    ----------
    flips : the weighted flips, shape (..., S).
    margin : points of accuracy.
    strata : how many strata are tested at once, for the correction of `fail`.
    """
    share = check_margin(margin) / 100.0
    passed = lower_limit(flips, 1.0 - ALPHA) > -share
    failed = (flips.difference <= -share) & (upper_limit(flips, 1.0 - ALPHA / strata) < 0.0)
    verdicts: npt.NDArray[np.str_] = np.where(
        passed, "pass", np.where(failed, "fail", "inconclusive")
    )
    return verdicts


def bundle_verdict(verdicts: npt.NDArray[np.str_]) -> npt.NDArray[np.str_]:
    """Combine verdicts over the last axis: any fail fails, else any doubt is inconclusive."""
    failed, passed = (verdicts == "fail").any(axis=-1), (verdicts == "pass").all(axis=-1)
    combined: npt.NDArray[np.str_] = np.where(
        failed, "fail", np.where(passed, "pass", "inconclusive")
    )
    return combined


def images_to_decide(flips: PairedFlips, images: int, margin: float, strata: int) -> int | None:
    """Estimate how many images would decide one stratum if its flip rates stayed as they are.

    Searches the smallest factor on the number of images, in the present mix of classes, at which
    the gate no longer says `inconclusive`.

    Parameters
    ----------
    flips : the flips of one stratum, shape ().
    images : images it has now.

    Returns
    -------
    The number of images, at least `images`; None when 10⁹ times as many would not do.
    """

    def decided(factor: float) -> bool:
        return bool(stratum_verdicts(flips.replicated(factor), margin, strata) != "inconclusive")

    above = 1.0
    while not decided(above):
        above *= 2.0
        if above > _LARGEST_FACTOR:
            return None
    below = above / 2.0 if above > 1.0 else above
    while above - below > 1e-3 * above:
        middle = (below + above) / 2.0
        below, above = (below, middle) if decided(middle) else (middle, above)
    return math.ceil(images * above)


def judge(
    images: IntArray,
    lost: IntArray,
    won: IntArray,
    groups: Mapping[str, IntArray],
    margin: float = 1.0,
    equivalent: bool = False,
) -> Judgement:
    """Judge a candidate from the flips per class.

    Parameters
    ----------
    images, lost, won : arrays of shape (C,): images per class, and those only the reference or
        only the candidate gets right.
    groups : the labels of each group's classes. A group of whose classes fewer than half have
        images cannot be shown to have survived: it fails or is inconclusive. A group without
        classes has no decision.
    margin : points of class-averaged accuracy the candidate may lose.
    equivalent : whether the outputs of the two are numerically the same. Then there is nothing to
        estimate and every verdict is `pass`, whatever the number of images.

    Raises
    ------
    UsageError
        If the margin is out of range.
    DataError
        If there is no image at all, or a claim of equivalence beside images that flipped.
    """
    check_margin(margin)
    if not images.sum():
        raise DataError("There is no image to judge by; expected at least one labelled image.")
    if equivalent and (lost.any() or won.any()):
        raise DataError(
            f"{int(lost.sum() + won.sum())} images changed between right and wrong, so the two "
            "models are not numerically equivalent; call without equivalent=True."
        )
    tested = {name: labels for name, labels in groups.items() if images[labels].any()}
    # One group with images is the whole: looking at it twice is one look.
    strata = np.zeros((len(tested) + 1, len(images)), dtype=np.bool_)
    strata[0] = True
    for row, labels in enumerate(tested.values(), start=1):
        strata[row, labels] = True
    looks = len(tested) + 1 if len(tested) > 1 else 1
    flips = paired_flips(images, lost, won, strata)
    lower, upper = score_interval(flips, 1.0 - ALPHA)
    fail_upper = upper_limit(flips, 1.0 - ALPHA / looks)
    verdicts = stratum_verdicts(flips, margin, looks)

    def decision(row: int) -> Decision:
        known = covers_half(int((images[strata[row]] > 0).sum()), int(strata[row].sum()))
        verdict: Verdict = "pass" if equivalent else verdicts[row].item()
        if verdict == "pass" and not (known or equivalent):
            verdict = "inconclusive"
        own = PairedFlips(flips.won[row], flips.lost[row], flips.square[row], flips.heaviest[row])
        count = int(images[strata[row]].sum())
        return Decision(
            difference=100.0 * float(flips.difference[row]),
            ci_low=100.0 * float(lower[row]),
            ci_high=100.0 * float(upper[row]),
            fail_high=100.0 * float(fail_upper[row]),
            verdict=verdict,
            images_to_decide=(
                images_to_decide(own, count, margin, looks)
                if verdict == "inconclusive" and known
                else None
            ),
        )

    rows = {name: row for row, name in enumerate(tested, start=1)}
    unmeasured = Decision(None, None, None, None, "pass" if equivalent else "inconclusive")
    decisions = {
        name: decision(rows[name]) if name in rows else (unmeasured if len(labels) else None)
        for name, labels in groups.items()
    }
    overall = decision(0)
    everything = np.array([overall.verdict, *(d.verdict for d in decisions.values() if d)])
    return Judgement(cast(Verdict, bundle_verdict(everything).item()), overall, decisions)
