"""Results as `verify` makes them, of any size, for the tests of the report."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from PIL import Image
from report_pages import HOSTILE_NAMES

from ltdeploy.classes import ClassTable
from ltdeploy.metrics import Reliability
from ltdeploy.verify.report_details import FlippedImage, ReportDetails


def names_of(classes: int) -> list[str]:
    """Return hostile names for the rarest classes, plain ones for the others."""
    plain = [f"species {label}" for label in range(classes - len(HOSTILE_NAMES))]
    return plain + list(HOSTILE_NAMES)


def result_of(
    classes: int = 100,
    images_per_class: int = 100,
    names: list[str] | None = None,
    worse: tuple[int, ...] = (),
    without_images: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Return a result with an exponential profile 500 … 5; classes in `worse` lost everything."""
    rng = np.random.default_rng(classes)
    steps = np.arange(classes) / max(1, classes - 1)
    table = ClassTable.from_counts([int(n) for n in 500 * 0.01**steps], names or names_of(classes))
    rows = []
    for label, (name, group) in enumerate(zip(table.names, table.groups, strict=True)):
        images = 0 if label in without_images else images_per_class
        before, reference = sorted(np.round(rng.random(2) * images) / max(images, 1) * 100)
        candidate = 0.0 if label in worse else reference
        chance = 1e-6 if label in worse else 1.0
        rows.append(
            {
                "name": name,
                "label": label,
                "group": group,
                "train_count": table.counts[label],
                "images": images,
                "reference": reference if images else None,
                "candidate": candidate if images else None,
                "unfixed": before if images else None,
                "p_value": chance if images else None,
                "q_value": min(1.0, chance * classes) if images else None,
                "regressed": label in worse,
            }
        )
    groups = {
        name: figures_of([r for r in rows if r["group"] == name]) for name in table.rule.names
    }
    overall = figures_of(rows)
    assert overall is not None
    return {
        "schema": 1,
        "verdict": "fail" if worse else "pass",
        "margin": 1.0,
        "images": overall["images"],
        "unreadable": 0,
        "max_abs_logit_diff": 3.1e-6,
        "flips": overall["flips_lost"],
        "overall": overall,
        "groups": groups,
        "classes": rows,
    }


def figures_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the figures of a group, or None for a group without a class that has images."""
    used = [row for row in rows if row["images"]]
    if not used:
        return None
    mean = {
        key: float(np.mean([row[key] for row in used]))
        for key in ("unfixed", "reference", "candidate")
    }
    difference = mean["candidate"] - mean["reference"]
    lost = round(sum((r["reference"] - r["candidate"]) / 100 * r["images"] for r in used))
    images = sum(row["images"] for row in used)
    half = 196 * math.sqrt(lost + 1) / images
    return {
        "classes": len(rows),
        "classes_without_images": len(rows) - len(used),
        "images": images,
        **mean,
        "difference": difference,
        "ci_low": difference - half,
        "ci_high": difference + half,
        "fail_high": difference + 1.3 * half,
        "flips_lost": lost,
        "flips_won": 0,
        "verdict": "fail" if lost else "pass",
    }


def details_of(result: dict[str, Any], flips: int = 48) -> ReportDetails:
    """Return reliability for each group, pictures of about the size of real ones, provenance."""
    rng = np.random.default_rng(0)
    counts, confidence = np.arange(20, 35), (np.arange(15) + 0.5) / 15
    counts[0] = 0
    confidence[0] = np.nan
    curves = {
        "unfixed": Reliability(counts, confidence, confidence**2),
        "reference": Reliability(counts, confidence, confidence**1.3),
        "candidate": Reliability(counts, confidence, confidence**1.3),
    }
    rows = result["classes"][::-1]
    images = []
    for k in range(flips):
        row, other = rows[k % len(rows)], rows[(k + 1) % len(rows)]
        images.append(
            FlippedImage(
                identifier=f"val/{row['name']}/{k:03d}.jpg",
                label=row["name"],
                group=row["group"],
                kind=("lost", "won", "changed")[k % 3],
                reference=row["name"] if k % 3 == 0 else other["name"],
                candidate=row["name"] if k % 3 == 1 else rows[(k + 2) % len(rows)]["name"],
                reference_probability=0.6,
                candidate_probability=0.4,
                thumbnail=None if k == 1 else picture(rng),
            )
        )
    provenance = {"Bundle": HOSTILE_NAMES[0], "Command": "ltdeploy verify x.ltd --data '<val>'"}
    return ReportDetails(
        reliability={group: curves for group, f in result["groups"].items() if f},
        flips=images,
        provenance=provenance,
    )


def picture(rng: np.random.Generator) -> bytes:
    """Return a JPEG of 96 × 96 px with smooth content and some grain, about 4 KB."""
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize((96, 96))
    grain = rng.normal(0, 6, (96, 96, 3))
    pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
