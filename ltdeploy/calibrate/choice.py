"""Compare methods on the same held-out images and take the simplest of the good ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..metrics import Figure
from .objective import NORMAL, Aim, Objective, Strata

__all__ = [
    "Comparison",
    "Contestant",
    "compare",
    "head_change",
    "paired_difference",
    "reason_for",
]

_WORDS: dict[Objective, str] = {
    "balanced": "class-averaged accuracy",
    "few": "the accuracy of the rarest group",
    "harmonic": "the harmonic mean of the groups' accuracies",
    "overall": "the accuracy over images",
}
_SHOWN_CHANGE = 0.05  # points; less is shown as 0.0


@dataclass(frozen=True, eq=False)
class Contestant:
    """A method's answers on held-out images.

    Parameters
    ----------
    name : of the method.
    freedom : how many numbers it learns from data.
    correct : whether each image is answered rightly, array of shape (N,).
    last_resort : whether it is chosen only where it is the best: leaving decisions as they are,
        where the user asked for methods by name.
    """

    name: str
    freedom: int
    correct: npt.NDArray[np.bool_]
    last_resort: bool = False


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

    The error is the bootstrap's and one image's own weight, added as squares. The bootstrap alone
    knows no images but those there are: of 50, one won and none lost would exclude a loss. With it
    the 95 % interval of a difference of zero excludes zero in at most 5 % of sets, from 50 images
    on (tests/calibrate/test_calibrate_choice.py).

    Parameters
    ----------
    correct, other : arrays of shape (N,), of the same images.
    multiplicities : how often each image stands in each bootstrap sample, array of shape (B, N).
    """
    if np.array_equal(correct, other):
        return Figure(0.0, 0.0, 0.0), 0.0
    both = np.stack([correct, other], axis=1)
    reached = strata.values(both, objective)
    replicates = strata.replicates(both, objective, multiplicities)
    value = float(reached[0] - reached[1])
    drawn = replicates[:, 0] - replicates[:, 1]
    error = float(np.hypot(drawn.std(ddof=1), strata.one_image(objective, both)))
    return Figure(value, value - NORMAL * error, value + NORMAL * error), error


def compare(
    contestants: list[Contestant],
    unfixed: npt.NDArray[np.bool_],
    strata: Strata,
    multiplicities: npt.NDArray[np.floating],
    aim: Aim,
) -> list[Comparison]:
    """Return where each contestant stands; exactly one is ``"chosen"``.

    Admissible is what costs the most frequent group no more than is allowed, by the lower end of
    the interval. Of those within one standard error of the best one, the simplest is chosen; of
    equally simple ones the best.
    """
    reached = strata.values(np.stack([c.correct for c in contestants], axis=1), aim.objective)
    head = [head_change(c.correct, unfixed, strata, multiplicities) for c in contestants]
    limit = np.inf if aim.max_head_loss is None else aim.max_head_loss
    admissible = [(change.low or 0.0) >= -limit - 1e-9 for change in head]
    if not any(admissible):
        # Nothing is allowed: the least costly one is the closest to what was asked.
        least = max(range(len(head)), key=lambda place: head[place].value)
        admissible[least] = True
    best = max(
        (place for place in range(len(contestants)) if admissible[place]),
        key=lambda place: (
            reached[place],
            not contestants[place].last_resort,
            -contestants[place].freedom,
        ),
    )
    errors = [
        paired_difference(
            c.correct, contestants[best].correct, strata, multiplicities, aim.objective
        )[1]
        for c in contestants
    ]
    near = [
        place
        for place in range(len(contestants))
        if admissible[place] and reached[best] - reached[place] <= errors[place]
    ]
    chosen = min(
        (place for place in near if place == best or not contestants[place].last_resort),
        key=lambda place: (contestants[place].freedom, -reached[place]),
    )
    if contestants[best].last_resort:
        chosen = best
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


def head_change(
    correct: npt.NDArray[np.bool_],
    unfixed: npt.NDArray[np.bool_],
    strata: Strata,
    multiplicities: npt.NDArray[np.floating],
) -> Figure:
    """Return how many points the most frequent group gains; arguments as for the difference."""
    only = Strata(strata.head, strata.head, {"head": strata.head})
    return paired_difference(correct, unfixed, only, multiplicities, "balanced")[0]


def reason_for(
    contestants: list[Contestant],
    comparisons: list[Comparison],
    before: float,
    gain: Figure,
    aim: Aim,
    shown: str,
    head: str,
) -> str:
    """Return in one sentence why the chosen method was chosen.

    Parameters
    ----------
    before : the objective without a fix.
    gain : the chosen method's paired gain over no fix.
    shown : the chosen fixes with their parameters; empty where decisions are left as they are.
    head : name of the most frequent group; empty where all classes are in one.
    """
    place = next(i for i, c in enumerate(comparisons) if c.status == "chosen")
    chosen, standing = contestants[place], comparisons[place]
    words = _WORDS[aim.objective]
    costly = _costly(contestants, comparisons, standing, aim, head)
    ahead = [i for i, c in enumerate(comparisons) if c.status == "candidate"]
    ahead = [i for i in ahead if comparisons[i].reached > standing.reached]
    rival = max(ahead, key=lambda i: comparisons[i].reached, default=None)
    if not shown:
        text = f"No change of decisions: {words} on held-out images is {before:.1f} %, and "
        if rival is None:
            allowed = " and allowed" if costly else ""
            if chosen.last_resort and not costly:
                allowed = " (--force, or force=True, has it all the same)"
            return f"{text}nothing that was tried{allowed} reaches more{costly}."
        return text + (
            f"the best that was tried, {contestants[rival].name}, gains only "
            f"{-standing.behind:.1f} points, within one standard error "
            f"({standing.standard_error:.1f}){costly}."
        )
    assert gain.value is not None
    assert gain.low is not None
    assert gain.high is not None
    verb = "raises" if gain.value > 0 else "lowers"
    text = (
        f"{shown} {verb} {words} on held-out images from {before:.1f} to {standing.reached:.1f} % "
        f"({_signed(gain.value)} points, 95 % interval {_signed(gain.low)} to {_signed(gain.high)}"
    )
    text += ", which may be chance)" if gain.low <= 0 <= gain.high else ")"
    change = standing.head_change.value or 0.0
    if not head:
        pass
    elif abs(change) < _SHOWN_CHANGE:
        text += f" and leaves the {head} group as it was"
    else:
        verb = "costs" if change < 0 else "gives"
        text += f" and {verb} the {head} group {abs(change):.1f} points"
    if rival is not None:
        text += (
            f"; {contestants[rival].name} is {-standing.behind:.1f} points ahead, within one "
            f"standard error ({standing.standard_error:.1f}), and learns "
            f"{contestants[rival].freedom:,} numbers instead of {chosen.freedom:,}"
        )
    return f"{text}{costly}."


def _costly(
    contestants: list[Contestant],
    comparisons: list[Comparison],
    standing: Comparison,
    aim: Aim,
    head: str,
) -> str:
    """Return what the best method that is too costly would have reached, where that is more."""
    places = [i for i, c in enumerate(comparisons) if c.status == "too costly for the head"]
    best = max(places, key=lambda i: comparisons[i].reached, default=None)
    if best is None or comparisons[best].reached <= standing.reached:
        return ""
    change = comparisons[best].head_change
    assert change.value is not None
    assert change.low is not None
    assert change.high is not None
    lost = f"{-change.value:.1f} points" if change.value < 0 else "nothing"
    return (
        f"; {contestants[best].name} would reach {comparisons[best].reached:.1f} %, but costs the "
        f"{head} group {lost}, and by its interval perhaps {-change.low:.1f}, more than the "
        f"{aim.max_head_loss:g} allowed"
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
