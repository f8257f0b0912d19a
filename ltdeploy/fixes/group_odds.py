"""One odds factor per frequency group, given or chosen on validation images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from ..errors import FixError
from .affine import AffineMap
from .base import Evidence, Fix, FixContext, require_numbers
from .columns import foreground_counts, on_foreground, require_detector
from .objective_search import Evaluate, Searched, coordinate_search

__all__ = ["FACTORS", "GroupOdds", "fit_group_odds"]

FACTORS = tuple(2.0**power for power in range(-4, 5))
"""1/16, 1/8, … 16."""

_MOST_ROUNDS = 3


@final
@dataclass(frozen=True)
class GroupOdds(Fix):
    """Multiply the odds of each frequency group's classes by one factor: ``z'_c = z_c + log m_g``.

    On a softmax detector these are the odds of a class against the background and every class of
    another group, on a sigmoid one p/(1 − p); the background's logit stays. Within a group no class
    overtakes another on the same box.

    The raise of rare and common scores before the cut to 300 detections, as in the LVIS 2019 entry
    of EQL's authors (Tan et al. 2020, *Equalization loss*, arXiv 2003.05176); odds instead of
    scores, so that it folds and stays below one (Elkan 2001, *The foundations of cost-sensitive
    learning*, IJCAI, theorem 2).

    Parameters
    ----------
    factors : m, one per group in the order of the class table's rule, e.g. frequent, common, rare;
        above 0; 1 leaves a group alone. :func:`fit_group_odds` chooses them.
    """

    factors: tuple[float, ...]

    method: ClassVar[str] = "group_odds"
    needs: ClassVar[frozenset[Evidence]] = frozenset({"counts"})
    of_detectors: ClassVar[bool] = True

    def __post_init__(self) -> None:
        factors = require_numbers(self.method, "factors", self.factors, per="frequency group")
        bad = factors[~(np.isfinite(factors) & (factors > 0))]
        if bad.size or not factors.size:
            what = f"{bad[0]:g} is among the factors" if bad.size else "no factor is given"
            raise FixError(
                f"group_odds: {what}; expected one finite number above 0 per frequency group, e.g. "
                "1 for a group to be left alone."
            )

    def _map(self, context: FixContext) -> AffineMap:
        assert context.classes is not None
        table = context.classes
        head = require_detector(context.head, self.method, instead="--fix group_boost")
        foreground_counts(head, table, self.method)
        names = table.rule.names
        if len(self.factors) != len(names):
            raise FixError(
                f"group_odds has {len(self.factors)} factors and the class table {len(names)} "
                f"groups; give one factor for each of {', '.join(names)}, in this order."
            )
        log_factor = dict(zip(names, np.log(self.factors), strict=True))
        return on_foreground(head, np.array([log_factor[group] for group in table.groups]))

    def freedom(self, context: FixContext) -> int:
        """Return the number of groups that have classes."""
        assert context.classes is not None
        return len(set(context.classes.groups))


def fit_group_odds(
    context: FixContext,
    evaluate: Evaluate,
    *,
    factors: Sequence[float] = FACTORS,
    most_rounds: int = _MOST_ROUNDS,
) -> Searched:
    """Return the group factors that an objective likes best, never worse than none on it.

    A coordinate search over ``factors``, the rarest group first, from 1 for every group; groups
    without classes keep 1. Of factors with the same objective the one nearest to 1 is taken. With
    three groups and the defaults it takes at most 73 evaluations.

    Parameters
    ----------
    context : with the head and the class table.
    evaluate : map of the logits → e.g. the mean AP of the groups on validation images. What the
        choice is worth has to be measured on other images.
    factors : values to try, above 0.
    most_rounds : how often each group's factor is looked at again.

    Raises
    ------
    FixError
        If the head is no detector's, the class table does not fit it, or the objective is no number
        where nothing is changed.
    """
    GroupOdds(tuple(factors)).require_evidence(context)  # refuses factors not above 0 too
    assert context.classes is not None
    names = context.classes.rule.names
    present = [place for place, name in enumerate(names) if context.classes.members(name).size]
    return coordinate_search(
        GroupOdds,
        context,
        evaluate,
        start=(1.0,) * len(names),
        order=present[::-1],
        grid=sorted(factors, key=lambda factor: abs(math.log(factor))),
        most_rounds=most_rounds,
    )
