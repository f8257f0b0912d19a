"""What is checked after every export of a detector instead of being assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.engines import Engine
from ltdeploy.errors import DataError, ExportError
from ltdeploy.pairing import agreement
from ltdeploy.postprocess import KeepRule, ScoreRule, postprocess_batch

from .row_checks import require_same_logits

__all__ = [
    "BATCHES",
    "EVERY_ROW",
    "LOW_TOLERANCE",
    "TOLERANCE",
    "DetectorChecks",
    "check_detector_graph",
    "detections_of",
    "rows_apart",
]


@dataclass(frozen=True)
class Tolerance:
    """What may differ: scores and boxes from the reference, and scores between batches."""

    score: float
    box_px: float
    batch: float


TOLERANCE = Tolerance(score=1e-4, box_px=0.1, batch=1e-4)
# In low precision only the gate can say what is too far from the reference; between batches an
# engine may round otherwise, which is small against what a layer that mixes images would do.
LOW_TOLERANCE = Tolerance(score=float("inf"), box_px=float("inf"), batch=0.05)
# Below, two boxes that are nearly alike may be suppressed the one or the other way round.
_LEAST_SCORE = 0.01
BATCHES = (1, 2, 5)
EVERY_ROW = 1 << 24


@dataclass(frozen=True)
class DetectorChecks:
    """The figures of the checks, all of which passed.

    Attributes
    ----------
    engine : what ran the graph.
    samples : photographs used.
    detections : found in them by the reference, above a score of 0.01.
    score_difference, box_difference_px : largest differences from the unfused reference, after
        matching by class and overlap.
    batch_difference : largest difference of a score between batches of 1, 2, 5 and permuted images.
    logit_difference : largest difference of a logit of any class, at whatever score, relative to
        the largest; None where it was not asked for.
    """

    engine: str
    samples: int
    detections: int
    score_difference: float
    box_difference_px: float
    batch_difference: float
    logit_difference: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)


def detections_of(
    outputs: Mapping[str, FloatArray], scores: ScoreRule, keep: KeepRule, canvas: Canvas
) -> list[Detections]:
    """Return what is found on each canvas, in canvas pixels, from a graph's outputs."""
    whole = canvas.place(canvas.height_px, canvas.width_px)
    count = len(outputs["boxes"])
    names = [f"golden sample {at}" for at in range(count)]
    return postprocess_batch(outputs, scores, keep, [whole] * count, names)


def check_detector_graph(
    engine: Engine,
    images: npt.NDArray[np.uint8],
    expected: Sequence[Detections],
    scores: ScoreRule,
    keep: KeepRule,
    canvas: Canvas,
    tolerance: Tolerance = TOLERANCE,
    *,
    raw: Mapping[str, FloatArray] | None = None,
    batches: Sequence[int] = BATCHES,
) -> DetectorChecks:
    """Run an exported detector on real canvases and compare it with the reference.

    Parameters
    ----------
    engine : the exported graph, loaded.
    images : array of shape (K, H, W, 3), uint8.
    expected : what the reference finds in each, the fix applied unfused.
    tolerance : of what is compared.
    raw : the reference's raw outputs, fix applied, to compare logits with; None compares none.
    batches : sizes to compare with all images at once.

    Raises
    ------
    ExportError
        If the batch axis is fixed, or detections differ from the reference or between batches.
    """
    if any(spec.shape[0] is not None for spec in (*engine.inputs, *engine.outputs)):
        raise ExportError(
            f"The exporter froze the batch axis: {engine.inputs} → {engine.outputs}; the "
            "detector's code depends on the batch size."
        )

    def found(pictures: npt.NDArray[np.uint8], keep: KeepRule = keep) -> list[Detections]:
        try:
            outputs = engine.run({"images": np.ascontiguousarray(pictures)})
            return detections_of(outputs, scores, keep, canvas)
        except DataError as error:
            raise ExportError(f"The exported graph cannot be used: {error}") from error

    together = found(images)
    score, box = _apart(expected, together)
    if box > tolerance.box_px:
        every = replace(keep, suppression="none", top_k=EVERY_ROW)
        box = _box_among(expected, found(images, every), tolerance.score)
    if not (score <= tolerance.score and box <= tolerance.box_px):
        raise ExportError(
            f"The exported graph differs from the reference by {score:.2g} in a score and "
            f"{box:.2g} pixels in a box on {len(images)} photographs; expected at most "
            f"{tolerance.score:g} and {tolerance.box_px:g}. The fold or the export "
            "changed the model; nothing was written."
        )
    batch = 0.0
    order = np.random.default_rng(0).permutation(len(images))
    for size in batches:
        for index in (np.arange(len(images)), order):
            parts: list[Detections] = []
            for start in range(0, len(index), size):
                parts += found(images[index[start : start + size]])
            same = [together[int(i)] for i in index]
            batch = max(batch, _apart(same, parts, tolerance.batch)[0])
    if not batch <= tolerance.batch:
        raise ExportError(
            f"The exported graph gives other answers in batches of {', '.join(map(str, batches))} "
            f"than in one batch of {len(images)}: a score differs by {batch:.2g}. A layer mixes "
            "the images of a batch; nothing was written."
        )
    count = sum(int((one.scores >= _LEAST_SCORE).sum()) for one in expected)
    logits = None
    if raw is not None:
        logits = require_same_logits(raw, engine.run({"images": np.ascontiguousarray(images)}))
    return DetectorChecks(engine.name, len(images), count, score, box, batch, logits)


def _apart(
    expected: Sequence[Detections], found: Sequence[Detections], slack: float = TOLERANCE.score
) -> tuple[float, float]:
    """Return the largest difference of a score and of a box, of what is above the least score.

    Parameters
    ----------
    slack : a detection may lack a counterpart as long as it is less than that above the least
        score.
    """
    score = box = 0.0
    for a, b in zip(expected, found, strict=True):
        certain = a[a.scores >= _LEAST_SCORE], b[b.scores >= _LEAST_SCORE - slack]
        apart = agreement(*certain, least_score=_LEAST_SCORE + slack)
        score = max(score, apart.score_difference, apart.alone)
        box = max(box, apart.box_difference_px)
    return score, box


def _box_among(expected: Sequence[Detections], rows: Sequence[Detections], slack: float) -> float:
    """Return how far a box is at most from a row of its class with its score, in pixels.

    Where two boxes of a photograph are nearly alike and their scores equal to the last digit, that
    digit decides which of them suppresses the other: the stages of a cascade, which move proposals
    onto the same object, make many such pairs.
    """
    worst = 0.0
    for a, b in zip(expected, rows, strict=True):
        certain = a[a.scores >= _LEAST_SCORE]
        for box, score, label in zip(certain.boxes, certain.scores, certain.labels, strict=True):
            like = (b.labels == label) & (np.abs(b.scores - score) <= slack)
            apart = np.abs(b.boxes[like] - box).max(axis=1)
            worst = max(worst, float(apart.min(initial=np.inf)))
    return worst


def rows_apart(
    found: Sequence[Detections], candidates: Sequence[Detections]
) -> tuple[float, float]:
    """Return how far detections are at most from a candidate of their class: score, and box in px.

    The candidate is the nearest by box, or by score where several have that box.
    """
    score = box = 0.0
    for one, rows in zip(found, candidates, strict=True):
        for own, value, label in zip(one.boxes, one.scores, one.labels, strict=True):
            alike = rows.labels == label
            away = np.abs(rows.boxes[alike] - own).max(axis=1)
            nearest = float(away.min(initial=np.inf))
            scores = rows.scores[alike][away <= nearest + TOLERANCE.box_px]
            box = max(box, nearest)
            score = max(score, float(np.abs(scores - value).min(initial=np.inf)))
    return score, box
