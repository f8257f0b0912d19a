"""Evidence whose best fix is known, and how the tests read a result."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from ltdeploy.calibrate import Calibration, Evidence, check_context
from ltdeploy.calibrate.result import MethodResult
from ltdeploy.classes import ClassTable
from ltdeploy.fixes import FixContext
from ltdeploy.models.head import Head

COUNTS = np.array([400, 100, 30, 8, 3])
CLASSES = len(COUNTS)
PRIOR = COUNTS / COUNTS.sum()


def seen(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return features (N, C + 1), the last of which is always 1."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), CLASSES))
    return np.column_stack([1.2 * np.eye(CLASSES)[labels] + 0.8 * noise, np.ones(len(labels))])


def evidence(
    labels: np.ndarray | int = 500, *, lean: float = 1.0, seed: int = 0, **changes: Any
) -> Evidence:
    """Logits of the Bayes classifier under a long-tailed prior, with all that fixes may look at.

    A head without bias makes them from features, log π from the last one; labels come evenly.
    """
    if isinstance(labels, int):
        labels = np.arange(labels) % CLASSES
    weight = np.column_stack([2 * np.eye(CLASSES), lean * np.log(PRIOR)])
    features = seen(labels, seed)
    trained = np.repeat(np.arange(CLASSES), COUNTS)
    context = FixContext(
        head=Head("linear", weight),
        classes=ClassTable.from_counts(COUNTS.tolist()),
        logits=features @ weight.T,
        labels=labels,
        features=features,
        train_features=seen(trained, seed + 1),
        train_labels=trained,
        target_logits=seen(np.repeat(np.arange(CLASSES), [5, 5, 5, 10, 15]), seed + 2) @ weight.T,
    )
    return Evidence(check_context(replace(context, **changes)), "synthetic")


def plain(done: Calibration) -> dict[str, Any]:
    """Return the machine-readable result, through strict JSON, without its date."""
    told: dict[str, Any] = json.loads(json.dumps(done.to_dict(), allow_nan=False))
    told["provenance"].pop("Date")
    return told


def row(done: Calibration, name: str) -> MethodResult:
    return next(method for method in done.methods if method.name == name)
