"""Made-up results of exports of low precision, for the tests of their report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from report_pages import HOSTILE_NAMES, Document

from ltdeploy.export.precision.report import render_precision_report

MARGIN = 1.0
# How many layers are restored, and what is left of the loss of the rarest group.
SEARCH = ((0, -6.3), (1, -3.9), (2, -2.6), (4, -1.7), (8, -0.9), (9, -0.6), (10, -0.3), (16, 0.05))
CHOSEN = 9


def verdict_of(low: float, difference: float) -> str:
    if low > -MARGIN:
        return "pass"
    return "fail" if difference <= -MARGIN else "inconclusive"


def trial(layers: Sequence[str], count: int, few: float, *, chosen: bool) -> dict[str, Any]:
    """Return a made-up trial: all groups lose as the rarest does, in proportion."""
    groups = {}
    for name, part, base, half in (
        ("overall", 0.45, 41.2, 0.22),
        ("many", 0.1, 66.4, 0.3),
        ("medium", 0.4, 40.1, 0.4),
        ("few", 1.0, 14.8, 0.38),
    ):
        difference = part * few
        low, high = difference - half, difference + half
        groups[name] = {
            "reference": base,
            "candidate": base + difference,
            "difference": difference,
            "ci_low": low,
            "ci_high": high,
            "verdict": verdict_of(low, difference),
        }
    verdicts = {figures["verdict"] for figures in groups.values()}
    return {
        "restored": list(layers[:count]),
        "verdict": next(v for v in ("fail", "inconclusive", "pass") if v in verdicts),
        "flips": int(200 - 150 * few),
        "groups": groups,
        "size_bytes": 25_900_000 + 1_300_000 * count,
        "low_share": 0.985 - 0.017 * count,
        "speed": 2.71 - 0.07 * count + 0.05 * (count % 3),
        "chosen": chosen,
    }


def result_of(
    search: Sequence[tuple[int, float]] = SEARCH, chosen: int = CHOSEN, layers: int = 52
) -> dict[str, Any]:
    """Return a made-up result of an export whose gate was run."""
    names = [f"node_Conv_{754 + 3 * ((7 * i) % layers)}" for i in range(layers)]
    made = [trial(names, count, few, chosen=count == chosen) for count, few in search]
    taken = next(one for one in made if one["chosen"])
    damage = [
        {"layer": name, "damage": None if i == 0 else 0.84 * 0.87**i}
        for i, name in enumerate(names)
    ]
    return {
        "schema": 1,
        "bundle": "moths.ltd",
        "task": "classification",
        "arch": "timm:resnet50",
        "classes": 365,
        "groups": {"many": 131, "medium": 163, "few": 71},
        "fix": [],
        "folded": "none",
        "selected_on": None,
        "precision": "int8",
        "engines": ["onnx"],
        "lowering": {
            "restored": taken["restored"],
            "low_share": taken["low_share"],
            "calibration": {"name": "train", "images": 512, "classes": 365},
            "gate": {
                "name": "val.parquet",
                "images": 7300,
                "margin": MARGIN,
                "verdict": taken["verdict"],
                "engine": "auto",
            },
            "engine": "openvino-cpu",
            "large": [],
            "fewest": True,
            "damage": damage if len(made) > 1 else [],
            "trials": made,
        },
        "checks": {},
        "notes": [],
        "unreadable": 0,
    }


def single() -> dict[str, Any]:
    """Return a result whose first trial passed."""
    return result_of([(0, -0.03)], 0)


def page_of(result: dict[str, Any]) -> str:
    return render_precision_report(result, title="moths.ltd")


def text_of(result: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", Document(page_of(result)).text)


def hostile() -> dict[str, Any]:
    """Return a result whose every name is hostile."""
    result = result_of()
    names = dict(zip(("many", "medium", "few"), HOSTILE_NAMES[:3], strict=True))
    result["groups"] = {names[name]: count for name, count in result["groups"].items()}
    for one in result["lowering"]["trials"]:
        one["groups"] = {names.get(name, name): g for name, g in one["groups"].items()}
    for place, one in enumerate(result["lowering"]["damage"]):
        one["layer"] = HOSTILE_NAMES[place % len(HOSTILE_NAMES)]
    result["lowering"]["gate"]["name"] = result["bundle"] = HOSTILE_NAMES[1]
    result["lowering"]["large"] = [{"tensor": HOSTILE_NAMES[0], "largest": 7e4}]
    result["notes"] = list(HOSTILE_NAMES)
    return result
