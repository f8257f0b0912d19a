"""Try every method on held-out folds, compare them, and choose one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__, _optional
from ..arrays import IntArray
from ..classes import ClassTable
from ..errors import DataError, FixError, UsageError
from ..fixes import MappedLogits, TargetPrior, stratified_folds
from ..metrics import (
    Bootstrap,
    Figure,
    Figures,
    figures_of,
    wilson_interval,
)
from ..progress import Tracker, silent
from .candidates import Candidate, Skipped, candidates, parse_candidate
from .choice import Contestant, compare, head_change, paired_difference, reason_for
from .crossval import HeldOut, cross_validate, fit_on_all, settle
from .details import changes_of, confidence_of, sweep_of
from .evidence import Evidence
from .objective import Aim, Strata, best_value, likelihood_weights, strata_of
from .result import Calibration, MethodResult
from .warn import warnings_of, warnings_of_choice

__all__ = ["calibrate"]

_BEFORE = "none"
_SHARES_OF_LIMIT = (1.0, 0.75, 0.5, 0.25, 0.0)
_MOST_THREADS = 8
_MOST_COPIED_BYTES = 2 << 30


@dataclass(frozen=True, eq=False)
class _Tried:
    """A method after cross-validation; ``place`` and ``per_fold`` are places of chosen values."""

    held_out: HeldOut
    place: int
    per_fold: list[int]
    correct: npt.NDArray[np.bool_]
    figures: Figures
    freedom: int
    mapped: MappedLogits
    last_resort: bool = False

    @property
    def candidate(self) -> Candidate:
        return self.held_out.candidate

    def shown_per_fold(self) -> tuple[float | None, ...]:
        values = self.candidate.values
        return tuple(values[place] if values else None for place in self.per_fold)


def calibrate(
    evidence: Evidence,
    *,
    methods: Sequence[str] | None = None,
    aim: Aim | None = None,
    folds: int = 5,
    seed: int = 0,
    track: Tracker = silent,
) -> Calibration:
    """Choose a fix on labelled validation logits, and say how sure the choice is.

    Every method is fitted on all folds but one and answers that one, its parameter chosen without
    it; so each figure comes from images that had no part in what they measure. (Of a method that is
    fitted, the ridge of a fold is chosen by the answers on the other folds, whose fits have seen
    this one: a leak of a choice between four numbers. τ has no such leak.) Chosen is the simplest
    method within one standard error of the best, the error being that of the paired difference
    (the rule of Breiman et al. 1984, *Classification and regression trees*, §3.4.3, on pairs).
    To leave all decisions as they are is always among the choices; where methods are named, it is
    taken only if none of them comes near, or keeps within the loss that is allowed. Forced evidence
    has them all the same, unless that loss is limited.

    Parameters
    ----------
    evidence : as :func:`~ltdeploy.calibrate.read_npz` or
        :func:`~ltdeploy.calibrate.evidence_of_checkpoint` return it.
    methods : names to try; None takes every one that applies.
    aim : what to maximise; None the class-averaged accuracy.
    folds : in how many parts to cut the validation images.
    seed : decides how they are cut.

    Raises
    ------
    UsageError
        For fewer than two folds, no method, a target prior of other classes than there are, or
        no validation image of the group that is to be maximised or protected.
    FixError
        If a method asked for by name does not apply, or none does.
    """
    aim = aim or Aim()
    if folds < 2:
        raise UsageError(f"The number of folds is {folds}; expected 2 or more.")
    if methods is not None and not methods:
        raise UsageError("No method is named; name one, or leave it to ltdeploy (auto).")
    labels, table = evidence.labels, evidence.classes
    _check_prior(aim, labels, table)
    _check_groups(aim, labels, table)
    fold = stratified_folds(labels, min(folds, len(labels)), seed)
    bootstrap = Bootstrap(labels, table, seed=seed)
    strata = strata_of(labels, table, aim)
    weights = likelihood_weights(evidence.context, aim)
    evidence = replace(evidence, context=replace(evidence.context, weights=weights))
    unfixed = evidence.logits.argmax(axis=1) == labels

    found, skipped = candidates(methods, evidence.context)
    last_resort: Candidate | None = None
    insisted = evidence.context.force and aim.max_head_loss is None
    if all(one.changes_decisions for one in found) and not insisted:
        last_resort = parse_candidate("temperature")
        found = (*found, last_resort)
    if aim.target_prior is not None and not aim.estimated and methods is None:
        prior = TargetPrior(tuple(aim.target_prior.tolist()))
        found = (*found, Candidate("target_prior", ((prior,),)))
    tried: list[_Tried] = []
    left_out = list(skipped)
    job = _Job(evidence, fold, unfixed, strata, bootstrap, aim)
    for candidate, outcome in track(_in_threads(job, found), total=len(found), label="methods"):
        if isinstance(outcome, _Tried):
            tried.append(replace(outcome, last_resort=candidate is last_resort))
        elif methods is not None and candidate is not last_resort:
            raise outcome
        else:
            left_out.append(Skipped(candidate.name, str(outcome)))
    if not tried:
        raise FixError(f"No method could be fitted. {left_out[0].reason}")

    contestants = [Contestant(t.candidate.name, t.freedom, t.correct, t.last_resort) for t in tried]
    standings = compare(contestants, unfixed, strata, bootstrap.multiplicities, aim)
    chosen = next(i for i, standing in enumerate(standings) if standing.status == "chosen")
    fix, t = fit_on_all(tried[chosen].held_out, tried[chosen].place, evidence.context)
    gain, _ = paired_difference(
        tried[chosen].correct, unfixed, strata, bootstrap.multiplicities, aim.objective
    )
    before = float(strata.values(unfixed[:, None], aim.objective)[0])
    results = []
    for one, standing in zip(tried, standings, strict=True):
        own_t = t if one is tried[chosen] else None
        results.append(
            MethodResult(
                name=one.candidate.name,
                fixes=one.candidate.chains[one.place],
                t=own_t,
                freedom=one.freedom,
                per_fold=one.shown_per_fold(),
                figures=one.figures,
                objective=_objective(one.figures, one.correct, strata, aim),
                behind=(standing.behind, standing.standard_error),
                head_change=standing.head_change,
                status=standing.status,
                note="; ".join(one.held_out.notes),
            )
        )
    best = standings[chosen].reached - standings[chosen].behind
    raw = _before(evidence, unfixed, strata, bootstrap, aim, before, best)
    ranked = sorted(results, key=lambda result: (-(result.objective.value or 0.0), result.freedom))
    winner = results[chosen]
    # A strength of 0 that the limit left over is no fix to speak of.
    same = np.array_equal(tried[chosen].correct, unfixed)
    shown = "" if same else " + ".join(fix.describe() for fix in winner.fixes)
    groups = [name for name in table.rule.names if name in strata.groups]
    head = groups[0] if len(groups) > 1 else ""
    reason = reason_for(contestants, standings, before, gain, aim, shown, head)
    if not shown and t is not None:
        reason += f" The fix is a temperature of {t:.3g}, for honest confidence."
    return Calibration(
        classes=table,
        images=len(labels),
        folds=int(fold.max()) + 1,
        aim=aim,
        methods=(raw, *ranked),
        chosen=winner,
        fix=fix,
        reason=reason,
        warnings=(
            *warnings_of(evidence, aim),
            *warnings_of_choice(raw, winner, tried[chosen].candidate, tried[chosen].place, aim),
        ),
        skipped=tuple(left_out),
        sweeps=tuple(
            sweep_of(one.held_out, one.place, labels, strata)
            for one in tried
            if one.candidate.is_sweep
        ),
        confidence={
            "before": confidence_of(evidence.logits, evidence),
            "after": confidence_of(tried[chosen].mapped, evidence),
        },
        changes=changes_of(labels, len(table), unfixed, tried[chosen].correct),
        provenance={
            **(evidence.provenance or {}),
            "Images": f"{len(labels):,} in {int(fold.max()) + 1} folds, seed {seed}",
            "Date": datetime.now(UTC).isoformat(timespec="seconds"),
            "ltdeploy": __version__,
        },
    )


def _check_prior(aim: Aim, labels: IntArray, table: ClassTable) -> None:
    prior = aim.target_prior
    if prior is None:
        return
    if len(prior) != len(table):
        raise UsageError(
            f"The target prior has {len(prior)} shares and there are {len(table)} classes; "
            "expected one share per class, in label order."
        )
    if not prior[labels].any():
        raise UsageError(
            "The target prior gives no share to any class that has validation images, so nothing "
            "can be chosen for it; add validation images of the classes that will be seen."
        )


def _check_groups(aim: Aim, labels: IntArray, table: ClassTable) -> None:
    """Refuse to maximise, or to protect, a group without validation images."""
    there = [name for name in table.rule.names if name in table.groups]
    shown = set(np.array(table.groups)[labels].tolist())
    if aim.objective == "few" and there[-1] not in shown:
        raise UsageError(
            f"--objective few is about the {there[-1]} group, and none of its "
            f"{table.groups.count(there[-1])} classes has a validation image; add some, or choose "
            "another objective."
        )
    if aim.max_head_loss is not None and there[0] not in shown:
        raise UsageError(
            f"--max-head-loss protects the {there[0]} group, and none of its "
            f"{table.groups.count(there[0])} classes has a validation image; add some, or leave "
            "it out."
        )


@dataclass(frozen=True, eq=False)
class _Job:
    """What every candidate is tried on."""

    evidence: Evidence
    fold: IntArray
    unfixed: npt.NDArray[np.bool_]
    strata: Strata
    bootstrap: Bootstrap
    aim: Aim


def _in_threads(
    job: _Job, found: Sequence[Candidate]
) -> Iterator[tuple[Candidate, _Tried | FixError]]:
    """Yield each candidate with its result, in order; one per core at a time.

    Candidates are spread over the cores and not the products inside them: these are small, and
    threads that wait for each other over small products cost more than they bring.
    """
    limits: Any = _optional.require("threadpoolctl", extra="verify", purpose="calibrate")

    def one(candidate: Candidate) -> _Tried | FixError:
        try:
            return _try(candidate, job)
        except FixError as error:
            return error
        except DataError as error:  # figures of fixed logits that overflowed
            return FixError(f"{candidate.name}: what it answers cannot be used. {error}")

    # What learns from validation images copies four fifths of the logits for each fold.
    room = max(1, _MOST_COPIED_BYTES // job.evidence.logits.nbytes)
    cores = min(len(os.sched_getaffinity(0)), _MOST_THREADS, room)
    with limits.threadpool_limits(1), ThreadPoolExecutor(cores) as pool:
        # What learns most stands last and takes longest: begun first, no core waits for it alone.
        started = {id(one_of): pool.submit(one, one_of) for one_of in reversed(found)}
        for candidate in found:
            yield candidate, started[id(candidate)].result()


def _try(candidate: Candidate, job: _Job) -> _Tried:
    evidence, fold, unfixed, aim = job.evidence, job.fold, job.unfixed, job.aim
    strata, bootstrap = job.strata, job.bootstrap
    labels, table = evidence.labels, evidence.classes
    held_out = cross_validate(candidate, evidence.context, fold)
    correct = held_out.top1 == labels[:, None]
    limit = aim.max_head_loss
    for share in _SHARES_OF_LIMIT:
        # Strengths that just keep within the limit on the images that chose them, may not on those
        # that they answer: then milder ones are chosen, until they do.
        stricter = aim if limit is None else replace(aim, max_head_loss=share * limit)
        per_fold, answered = _answered(correct, job, stricter)
        if limit is None or correct.shape[1] == 1:
            break
        change = head_change(answered, unfixed, strata, bootstrap.multiplicities)
        if (change.low or 0.0) >= -limit:
            break
    held_out, mapped = settle(held_out, per_fold, evidence.context, fold)
    return _Tried(
        held_out,
        best_value(correct, unfixed, strata, stricter),
        per_fold,
        answered,
        figures_of(mapped, labels, table, bootstrap, evidence.activation),
        candidate.freedom(evidence.context),
        mapped,
    )


def _answered(
    correct: npt.NDArray[np.bool_], job: _Job, aim: Aim
) -> tuple[list[int], npt.NDArray[np.bool_]]:
    """Return the place of the value that each fold's other images choose, and what is right."""
    labels, table = job.evidence.labels, job.evidence.classes
    per_fold = []
    answered = np.empty(len(labels), dtype=bool)
    for number in np.unique(job.fold):
        others, own = job.fold != number, job.fold == number
        place = best_value(
            correct[others], job.unfixed[others], strata_of(labels[others], table, aim), aim
        )
        per_fold.append(place)
        answered[own] = correct[own, place]
    return per_fold, answered


def _before(
    evidence: Evidence,
    unfixed: npt.NDArray[np.bool_],
    strata: Strata,
    bootstrap: Bootstrap,
    aim: Aim,
    value: float,
    best: float,
) -> MethodResult:
    """Return the row of the model as it is."""
    figures = figures_of(
        evidence.logits, evidence.labels, evidence.classes, bootstrap, evidence.activation
    )
    return MethodResult(
        name=_BEFORE,
        fixes=(),
        t=None,
        freedom=0,
        per_fold=(),
        figures=figures,
        objective=_objective(figures, unfixed, strata, aim),
        behind=(value - best, 0.0),
        head_change=Figure(0.0, 0.0, 0.0),
        status="before",
    )


def _objective(
    figures: Figures, correct: npt.NDArray[np.bool_], strata: Strata, aim: Aim
) -> Figure:
    """Return the objective with its interval."""
    if aim.objective == "balanced":
        return figures.balanced
    if aim.objective == "harmonic":
        return figures.harmonic
    if aim.objective == "few":
        measured = [figure for figure in figures.groups.values() if figure is not None]
        return measured[-1]
    share = float(strata.overall @ correct)
    low, high = wilson_interval(share, 1.0 / float(strata.overall @ strata.overall))
    return Figure(100.0 * share, 100.0 * float(low), 100.0 * float(high))
