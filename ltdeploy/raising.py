"""The raise of a group's scores before the best K of a photograph are cut: fitted, and recorded.

Rare classes lose twice: their scores are low, and at 300 detections per photograph what is found of
frequent classes pushes them out altogether. Raising a whole group leaves the order within each of
its classes as it is, and so changes only what comes through the cut.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .boxes import Detections
from .classes import ClassTable
from .errors import DataError, UsageError

__all__ = ["GroupRaise", "fit_group_raise"]

_FACTORS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
_MOST_ROUNDS = 10


@dataclass(frozen=True)
class GroupRaise:
    """Multiply the odds of each group's scores: ``s' = f s / (1 − s + f s)``.

    Scores stay in 0..1 and in order, and 1 stays 1, which a multiplied score would not.

    Parameters
    ----------
    factors : f > 0 by group; a group that is not named keeps its scores.
    record : what they were fitted on and what was tried, as JSON values; empty where given by hand.

    Raises
    ------
    UsageError
        For a factor that is not a finite number above 0.
    """

    factors: Mapping[str, float]
    record: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group, factor in self.factors.items():
            if not (math.isfinite(factor) and factor > 0):
                raise UsageError(
                    f"The factor of group {group!r} is {factor}; expected a finite number above 0."
                )

    def apply(self, detections: Detections, table: ClassTable) -> Detections:
        """Return the detections with raised scores, best first again.

        Raises
        ------
        DataError
            If a factor is for a group that the class table does not have.
        """
        for group in self.factors:
            if group not in table.rule.names:
                raise DataError(
                    f"A raise is for the group {group!r}; the class table has the groups "
                    f"{', '.join(table.rule.names)}."
                )
        by_class = np.array([self.factors.get(g, 1.0) for g in table.groups], dtype=np.float32)
        raised = by_class[detections.labels] * detections.scores
        scores = raised / (1 - detections.scores + raised)
        order = np.argsort(-scores, kind="stable")
        return Detections(detections.boxes[order], scores[order], detections.labels[order])

    def to_dict(self) -> dict[str, Any]:
        """Return factors and record as JSON values."""
        return {"factors": dict(self.factors), "record": dict(self.record)}


def fit_group_raise(
    found: Sequence[Detections],
    table: ClassTable,
    top_k: int,
    measure: Callable[[Sequence[Detections]], float],
    factors: Sequence[float] = _FACTORS,
) -> GroupRaise:
    """Choose the factors whose best K detections per photograph measure best.

    Coordinate search: each group in turn, all but the most frequent one, takes its best factor
    until none moves. A larger factor must measure strictly better than a smaller one, so that a
    group which gains nothing stays as it is.

    Parameters
    ----------
    found : detections of validation photographs, not yet cut to K.
    top_k : K.
    measure : the figure to raise, e.g. AP over classes, of detections cut to K.
    factors : what is tried, 1 or more; they are sorted and 1 is always among them.

    Raises
    ------
    UsageError
        For factors below 1, or no detections.
    """
    if not len(found):
        raise UsageError("A raise cannot be fitted on no photograph; give validation detections.")
    if not all(math.isfinite(factor) and factor >= 1 for factor in factors):
        raise UsageError(f"The factors to try are {list(factors)}; expected numbers of 1 or more.")
    tried_factors = sorted({1.0, *map(float, factors)})
    groups = [name for name in table.rule.names[1:] if len(table.members(name))]
    tried: dict[tuple[float, ...], float] = {}

    def measured(chosen: tuple[float, ...]) -> float:
        if chosen not in tried:
            trial = GroupRaise(dict(zip(groups, chosen, strict=True)))
            tried[chosen] = measure([trial.apply(one, table)[:top_k] for one in found])
        return tried[chosen]

    best = (1.0,) * len(groups)
    before = measured(best)
    for _ in range(_MOST_ROUNDS):
        start = best
        for place, factor in itertools.product(range(len(groups)), tried_factors):
            other = (*best[:place], factor, *best[place + 1 :])
            gain = measured(other) - measured(best)
            if gain > 0 or (gain == 0 and factor < best[place]):
                best = other
        if best == start:
            break
    return GroupRaise(
        dict(zip(groups, best, strict=True)),
        {
            "photographs": len(found),
            "top_k": top_k,
            "before": before,
            "after": measured(best),
            "tried": [
                {**dict(zip(groups, chosen, strict=True)), "measured": value}
                for chosen, value in tried.items()
            ],
        },
    )
