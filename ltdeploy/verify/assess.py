"""From logits of the same images to a verification result, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..classes import ClassTable
from ..errors import DataError, EngineError, UsageError
from ..metrics.accuracy import GroupAccuracy, average_accuracy, per_class_accuracy
from ..metrics.calibration import Reliability, reliability, top1_of_logits
from .gate import ALPHA, Decision, check_margin, judge
from .result import ClassResult, Flip, GroupResult, VerifyResult
from .statistics import benjamini_hochberg, exact_loss_test

__all__ = ["EQUIVALENCE_TOLERANCE", "Accumulator", "assess"]

# Of the largest absolute logit of the reference: what fp32 kernels in another order differ by.
EQUIVALENCE_TOLERANCE = 1e-4

_OVERALL = "overall"


class Accumulator:
    """Keeps, per image, what a verification needs: labels and top-1s, never whole logits.

    24,426 images of 8,142 classes would be 800 MB of logits per model; this keeps about 50 bytes
    per image.

    Parameters
    ----------
    classes : the class table of the model.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self._columns: dict[str, list[npt.NDArray[np.generic]]] = {}
        self._seen = 0
        self._largest_difference = 0.0
        self._largest_logit = 0.0

    def update(
        self,
        labels: IntArray,
        reference: FloatArray,
        candidate: FloatArray,
        unfixed: FloatArray | None = None,
        indices: IntArray | None = None,
    ) -> None:
        """Take in one batch.

        Parameters
        ----------
        labels : array of shape (n,): labels in the class table's order.
        reference, candidate, unfixed : arrays of shape (n, C), float32: logits of the same images;
            `unfixed` are the reference's with the fix undone, in every batch or in none.
        indices : array of shape (n,): the images' places in the data set; counted on from the
            last batch where absent.

        Raises
        ------
        DataError
            For labels outside the class table.
        EngineError
            For logits of another shape, or not finite.
        UsageError
            If `unfixed` comes in some batches only.
        """
        labels = np.asarray(labels, dtype=np.int64)
        expected = (len(labels), len(self.classes))
        given = {"reference": reference, "candidate": candidate}
        if unfixed is not None:
            given["unfixed"] = unfixed
        for name, logits in given.items():
            if logits.shape != expected:
                raise EngineError(
                    f"The {name} gave logits of shape {logits.shape} for {len(labels)} images; "
                    f"expected {expected}, one logit per class of the class table."
                )
        if not len(labels):
            return
        per_class_accuracy(labels, labels, len(self.classes))  # refuses labels out of range
        if indices is None:
            indices = np.arange(self._seen, self._seen + len(labels))
        batch: dict[str, npt.NDArray[np.generic]] = {
            "label": labels,
            "index": np.asarray(indices, dtype=np.int64),
        }
        for name, logits in given.items():
            # One pass over the logits instead of two: a sum is finite if its terms are.
            if not np.isfinite(logits.sum(dtype=np.float64)):
                self._refuse_non_finite(name, logits, batch["index"])
            batch[name], batch[f"{name}_confidence"] = top1_of_logits(logits)
        if self._columns and self._columns.keys() != batch.keys():
            raise UsageError(
                "Unfixed logits were given for some batches only; give them for all or for none."
            )
        for name, column in batch.items():
            self._columns.setdefault(name, []).append(column)
        self._seen += len(labels)
        difference = float(np.abs(reference - candidate).max())
        self._largest_difference = max(self._largest_difference, difference)
        largest = max(float(reference.max()), -float(reference.min()))
        self._largest_logit = max(self._largest_logit, largest)

    @staticmethod
    def _refuse_non_finite(name: str, logits: FloatArray, indices: npt.NDArray[np.generic]) -> None:
        rows, columns = np.nonzero(~np.isfinite(logits))
        if len(rows):
            raise EngineError(
                f"The {name} gave {logits[rows[0], columns[0]]} as the logit of class "
                f"{int(columns[0])} for image {int(indices[rows[0]])} of the data set; expected "
                "finite numbers. A precision that overflows is the usual cause: try fp32."
            )

    def result(
        self,
        margin: float = 1.0,
        unreadable: int = 0,
        tolerance: float = EQUIVALENCE_TOLERANCE,
    ) -> VerifyResult:
        """Work out the figures and the verdict of all images taken in.

        Parameters
        ----------
        margin : points of class-averaged accuracy a group may lose.
        unreadable : images that could not be read, for the record.
        tolerance : of the reference's largest absolute logit: up to here logits count as the same.

        Raises
        ------
        DataError
            If no image was taken in.
        UsageError
            If the margin is out of range.
        """
        check_margin(margin)
        if not self._seen:
            raise DataError(
                f"There is nothing to compare: no image was read ({unreadable} unreadable). "
                "Expected at least one labelled image."
            )
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        labels = columns["label"]
        models = [name for name in ("unfixed", "reference", "candidate") if name in columns]
        right = {name: columns[name] == labels for name in models}
        images, _ = per_class_accuracy(labels, labels, len(self.classes))

        def per_class(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
            return np.bincount(labels[chosen], minlength=len(self.classes)).astype(np.int64)

        correct: dict[str, IntArray] = {name: per_class(right[name]) for name in models}
        lost = per_class(right["reference"] & ~right["candidate"])
        won = per_class(right["candidate"] & ~right["reference"])
        changed = np.flatnonzero(columns["reference"] != columns["candidate"])
        equivalent = (
            not len(changed) and self._largest_difference <= tolerance * self._largest_logit
        )

        members = {name: self.classes.members(name) for name in self.classes.rule.names}
        judgement = judge(images, lost, won, members, margin, equivalent)
        everyone = np.arange(len(self.classes), dtype=np.int64)
        strata = {_OVERALL: everyone, **members}
        diagrams: dict[str, dict[str, Reliability]] = {}
        groups: dict[str, GroupResult] = {}
        for stratum, own in strata.items():
            inside = np.isin(labels, own)
            diagrams[stratum] = {
                name: reliability(columns[f"{name}_confidence"][inside], right[name][inside])
                for name in models
            }
            groups[stratum] = _group_result(
                self.classes,
                {name: average_accuracy(images, correct[name], own) for name in models},
                diagrams[stratum],
                judgement.overall if stratum == _OVERALL else judgement.groups[stratum],
                int(lost[own].sum()),
                int(won[own].sum()),
            )
        return VerifyResult(
            verdict=judgement.verdict,
            margin=float(margin),
            images=self._seen,
            unreadable=unreadable,
            max_abs_logit_diff=self._largest_difference,
            equivalent=equivalent,
            flips=len(changed),
            overall=groups.pop(_OVERALL),
            groups=groups,
            classes=_class_results(self.classes, images, correct, lost, won),
            flipped=tuple(
                Flip(
                    index=int(columns["index"][row]),
                    label=int(labels[row]),
                    reference=int(columns["reference"][row]),
                    candidate=int(columns["candidate"][row]),
                    reference_confidence=float(columns["reference_confidence"][row]),
                    candidate_confidence=float(columns["candidate_confidence"][row]),
                )
                for row in changed
            ),
            reliability=diagrams,
        )


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _group_result(
    classes: ClassTable,
    accuracy: Mapping[str, GroupAccuracy],
    diagrams: Mapping[str, Reliability],
    decision: Decision | None,
    lost: int,
    won: int,
) -> GroupResult:
    """Gather one group's figures; `accuracy` and `diagrams` by model."""
    candidate, unfixed = accuracy["candidate"], accuracy.get("unfixed")
    return GroupResult(
        classes=candidate.classes,
        images=candidate.images,
        unfixed=unfixed.class_averaged if unfixed else None,
        reference=accuracy["reference"].class_averaged,
        candidate=candidate.class_averaged,
        difference=decision.difference if decision else None,
        ci_low=decision.ci_low if decision else None,
        ci_high=decision.ci_high if decision else None,
        fail_high=decision.fail_high if decision else None,
        flips_lost=lost,
        flips_won=won,
        verdict=decision.verdict if decision else None,
        images_to_decide=decision.images_to_decide if decision else None,
        classes_without_images=len(candidate.without_images),
        worst_class=None if candidate.worst is None else classes.names[candidate.worst],
        unfixed_images=unfixed.image_averaged if unfixed else None,
        reference_images=accuracy["reference"].image_averaged,
        candidate_images=candidate.image_averaged,
        ece_unfixed=_percent(diagrams["unfixed"].error) if unfixed else None,
        ece_reference=_percent(diagrams["reference"].error),
        ece_candidate=_percent(diagrams["candidate"].error),
    )


def _class_results(
    classes: ClassTable,
    images: IntArray,
    correct: Mapping[str, IntArray],
    lost: IntArray,
    won: IntArray,
) -> tuple[ClassResult, ...]:
    """Test every class that has images, and gather its figures."""
    measured = np.flatnonzero(images)
    p_values, q_values = np.full(len(classes), np.nan), np.full(len(classes), np.nan)
    p_values[measured] = exact_loss_test(lost[measured], won[measured])
    q_values[measured] = benjamini_hochberg(p_values[measured])

    def percent(model: str, label: int) -> float | None:
        if model not in correct or not images[label]:
            return None
        return 100.0 * float(correct[model][label] / images[label])

    groups = classes.groups
    return tuple(
        ClassResult(
            name=name,
            label=label,
            group=groups[label],
            train_count=classes.counts[label],
            images=int(images[label]),
            unfixed=percent("unfixed", label),
            reference=percent("reference", label),
            candidate=percent("candidate", label),
            flips_lost=int(lost[label]),
            flips_won=int(won[label]),
            p_value=float(p_values[label]) if images[label] else None,
            q_value=float(q_values[label]) if images[label] else None,
            regressed=bool(q_values[label] < ALPHA and lost[label] > won[label]),
        )
        for label, name in enumerate(classes.names)
    )


def assess(
    labels: IntArray,
    reference: FloatArray,
    candidate: FloatArray,
    unfixed: FloatArray | None,
    classes: ClassTable,
    margin: float = 1.0,
    unreadable: int = 0,
    tolerance: float = EQUIVALENCE_TOLERANCE,
) -> VerifyResult:
    """Judge a candidate from logits that are already in memory; see `Accumulator` for batches.

    Parameters
    ----------
    labels : array of shape (N,).
    reference, candidate, unfixed : arrays of shape (N, C); `unfixed` may be None.
    """
    accumulator = Accumulator(classes)
    accumulator.update(labels, reference, candidate, unfixed)
    return accumulator.result(margin, unreadable, tolerance)
