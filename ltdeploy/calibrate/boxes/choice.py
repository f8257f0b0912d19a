"""Compare fixes of a detector on the same held-out photographs; take the simplest good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...metrics import Figure
from ..objective import Aim

__all__ = ["BoxContestant", "BoxStanding", "compare_boxes", "difference", "reason_for_boxes"]

Float64 = npt.NDArray[np.float64]

_WORDS = {"balanced": "mean AP", "few": "the AP of the rarest group"}
_SHOWN_CHANGE = 0.05  # points; less is shown as 0.0


@dataclass(frozen=True, eq=False)
class BoxContestant:
    """A method on held-out photographs.

    Parameters
    ----------
    name : of the method.
    freedom : how many numbers it learns from data; 0 of no fix at all.
    reached, head : objective and AP of the most frequent group, in percent.
    objective_replicates, head_replicates : the same of resampled photographs, arrays of shape (B,).
    """

    name: str
    freedom: int
    reached: float
    head: float
    objective_replicates: Float64
    head_replicates: Float64


@dataclass(frozen=True)
class BoxStanding:
    """Where a method stands.

    Parameters
    ----------
    behind : points of the objective behind the best admissible method, at most 0 for one of these.
    standard_error : of that paired difference.
    gain : points of the objective over no fix.
    head_change : points that the most frequent group gains over no fix.
    status : ``"chosen"``, ``"candidate"`` within one standard error of the best, ``"behind"``, or
        ``"too costly for the head"``.
    """

    behind: float
    standard_error: float
    gain: Figure
    head_change: Figure
    status: str


def difference(value: float, ours: Float64, theirs: Float64) -> tuple[Figure, float]:
    """Return a paired difference with its 95 % percentile interval, and its standard error.

    Parameters
    ----------
    value : the difference on the photographs themselves.
    ours, theirs : both sides in the same replicates, shapes (B,); those without an object of the
        classes in question are left out.
    """
    drawn = ours - theirs
    drawn = drawn[~np.isnan(drawn)]
    if len(drawn) < 2 or not drawn.any():
        return Figure(value, value, value), 0.0
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Figure(value, float(low), float(high)), float(drawn.std(ddof=1))


def compare_boxes(
    contestants: Sequence[BoxContestant], max_head_loss: float | None
) -> list[BoxStanding]:
    """Return where each contestant stands, no fix at all being the first; one is ``"chosen"``.

    Admissible is what costs the most frequent group no more than is allowed, by the lower end of
    the interval. Of those within one standard error of the best one, the simplest is chosen; of
    equally simple ones the best (Breiman et al. 1984, *Classification and regression trees*,
    §3.4.3, on pairs).
    """
    unfixed = contestants[0]
    gains, heads = [], []
    for one in contestants:
        gains.append(
            difference(
                one.reached - unfixed.reached,
                one.objective_replicates,
                unfixed.objective_replicates,
            )[0]
        )
        heads.append(
            difference(one.head - unfixed.head, one.head_replicates, unfixed.head_replicates)[0]
        )
    limit = np.inf if max_head_loss is None else max_head_loss
    admissible = [
        place for place, change in enumerate(heads) if not place or change.low >= -limit - 1e-9
    ]
    best = max(admissible, key=lambda at: (contestants[at].reached, -contestants[at].freedom))
    errors = [
        difference(0.0, one.objective_replicates, contestants[best].objective_replicates)[1]
        for one in contestants
    ]
    behind = [one.reached - contestants[best].reached for one in contestants]
    near = [at for at in admissible if -behind[at] <= errors[at]]
    chosen = min(near, key=lambda at: (contestants[at].freedom, -contestants[at].reached))
    standings = []
    for at in range(len(contestants)):
        status = "candidate" if at in near else "behind"
        if at not in admissible:
            status = "too costly for the head"
        if at == chosen:
            status = "chosen"
        standings.append(BoxStanding(behind[at], errors[at], gains[at], heads[at], status))
    return standings


def reason_for_boxes(
    contestants: Sequence[BoxContestant],
    standings: Sequence[BoxStanding],
    aim: Aim,
    shown: str,
    head: str,
) -> str:
    """Return in one sentence why the chosen method was chosen.

    Parameters
    ----------
    shown : the chosen fix with its parameters; empty where scores are left as they are.
    head : name of the most frequent group; empty where all classes are in one.
    """
    place = next(at for at, standing in enumerate(standings) if standing.status == "chosen")
    chosen, standing = contestants[place], standings[place]
    words, before = _WORDS[aim.objective], contestants[0].reached
    ahead = [
        at
        for at, one in enumerate(standings)
        if one.status == "candidate" and contestants[at].reached > chosen.reached
    ]
    rival = max(ahead, key=lambda at: contestants[at].reached, default=None)
    costly = _costly(contestants, standings, chosen, aim, head)
    if not shown:
        text = f"No fix: {words} on held-out photographs is {before:.1f} %, and "
        if rival is None:
            allowed = " and allowed" if costly else ""
            return f"{text}nothing that was tried{allowed} reaches more{costly}."
        return text + (
            f"the best that was tried, {contestants[rival].name}, gains only "
            f"{-standing.behind:.1f} points, within one standard error "
            f"({standing.standard_error:.1f}){costly}."
        )
    gain = standing.gain
    verb = "raises" if gain.value > 0 else "lowers"
    text = (
        f"{shown} {verb} {words} on held-out photographs from {before:.1f} to "
        f"{chosen.reached:.1f} % ({_signed(gain.value)} points, 95 % interval {_signed(gain.low)} "
        f"to {_signed(gain.high)}"
    )
    text += ", which may be chance)" if gain.low <= 0 <= gain.high else ")"
    change = standing.head_change.value
    if head and abs(change) < _SHOWN_CHANGE:
        text += f" and leaves the {head} group as it was"
    elif head:
        text += f" and {'costs' if change < 0 else 'gives'} the {head} group {abs(change):.1f}"
        text += " points"
    if rival is not None:
        text += (
            f"; {contestants[rival].name} is {-standing.behind:.1f} points ahead, within one "
            f"standard error ({standing.standard_error:.1f}), and learns "
            f"{contestants[rival].freedom:,} numbers instead of {chosen.freedom:,}"
        )
    return f"{text}{costly}."


def _costly(
    contestants: Sequence[BoxContestant],
    standings: Sequence[BoxStanding],
    chosen: BoxContestant,
    aim: Aim,
    head: str,
) -> str:
    """Return what the best method that is too costly would have reached, where that is more."""
    places = [at for at, one in enumerate(standings) if one.status == "too costly for the head"]
    best = max(places, key=lambda at: contestants[at].reached, default=None)
    if best is None or contestants[best].reached <= chosen.reached:
        return ""
    change = standings[best].head_change
    lost = f"{-change.value:.1f} points" if change.value < 0 else "nothing"
    group = f"the {head} group" if head else "the classes"
    return (
        f"; {contestants[best].name} would reach {contestants[best].reached:.1f} %, but costs "
        f"{group} {lost}, and by its interval perhaps {-change.low:.1f}, more than the "
        f"{aim.max_head_loss:g} allowed"
    )


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")
