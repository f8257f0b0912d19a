"""Beside the comparison of methods: curves, reliability and classes, before and after."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray, sigmoid
from ..metrics import Rows, reliability, top1_of_logits
from .crossval import HeldOut
from .evidence import Evidence
from .objective import Strata
from .result import ClassChange, Confidence, Sweep

__all__ = ["changes_of", "confidence_of", "sweep_of"]

_BLOCK_ELEMENTS = 1 << 20


def sweep_of(held_out: HeldOut, place: int, labels: IntArray, strata: Strata) -> Sweep:
    """Return each group's accuracy on all validation images at each value of the parameter."""
    correct = held_out.top1 == labels[:, None]
    series = {
        "overall": strata.values(correct, "overall"),
        "balanced": strata.values(correct, "balanced"),
        "harmonic": strata.values(correct, "harmonic"),
    }
    for name, weights in strata.groups.items():
        series[name] = 100.0 * (weights @ correct)
    candidate = held_out.candidate
    assert candidate.parameter is not None
    values = candidate.values
    return Sweep(candidate.name, candidate.parameter, values, series, values[place])


def confidence_of(logits: FloatArray | Rows, evidence: Evidence) -> dict[str, Confidence]:
    """Return the reliability of logits (N, C), of all images and of each group's."""
    labels, table = evidence.labels, evidence.classes
    images, classes = logits.shape
    step = max(1, _BLOCK_ELEMENTS // classes)
    top1 = np.empty(images, dtype=np.int64)
    confidence = np.empty(images, dtype=np.float32)
    for start in range(0, images, step):
        rows = slice(start, start + step)
        block = logits[rows]
        top1[rows], confidence[rows] = top1_of_logits(block)
        if evidence.activation == "sigmoid":
            confidence[rows] = sigmoid(block.max(axis=1))
    correct = top1 == labels
    groups = np.array(table.groups)[labels]
    sets = {"all": np.ones(len(labels), dtype=bool)}
    sets |= {name: groups == name for name in table.rule.names}
    found = {}
    for name, own in sets.items():
        some = bool(own.any())
        found[name] = Confidence(
            reliability(confidence[own], correct[own]),
            100.0 * float(correct[own].mean()) if some else None,
            100.0 * float(confidence[own].mean()) if some else None,
        )
    return found


def changes_of(
    labels: IntArray,
    classes: int,
    unfixed: npt.NDArray[np.bool_],
    fixed: npt.NDArray[np.bool_],
) -> tuple[ClassChange, ...]:
    """Return each class's accuracy before and after, from whether images (N,) are right."""
    images = np.bincount(labels, minlength=classes)
    shares = [
        100.0 * np.bincount(labels, weights=right, minlength=classes) / np.maximum(images, 1)
        for right in (unfixed, fixed)
    ]
    return tuple(
        ClassChange(label, int(n), float(before), float(after))
        if n
        else ClassChange(label, 0, None, None)
        for label, (n, before, after) in enumerate(zip(images, *shares, strict=True))
    )
