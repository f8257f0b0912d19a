"""Run both detectors over the same photographs and judge what happened to the rare classes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

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
from ...metrics.matching import COCO_LIMITS, LVIS_LIMITS, match, truth_of
from ...models.detectors.onnx_mapping import OutputMapping
from ...progress import Tracker, silent
from ..gate import check_margin
from .contenders import BoxContender, bundle_side, reference_side
from .differences import BoxDifferences
from .gate import SAME_AP, StratumDecision, decide, overall_verdict
from .result import BoxClassResult, BoxGroupResult, BoxVerifyResult

__all__ = ["BoxVerification", "verify_detector"]


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
    trust_pickle: bool = False,
    outputs: OutputMapping | None = None,
    track: Tracker = silent,
) -> BoxVerification:
    """Measure a detector's bundle against its reference on ``dataset``.

    Parameters
    ----------
    reference : a checkpoint or another bundle; None takes the file it was exported from.
    margin : points of average precision that a group may lose.
    outputs : the mapping of a reference that is an ONNX file; None takes the bundle's.

    Raises
    ------
    DataError
        If photographs of ``dataset`` chose the bundle's fix, classes do not fit, or nothing is
        readable.
    CheckpointError, BundleError, EngineError
    """
    check_margin(margin)
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    before = reference_side(opened, reference, trust_pickle=trust_pickle, outputs=outputs)
    after = bundle_side(opened, engine)
    aligned = align_boxes(dataset, after.classes.names)
    started = time.perf_counter()
    sides = _Sides(before, after, aligned)
    try:
        sides.run(track)
    finally:
        before.engine.close()
        after.engine.close()
    result = replace(
        _judge(sides, aligned, after.classes, margin),
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
    """What both sides find in every photograph that can be read."""

    def __init__(self, before: BoxContender, after: BoxContender, dataset: BoxDataset) -> None:
        if before.canvas != after.canvas:
            raise DataError(
                f"{before.name} looks at canvases of {before.canvas.height_px}×"
                f"{before.canvas.width_px} and {after.name} at {after.canvas.height_px}×"
                f"{after.canvas.width_px}; export both for the same canvas to compare them."
            )
        self._before, self._after, self._dataset = before, after, dataset
        self.indices: list[int] = []
        self.unreadable: list[tuple[str, str]] = []
        self.unfixed: list[Detections] = []
        self.reference: list[Detections] = []
        self.candidate: list[Detections] = []

    def run(self, track: Tracker) -> None:
        before, after = self._before, self._after
        loader = BoxLoader(self._dataset, after.canvas, batch_size=batch_size_for(after.canvas))
        for batch in track(loader, total=len(loader), label="verify"):
            self._refuse_what_chose(batch)
            raw = before.raw(batch.images)
            self.unfixed += before.found(raw, batch.placements, batch.names, fixed=False)
            self.reference += before.found(raw, batch.placements, batch.names)
            self.candidate += after.found(after.raw(batch.images), batch.placements, batch.names)
            self.indices += batch.indices.tolist()
        self.unreadable = loader.unreadable

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
    sides: _Sides, dataset: BoxDataset, classes: ClassTable, margin: float
) -> BoxVerifyResult:
    known = truth_of(dataset)
    truth = [known[index] for index in sides.indices]
    limits = LVIS_LIMITS if dataset.is_federated else COCO_LIMITS
    found = (sides.unfixed, sides.reference, sides.candidate)
    matches = [match(truth, side, len(classes), limits) for side in found]
    apart = BoxDifferences(len(classes))
    for ours, theirs in zip(sides.reference, sides.candidate, strict=True):
        apart.add(ours, theirs)
    strata = {
        "overall": np.arange(len(classes)),
        **{name: np.array(classes.members(name), np.int64) for name in classes.rule.names},
    }
    strata = {name: labels for name, labels in strata.items() if len(labels)}
    decisions = decide(matches[1], matches[2], strata, margin, equivalent=apart.equivalent)
    scores = [evaluate(truth, side, classes.groups, limits) for side in found]
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
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _mean(values: npt.NDArray[np.float64]) -> float | None:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else None
