"""Choose a fix's strength on validation images, and say what the choice is worth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..errors import FixError
from .affine import AffineMap
from .base import Fix, FixContext
from .spec import FixSpec
from .temperature import fit_temperature

__all__ = ["Choice", "choose_strength", "fit_fixes", "stratified_folds"]

_GRID = tuple(round(0.05 * step, 2) for step in range(41))  # τ = 0 … 2
_FOLDS = 5


@dataclass(frozen=True)
class Choice:
    """A strength chosen by cross-validation, and what held-out images said of it.

    Attributes
    ----------
    value : the strength chosen on all validation images.
    per_fold : the strength each fold's training part would have chosen.
    before, after : class-averaged accuracy on held-out images without the fix and with the
        strength chosen without them, in percent.
    note : what the user should know, or an empty text.
    """

    value: float
    per_fold: tuple[float, ...]
    before: float
    after: float
    note: str = ""


def stratified_folds(labels: IntArray, folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return a fold number per image, shape (N,), with each class spread as evenly as it can be.

    A class with fewer images than folds stands in as many folds as it has images; where it starts
    is drawn, so that small classes do not all fall into the first folds.
    """
    generator = np.random.default_rng(seed)
    fold = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        fold[members] = (np.arange(len(members)) + generator.integers(folds)) % folds
    return fold


def _balanced(correct: npt.NDArray[np.bool_], labels: IntArray) -> npt.NDArray[np.float64]:
    """Return class-averaged accuracy in percent per column of ``correct`` (N, S)."""
    _, dense = np.unique(labels, return_inverse=True)
    counts = np.bincount(dense)
    weights = 1.0 / (counts[dense] * len(counts))
    accuracy: npt.NDArray[np.float64] = 100.0 * (weights @ correct)
    return accuracy


def choose_strength(
    build: Callable[[float], Fix], context: FixContext, grid: tuple[float, ...] = _GRID
) -> Choice:
    """Choose the strength with the best class-averaged accuracy by stratified cross-validation.

    Each fold is scored with the strength chosen on the others, which estimates what choosing is
    worth on images it has not seen. The value returned is chosen on all images, ties going to the
    weaker fix; where held-out images do not gain, it is 0 and the note says so.

    Parameters
    ----------
    build : strength → fix.
    context : must hold validation logits (N, C) and labels (N,).
    grid : strengths to try, rising, with 0 as "no fix".

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
    correct = np.empty((len(labels), len(grid)), dtype=bool)
    for column, strength in enumerate(grid):
        mapped = build(strength).fit(context).apply(logits)
        correct[:, column] = mapped.argmax(axis=1) == labels

    fold = stratified_folds(labels, min(_FOLDS, len(labels)))
    neutral = grid.index(0.0)
    held_out = np.empty(len(labels), dtype=bool)
    per_fold = []
    for number in np.unique(fold):
        inside = fold != number
        best = int(_balanced(correct[inside], labels[inside]).argmax())
        per_fold.append(grid[best])
        held_out[~inside] = correct[~inside, best]
    before, after = _balanced(np.stack([correct[:, neutral], held_out], axis=1), labels)
    value = grid[int(_balanced(correct, labels).argmax())]
    note = ""
    if after <= before:
        value = 0.0
        note = (
            f"no strength helps images it was not chosen on ({before:.1f} % without, "
            f"{after:.1f} % with): none is applied"
        )
    elif value == grid[-1]:
        note = f"{value:g} is the strongest value tried; a stronger one may be better still"
    return Choice(value, tuple(per_fold), float(before), float(after), note)


def fit_fixes(
    specs: list[FixSpec], context: FixContext
) -> tuple[AffineMap, list[Fix], list[Choice | None]]:
    """Fit fixes in order, each on the logits that the ones before it give.

    Parameters
    ----------
    specs : at least one fix may be ``auto``; those need ``context.logits`` and ``labels``.

    Returns
    -------
    the composed map, the fixes with all parameters known, and the choice behind each ``auto``.
    """
    assert context.head is not None
    total = AffineMap.identity(context.head.classes)
    fixes: list[Fix] = []
    choices: list[Choice | None] = []
    for spec in specs:
        current = context
        if context.logits is not None:
            current = replace(context, logits=total.apply(context.logits))
        choice = None
        if not spec.is_auto:
            fix = spec.build(spec.parameters[spec.tunable])
        elif current.logits is None or current.labels is None:
            raise FixError(
                f"{spec.method}:{spec.tunable}=auto is chosen on validation images and none were "
                "given; add --val DATA (images the model was not trained on)."
            )
        elif spec.method == "temperature":
            fix = spec.build(fit_temperature(current.logits, current.labels))
        else:
            choice = choose_strength(spec.build, current)
            fix = spec.build(choice.value)
        total = total.then(fix.fit(current))
        fixes.append(fix)
        choices.append(choice)
    return total, fixes, choices
