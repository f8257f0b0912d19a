"""What a user should know before relying on a choice."""

from __future__ import annotations

import numpy as np

from ..arrays import FloatArray, IntArray
from ..models.trained_with import BALANCED_LOSSES
from .candidates import Candidate
from .evidence import Evidence
from .lean import measure_lean
from .objective import Aim
from .result import MethodResult

__all__ = ["warnings_of", "warnings_of_choice"]

_FEW_IMAGES = 3
_SHOWN = 5
_FAMILIAR = 0.995
_PRIOR_DISTANCE = 0.1
_FEW_TARGETS = 150  # docs/fixes/label_shift.md: with these most of the gain is there
_SURE = 4.0  # standard deviations of chi-square that sampling does not explain


def warnings_of(evidence: Evidence, aim: Aim) -> tuple[str, ...]:
    """Return warnings about the validation data and the model, in sentences."""
    found = [
        _missing_classes(evidence),
        _small_classes(evidence),
        _familiar_images(evidence),
        _other_prior(evidence, aim),
        _lean(evidence),
    ]
    return tuple(text for text in found if text)


def _missing_classes(evidence: Evidence) -> str:
    table = evidence.classes
    counts = np.bincount(evidence.labels, minlength=len(table))
    missing = np.flatnonzero(counts == 0)
    if not len(missing):
        return ""
    names = ", ".join(table.names[label] for label in missing[:_SHOWN])
    seen = {table.groups[label] for label in np.flatnonzero(counts)}
    unseen = [name for name in table.rule.names if name in table.groups and name not in seen]
    text = (
        f"{len(missing)} of {len(table)} classes have no validation image and stand in no figure: "
        f"{names}{' …' if len(missing) > _SHOWN else ''}."
    )
    for group in unseen:
        text += f" No class of the {group} group has one: what a fix does to it is unknown."
    return text


def _small_classes(evidence: Evidence) -> str:
    counts = np.bincount(evidence.labels, minlength=len(evidence.classes))
    small = int(((counts > 0) & (counts < _FEW_IMAGES)).sum())
    if not small:
        return ""
    return (
        f"{small} classes have fewer than {_FEW_IMAGES} validation images; what is fitted per "
        "class rests on next to nothing there, and intervals are wide."
    )


def _familiar_images(evidence: Evidence) -> str:
    right = float((evidence.logits.argmax(axis=1) == evidence.labels).mean())
    if right < _FAMILIAR or len(evidence.labels) < 100:
        return ""
    return (
        f"The model is right on {100 * right:.1f} % of these images. Was it trained on them? A fix "
        "chosen on training images means nothing."
    )


def _other_prior(evidence: Evidence, aim: Aim) -> str:
    classes = len(evidence.classes)
    counts = np.bincount(evidence.labels, minlength=classes)
    if aim.prior_name == "validation":
        if not _differ(counts, evidence.classes.prior()):
            return ""
        return (
            "Accuracy over images is maximised as if classes came as often in use as in the "
            "validation data, and these are distributed otherwise than the training data. Say "
            "--target-prior if use will differ."
        )
    if aim.prior_name == "estimated":
        assert evidence.context.target_logits is not None
        images = len(evidence.context.target_logits)
        few = ", and so few say little" if images < _FEW_TARGETS else ""
        return (
            f"The target prior is an estimate from {images:,} unlabelled images{few}: figures and "
            "intervals are what would hold if it were exact."
        )
    target = aim.target_prior if aim.target_prior is not None else np.full(classes, 1 / classes)
    if not _differ(counts, target):
        return ""
    wanted = "equally" if aim.target_prior is None else "as your target prior says"
    return (
        f"The validation images are not spread over the classes {wanted}; each is weighted so that "
        "the choice is made as if they were. 'overall', NLL and ECE are of the images as they are."
    )


def _differ(counts: IntArray, shares: FloatArray) -> bool:
    """Return whether images per class are far from the shares, and not by chance of sampling."""
    images = int(counts.sum())
    if np.abs(counts / images - shares).sum() / 2 < _PRIOR_DISTANCE:
        return False
    expected = images * shares
    chi_square = float(((counts - expected) ** 2 / np.maximum(expected, 1e-9)).sum())
    freedom = len(shares) - 1
    return chi_square > freedom + _SURE * float(np.sqrt(2 * freedom))


def warnings_of_choice(
    before: MethodResult, chosen: MethodResult, candidate: Candidate, place: int, aim: Aim
) -> tuple[str, ...]:
    """Return warnings about what was chosen, in sentences.

    Parameters
    ----------
    before : the row of the model as it is.
    place : of the chosen value among the candidate's.
    """
    found = []
    values = candidate.values
    if candidate.is_sweep and place == len(values) - 1:
        found.append(
            f"{candidate.parameter} = {values[-1]:g} is the largest value that was tried for "
            f"{candidate.name}; more might reach more, at the frequent classes' cost."
        )
    average = (before.figures.balanced.value, chosen.figures.balanced.value)
    if aim.objective in ("few", "harmonic") and None not in average:
        lost = (average[0] or 0.0) - (average[1] or 0.0)
        if lost > 0:
            found.append(
                f"Averaged over all classes accuracy falls by {lost:.1f} points, from "
                f"{average[0]:.1f} to {average[1]:.1f} %. --max-head-loss bounds what the frequent "
                "classes pay."
            )
    if chosen.note:
        found.append(f"{chosen.name}: {chosen.note}")
    return tuple(found)


def _lean(evidence: Evidence) -> str:
    told = evidence.context.trained_with
    lean = measure_lean(evidence.logits, evidence.labels, evidence.classes)
    if lean is None:
        return ""
    if told is None and lean.corrected:
        return lean.sentence()
    if told is not None and told not in BALANCED_LOSSES and lean.corrected:
        return f"{lean.sentence()} What is recorded is {told}."
    return ""
