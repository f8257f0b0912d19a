"""Verifications of detectors as `verify_detector` makes them, for the tests of their report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from report_pages import HOSTILE_NAMES

from ltdeploy.boxes import Detections
from ltdeploy.classes import ClassTable
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.verify.boxes.result import BoxClassResult, BoxGroupResult, BoxVerifyResult
from ltdeploy.verify.boxes.run import BoxVerification
from ltdeploy.verify.gate import Verdict

WIDTH_PX, HEIGHT_PX = 64, 48


def found(*rows: tuple[int, float], at: float = 4.0) -> Detections:
    """Return detections of label and score, their boxes apart from each other."""
    left = at + 12.0 * np.arange(len(rows), dtype=np.float32)
    boxes = np.stack([left, left, left + 10, left + 10], axis=1).reshape(-1, 4)
    labels = np.array([label for label, _ in rows], np.int64)
    return Detections(boxes, np.array([score for _, score in rows], np.float32), labels)


def verification_of(
    sides: Sequence[tuple[Detections, Detections]],
    *,
    classes: int = 9,
    truths: Sequence[Sequence[int]] | None = None,
    photographs: bool = True,
    size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX),
    noise: bool = False,
    verdict: Verdict = "fail",
    without_objects: Sequence[int] = (),
    unreadable: Sequence[tuple[str, str]] = (),
    federated: bool = False,
    group_images: int = 12,
) -> BoxVerification:
    """Return a verification of drawn photographs and made-up figures.

    Parameters
    ----------
    sides : detections of reference and candidate in each photograph.
    classes : how many, with hostile names first; training counts fall from 500 to 5.
    truths : labels of the objects in each photograph; label 0 in each by default.
    noise : the worst photographs a JPEG can meet.
    group_images : photographs of each group, as the result tells them.
    """
    rng = np.random.default_rng(0)
    names = [*HOSTILE_NAMES, *(f"class {label}" for label in range(classes))][:classes]
    steps = np.arange(classes) / max(1, classes - 1)
    table = ClassTable.from_counts([int(n) for n in 500 * 0.01**steps], names)
    width, height = size_px
    shape = (height, width, 3)
    smooth = np.full(shape, 200, np.uint8)
    nobody = np.zeros(0, np.int64) if federated else None
    images = [
        BoxImage(
            id=place,
            name=f"{HOSTILE_NAMES[2]} {place}.jpg",
            source=(
                (rng.integers(0, 256, shape).astype(np.uint8) if noise else smooth)
                if photographs
                else f"absent/{place}.jpg"
            ),
            width_px=width,
            height_px=height,
            negative=nobody,
            not_exhaustive=nobody,
        )
        for place in range(len(sides))
    ]
    held = [[0]] * len(sides) if truths is None else truths
    dataset = BoxDataset(
        "drawn.json", names, images, [_truth(at, labels) for at, labels in enumerate(held)]
    )
    rows = [_class(table, label, label not in without_objects) for label in range(classes)]
    groups = {
        name: _group([one for one in rows if one.group == name], group_images, verdict)
        for name in table.rule.names
    }
    result = BoxVerifyResult(
        verdict=verdict,
        margin=1.0,
        images=len(sides),
        unreadable=len(unreadable),
        max_score_diff=0.01,
        max_box_diff_px=0.5,
        equivalent=False,
        flips=3,
        overall=_group(rows, group_images, verdict),
        groups=groups,
        classes=rows,
    )
    return BoxVerification(
        result=result,
        dataset=dataset,
        indices=np.arange(len(sides)),
        reference=[before for before, _ in sides],
        candidate=[after for _, after in sides],
        unreadable=tuple(unreadable),
        names=("old.ltd", "New.ltd"),
        provenance={"Bundle": "New.ltd", "Fix": HOSTILE_NAMES[0]},
        seconds={},
    )


def _truth(place: int, labels: Sequence[int]) -> BoxTruth:
    count = len(labels)
    return BoxTruth(
        np.tile(np.array([[1, 1, 30, 30]], np.float32), (count, 1)),
        np.array(labels, np.int64),
        np.arange(count) % 2 == 1,
        np.full(count, 841.0),
        1000 * place + np.arange(count),
    )


def _class(table: ClassTable, label: int, measured: bool) -> BoxClassResult:
    reference = 60.0 - label % 7 if measured else None
    return BoxClassResult(
        name=table.names[label],
        label=label,
        group=table.groups[label],
        train_count=table.counts[label],
        images=4 if measured else 0,
        objects=6 if measured else 0,
        unfixed=None if reference is None else reference - 5,
        reference=reference,
        candidate=None if reference is None else reference - label % 3,
        reference_ap50=None if reference is None else 80.0,
        candidate_ap50=None if reference is None else 79.0,
        lost=label % 2,
        new=0,
    )


def _group(rows: Sequence[BoxClassResult], images: int, verdict: Verdict) -> BoxGroupResult:
    measured = [one for one in rows if one.reference is not None]
    there = bool(measured)
    return BoxGroupResult(
        classes=len(rows),
        measured=len(measured),
        images=images if there else 0,
        unfixed=54.0 if there else None,
        reference=57.0 if there else None,
        candidate=56.0 if there else None,
        difference=-1.0 if there else None,
        ci_low=-1.5 if there else None,
        ci_high=-0.5 if there else None,
        reference_ap50=80.0 if there else None,
        candidate_ap50=79.0 if there else None,
        reference_fixed=58.0 if there else None,
        candidate_fixed=57.0 if there else None,
        lost=sum(one.lost for one in rows),
        new=0,
        verdict=verdict if there else "inconclusive",
    )
