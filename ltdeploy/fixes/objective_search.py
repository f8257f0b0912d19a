"""Numbers of a fix chosen by any objective: a bounded coordinate search that always ends alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from ..errors import FixError
from .base import Fix, FixContext
from .logit_map import LogitMap

__all__ = ["Evaluate", "Searched", "Trial", "choose_strength_by", "coordinate_search"]

Evaluate = Callable[[LogitMap], float]
"""A map of the logits → how good it is on validation images, e.g. AP; the more the better."""

_LEAST_GAIN = 1e-12  # what rounding alone may do


@dataclass(frozen=True)
class Trial:
    """One evaluation: the fix's numbers, and what the objective said; NaN counts as the worst."""

    numbers: tuple[float, ...]
    value: float


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search found.

    Attributes
    ----------
    fix : with the numbers that were best.
    fitted : its map of the logits.
    value : the objective of ``fitted``, never below ``neutral``.
    neutral : the objective where nothing is changed.
    trace : every evaluation, in order; the first one is the neutral one.
    settled : whether no single number could be bettered; False where the rounds ran out before.
    """

    fix: Fix
    fitted: LogitMap
    value: float
    neutral: float
    trace: tuple[Trial, ...]
    settled: bool


def choose_strength_by(
    build: Callable[[float], Fix],
    grid: Sequence[float],
    context: FixContext,
    evaluate: Evaluate,
    *,
    neutral: float = 0.0,
) -> Searched:
    """Choose a fix's one strength by an objective, from ``neutral`` and the values of a grid.

    Ties go to the value nearest to ``neutral``. What the choice is worth has to be measured on
    images that did not choose.

    Parameters
    ----------
    build : strength → fix, such as :class:`~ltdeploy.fixes.NorCal`.
    grid : e.g. ``NorCal.grid``.
    context : what the fix is fitted on.
    neutral : the strength that changes nothing.

    Raises
    ------
    FixError
        If the fix does not apply, or the objective is no number where nothing is changed.
    """
    return coordinate_search(
        lambda numbers: build(numbers[0]),
        context,
        evaluate,
        start=(neutral,),
        order=(0,),
        grid=sorted(grid, key=lambda strength: abs(strength - neutral)),
        most_rounds=1,
    )


def coordinate_search(
    build: Callable[[tuple[float, ...]], Fix],
    context: FixContext,
    evaluate: Evaluate,
    *,
    start: tuple[float, ...],
    order: Sequence[int],
    grid: Sequence[float],
    most_rounds: int,
) -> Searched:
    """Return the best fix that changing one of its numbers at a time leads to.

    Each number in turn takes the value of the grid with the best objective, the others held; of
    equally good values the first stays. It ends after a round without a move, or ``most_rounds``:
    with k numbers and a grid of g at most ``1 + most_rounds · k · g`` evaluations. Nothing is
    evaluated twice.

    Parameters
    ----------
    build : numbers → fix.
    start : the numbers that change nothing.
    order : which of them are varied, by place, the first one first.
    grid : what each may be, the mildest first.

    Raises
    ------
    FixError
        As :func:`choose_strength_by`.
    """
    trace: list[Trial] = []
    seen: dict[tuple[float, ...], float] = {}

    def value_of(numbers: tuple[float, ...]) -> float:
        if numbers not in seen:
            value = float(evaluate(build(numbers).fit(context)))
            trace.append(Trial(numbers, value))
            seen[numbers] = -np.inf if np.isnan(value) else value
        return seen[numbers]

    neutral = best = value_of(start)
    if not np.isfinite(neutral):
        raise FixError(
            f"The objective is {trace[0].value} for the model as it is; expected a number. Are "
            "there objects of any class in the validation images?"
        )
    numbers, settled = start, False
    for round_ in count(1):
        before = numbers
        for place in order:
            for tried in grid:
                trial = (*numbers[:place], float(tried), *numbers[place + 1 :])
                if value_of(trial) > best + _LEAST_GAIN:
                    numbers, best = trial, value_of(trial)
        settled = numbers == before
        if settled or round_ == most_rounds:
            break
    fix = build(numbers)
    # One number that has tried its whole grid cannot be bettered by trying it again.
    settled = settled or len(order) == 1
    return Searched(fix, fix.fit(context), best, neutral, tuple(trace), settled)
