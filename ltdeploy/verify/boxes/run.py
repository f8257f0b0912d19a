"""Run both detectors over the same photographs and judge what happened to the rare classes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ... import __version__
from ...arrays import IntArray
from ...boxes import Detections
from ...bundle import Bundle, open_bundle
from ...classes import ClassTable
from ...datasets.box_labels import align_boxes
from ...datasets.box_loader import BoxLoader, CanvasBatch
from ...datasets.boxes import BoxDataset
from ...errors import DataError
from ...inference import batch_size_for, fingerprints
from ...metrics.detection import BoxScores, average_precision, evaluate
from ...metrics.matching import COCO_LIMITS, LVIS_LIMITS, ImageTruth, match, truth_of
from ...metrics.overlaps import Mask, encoded
from ...models.detectors.onnx_mapping import OutputMapping
from ...progress import Tracker, silent
from ..gate import check_margin
from .contenders import BoxContender, bundle_side, reference_side
from .differences import BoxDifferences
from .gate import SAME_AP, StratumDecision, decide, overall_verdict
from .result import BoxClassResult, BoxGroupResult, BoxVerifyResult, MatchedBy

__all__ = ["BoxVerification", "verify_detector"]

_Masks: TypeAlias = list[list[Mask]]  # per photograph one run-length encoding per detection


@dataclass(frozen=True, eq=False)
class BoxVerification:
    """A verdict and everything a report needs to explain it.

    Attributes
    ----------
    dataset : what it was measured on, its classes in the model's order.
    indices : places in it of the photographs that could be read, shape (N,).
    reference, candidate : what both found in those.
    unreadable : identifier and reason of every photograph that could not be used.
    names : of reference and candidate.
    provenance : what was verified and how, by label.
    seconds : time in the reference's engine, the candidate's engine, and in all.
    """

    result: BoxVerifyResult
    dataset: BoxDataset
    indices: IntArray
    reference: Sequence[Detections]
    candidate: Sequence[Detections]
    unreadable: tuple[tuple[str, str], ...]
    names: tuple[str, str]
    provenance: dict[str, str]
    seconds: dict[str, float]


def verify_detector(
    bundle: Bundle | str | os.PathLike[str],
    dataset: BoxDataset,
    *,
    reference: str | os.PathLike[str] | None = None,
    engine: str = "auto",
    margin: float = 1.0,
    by: MatchedBy = "boxes",
    trust_pickle: bool = False,
    outputs: OutputMapping | None = None,
    track: Tracker = silent,
) -> BoxVerification:
    """Measure a detector's bundle against its reference on ``dataset``.

    Parameters
    ----------
    reference : a checkpoint or another bundle; None takes the file it was exported from.
    margin : points of average precision that a group may lose.
    by : whether detections match objects by their boxes or by their masks.
    outputs : the mapping of a reference that is an ONNX file; None takes the bundle's.

    Raises
    ------
    DataError
        If photographs of ``dataset`` chose the bundle's fix, classes do not fit, nothing is
        readable or holds an object, or masks are asked for and missing.
    CheckpointError, BundleError, EngineError
    """
    check_margin(margin)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    before = reference_side(opened, reference, trust_pickle=trust_pickle, outputs=outputs)
    after = bundle_side(opened, engine)
    aligned = align_boxes(dataset, after.classes.names)
    started = time.perf_counter()
    try:
        known = truth_of(aligned, masks=by == "masks")
        sides = _Sides(before, after, aligned, by)
        sides.run(track)
    finally:
        before.engine.close()
        after.engine.close()
    result = replace(
        _judge(sides, known, aligned.is_federated, dataset.name, after.classes, margin),
        not_computed=after.not_computed or before.not_computed,
    )
    methods = opened.manifest.fix.methods
    provenance = {
        "Bundle": opened.path.name,
        "Graph sha256": opened.manifest.files[opened.manifest.graphs[0].file].sha256,
        "Checkpoint sha256": opened.manifest.source.sha256,
        "Fix": "; ".join(
            f"{m.method}({', '.join(f'{k}={v}' for k, v in m.shown().items())})" for m in methods
        )
        or "none",
        "Candidate": f"{after.name} on {after.engine.name}",
        "Reference": f"{before.name} on {before.engine.name}",
        "Data": f"{dataset.name}, {result.images:,} images",
        "Matched by": by,
        "Date": datetime.now(UTC).isoformat(timespec="seconds"),
        "ltdeploy": __version__,
    }
    notes = [*before.notes, *after.notes, *aligned.notes]
    if notes:
        provenance["Note"] = "; ".join(notes)
    return BoxVerification(
        result=result,
        dataset=aligned,
        indices=np.array(sides.indices, np.int64),
        reference=sides.reference,
        candidate=sides.candidate,
        unreadable=tuple(sides.unreadable),
        names=(before.name, after.name),
        provenance=provenance,
        seconds={
            "reference": before.seconds,
            "candidate": after.seconds,
            "total": time.perf_counter() - started,
        },
    )


class _Sides:
    """What both sides find in every photograph that can be read, and how far it is apart."""

    def __init__(
        self, before: BoxContender, after: BoxContender, dataset: BoxDataset, by: MatchedBy
    ) -> None:
        if before.canvas != after.canvas:
            raise DataError(
                f"{before.name} looks at canvases of {before.canvas.height_px}×"
                f"{before.canvas.width_px} and {after.name} at {after.canvas.height_px}×"
                f"{after.canvas.width_px}; export both for the same canvas to compare them."
            )
        for side in (before, after):
            if by == "masks" and not side.has_masks:
                raise DataError(
                    f"{side.name} gives no masks, and they are to be compared. Export a Mask R-CNN "
                    "with --nms-in-graph, or compare by boxes."
                )
        self._before, self._after, self._dataset = before, after, dataset
        self.by = by
        self.apart = BoxDifferences(len(after.classes))
        self.indices: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        self.unfixed: list[Detections] = []
        self.reference: list[Detections] = []
        self.candidate: list[Detections] = []
        self.masks: tuple[_Masks, _Masks, _Masks] = ([], [], [])

    def run(self, track: Tracker) -> None:
        before, after = self._before, self._after
        loader = BoxLoader(self._dataset, after.canvas, batch_size=batch_size_for(after.canvas))
        for batch in track(loader, total=len(loader), label="verify"):
            self._refuse_what_chose(batch)
            where = batch.placements, batch.names
            raw = before.raw(batch.images)
            found = [
                before.found(raw, *where, fixed=False),
                before.found(raw, *where),
                after.found(after.raw(batch.images), *where),
            ]
            if self.by == "masks":
                found = self._kept_as_lengths(batch, found)
            for ours, theirs in zip(found[1], found[2], strict=True):
                self.apart.add(ours, theirs)
            # Grids of all photographs would be gigabytes.
            lists = self.unfixed, self.reference, self.candidate
            for kept, side in zip(lists, found, strict=True):
                kept += [replace(one, masks=None) for one in side]
            self.indices += batch.indices.tolist()
        self.unreadable = loader.unreadable

    def _kept_as_lengths(
        self, batch: CanvasBatch, found: list[list[Detections]]
    ) -> list[list[Detections]]:
        """Return what the three sides found with masks, whose run lengths are kept."""
        sides = self._before, self._before, self._after
        with_masks = [
            side.with_masks(batch.images, own, batch.placements)
            for side, own in zip(sides, found, strict=True)
        ]
        for kept, own in zip(self.masks, with_masks, strict=True):
            kept += [_lengths(one) for one in own]
        return with_masks

    def _refuse_what_chose(self, batch: CanvasBatch) -> None:
        seen = np.union1d(self._before.seen, self._after.seen)
        shared = np.isin(fingerprints(batch.images), seen)
        if shared.any():
            raise DataError(
                f"{self._dataset.name} holds photographs that chose the fix or the precision of "
                f"{self._after.name}, the first is {batch.names[int(shared.argmax())]}; a figure "
                "measured on them would flatter it. Verify on other photographs."
            )


def _judge(
    sides: _Sides,
    known: Sequence[ImageTruth],
    federated: bool,
    name: str,
    classes: ClassTable,
    margin: float,
) -> BoxVerifyResult:
    truth = [known[index] for index in sides.indices]
    if not any((~image.crowd).any() for image in truth):
        raise DataError(
            f"No photograph of {name} holds an object to find, so that nothing can be said of any "
            "class; expected annotated photographs."
        )
    limits = LVIS_LIMITS if federated else COCO_LIMITS
    masks = sides.masks if sides.by == "masks" else (None, None, None)
    found = (sides.unfixed, sides.reference, sides.candidate)
    both = list(zip(found, masks, strict=True))
    matches = [match(truth, side, len(classes), limits, own) for side, own in both]
    apart = sides.apart
    strata = {
        "overall": np.arange(len(classes)),
        **{name: np.array(classes.members(name), np.int64) for name in classes.rule.names},
    }
    strata = {name: labels for name, labels in strata.items() if len(labels)}
    decisions = decide(matches[1], matches[2], strata, margin, equivalent=apart.equivalent)
    scores = [evaluate(truth, side, classes.groups, limits, own) for side, own in both]
    fifty = [100 * average_precision(side)[:, 0] for side in matches]
    groups = {
        name: _group(name, labels, decisions[name], scores, fifty, apart)
        for name, labels in strata.items()
    }
    objects = np.bincount(matches[1].truth_label, minlength=len(classes))
    return BoxVerifyResult(
        verdict=overall_verdict(list(decisions.values())),
        margin=margin,
        images=len(sides.indices),
        unreadable=len(sides.unreadable),
        max_score_diff=apart.score,
        max_box_diff_px=apart.box_px,
        matched_by=sides.by,
        max_mask_diff=apart.mask if sides.by == "masks" else None,
        equivalent=apart.equivalent
        and all(abs(one.difference or 0.0) <= SAME_AP for one in decisions.values()),
        flips=int(apart.lost.sum() + apart.new.sum()),
        overall=groups.pop("overall"),
        groups=groups,
        classes=[
            BoxClassResult(
                name=classes.names[label],
                label=label,
                group=classes.groups[label],
                train_count=classes.counts[label],
                images=len(np.unique(matches[1].truth_image[matches[1].truth_label == label])),
                objects=int(objects[label]),
                unfixed=_known(scores[0].by_class[label]),
                reference=_known(scores[1].by_class[label]),
                candidate=_known(scores[2].by_class[label]),
                reference_ap50=_known(fifty[1][label]),
                candidate_ap50=_known(fifty[2][label]),
                lost=int(apart.lost[label]),
                new=int(apart.new[label]),
            )
            for label in range(len(classes))
        ],
    )


def _group(
    name: str,
    labels: IntArray,
    decision: StratumDecision,
    scores: Sequence[BoxScores],
    fifty: Sequence[npt.NDArray[np.float64]],
    apart: BoxDifferences,
) -> BoxGroupResult:
    whole = name == "overall"
    fixed = [side.fixed if whole else side.by_group[name].fixed for side in scores]
    return BoxGroupResult(
        classes=len(labels),
        measured=decision.classes,
        images=decision.images,
        unfixed=scores[0].ap if whole else scores[0].by_group[name].ap,
        reference=decision.reference,
        candidate=decision.candidate,
        difference=decision.difference,
        ci_low=decision.ci_low,
        ci_high=decision.ci_high,
        reference_ap50=_mean(fifty[1][labels]),
        candidate_ap50=_mean(fifty[2][labels]),
        reference_fixed=fixed[1],
        candidate_fixed=fixed[2],
        lost=int(apart.lost[labels].sum()),
        new=int(apart.new[labels].sum()),
        verdict=decision.verdict,
        images_to_decide=decision.images_to_decide,
    )


def _lengths(found: Detections) -> list[Mask]:
    """Return masks as the evaluator takes them."""
    if found.masks is None:
        return []
    height_px, width_px = found.masks.height_px, found.masks.width_px
    return [encoded(one, width_px, height_px) for one in found.masks.encoded()]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None
