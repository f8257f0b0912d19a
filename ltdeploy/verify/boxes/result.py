"""What a verification of a detector found, as types, as JSON and as one sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...webpage.pieces import signed
from ..gate import Verdict

__all__ = [
    "SCHEMA",
    "BoxClassResult",
    "BoxGroupResult",
    "BoxVerifyResult",
    "MatchedBy",
    "sentence",
]

SCHEMA = 1
MatchedBy = Literal["boxes", "masks"]


@dataclass(frozen=True)
class BoxGroupResult:
    """Average precisions of one group, or of all classes, in percent; None without objects.

    Attributes
    ----------
    classes, measured : classes of the group, and those of them with objects to find.
    images : photographs that hold any of them.
    unfixed, reference, candidate : AP (IoU 0.50:0.05:0.95), averaged over classes.
    difference, ci_low, ci_high : candidate minus reference in points, and its 95 % interval.
    reference_ap50, candidate_ap50, reference_fixed, candidate_fixed : AP at IoU 0.5, and AP_fixed.
    lost, new : detections at or above a score of 0.05 that only the reference, or only the
        candidate, has.
    images_to_decide : where it is inconclusive, about how many photographs would decide it.
    """

    classes: int
    measured: int
    images: int
    unfixed: float | None
    reference: float | None
    candidate: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    reference_ap50: float | None
    candidate_ap50: float | None
    reference_fixed: float | None
    candidate_fixed: float | None
    lost: int
    new: int
    verdict: Verdict | None
    images_to_decide: int | None = None


@dataclass(frozen=True)
class BoxClassResult:
    """Figures of one class; average precisions in percent, None without objects."""

    name: str
    label: int
    group: str
    train_count: int
    images: int
    objects: int
    unfixed: float | None
    reference: float | None
    candidate: float | None
    reference_ap50: float | None
    candidate_ap50: float | None
    lost: int
    new: int


@dataclass(frozen=True)
class BoxVerifyResult:
    """What a verification found.

    Parameters
    ----------
    verdict : of the bundle: fails if any group or the whole fails, passes if all pass.
    margin : points of AP that a group may lose.
    images, unreadable : photographs that were compared, and that could not be read.
    max_score_diff, max_box_diff_px : of detections that both have, matched by class and overlap.
    matched_by : what AP is of: detections match objects by their boxes, or by their masks.
    max_mask_diff : of a mask's probability, of detections that both have; None by boxes.
    equivalent : both find the same boxes with the same scores, but for rounding.
    flips : detections at or above a score of 0.05 that only one of them has.
    not_computed : the precision below float32 that a side was exported in and its engine computed
        in float32 instead; None where both ran what they are.
    """

    verdict: Verdict
    margin: float
    images: int
    unreadable: int
    max_score_diff: float
    max_box_diff_px: float
    equivalent: bool
    flips: int
    overall: BoxGroupResult
    groups: Mapping[str, BoxGroupResult]
    classes: Sequence[BoxClassResult]
    not_computed: str | None = None
    matched_by: MatchedBy = "boxes"
    max_mask_diff: float | None = None

    @property
    def without_objects(self) -> tuple[str, ...]:
        """Names of the classes that no photograph shows and that are in no figure."""
        return tuple(one.name for one in self.classes if not one.objects)

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result; its keys are stable within a schema version."""
        return {
            "schema": SCHEMA,
            "task": "detection",
            "verdict": self.verdict,
            "sentence": sentence(self),
            "margin": self.margin,
            "images": self.images,
            "unreadable": self.unreadable,
            "max_score_diff": self.max_score_diff,
            "max_box_diff_px": self.max_box_diff_px,
            "matched_by": self.matched_by,
            "max_mask_diff": self.max_mask_diff,
            "equivalent": self.equivalent,
            "flips": self.flips,
            "not_computed": self.not_computed,
            "overall": asdict(self.overall),
            "groups": {name: asdict(group) for name, group in self.groups.items()},
            "classes": [asdict(one) for one in self.classes],
        }


def _measured(name: str, group: BoxGroupResult) -> str:
    if group.difference is None or group.ci_low is None or group.ci_high is None:
        return f"{name} (no objects)"
    interval = f"95 % interval {signed(group.ci_low)} to {signed(group.ci_high)}"
    return f"{name} {signed(group.difference)} AP ({interval}, {group.images:,} images)"


def sentence(result: BoxVerifyResult) -> str:
    """Say in plain words what was found."""
    text = _finding(result)
    if result.not_computed is None:
        return text
    return (
        f"As float32 on this processor, which says nothing of {result.not_computed}, "
        f"{text[0].lower()}{text[1:]}"
    )


def _finding(result: BoxVerifyResult) -> str:
    strata = {**result.groups, "all classes": result.overall}
    margin = f"margin of {result.margin:g} AP{' of masks' if result.matched_by == 'masks' else ''}"
    flips = f"{result.flips:,} detections are in one of the two alone"
    if result.verdict == "pass" and result.equivalent:
        masks = ""
        if result.max_mask_diff is not None:
            masks = f", of a mask's probability {result.max_mask_diff:.1e}"
        return (
            "The tail survived: reference and candidate find the same "
            f"{'boxes and masks' if masks else 'boxes'} on {result.images:,} images (largest "
            f"difference of a score {result.max_score_diff:.1e}, of a box "
            f"{result.max_box_diff_px:.2g} px{masks})."
        )
    if result.verdict == "pass":
        nearest = min(
            ((n, g) for n, g in strata.items() if g.ci_low is not None),
            key=lambda item: item[1].ci_low or 0.0,
        )
        return (
            f"The tail survived: no group can have lost as much as the {margin}; the nearest to "
            f"it is {_measured(*nearest)}; {flips}."
        )
    if result.verdict == "fail":
        failed = "; ".join(_measured(n, g) for n, g in strata.items() if g.verdict == "fail")
        return f"The tail did not survive: {failed}; {margin}; {flips}."
    undecided = {n: g for n, g in strata.items() if g.verdict == "inconclusive"}
    measured = "; ".join(_measured(n, g) for n, g in undecided.items())
    wanted = [
        f"{g.images_to_decide:,} photographs of {n} (now {g.images:,})"
        for n, g in undecided.items()
        if g.images_to_decide is not None
    ]
    more = f" About {', '.join(wanted)} would decide it." if wanted else ""
    return f"Too little data to decide: {measured}; {margin}; {flips}.{more}"
