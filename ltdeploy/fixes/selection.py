"""Choose a fix's strength on validation images, and say what the choice is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..errors import FixError
from .affine import AffineMap
from .base import Fix, FixContext
from .chain import context_after, require_distinct
from .grids import STRENGTHS
from .held_out import fit_per_fold, stratified_folds, top1_per_fold
from .logit_map import LogitMap
from .maps import compose
from .spec import FIXES, FixSpec
from .sweep import sweep_fix
from .temperature import fit_temperature

__all__ = ["Choice", "FittedFix", "choose_strength", "fit_fixes"]

_FOLDS = 5


@dataclass(frozen=True)
class Choice:
    """A strength chosen by cross-validation, and what held-out images said of it.

    Attributes
    ----------
    value : the strength chosen on all validation images; None where no fix is better.
    per_fold : the strength each fold's training part would have chosen.
    before, after : class-averaged accuracy on held-out images without the fix and with the
        strength chosen without them, in percent.
    note : what the user should know, or an empty text.
    """

    value: float | None
    per_fold: tuple[float, ...]
    before: float
    after: float
    note: str = ""


@dataclass(frozen=True)
class FittedFix:
    """A fix as it was applied; ``fix`` is None where validation images spoke against any."""

    method: str
    fix: Fix | None
    choice: Choice | None = None


def _balanced(correct: npt.NDArray[np.bool_], labels: IntArray) -> npt.NDArray[np.float64]:
    """Return class-averaged accuracy in percent per column of ``correct`` (N, S)."""
    _, dense = np.unique(labels, return_inverse=True)
    counts = np.bincount(dense)
    weights = 1.0 / (counts[dense] * len(counts))
    accuracy: npt.NDArray[np.float64] = 100.0 * (weights @ correct)
    return accuracy


def choose_strength(
    build: Callable[[float], Fix], context: FixContext, grid: tuple[float, ...] = STRENGTHS
) -> Choice:
    """Choose the strength with the best class-averaged accuracy by stratified cross-validation.

    Each fold is scored with the strength chosen on the others, which estimates what choosing is
    worth on images it has not seen. The value returned is chosen on all images, ties going to the
    weaker fix; where held-out images do not gain, there is none and the note says so.

    Parameters
    ----------
    build : strength → fix.
    context : must hold validation logits (N, C) and labels (N,).
    grid : strengths to try, rising.

    Raises
    ------
    FixError
        If there are fewer than two images or two classes: nothing can be chosen from them.
    """
    assert context.logits is not None
    assert context.labels is not None
    logits, labels = context.logits, context.labels
    if len(labels) < 2 or len(np.unique(labels)) < 2:
        raise FixError(
            f"The validation data has {len(labels)} images of {len(np.unique(labels))} classes; "
            "choosing a fix needs at least two images of two classes."
        )
    fold = stratified_folds(labels, min(_FOLDS, len(labels)))
    fixes = [build(strength) for strength in grid]
    if fixes[0].learns_from_validation:
        columns = [
            top1_per_fold(fit_per_fold([fix], context, fold), context, fold) for fix in fixes
        ]
        top1 = np.stack(columns, axis=1)
    else:
        top1 = sweep_fix(fixes, context, grid)
    correct = top1 == labels[:, None]
    held_out = np.empty(len(labels), dtype=bool)
    per_fold = []
    for number in np.unique(fold):
        inside = fold != number
        best = int(_balanced(correct[inside], labels[inside]).argmax())
        per_fold.append(grid[best])
        held_out[~inside] = correct[~inside, best]
    unfixed = logits.argmax(axis=1) == labels
    before, after = _balanced(np.stack([unfixed, held_out], axis=1), labels)
    value: float | None = grid[int(_balanced(correct, labels).argmax())]
    note = ""
    if after <= before:
        value = None
        note = (
            f"no strength helps images it was not chosen on ({before:.1f} % without, "
            f"{after:.1f} % with): none is applied"
        )
    elif value == grid[-1]:
        note = f"{value:g} is the strongest value tried; a stronger one may be better still"
    return Choice(value, tuple(per_fold), float(before), float(after), note)


def fit_fixes(specs: list[FixSpec], context: FixContext) -> tuple[LogitMap, tuple[FittedFix, ...]]:
    """Fit fixes in order, each on the head and the logits that the ones before it leave.

    Parameters
    ----------
    specs : those that are ``auto`` need ``context.logits`` and ``labels``.

    Returns
    -------
    the composed map, and each fix with what stands behind it.

    Raises
    ------
    FixError
        If a fix cannot be fitted, or as :func:`~ltdeploy.fixes.chain.require_distinct`.
    """
    assert context.head is not None
    require_distinct(
        [[(FIXES[spec.method], spec.parameters)] for spec in specs], force=context.force
    )
    total: LogitMap = AffineMap.identity(context.head.classes)
    fitted: list[FittedFix] = []
    for spec in specs:
        current = context_after(context, total)
        choice = None
        fix: Fix | None
        if not spec.is_auto:
            fix = spec.fixed()
        elif current.logits is None or current.labels is None:
            raise FixError(
                f"{spec.method}:{spec.tunable}=auto is chosen on validation images and none were "
                "given; add --val DATA (images the model was not trained on)."
            )
        elif spec.method == "temperature":
            activation = "softmax" if current.head is None else current.head.activation
            t = fit_temperature(current.logits, current.labels, activation=activation)
            fix = spec.build(t)
        else:
            choice = choose_strength(spec.build, current, FIXES[spec.method].grid)
            fix = None if choice.value is None else spec.build(choice.value)
        if fix is not None:
            total = compose(total, fix.fit(current))
        fitted.append(FittedFix(spec.method, fix, choice))
    return total, tuple(fitted)
