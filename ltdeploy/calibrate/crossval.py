"""Cross-validation of one candidate: what it answers on images that it was not fitted on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..errors import FixError
from ..fixes import (
    FixContext,
    LogitMap,
    MappedLogits,
    Temperature,
    compose,
    find_temperature,
    fit_chain,
    fit_per_fold,
    sweep_maps,
    top1_per_fold,
)
from .candidates import Candidate

__all__ = [
    "HeldOut",
    "cross_validate",
    "fit_on_all",
    "settle",
    "with_temperature",
]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A candidate's answers on held-out images, at each value of its parameter.

    Parameters
    ----------
    candidate : with only those values left that could be fitted.
    top1 : array of shape (N, V), int32.
    maps : the map of each value and fold, ``maps[v][k]``; where nothing is learnt from validation
        images all folds share one.
    notes : what went wrong at values that were left out, or with the temperature.
    """

    candidate: Candidate
    top1: npt.NDArray[np.int32]
    maps: tuple[tuple[LogitMap, ...], ...]
    notes: tuple[str, ...] = ()


def cross_validate(candidate: Candidate, context: FixContext, fold: IntArray) -> HeldOut:
    """Return the answers of a candidate on each fold, fitted on the other ones.

    A value at which it cannot be fitted is left out, with a note.

    Parameters
    ----------
    context : holds validation logits (N, C), labels, weights, and what else fixes learn from.
    fold : number of each image's fold, array of shape (N,).

    Raises
    ------
    FixError
        If the candidate cannot be fitted at any value, or only where it changes nothing.
    """
    assert context.logits is not None
    maps: list[tuple[LogitMap, ...]] = []
    fitted: list[int] = []
    notes: list[str] = []
    for place, chain in enumerate(candidate.chains):
        try:
            maps.append(fit_per_fold(chain, context, fold))
            fitted.append(place)
        except FixError as error:
            if len(candidate.chains) == 1:
                raise
            notes.append(str(error))
    nothing_left = all(one.is_identity for per_fold in maps for one in per_fold)
    if notes and (nothing_left or (len(set(notes)) == 1 and len(maps) <= 1)):
        raise FixError(notes[0])  # what is left, if anything, is no fix
    values = tuple(candidate.values[place] for place in fitted) if candidate.values else ()
    if candidate.learns_from_validation:
        top1 = np.stack([top1_per_fold(one, context, fold) for one in maps], axis=1)
    else:
        alike = [one[0] for one in maps]
        top1 = sweep_maps(context.logits, alike, values or (0.0,), context.features)
    left = replace(
        candidate, chains=tuple(candidate.chains[place] for place in fitted), values=values
    )
    shown = tuple(
        f"{candidate.parameter}={candidate.values[place]:g} could not be fitted: {note}"
        for place, note in zip(
            (p for p in range(len(candidate.chains)) if p not in fitted), notes, strict=True
        )
    )
    return HeldOut(left, top1, tuple(maps), shown)


def settle(
    held_out: HeldOut, chosen: list[int], context: FixContext, fold: IntArray
) -> tuple[HeldOut, MappedLogits]:
    """Return a candidate with what there is to say of its confidence, and its held-out logits.

    Each fold is answered by the map of the value chosen for it, behind which stands a temperature
    fitted on the other folds, like everything else in it. Nothing of the size of the logits is
    kept: they are mapped as they are read.

    Parameters
    ----------
    chosen : place of the value per fold.
    """
    assert context.labels is not None
    maps: list[LogitMap] = []
    notes = list(held_out.notes)
    near: float | None = None
    for place, number in enumerate(np.unique(fold)):
        fitted = held_out.maps[chosen[place]][place]
        if not held_out.candidate.calibrates:
            weights = np.ones(len(fold)) if context.weights is None else context.weights
            others = replace(context, weights=weights * (fold != number))
            fitted, t, note = with_temperature(fitted, others, near)
            near = t or near
            notes += [note] if note and note not in notes else []
        maps.append(fitted)
    return replace(held_out, notes=tuple(notes)), MappedLogits(tuple(maps), context, fold)


def fit_on_all(held_out: HeldOut, place: int, context: FixContext) -> tuple[LogitMap, float | None]:
    """Return the map at one value, fitted on all validation images, and its temperature.

    What there is to say of this temperature the notes of :func:`settle` have said: where all
    images leave it open, so do those of a fold.

    Returns
    -------
    the map with the temperature inside, and the temperature; None where the candidate sets the
    confidence itself, or no temperature can be fitted.
    """
    fitted = fit_chain(held_out.candidate.chains[place], context)
    if held_out.candidate.calibrates:
        return fitted, None
    return with_temperature(fitted, context)[:2]


def with_temperature(
    fitted: LogitMap, context: FixContext, near: float | None = None
) -> tuple[LogitMap, float | None, str]:
    """Return the map followed by the temperature that suits its logits, as one map.

    Parameters
    ----------
    near : a temperature near the one sought, which saves time.

    Returns
    -------
    the map, the temperature, and what is to be said of it, or an empty text. Where no temperature
    can be fitted, the map as it was, None and why.
    """
    try:
        found = find_temperature(context, fitted, near)
    except FixError as error:
        return fitted, None, f"the confidence is left as it is: {error}"
    return compose(fitted, Temperature(found.t).fit(context)), found.t, found.note
