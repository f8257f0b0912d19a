"""Compare methods on the same held-out images and take the simplest of the good ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..metrics import Figure
from .objective import Aim, Objective, Strata

__all__ = ["Comparison", "Contestant", "compare", "paired_difference", "reason_for"]

_WORDS: dict[Objective, str] = {
    "balanced": "class-averaged accuracy",
    "few": "accuracy of the rarest group",
    "harmonic": "harmonic mean of the groups' accuracies",
    "overall": "accuracy over images",
}


@dataclass(frozen=True, eq=False)
class Contestant:
    """A method's answers on held-out images.

    Parameters
    ----------
    name : of the method.
    freedom : how many numbers it learns from data.
    correct : whether each image is answered rightly, array of shape (N,).
    """

    name: str
    freedom: int
    correct: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Where a method stands.

    Parameters
    ----------
    reached : the objective in percent.
    behind : points behind the best admissible method, at most 0 for an admissible one.
    standard_error : of that paired difference.
    head_change : points that the most frequent group gains against no fix.
    status : see :class:`~ltdeploy.calibrate.result.MethodResult`.
    """

    reached: float
    behind: float
    standard_error: float
    head_change: Figure
    status: str


def paired_difference(
    correct: npt.NDArray[np.bool_],
    other: npt.NDArray[np.bool_],
    strata: Strata,
    multiplicities: npt.NDArray[np.floating],
    objective: Objective,
) -> tuple[Figure, float]:
    """Return ``correct`` minus ``other`` in points of the objective, and its standard error.

    Parameters
    ----------
    correct, other : arrays of shape (N,), of the same images.
    multiplicities : how often each image stands in each bootstrap sample, array of shape (B, N).
    """
    both = np.stack([correct, other], axis=1)
    reached = strata.values(both, objective)
    replicates = strata.replicates(both, objective, multiplicities)
    value = float(reached[0] - reached[1])
    drawn = replicates[:, 0] - replicates[:, 1]
    low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
    return Figure(value, value + float(low), value + float(high)), float(drawn.std(ddof=1))


def compare(
    contestants: list[Contestant],
    unfixed: npt.NDArray[np.bool_],
    strata: Strata,
    multiplicities: npt.NDArray[np.floating],
    aim: Aim,
) -> list[Comparison]:
    """Return where each contestant stands; exactly one is ``"chosen"``.

    Admissible is what costs the most frequent group no more than is allowed. Of those within one
    standard error of the best one, the simplest is chosen; of equally simple ones the best.
    """
    reached = strata.values(np.stack([c.correct for c in contestants], axis=1), aim.objective)
    head = [_head_change(c.correct, unfixed, strata, multiplicities) for c in contestants]
    limit = np.inf if aim.max_head_loss is None else aim.max_head_loss
    admissible = [change.value >= -limit - 1e-9 for change in head]
    if not any(admissible):
        # Nothing is allowed: the least costly one is the closest to what was asked.
        least = max(range(len(head)), key=lambda place: head[place].value)
        admissible[least] = True
    best = max(
        (place for place in range(len(contestants)) if admissible[place]),
        key=lambda place: (reached[place], -contestants[place].freedom),
    )
    errors = [
        paired_difference(
            c.correct, contestants[best].correct, strata, multiplicities, aim.objective
        )[1]
        for c in contestants
    ]
    # One image won and none lost has a standard error just below its own weight: no reason for a
    # more complicated method. An error is that of one image at least.
    errors = [float(np.hypot(error, strata.one_image(aim.objective))) for error in errors]
    near = [
        place
        for place in range(len(contestants))
        if admissible[place] and reached[best] - reached[place] <= errors[place]
    ]
    chosen = min(near, key=lambda place: (contestants[place].freedom, -reached[place]))
    found = []
    for place in range(len(contestants)):
        status = "candidate" if place in near else "behind"
        if not admissible[place]:
            status = "too costly for the head"
        if place == chosen:
            status = "chosen"
        behind = float(reached[place] - reached[best])
        found.append(Comparison(float(reached[place]), behind, errors[place], head[place], status))
    return found


def _head_change(
    correct: npt.NDArray[np.bool_],
    unfixed: npt.NDArray[np.bool_],
    strata: Strata,
    multiplicities: npt.NDArray[np.floating],
) -> Figure:
    only = Strata(strata.head, strata.head, {"head": strata.head})
    return paired_difference(correct, unfixed, only, multiplicities, "balanced")[0]


def reason_for(
    contestants: list[Contestant],
    comparisons: list[Comparison],
    before: float,
    gain: Figure,
    aim: Aim,
    shown: str,
) -> str:
    """Return in one sentence why the chosen method was chosen.

    Parameters
    ----------
    before : the objective without a fix.
    gain : the chosen method's paired gain over no fix.
    shown : the chosen fixes with their parameters; empty where no fix was chosen.
    """
    place = next(i for i, c in enumerate(comparisons) if c.status == "chosen")
    chosen, standing = contestants[place], comparisons[place]
    words = _WORDS[aim.objective]
    ahead = [i for i, c in enumerate(comparisons) if c.status == "candidate"]
    ahead = [i for i in ahead if comparisons[i].reached > standing.reached]
    rival = max(ahead, key=lambda i: comparisons[i].reached, default=None)
    if not shown:
        text = f"No fix: {words} on held-out images is {before:.1f} %, and "
        if rival is None:
            costly = [c.reached for c in comparisons if c.status == "too costly for the head"]
            allowed = ""
            if max(costly, default=0.0) > standing.reached:
                allowed = (
                    f" without costing the most frequent group more than {aim.max_head_loss:g} "
                    "points"
                )
            return f"{text}nothing that was tried reaches more{allowed}."
        return text + (
            f"the best that was tried, {contestants[rival].name}, gains only "
            f"{-standing.behind:.1f} points, within one standard error "
            f"({standing.standard_error:.1f})."
        )
    text = (
        f"{shown} takes {words} on held-out images from {before:.1f} to "
        f"{standing.reached:.1f} % ({_signed(gain.value)} points, 95 % interval "
        f"{_signed(gain.low)} to {_signed(gain.high)})"
    )
    text += f" and changes the most frequent group by {_signed(standing.head_change.value)}"
    if aim.max_head_loss is not None and standing.head_change.value < -aim.max_head_loss - 1e-9:
        text += f", more than the {aim.max_head_loss:g} points allowed, as all that was tried does"
    if rival is not None:
        text += (
            f"; {contestants[rival].name} is {-standing.behind:.1f} points ahead, within one "
            f"standard error ({standing.standard_error:.1f}), and learns "
            f"{contestants[rival].freedom:,} numbers instead of {chosen.freedom:,}"
        )
    return text + "."


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
