"""What the choice of a detector's fix rests on: raw outputs of every photograph, made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...classes import ClassTable
from ...datasets.box_labels import align_boxes
from ...datasets.boxes import BoxDataset
from ...errors import DataError
from ...fixes import FixContext
from ...metrics.matching import COCO_LIMITS, LVIS_LIMITS, ImageTruth, Limits, truth_of
from ...postprocess import KeepRule, ScoreRule
from ...progress import Tracker, silent
from .candidates import box_candidates, largest_rise
from .outputs import RawBoxes, may_be_kept, outputs_of_detector

if TYPE_CHECKING:
    from ...models.detectors.detector import Detector
    from ...models.detectors.onnx_detector import OnnxDetector

__all__ = ["BoxEvidence", "evidence_of_detector", "may_be_kept"]

Bools = npt.NDArray[np.bool_]

_MOST_SHARED = 0.01  # of the validation photographs


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
    model: Detector | OnnxDetector,
    dataset: BoxDataset,
    *,
    methods: Sequence[str] | None = None,
    trained_with: str | None = None,
    cache: Path | None = None,
    force: bool = False,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> BoxEvidence:
    """Run a detector over photographs, or find its raw outputs in the cache; float32, in memory.

    Rows that only pad a batch are dropped. Where no method among ``methods`` looks at all candidate
    boxes, so are those that no method at any strength could lift over the score threshold; see
    :func:`may_be_kept`.

    Parameters
    ----------
    methods : what will be tried; None takes every one that applies.
    trained_with : the loss or sampler, where the file does not tell it.
    cache : folder of earlier runs; None keeps nothing.
    force : allow fixes that are refused as harmful.
    warn : is told of photographs and cache entries that could not be used.

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
    UsageError
        If ``cache`` is a file.
    """
    table = model.require_complete()
    context = FixContext(
        head=model.head,
        classes=table,
        trained_with=trained_with if trained_with is not None else model.trained_with,
        force=force,
    )
    aligned = align_boxes(dataset, table.names)
    rise = largest_rise(box_candidates(methods), context)
    found = outputs_of_detector(model, aligned, rise, cache=cache, track=track, warn=warn)
    raw, indices = found.raw, found.indices.tolist()
    fresh = _fresh(model, aligned, indices, found.hashes, warn)
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
        hashes=found.hashes[fresh],
        checkpoint=(model.source.path.name, model.source.sha256),
        unreadable=found.unreadable,
        provenance={
            "Checkpoint": model.source.path.name,
            "Checkpoint sha256": model.source.sha256,
            "Data": f"{dataset.name}, {int(fresh.sum()):,} images",
            "Kept": f"{left:,} of {found.candidates.sum():,} candidate boxes, "
            f"{size / len(raw) / 1024:,.0f} KiB per image",
            **({"Note": "; ".join(aligned.notes)} if aligned.notes else {}),
        },
    )


def _fresh(
    model: Detector | OnnxDetector,
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
