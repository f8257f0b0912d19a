"""A detector's raw outputs of every photograph: from one run of the network, or from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...arrays import FloatArray
from ...boxes import box_area
from ...cache import CacheForm, Kept, cached, entry_key, image_digest
from ...canvas import Placement
from ...datasets.box_loader import BoxLoader, CanvasBatch
from ...datasets.boxes import BoxDataset
from ...engines.onnx_detector_reference import detector_reference
from ...errors import DataError
from ...inference import batch_size_for, fingerprints
from ...postprocess import ScoreRule
from ...progress import Tracker, silent

if TYPE_CHECKING:
    from ...models.detectors.detector import Detector
    from ...models.detectors.onnx_detector import OnnxDetector

__all__ = ["RawBoxes", "RawOutputs", "may_be_kept", "outputs_of_detector"]

Bools = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

_MOST_BYTES = 8 << 30
_SLACK = 0.999  # rounding in float32
_ARRAYS = ("boxes", "logits", "quality", "rows", "candidates", "indices", "hashes")
# Another version of one of them may give other pixels or outputs.
_VERSIONED = ("PIL", "torch", "torchvision", "transformers", "onnxruntime")


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
class RawOutputs:
    """What a detector gave for a data set.

    Parameters
    ----------
    raw : one per readable photograph.
    candidates : how many rows each had that are more than padding, shape (N,), int64.
    indices : places in the data set, shape (N,), int64.
    hashes : fingerprints of the canvases, shape (N,), uint64.
    unreadable : identifier and reason of every photograph that could not be used.
    """

    raw: Sequence[RawBoxes]
    candidates: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]


def outputs_of_detector(
    model: Detector | OnnxDetector,
    dataset: BoxDataset,
    rise: Float64 | None,
    *,
    cache: Path | None = None,
    track: Tracker = silent,
    warn: Callable[[str], None] = lambda text: None,
) -> RawOutputs:
    """Return a detector's raw outputs, from the cache where they stand in it.

    Rows that only pad a batch are dropped, and with ``rise`` those that no fix lifts over the score
    threshold. An entry of all rows serves every rise; one of a rise serves that rise alone.

    Parameters
    ----------
    rise : by how much a fix adds to each foreground logit at most, shape (F,); None keeps all rows.
    cache : the folder; None runs the network and keeps nothing.
    warn : is told of an entry that was damaged or could not be written.

    Raises
    ------
    DataError
        If a photograph has another size than its boxes go by, none is readable, or the outputs
        would take more than 8 GiB.
    UsageError
        If ``cache`` is a file.
    """
    form = CacheForm(
        "outputs",
        _ARRAYS,
        pack=_packed,
        unpack=lambda kept: _unpacked(kept, model, dataset, rise),
    )

    def keys() -> list[str]:
        images = [_digest(dataset, index) for index in range(len(dataset))]
        whole, reduced = _told(model), _reduction(model, rise)
        told = [whole] if reduced is None else [whole, {**whole, "reduced": reduced}]
        return [entry_key(one, _VERSIONED, images) for one in told]

    return cached(form, lambda: _run(model, dataset, rise, track), keys, cache=cache, warn=warn)


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


def _run(
    model: Detector | OnnxDetector, dataset: BoxDataset, rise: Float64 | None, track: Tracker
) -> RawOutputs:
    engine = detector_reference(model)
    raw: list[RawBoxes] = []
    candidates: list[int] = []
    indices: list[npt.NDArray[np.int64]] = []
    hashes: list[npt.NDArray[np.uint64]] = []
    loader = BoxLoader(dataset, model.canvas, batch_size=batch_size_for(model.canvas))
    try:
        for batch in track(loader, total=len(loader), label="validation"):
            for one in _outputs(engine.run({"images": batch.images}), batch):
                kept = one.some(_has_box(one.boxes))
                candidates.append(len(kept.logits))
                raw.append(_without_hopeless(kept, model, rise))
            indices.append(batch.indices)
            hashes.append(fingerprints(batch.images))
            _check_memory(raw, len(dataset), reducible=rise is None)
    finally:
        engine.close()
    return RawOutputs(
        raw,
        np.array(candidates, np.int64),
        np.concatenate(indices),
        np.concatenate(hashes),
        tuple(loader.unreadable),
    )


def _outputs(results: dict[str, FloatArray], batch: CanvasBatch) -> list[RawBoxes]:
    found = []
    for at, (name, placement) in enumerate(zip(batch.names, batch.placements, strict=True)):
        quality = results["quality"][at].copy() if "quality" in results else None
        # Copies: views would keep the whole batch in memory.
        boxes, logits = results["boxes"][at].copy(), results["logits"][at].copy()
        found.append(RawBoxes(boxes, logits, quality, placement, name))
    return found


def _has_box(boxes: FloatArray) -> Bools:
    """Return which rows are more than padding, shape (P,)."""
    largest = box_area(boxes).reshape(len(boxes), -1).max(axis=1, initial=0.0)
    return np.asarray(largest > 0, np.bool_)


def _without_hopeless(
    raw: RawBoxes, model: Detector | OnnxDetector, rise: Float64 | None
) -> RawBoxes:
    if rise is None:
        return raw
    return raw.some(may_be_kept(raw, model.score_rule, model.keep_rule.score_threshold, rise))


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


# In the cache: the rows of all photographs one after the other, and how many each has.


def _told(model: Detector | OnnxDetector) -> dict[str, Any]:
    """Return what all rows follow from, beside the photographs."""
    mapping = getattr(model, "mapping", None)  # of somebody's ONNX file
    return {
        "task": "detection",
        "checkpoint": model.source.sha256,
        "settings": model.source.settings,
        "arch": model.arch,
        "head": list(model.head_paths),
        "canvas": model.canvas.to_dict(),
        "outputs": None if mapping is None else mapping.model_dump(mode="json"),
    }


def _reduction(model: Detector | OnnxDetector, rise: Float64 | None) -> list[str] | None:
    """Return what decides which rows are left; None where all are."""
    if rise is None:
        return None
    rises = hashlib.blake2b(rise.tobytes(), digest_size=16).hexdigest()
    return [repr(model.score_rule), repr(model.keep_rule.score_threshold), rises]


def _digest(dataset: BoxDataset, index: int) -> bytes:
    # With the size that the boxes go by: where that is wrong, it is the loader that says so.
    return image_digest(dataset.source(index)) + repr(dataset.size_px(index)).encode()


def _packed(made: RawOutputs) -> Kept:
    arrays: dict[str, npt.NDArray[Any] | Sequence[npt.NDArray[Any]]] = {
        "boxes": [one.boxes for one in made.raw],
        "logits": [one.logits for one in made.raw],
        "rows": np.array([len(one.logits) for one in made.raw], np.int64),
        "candidates": made.candidates,
        "indices": made.indices,
        "hashes": made.hashes,
    }
    quality = [one.quality for one in made.raw if one.quality is not None]
    if quality:
        arrays["quality"] = quality
    return Kept(arrays, made.unreadable)


def _unpacked(
    kept: Kept, model: Detector | OnnxDetector, dataset: BoxDataset, rise: Float64 | None
) -> RawOutputs:
    arrays: Mapping[str, Any] = kept.arrays
    rows, indices = arrays["rows"], arrays["indices"]
    per_row = [arrays[name] for name in ("boxes", "logits", "quality") if name in arrays]
    per_image = [rows, arrays["candidates"], indices, arrays["hashes"]]
    if any(len(one) != rows.sum() for one in per_row):
        raise ValueError("its arrays have different lengths")
    if any(one.shape != rows.shape for one in per_image) or rows.min(initial=0) < 0:
        raise ValueError("it does not tell the rows of each photograph")
    if indices.min(initial=0) < 0:
        raise ValueError("it has negative indices")
    raw = []
    ends = np.cumsum(rows).tolist()
    for index, start, end in zip(indices.tolist(), [0, *ends], ends, strict=False):
        width_px, height_px = dataset.size_px(index)
        own = RawBoxes(
            arrays["boxes"][start:end],
            arrays["logits"][start:end],
            arrays["quality"][start:end] if "quality" in arrays else None,
            model.canvas.place(height_px, width_px),
            dataset.identifier(index),
        )
        raw.append(_without_hopeless(own, model, rise))
    return RawOutputs(raw, arrays["candidates"], indices, arrays["hashes"], kept.unreadable)
