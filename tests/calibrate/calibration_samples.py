"""Results as `calibrate` makes them, of any size, for the tests of its report."""

from __future__ import annotations

from typing import Any

import numpy as np
from report_pages import HOSTILE_NAMES

from ltdeploy.classes import ClassTable

HOSTILE_METHOD = "<img src=x onerror='window.hacked = 1'>"


def calibration_of(classes: int = 100, images_per_class: int = 100) -> dict[str, Any]:
    """Return a result with an exponential profile 500 … 5; hostile names for the rarest classes."""
    steps = np.arange(classes) / max(1, classes - 1)
    plain = [f"species {label}" for label in range(classes - len(HOSTILE_NAMES))]
    table = ClassTable.from_counts(
        [int(n) for n in 500 * 0.01**steps], [*plain, *HOSTILE_NAMES][:classes]
    )
    groups = list(table.rule.names)
    chain = [
        {"method": "tau_norm", "parameters": {"tau": 0.85, "bias": "scale"}},
        {"method": "temperature", "parameters": {"t": 1.466}},
    ]
    wide = [{"method": "vector", "parameters": {"w": [1.0] * classes, "b": [0.0] * classes}}]
    square = [{"method": HOSTILE_METHOD, "parameters": {"w": [[1.0] * classes] * classes}}]
    return {
        "schema": 1,
        "objective": "balanced",
        "target_prior": "uniform",
        "max_head_loss": 8.0,
        "images": classes * images_per_class,
        "folds": 5,
        "groups": groups,
        "chosen": {"name": "tau_norm", "methods": chain, "reason": HOSTILE_NAMES[1]},
        "warnings": ["Two classes have no validation image.", HOSTILE_NAMES[0]],
        "skipped": [{"method": "crt", "reason": f"needs --train, not {HOSTILE_NAMES[0]}"}],
        "methods": [
            method_of("none", groups, 28.0, status="before", methods=[], freedom=0),
            method_of("vector", groups, 34.0, status="too costly for the head", methods=wide),
            method_of(HOSTILE_METHOD, groups, 31.1, status="candidate", methods=square),
            method_of("tau_norm", groups, 30.9, status="chosen", methods=chain, freedom=1),
            method_of("temperature", groups, 28.0, status="behind", methods=chain[1:]),
        ],
        "sweeps": [
            sweep_of("logit_adjustment", "tau", np.linspace(0, 2, 41), 1.05, groups),
            sweep_of("tau_norm", "tau", np.linspace(0, 2, 41), 0.85, groups),
            sweep_of(HOSTILE_METHOD, "l2", 0.1 * 10.0 ** -np.arange(5), 0.01, groups),
        ],
        "confidence": {
            "before": {name: reliability_of(1.6) for name in ("all", *groups)},
            "after": {name: reliability_of(1.1) for name in ("all", *groups)},
        },
        "classes": classes_of(table, images_per_class),
        "provenance": {"Data": HOSTILE_NAMES[0], "Command": "ltdeploy calibrate '<x>.pt'"},
    }


def figure(value: float, half: float = 0.8) -> dict[str, float]:
    """Return a figure with its interval."""
    return {"value": value, "low": value - half, "high": value + half}


def method_of(
    name: str,
    groups: list[str],
    reached: float,
    *,
    status: str,
    methods: list[dict[str, Any]],
    freedom: int = 200,
) -> dict[str, Any]:
    """Return a method that takes from the first group what it gives to the others."""
    gain = reached - 28.0
    values = [56.0 - 2 * gain, 23.0 + gain, 3.0 + 2 * gain]
    return {
        "name": name,
        "freedom": freedom,
        "methods": methods,
        "per_fold": [0.8, 0.85, 0.85, 0.9, 0.85] if name == "tau_norm" else [None] * 5,
        "figures": {
            "overall": figure(reached + 0.5),
            "balanced": figure(reached),
            "harmonic": figure(3 / sum(1 / value for value in values)),
            "worst": {**figure(1.0, 0.9), "label": 7, "images": 100},
            "groups": {g: figure(v) for g, v in zip(groups, values, strict=True)},
            "nll": figure(2.5, 0.03),
            "ece": figure(3.0 + gain),
            "classwise_ece": figure(0.4, 0.02),
            "group_ece": {g: figure(5.0 * place) for place, g in enumerate(groups)},
        },
        "objective": figure(reached),
        "behind": {
            "value": reached - 31.1,
            "standard_error": 0.0 if status == "before" else 0.25,
        },
        "head_change": figure(-2 * gain),
        "status": status,
        "note": "The optimiser stopped early." if name == "vector" else "",
    }


def sweep_of(
    method: str, parameter: str, values: np.ndarray, chosen: float, groups: list[str]
) -> dict[str, Any]:
    """Return smooth curves: the first group falls, the last one rises."""
    strength = np.linspace(0, 1, len(values))
    curves = [56 - 30 * strength**2, 23 + 10 * strength, 3 + 25 * strength]
    series = {"overall": 28 + 8 * strength - 7 * strength**2}
    series |= {"balanced": series["overall"] + 0.4, "harmonic": 8 + 20 * strength}
    series |= dict(zip(groups, curves, strict=True))
    return {
        "method": method,
        "parameter": parameter,
        "values": [float(value) for value in values],
        "series": {name: [float(value) for value in curve] for name, curve in series.items()},
        "chosen": chosen,
    }


def reliability_of(power: float) -> dict[str, Any]:
    """Return a diagram whose first bin is empty; overconfident for a power above one."""
    middles = (np.arange(15) + 0.5) / 15
    bins: list[dict[str, float | None]] = [
        {"confidence": float(c), "accuracy": float(c**power), "count": 20 + place}
        for place, c in enumerate(middles)
    ]
    bins[0] = {"confidence": None, "accuracy": None, "count": 0}
    return {"bins": bins, "ece": 20 * (power - 1), "accuracy": 30.0, "confidence": 30 * power}


def classes_of(table: ClassTable, images: int) -> list[dict[str, Any]]:
    """Return classes of which every third falls; class 40 has no image."""
    rows = []
    for label, (name, group) in enumerate(zip(table.names, table.groups, strict=True)):
        before = float(10 + 80 * (label * 37 % 100) / 100)
        after = before - 5 if label % 3 == 0 else before + 4
        rows.append(
            {
                "name": name,
                "label": label,
                "group": group,
                "train_count": table.counts[label],
                "images": 0 if label == 40 else images,
                "before": None if label == 40 else before,
                "after": None if label == 40 else after,
            }
        )
    return rows
