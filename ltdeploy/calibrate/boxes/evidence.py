"""What the choice of a detector's fix rests on: raw outputs of every photograph, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...arrays import FloatArray
from ...boxes import box_area
from ...canvas import Placement
from ...classes import ClassTable
from ...datasets.box_labels import align_boxes
from ...datasets.boxes import BoxDataset
from ...datasets.loader import Decoded, decode_ahead
from ...errors import DataError
from ...fixes import FixContext
from ...inference import batch_size_for, fingerprints
from ...metrics.matching import COCO_LIMITS, LVIS_LIMITS, ImageTruth, Limits, truth_of
from ...postprocess import KeepRule, ScoreRule
from ...progress import Tracker, silent
from .candidates import box_candidates, largest_rise

if TYPE_CHECKING:
    from ...models.detectors.detector import Detector

__all__ = ["BoxEvidence", "RawBoxes", "evidence_of_detector", "may_be_kept"]

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

_MOST_BYTES = 8 << 30
_MOST_SHARED = 0.01  # of the validation photographs
_SLACK = 0.999  # rounding in float32


@dataclass(frozen=True, eq=False)
class RawBoxes:
    """A detector's outputs for one photograph, before any fix.

    Parameters
    ----------
    boxes : array of shape (P, 4) or (P, F, 4), float32, xyxy in canvas pixels.
    logits : array of shape (P, C), float32.
    quality : logits, array of shape (P,), or None.
    placement : where the photograph stands on the canvas.
    name : for error texts.
    """

    boxes: FloatArray
    logits: FloatArray
    quality: FloatArray | None
    placement: Placement
    name: str = "The image"

    @property
    def nbytes(self) -> int:
        """Memory that the arrays take."""
        quality = 0 if self.quality is None else self.quality.nbytes
        return self.boxes.nbytes + self.logits.nbytes + quality

    def some(self, rows: Bools) -> RawBoxes:
        """Return some of the rows."""
        if rows.all():
            return self
        quality = None if self.quality is None else self.quality[rows]
        return RawBoxes(self.boxes[rows], self.logits[rows], quality, self.placement, self.name)


@dataclass(frozen=True, eq=False)
class BoxEvidence:
    """Annotated photographs as a detector sees them, with what is known of it.

    Parameters
    ----------
    context : head, class table and training of the detector; its logits stay empty.
    raw, truth : one per photograph, in the same order.
    score_rule, keep_rule : how outputs become detections.
    name : what the data are called in reports.
    complete : whether every candidate box of a photograph is there, and not only those that can
        become a detection: what LogN's statistics are over.
    hashes : fingerprints of the canvases, shape (N,), uint64; None where only arrays are known.
    checkpoint : name and sha256 of the detector's file, or None.
    unreadable : identifier and reason of every photograph that could not be used.
    provenance : where all this came from, by label.
    """

    context: FixContext
    raw: Sequence[RawBoxes]
    truth: Sequence[ImageTruth]
    score_rule: ScoreRule
    keep_rule: KeepRule
    name: str
    complete: bool = True
    hashes: npt.NDArray[np.uint64] | None = None
    checkpoint: tuple[str, str] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    provenance: dict[str, str] | None = None

    @property
    def classes(self) -> ClassTable:
        """The foreground classes, with training counts."""
        assert self.context.classes is not None
        return self.context.classes

    @property
    def limits(self) -> Limits:
        """Which detections take part: LVIS's rules where the truth is federated, else COCO's."""
        federated = any(one.negative is not None for one in self.truth)
        return LVIS_LIMITS if federated else COCO_LIMITS


def evidence_of_detector(
    model: Detector,
    dataset: BoxDataset,
    *,
    methods: Sequence[str] | None = None,
    trained_with: str | None = None,
    force: bool = False,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> BoxEvidence:
    """Run a detector over photographs and keep its raw outputs in memory, as float32.

    Rows that only pad a batch are dropped. Where no method among ``methods`` looks at all candidate
    boxes, so are those that no method at any strength could lift over the score threshold; see
    :func:`may_be_kept`.

    Parameters
    ----------
    methods : what will be tried; None takes every one that applies.
    trained_with : the loss or sampler, where the file does not tell it.
    force : allow fixes that are refused as harmful.
    warn : is told of photographs that could not be used.

    Raises
    ------
    CheckpointError
        If the detector's class table is not known.
    DataError
        If more than one in a hundred photographs are training photographs, the classes do not fit,
        a photograph has another size than its boxes go by, none is readable, or the outputs would
        take more than 8 GiB.
    FixError
        For unknown methods.
    """
    from ...engines.detector_reference import DetectorReference

    table = model.require_complete()
    context = FixContext(
        head=model.head,
        classes=table,
        trained_with=trained_with if trained_with is not None else model.trained_with,
        force=force,
    )
    aligned = align_boxes(dataset, table.names)
    rise = largest_rise(box_candidates(methods), context)
    engine = DetectorReference(model)
    raw: list[RawBoxes] = []
    indices: list[int] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    unreadable: list[tuple[str, str]] = []
    rows = 0
    try:
        for run in track(
            decode_ahead(
                range(len(aligned)),
                lambda index: (aligned.identifier(index), aligned.source(index)),
                model.canvas,
                batch_size=batch_size_for(model.canvas),
            ),
            total=-(-len(aligned) // batch_size_for(model.canvas)),
            label="validation",
        ):
            unreadable += [(aligned.identifier(at), str(error)) for at, error in run.failures]
            if not len(run.positions):
                continue
            for one in _outputs(engine.run({"images": run.images}), run, aligned):
                kept = one.some(_has_box(one.boxes))
                rows += len(kept.logits)
                raw.append(_without_hopeless(kept, model.score_rule, model.keep_rule, rise))
            indices += [int(index) for index in run.positions]
            hashes.append(fingerprints(run.images))
            _check_memory(raw, len(aligned), reducible=rise is None)
    finally:
        engine.close()
    if not raw:
        name, reason = unreadable[0]
        raise DataError(
            f"None of the {len(aligned)} images of {dataset.name} is readable; the first is "
            f"{name}: {reason}"
        )
    seen = np.concatenate(hashes)
    fresh = _fresh(model, aligned, indices, seen, warn)
    known = truth_of(aligned)
    size = sum(one.nbytes for one in raw)
    left = sum(len(one.logits) for one in raw)
    return BoxEvidence(
        context=context,
        raw=[one for one, there in zip(raw, fresh, strict=True) if there],
        truth=[known[at] for at, there in zip(indices, fresh, strict=True) if there],
        score_rule=model.score_rule,
        keep_rule=model.keep_rule,
        name=dataset.name,
        complete=rise is None,
        hashes=seen[fresh],
        checkpoint=(model.source.path.name, model.source.sha256),
        unreadable=tuple(unreadable),
        provenance={
            "Checkpoint": model.source.path.name,
            "Checkpoint sha256": model.source.sha256,
            "Data": f"{dataset.name}, {int(fresh.sum()):,} images",
            "Kept": f"{left:,} of {rows:,} candidate boxes, {size / len(raw) / 1024:,.0f} KiB per "
            "image",
            **({"Note": "; ".join(aligned.notes)} if aligned.notes else {}),
        },
    )


def may_be_kept(raw: RawBoxes, rule: ScoreRule, threshold: float, rise: Float64) -> Bools:
    """Return which rows could pass the score threshold after some fix, shape (P,).

    A bound: of independent scores, each class with its largest rise; of a softmax with background,
    each class as if it were alone with the background, ``p_c ≤ σ(z_c + r_c − z_bg)``. Scores of
    other rules are not bounded, and all their rows may.

    Parameters
    ----------
    rise : by how much a fix adds to each foreground logit at most, shape (F,).
    """
    columns = rule.foreground(raw.logits.shape[1])
    raised = raw.logits.astype(np.float64)
    raised[:, columns] += rise
    if rule.activation in ("sigmoid", "eqlv2"):
        quality = None if raw.quality is None else raw.quality.astype(np.float64)
        best = rule.scores(raised, quality).max(axis=1)
    elif rule.activation == "softmax" and rule.background is not None and rule.quality == "none":
        ahead = raised[:, columns].max(axis=1) - raised[:, rule.background]
        best = 1.0 / (1.0 + np.exp(-np.maximum(ahead, -700.0)))
    else:
        return np.ones(len(raised), np.bool_)
    hopeful: Bools = best > _SLACK * threshold
    return hopeful


def _without_hopeless(
    raw: RawBoxes, rule: ScoreRule, keep: KeepRule, rise: Float64 | None
) -> RawBoxes:
    if rise is None:
        return raw
    return raw.some(may_be_kept(raw, rule, keep.score_threshold, rise))


def _has_box(boxes: FloatArray) -> Bools:
    """Return which rows are more than padding, shape (P,)."""
    largest = box_area(boxes).reshape(len(boxes), -1).max(axis=1, initial=0.0)
    return np.asarray(largest > 0, np.bool_)


def _outputs(results: dict[str, FloatArray], run: Decoded, dataset: BoxDataset) -> list[RawBoxes]:
    found = []
    for at, (index, placement) in enumerate(zip(run.positions, run.placements, strict=True)):
        name, stated = dataset.identifier(int(index)), dataset.size_px(int(index))
        if (placement.width_px, placement.height_px) != stated:
            raise DataError(
                f"{name} is {placement.width_px} × {placement.height_px} pixels and "
                f"{dataset.name} says {stated[0]} × {stated[1]}, so its boxes would lie elsewhere. "
                "Expected the photographs that were annotated, not resized."
            )
        quality = results["quality"][at].copy() if "quality" in results else None
        # Copies: views would keep the whole batch in memory.
        own = RawBoxes(
            results["boxes"][at].copy(), results["logits"][at].copy(), quality, placement, name
        )
        found.append(own)
    return found


def _check_memory(raw: Sequence[RawBoxes], images: int, *, reducible: bool) -> None:
    each = sum(one.nbytes for one in raw) / len(raw)
    if each * images <= _MOST_BYTES:
        return
    hint = (
        " or name methods without logn, like --method norcal: then boxes that cannot become a "
        "detection need not be kept"
        if reducible
        else ""
    )
    raise DataError(
        f"The detector's outputs take {each / 2**20:.1f} MiB per photograph, which makes "
        f"{each * images / 2**30:.0f} GiB for {images:,}; at most {_MOST_BYTES >> 30} are held. "
        f"Give fewer photographs (some thousand are enough){hint}."
    )


def _fresh(
    model: Detector,
    dataset: BoxDataset,
    indices: Sequence[int],
    hashes: npt.NDArray[np.uint64],
    warn: Callable[[str], None],
) -> Bools:
    """Return which photographs are no training photographs; refuse more than a few of those."""
    if model.train_hashes is None:
        return np.ones(len(hashes), np.bool_)
    shared = np.isin(hashes, model.train_hashes)
    count, images = int(shared.sum()), len(shared)
    if not count:
        return ~shared
    first = dataset.identifier(indices[int(shared.argmax())])
    if count > _MOST_SHARED * images:
        raise DataError(
            f"{count} of the {images} validation images of {dataset.name} are among the "
            f"checkpoint's own training images, the first is {first}. The model knows them by "
            "heart, so a fix chosen on them means nothing; give images that it was not trained on."
        )
    warn(
        f"{count} of the {images} validation images of {dataset.name} stand among the checkpoint's "
        f"own training images too, the first is {first}; they were left out"
    )
    return ~shared
