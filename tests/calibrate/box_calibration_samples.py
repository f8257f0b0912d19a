"""Results as `calibrate` makes them of a detector, of any size, for the tests of its report."""

from __future__ import annotations

from typing import Any

import numpy as np
from report_pages import HOSTILE_NAMES

from ltdeploy.classes import ClassTable, GroupRule

HOSTILE_METHOD = "<img src=x onerror='window.hacked = 1'>"
LVIS_GROUPS = GroupRule(("frequent", "common", "rare"), (100, 10))


def calibration_of(classes: int = 60, chosen: str = "norcal") -> dict[str, Any]:
    """Return a result with counts 2,000 … 2 in LVIS's groups; hostile names for the rarest."""
    steps = np.arange(classes) / max(1, classes - 1)
    plain = [f"thing {label}" for label in range(classes - len(HOSTILE_NAMES))]
    table = ClassTable(
        tuple([*plain, *HOSTILE_NAMES][:classes]),
        tuple(int(n) for n in 2000 * 0.001**steps),
        LVIS_GROUPS,
    )
    norcal = [{"method": "norcal", "parameters": {"gamma": 0.6, "beta": 1.0}}]
    groups = [{"method": "group_odds", "parameters": {"factors": [0.25, 1.0, 4.0]}}]
    fixes = {"norcal": norcal, "group_odds": groups, HOSTILE_METHOD: [], "logn": []}
    limit = "too costly for the head"
    status = {"group_odds": "candidate", HOSTILE_METHOD: "behind", "logn": limit, "none": "behind"}
    status |= {"norcal": "candidate", chosen: "chosen"}
    shifted = chosen != "none"
    reached = {"none": 20.0, "group_odds": 23.4, "norcal": 23.1, HOSTILE_METHOD: 21.0, "logn": 25.0}
    return {
        "schema": 1,
        "task": "detection",
        "objective": "balanced",
        "max_head_loss": 1.0,
        "images": 400,
        "folds": 5,
        "groups": list(table.rule.names),
        "chosen": {
            "name": chosen,
            "methods": fixes.get(chosen, []),
            "reason": HOSTILE_NAMES[1],
        },
        "warnings": ["2 of 60 classes have no object and took no part", HOSTILE_NAMES[0]],
        "skipped": [{"method": "odds", "reason": f"needs --force, not {HOSTILE_NAMES[0]}"}],
        "methods": [
            method_of(name, table, ap, status[name], fixes.get(name, []), place)
            for place, (name, ap) in enumerate(reached.items())
        ],
        "classes": [class_of(table, label, shifted) for label in range(classes)],
        "provenance": {"Data": HOSTILE_NAMES[0], "Kept": "1,000 of 2,000 candidate boxes"},
        "unreadable": 1,
    }


def method_of(
    name: str,
    table: ClassTable,
    ap: float,
    status: str,
    methods: list[dict[str, Any]],
    freedom: int,
) -> dict[str, Any]:
    gain = ap - 20.0
    worth = {group: ap + 6 - 6 * place for place, group in enumerate(table.rule.names)}
    by_class = [None if label % 30 == 7 else ap + label % 9 for label in range(len(table))]
    per_fold = [{"gamma": 0.4 + 0.1 * fold, "beta": 1.0} for fold in range(5)]
    costly = status == "too costly for the head"
    return {
        "name": name,
        "freedom": freedom,
        "methods": methods,
        "per_fold": per_fold if name == "norcal" else [],
        "figures": {
            "ap": ap,
            "ap50": ap + 11,
            "groups": {group: {"ap": one, "ap50": one + 11} for group, one in worth.items()},
            "classes": {"ap": by_class, "ap50": by_class},
        },
        "objective": ap,
        "gain": {"value": gain, "low": gain - 1.3, "high": gain + 1.1},
        "behind": {"value": ap - 23.4, "standard_error": 0.42},
        "head_change": {"value": -0.4, "low": -3.2 if costly else -0.8, "high": 0.3},
        "status": status,
    }


def class_of(table: ClassTable, label: int, shifted: bool) -> dict[str, Any]:
    measured, count = label % 30 != 7, table.counts[label]
    before = 30.0 - 20.0 * label / len(table)
    change = (label % 7 - 2.0) if shifted else 0.0
    return {
        "name": table.names[label],
        "label": label,
        "group": table.groups[label],
        "train_count": count,
        "images": 40 if measured else 0,
        "objects": 90 if measured else 0,
        "before": before if measured else None,
        "after": before + change if measured else None,
        "before_ap50": before + 12 if measured else None,
        "after_ap50": before + 12 + change if measured else None,
        "scale": 1.0,
        "shift": 0.6 * float(np.log(200 / count)) if shifted else 0.0,
    }
