"""What a user should know before relying on a choice."""

from __future__ import annotations

import numpy as np

from ..models.trained_with import BALANCED_LOSSES
from .evidence import Evidence
from .lean import measure_lean
from .objective import Aim

__all__ = ["warnings_of"]

_FEW_IMAGES = 3
_SHOWN = 5
_FAMILIAR = 0.995
_PRIOR_DISTANCE = 0.1


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
    return (
        f"{len(missing)} of {len(table)} classes have no validation image and stand in no figure: "
        f"{names}{' …' if len(missing) > _SHOWN else ''}."
    )


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
    found = np.bincount(evidence.labels, minlength=classes) / len(evidence.labels)
    if aim.prior_name == "validation":
        trained = evidence.classes.prior()
        if np.abs(found - trained).sum() / 2 < _PRIOR_DISTANCE:
            return ""
        return (
            "Accuracy over images is maximised as if classes came as often in use as in the "
            "validation data, and these are distributed otherwise than the training data (total "
            f"variation {np.abs(found - trained).sum() / 2:.2f}). Say --target-prior if use will "
            "differ."
        )
    target = aim.target_prior if aim.target_prior is not None else np.full(classes, 1 / classes)
    distance = float(np.abs(found - target).sum() / 2)
    if distance < _PRIOR_DISTANCE:
        return ""
    return (
        f"Classes come otherwise in the validation data than under the {aim.prior_name} prior that "
        f"the fix is chosen for (total variation {distance:.2f}); images are weighted to make up "
        "for it, and figures over all images (overall, NLL, ECE) are of the data as they are."
    )


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
