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
    Temperature,
    compose,
    fit_chain,
    fit_per_fold,
    fit_temperature,
    mapped_blocks,
    part_of,
    sweep_maps,
    top1_per_fold,
)
from .candidates import Candidate

__all__ = ["HeldOut", "cross_validate", "fit_on_all", "held_out_logits", "with_temperature"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """A candidate's answers on held-out images, at each value of its parameter.

    Parameters
    ----------
    candidate : with only those values left that could be fitted.
    top1 : array of shape (N, V), int32.
    maps : the map of each value and fold, ``maps[v][k]``; where nothing is learnt from validation
        images all folds share one.
    notes : what went wrong at values that were left out.
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
    if notes and all(one.is_identity for per_fold in maps for one in per_fold):
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


def held_out_logits(
    held_out: HeldOut, chosen: list[int], context: FixContext, fold: IntArray
) -> npt.NDArray[np.float32]:
    """Return logits (N, C) on held-out images at the value chosen in each fold, with temperature.

    The temperature of a fold is fitted on the other folds, like everything else in it.

    Parameters
    ----------
    chosen : place of the value per fold.
    """
    assert context.logits is not None
    result = np.empty(context.logits.shape, dtype=np.float32)
    for place, number in enumerate(np.unique(fold)):
        fitted = held_out.maps[chosen[place]][place]
        if not held_out.candidate.calibrates:
            fitted, _ = with_temperature(fitted, part_of(context, fold != number))
        for block, mapped in mapped_blocks(fitted, context, np.flatnonzero(fold == number)):
            result[block] = mapped
    return result


def fit_on_all(held_out: HeldOut, place: int, context: FixContext) -> tuple[LogitMap, float | None]:
    """Return the map at one value, fitted on all validation images, and its temperature.

    Returns
    -------
    the map with the temperature inside, and the temperature; None where the candidate sets the
    confidence itself, or no temperature fits.
    """
    fitted = fit_chain(held_out.candidate.chains[place], context)
    if held_out.candidate.calibrates:
        return fitted, None
    return with_temperature(fitted, context)


def with_temperature(fitted: LogitMap, context: FixContext) -> tuple[LogitMap, float | None]:
    """Return the map followed by the temperature that suits its logits, as one map, and that value.

    A model that is right on every image has no temperature, nor has a sigmoid head: the map is
    returned as it is.
    """
    assert context.logits is not None
    assert context.labels is not None
    if context.head is not None and context.head.activation != "softmax":
        return fitted, None  # a temperature is a softmax's
    try:
        t = fit_temperature(
            fitted.apply(context.logits, context.features), context.labels, context.weights
        )
    except FixError:
        return fitted, None
    return compose(fitted, Temperature(t).fit(context)), t
