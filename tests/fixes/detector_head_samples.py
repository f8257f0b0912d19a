"""Heads of detectors in every layout, and the fixes that suit each."""

from __future__ import annotations

import numpy as np

from ltdeploy.classes import LVIS_GROUPS, ClassTable
from ltdeploy.fixes import (
    Fix,
    FixContext,
    GroupOdds,
    LogitAdjustment,
    LogN,
    NorCal,
    Odds,
    TauNorm,
)
from ltdeploy.models.head import Head

DEPTH, BOXES = 7, 40
COUNTS = (0, 1, 9, 60, 2000)
CLASSES = len(COUNTS)
# Name of the layout -> columns, background, activation.
LAYOUTS: dict[str, tuple[int, int | None, str]] = {
    "softmax, background first": (CLASSES + 1, 0, "softmax"),
    "softmax, background between": (CLASSES + 1, 2, "softmax"),
    "softmax, background last": (CLASSES + 1, CLASSES, "softmax"),
    "sigmoid": (CLASSES, None, "sigmoid"),
    "sigmoid, background last": (CLASSES + 1, CLASSES, "sigmoid"),
    "eqlv2": (CLASSES + 1, CLASSES, "eqlv2"),
    "seesaw": (CLASSES + 2, None, "seesaw"),
}
SHARED = ("softmax", "seesaw")
FIXED = [
    NorCal(0.6),
    NorCal(1.0, 0.99),
    Odds(0.5),
    Odds(1.0, 0.9),
    LogN(),
    GroupOdds((1.0, 2.0, 8.0)),
    LogitAdjustment(1.0),
    TauNorm(0.7),
    TauNorm(0.7, "drop"),
]
NEUTRAL = [NorCal(0.0), NorCal(0.7, 0.0), Odds(0.0), Odds(0.7, 0.0), GroupOdds((1.0, 1.0, 1.0))]


def suits(fix: Fix, layout: str) -> bool:
    activation = LAYOUTS[layout][2]
    if isinstance(fix, LogitAdjustment):
        return activation == "softmax"
    if isinstance(fix, NorCal):
        return activation in SHARED
    return not isinstance(fix, Odds) or activation not in SHARED


CASES = [(fix, layout) for layout in LAYOUTS for fix in FIXED if suits(fix, layout)]
CASE_IDS = [f"{fix.describe()} on {layout}" for fix, layout in CASES]


def make_head(layout: str, seed: int = 0) -> Head:
    columns, background, activation = LAYOUTS[layout]
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(columns, DEPTH)) * rng.uniform(0.3, 3, columns)[:, None]
    bias = rng.normal(size=columns)
    return Head("linear", weight, bias, background=background, activation=activation)  # type: ignore[arg-type]


def make_context(layout: str, seed: int = 0) -> FixContext:
    head = make_head(layout, seed)
    return FixContext(
        head=head,
        classes=ClassTable(tuple("abcde"), COUNTS, LVIS_GROUPS),
        logits=logits_of(head, features(seed)),
        force=True,  # seesaw's balance and τ-norm's harm are tested by themselves
    )


def features(seed: int) -> np.ndarray:
    return np.random.default_rng(100 + seed).normal(size=(BOXES, DEPTH))


def logits_of(head: Head, inputs: np.ndarray) -> np.ndarray:
    assert head.bias is not None
    return inputs @ head.weight.T + head.bias


def softmax_context(counts: tuple[int, ...], background: int) -> FixContext:
    head = Head("linear", np.zeros((len(counts) + 1, 1)), None, background=background)
    return FixContext(head=head, classes=ClassTable.from_counts(counts))
