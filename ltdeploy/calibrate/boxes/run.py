"""Try every fix of a detector on held-out photographs, compare them, and choose one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from ... import __version__
from ...arrays import IntArray
from ...errors import FixError, UsageError
from ...fixes import (
    AffineMap,
    Fix,
    FixContext,
    LogitMap,
    fit_group_odds,
    foreground_columns,
)
from ...progress import Tracker, silent
from ..candidates import Skipped
from ..objective import Aim
from .candidates import BoxCandidate, box_candidates, unsuited
from .choice import BoxContestant, compare_boxes, difference, reason_for_boxes
from .evidence import BoxEvidence
from .result import BoxCalibration, BoxFigures, BoxMethodResult, shown_fix
from .scoring import BoxStrata, HeldOut, Scorer, folds_of, strata_of_boxes

__all__ = ["calibrate_boxes"]

_BEFORE = "none"
_SHARES_OF_LIMIT = (1.0, 0.75, 0.5, 0.25, 0.0)
_LEAST_GAIN = 1e-9  # points: what rounding alone may do
_FEWEST_IMAGES = 10


@dataclass(frozen=True, eq=False)
class _Tried:
    """A method after cross-validation; ``fix`` and ``fitted`` are those of all photographs."""

    candidate: BoxCandidate | None
    contestant: BoxContestant
    per_fold: tuple[Fix, ...]
    fix: Fix | None
    fitted: LogitMap
    figures: BoxFigures


def calibrate_boxes(
    evidence: BoxEvidence,
    *,
    methods: Sequence[str] | None = None,
    aim: Aim | None = None,
    folds: int = 5,
    seed: int = 0,
    track: Tracker = silent,
) -> BoxCalibration:
    """Choose a detector's fix by average precision, and say how sure the choice is.

    The numbers of every method are chosen on all folds but one and answer that one, so that each
    figure comes from photographs that had no part in what they measure. Each fold is ranked by
    itself, and a class's AP is the mean over folds, by their objects: it may differ by a point or
    two from the AP of all photographs in one ranking, for every method alike. Chosen is the
    simplest method within one standard error of the best, the error being that of the paired
    difference under a bootstrap of photographs. No fix at all is always among the choices.

    Parameters
    ----------
    evidence : as :func:`~ltdeploy.calibrate.boxes.evidence_of_detector` returns it.
    methods : names to try; None takes every one that applies.
    aim : what to maximise: ``balanced``, the mean AP over classes, or ``few``, over the rarest
        group; and how much AP the most frequent group may lose.
    folds : in how many parts to cut the photographs.
    seed : decides how they are cut, and the bootstrap.

    Raises
    ------
    UsageError
        For fewer than two folds, no method, or an aim that the photographs cannot tell about.
    DataError
        If fewer than two photographs hold objects.
    FixError
        If a method asked for by name does not apply, or is unknown.
    """
    aim = aim or Aim()
    if folds < 2:
        raise UsageError(f"The number of folds is {folds}; expected 2 or more.")
    if methods is not None and not methods:
        raise UsageError("No method is named; name one, or leave it to ltdeploy (auto).")
    found = box_candidates(methods)
    strata = strata_of_boxes(evidence, aim)
    scorer = Scorer(evidence, folds_of(evidence, folds, seed), seed)
    before = _unfixed(scorer, strata)
    tried, skipped = [before], []
    head = evidence.context.head
    assert head is not None
    for candidate in track(found, total=len(found), label="methods"):
        reason = unsuited(candidate, head) if methods is None else None
        if reason is not None:
            skipped.append(Skipped(candidate.name, reason))
            continue
        try:
            tried.append(_try(candidate, scorer, strata, aim, before))
        except FixError as error:
            if methods is not None:
                raise
            skipped.append(Skipped(candidate.name, str(error)))
    contestants = [one.contestant for one in tried]
    standings = compare_boxes(contestants, aim.max_head_loss)
    chosen = tried[next(at for at, one in enumerate(standings) if one.status == "chosen")]
    results = [
        BoxMethodResult(
            name=one.contestant.name,
            fix=one.fix,
            freedom=one.contestant.freedom,
            per_fold=one.per_fold,
            figures=one.figures,
            objective=one.contestant.reached,
            standing=standing,
        )
        for one, standing in zip(tried, standings, strict=True)
    ]
    table = evidence.classes
    shown = "" if chosen.fix is None else shown_fix(chosen.fix, table)
    groups = list(strata.groups)
    single = [truth.labels[~truth.crowd] for truth in evidence.truth]
    return BoxCalibration(
        classes=table,
        images=len(evidence.raw),
        folds=scorer.folds,
        class_images=_counts([np.unique(labels) for labels in single], len(table)),
        class_objects=_counts(single, len(table)),
        strata=strata,
        aim=aim,
        methods=(
            results[0],
            *sorted(results[1:], key=lambda one: (-one.objective, one.freedom)),
        ),
        fix=chosen.fitted,
        columns=foreground_columns(head),
        reason=reason_for_boxes(
            contestants, standings, aim, shown, groups[0] if len(groups) > 1 else ""
        ),
        warnings=_warnings(evidence, strata, aim, before.figures, chosen),
        skipped=tuple(skipped),
        provenance={
            **(evidence.provenance or {}),
            "Images": f"{len(evidence.raw):,} in {scorer.folds} folds, seed {seed}",
            "Evaluations": f"{scorer.evaluations:,} of all photographs",
            "Date": datetime.now(UTC).isoformat(timespec="seconds"),
            "ltdeploy": __version__,
        },
    )


def _unfixed(scorer: Scorer, strata: BoxStrata) -> _Tried:
    assert scorer.evidence.context.head is not None
    identity = AffineMap.identity(scorer.evidence.context.head.classes)
    held_out = scorer.held_out(scorer.matches([identity] * scorer.folds), strata)
    contestant, figures = _measured(_BEFORE, 0, held_out, strata)
    return _Tried(None, contestant, (), None, identity, figures)


def _try(
    candidate: BoxCandidate, scorer: Scorer, strata: BoxStrata, aim: Aim, before: _Tried
) -> _Tried:
    chooser = _Chooser(candidate, scorer, strata, before.fitted)
    limit = aim.max_head_loss
    for share in _SHARES_OF_LIMIT:
        # Strengths that just keep within the limit on the photographs that chose them may not on
        # those that they answer: then milder ones are chosen, until they do.
        allowed = None if limit is None else share * limit
        made = [chooser.choose(part, allowed) for part in range(scorer.folds)]
        held_out = scorer.held_out(scorer.matches([fitted for _, fitted in made]), strata)
        freedom = made[0][0].freedom(scorer.evidence.context)
        contestant, figures = _measured(candidate.name, freedom, held_out, strata)
        unfixed = before.contestant
        change, _ = difference(
            contestant.head - unfixed.head, contestant.head_replicates, unfixed.head_replicates
        )
        if limit is None or change.low >= -limit or candidate.looks_at_all_boxes:
            break
    fix, fitted = chooser.choose(None, allowed)
    return _Tried(
        candidate,
        contestant,
        tuple(one for one, _ in made),
        None if fitted.is_identity else fix,
        fitted,
        figures,
    )


def _measured(
    name: str, freedom: int, held_out: HeldOut, strata: BoxStrata
) -> tuple[BoxContestant, BoxFigures]:
    precision = held_out.precision
    contestant = BoxContestant(
        name,
        freedom,
        float(strata.value(precision)),
        float(strata.head(precision)),
        held_out.objective,
        held_out.head,
    )
    return contestant, BoxFigures.of(precision, strata)


class _Chooser:
    """Chooses a method's numbers on all folds but one, or on all."""

    def __init__(
        self, candidate: BoxCandidate, scorer: Scorer, strata: BoxStrata, identity: LogitMap
    ) -> None:
        self._candidate, self._scorer, self._strata = candidate, scorer, strata
        self._identity = identity
        context = scorer.evidence.context
        if candidate.looks_at_all_boxes:
            if not scorer.evidence.complete:
                raise FixError(
                    f"{candidate.name} looks at all candidate boxes, and those that cannot become "
                    "a detection were not kept; name it when the photographs are run."
                )
            self._maps: list[LogitMap] = []
        else:
            self._maps = [fix.fit(context) for fix in candidate.fixes]

    def choose(self, part: int | None, allowed: float | None) -> tuple[Fix, LogitMap]:
        """Return what the photographs outside of a fold, or all of them, choose.

        Parameters
        ----------
        allowed : points of AP that the most frequent group may lose on them; None: any.
        """
        candidate = self._candidate
        if candidate.is_searched:
            found = fit_group_odds(
                self._scorer.evidence.context, lambda fix: self._reached(fix, part, allowed)
            )
            return found.fix, found.fitted
        if candidate.looks_at_all_boxes:
            (fix,) = candidate.fixes
            return fix, fix.fit(self._context_without(part))
        reached = np.array([self._reached(fix, part, allowed) for fix in self._maps])
        best = int(np.flatnonzero(reached >= reached.max() - _LEAST_GAIN)[0])
        return candidate.fixes[best], self._maps[best]

    def _reached(self, fix: LogitMap, part: int | None, allowed: float | None) -> float:
        precision = self._scorer.without_fold(fix, part)
        if allowed is not None:
            unfixed = self._scorer.without_fold(self._identity, part)
            change = self._strata.head(precision) - self._strata.head(unfixed)
            if change < -allowed - _LEAST_GAIN:
                return -np.inf
        value = float(self._strata.value(precision))
        if np.isnan(value):
            raise UsageError(
                "A part of the photographs holds no object of the classes that the objective is "
                "about; add photographs that hold them, or cut them in fewer --folds."
            )
        return value

    def _context_without(self, part: int | None) -> FixContext:
        scorer = self._scorer
        rows = [
            raw.logits
            for raw, number in zip(scorer.evidence.raw, scorer.fold.tolist(), strict=True)
            if number != part
        ]
        return replace(scorer.evidence.context, logits=np.concatenate(rows))


def _counts(labels: Sequence[IntArray], classes: int) -> IntArray:
    return np.bincount(np.concatenate(labels), minlength=classes).astype(np.int64)


def _warnings(
    evidence: BoxEvidence, strata: BoxStrata, aim: Aim, before: BoxFigures, chosen: _Tried
) -> tuple[str, ...]:
    table = evidence.classes
    found = []
    absent = int(np.isnan(before.by_class).sum())
    if absent:
        found.append(
            f"{absent} of {len(table)} classes have no object in {evidence.name} and took no part "
            "in the choice"
        )
    if len(strata.groups) == 1 and (aim.objective == "few" or aim.max_head_loss is not None):
        found.append(
            f"all classes that have objects are in the {next(iter(strata.groups))} group, which is "
            "head and tail at once; look at the classes one by one"
        )
    for name in strata.groups:
        if strata.images[name] < _FEWEST_IMAGES:
            found.append(
                f"objects of the {name} group are in {strata.images[name]} photographs: resampling "
                "so few tells too narrow an interval"
            )
    if evidence.context.trained_with is None:
        found.append(
            "the checkpoint does not say what it was trained with; after a loss that balances the "
            "classes, a fix by training counts corrects twice (--trained-with NAME says it)"
        )
    candidate, fix = chosen.candidate, chosen.fix
    if candidate is not None and fix is not None and candidate.parameter is not None:
        value = fix.parameters()[candidate.parameter]
        if len(candidate.values) > 1 and value == candidate.values[-1]:
            found.append(
                f"{candidate.parameter} = {value:g} is the strongest value tried; a stronger one "
                "may be better still"
            )
    return tuple(found)
