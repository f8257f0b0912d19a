"""Average precision of a detector under any map of its logits, on all photographs and on parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ...arrays import IntArray
from ...boxes import Detections
from ...errors import DataError, UsageError
from ...fixes import AffineMap, LogitMap, stratified_folds
from ...metrics.detection import average_precision, mean_precision
from ...metrics.matching import IOU_THRESHOLDS, Matches, match
from ...postprocess import postprocess
from ..objective import Aim
from .evidence import BoxEvidence
from .outputs import RawBoxes

__all__ = ["BoxStrata", "HeldOut", "Scorer", "folds_of", "strata_of_boxes"]

Float64 = npt.NDArray[np.float64]

_REPLICATES = 400
_NUMBERS_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class BoxStrata:
    """Which classes the figures of a choice are over.

    Parameters
    ----------
    groups : labels of the classes of each group that has objects to find, frequent ones first.
    images : how many photographs hold an object of each of these groups.
    objective : ``balanced``: the mean over all classes; ``few``: over those of the last group.
    """

    groups: dict[str, IntArray]
    images: dict[str, int]
    objective: str

    def value(self, precision: Float64) -> Float64:
        """Return the objective in percent, shapes (..., F, T) to (...); NaN without an object."""
        labels = list(self.groups.values())[-1] if self.objective == "few" else None
        return 100.0 * mean_precision(precision, labels)

    def head(self, precision: Float64) -> Float64:
        """Return the mean AP of the most frequent group in percent."""
        return 100.0 * mean_precision(precision, next(iter(self.groups.values())))


def strata_of_boxes(evidence: BoxEvidence, aim: Aim) -> BoxStrata:
    """Return the groups that can be measured, or say why the aim cannot be followed.

    Raises
    ------
    UsageError
        For an objective that detectors do not have, or a group that is to be maximised or protected
        and is in fewer than two photographs.
    DataError
        If no photograph holds an object, or only one does.
    """
    if aim.objective not in ("balanced", "few"):
        raise UsageError(
            f"The objective {aim.objective!r} is for classifiers; expected balanced (the mean AP "
            "over classes) or few (over the classes of the rarest group)."
        )
    table = evidence.classes
    held = [np.unique(truth.labels[~truth.crowd]) for truth in evidence.truth]
    if sum(1 for labels in held if len(labels)) < 2:
        raise DataError(
            f"Fewer than two of the {len(held)} photographs of {evidence.name} hold an object; a "
            "choice of fix needs some hundred objects, or at least two photographs with some."
        )
    groups, images = {}, {}
    present = [name for name in table.rule.names if name in table.groups]
    shown = np.unique(np.concatenate(held))
    for name in present:
        members = table.members(name)
        images[name] = sum(bool(np.isin(labels, members).any()) for labels in held)
        if np.isin(members, shown).any():
            groups[name] = members
    for option, name, asked in (
        ("--objective few is about", present[-1], aim.objective == "few"),
        ("--max-head-loss protects", present[0], aim.max_head_loss is not None),
    ):
        if asked and images[name] < 2:
            raise UsageError(
                f"{option} the {name} group, whose {len(table.members(name))} classes are in "
                f"{images[name]} of the validation photographs; expected two or more. Add "
                "photographs that hold them, or leave the option out."
            )
    return BoxStrata(groups, images, aim.objective)


def folds_of(evidence: BoxEvidence, folds: int, seed: int) -> IntArray:
    """Return a fold number per photograph, the photographs of each rare class spread evenly.

    A photograph goes by the class in it that is in the fewest photographs.
    """
    classes = len(evidence.classes)
    held = [np.unique(truth.labels[~truth.crowd]) for truth in evidence.truth]
    images = np.bincount(np.concatenate(held), minlength=classes)
    rarest = [int(labels[images[labels].argmin()]) if len(labels) else classes for labels in held]
    return stratified_folds(np.array(rarest, np.int64), min(folds, len(rarest)), seed)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a method is worth on photographs that had no part in choosing its numbers.

    Parameters
    ----------
    precision : AP of each class and IoU, shape (F, T), in 0..1; NaN without an object.
    objective, head : of resampled photographs, shapes (B,), in percent.
    """

    precision: Float64
    objective: Float64
    head: Float64


@dataclass(eq=False)
class Scorer:
    """Evaluates maps on the same photographs; no map is evaluated twice.

    Matching stays within a photograph, so that one evaluation of all photographs tells the average
    precision on any part of them.

    Parameters
    ----------
    fold : number of each photograph's fold, shape (N,).
    seed : of the bootstrap, whose draws are the same for every map.
    """

    evidence: BoxEvidence
    fold: IntArray
    seed: int = 0
    evaluations: int = 0
    _known: dict[bytes, Float64] = field(default_factory=dict)

    @property
    def folds(self) -> int:
        """How many there are."""
        return int(self.fold.max()) + 1

    def without_fold(self, fix: LogitMap, part: int | None) -> Float64:
        """Return the AP of each class and IoU, shape (F, T), on all folds but one, or on all."""
        key = _key(fix)
        if key not in self._known:
            weights = np.ones((self.folds + 1, len(self.fold)))
            for number in range(self.folds):
                weights[number, self.fold == number] = 0.0
            self._known[key] = average_precision(self.matches([fix] * self.folds), weights)
        known: Float64 = self._known[key][self.folds if part is None else part]
        return known

    def matches(self, maps: Sequence[LogitMap]) -> Matches:
        """Return what is right and wrong where each fold is answered by a map of its own.

        Parameters
        ----------
        maps : one per fold.
        """
        self.evaluations += 1
        found = [
            self._found(raw, maps[number])
            for raw, number in zip(self.evidence.raw, self.fold.tolist(), strict=True)
        ]
        evidence = self.evidence
        return match(evidence.truth, found, len(evidence.classes), evidence.limits)

    def held_out(self, matches: Matches, strata: BoxStrata) -> HeldOut:
        """Return what matches of one map per fold are worth, each fold ranked by itself.

        Maps of different folds raise scores by different amounts, so that detections of all folds
        in one ranking would count against every method that has something to choose. A class's AP
        is the mean of its folds', each weighing as many objects as it holds.

        A replicate draws as many photographs as there are, with repetition (Efron and Tibshirani
        1993, ch. 13), the same ones for every map.
        """
        parts = [_part(matches, self.fold == number) for number in range(self.folds)]
        rng = np.random.default_rng(self.seed)
        images = matches.images
        drawn = rng.multinomial(images, np.full(images, 1 / images), size=_REPLICATES)
        objective, head = [], []
        rows = max(1, _NUMBERS_AT_ONCE // (10 * matches.classes))
        for start in range(0, _REPLICATES, rows):
            precision = self._over_folds(parts, drawn[start : start + rows].astype(np.float64))
            objective.append(strata.value(precision))
            head.append(strata.head(precision))
        whole = self._over_folds(parts, np.ones((1, images)))[0]
        return HeldOut(whole, np.concatenate(objective), np.concatenate(head))

    def _over_folds(self, parts: Sequence[Matches], weights: Float64) -> Float64:
        """Return the folds' mean AP of weighted photographs (B, N), shape (B, F, T)."""
        total = np.zeros((len(weights), parts[0].classes, 1))
        weighted = np.zeros((len(weights), parts[0].classes, len(IOU_THRESHOLDS)))
        for number, part in enumerate(parts):
            own = weights[:, self.fold == number]
            precision = average_precision(part, own)
            held = np.zeros((part.images, part.classes))
            counts = part.truth_counts[0]
            np.add.at(held, (part.truth_image[counts], part.truth_label[counts]), 1.0)
            objects = (own @ held)[:, :, None]
            weighted += np.where(objects > 0, precision, 0.0) * objects
            total += objects
        mean: Float64 = np.divide(
            weighted, total, out=np.full(weighted.shape, np.nan), where=total > 0
        )
        return mean

    def _found(self, raw: RawBoxes, fix: LogitMap) -> Detections:
        logits = raw.logits if fix.is_identity else fix.apply(raw.logits)
        return postprocess(
            raw.boxes,
            logits,
            raw.quality,
            self.evidence.score_rule,
            self.evidence.keep_rule,
            raw.placement,
            name=raw.name,
        )


def _part(matches: Matches, chosen: npt.NDArray[np.bool_]) -> Matches:
    """Return the matches in some photographs, (N,), which are counted anew from 0."""
    place = np.cumsum(chosen) - 1
    own, truth = chosen[matches.image], chosen[matches.truth_image]
    return replace(
        matches,
        images=int(chosen.sum()),
        image=place[matches.image[own]],
        position=matches.position[own],
        label=matches.label[own],
        score=matches.score[own],
        outcome=matches.outcome[:, :, own],
        truth_image=place[matches.truth_image[truth]],
        truth_label=matches.truth_label[truth],
        truth_counts=matches.truth_counts[:, truth],
    )


def _key(fix: LogitMap) -> bytes:
    assert isinstance(fix, AffineMap)  # all that a detector's class layer takes
    return fix.scale.tobytes() + fix.shift.tobytes()
