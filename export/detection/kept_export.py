"""A detector's graph made to suppress by itself, and compared with what the predictor would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.engines import Engine
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import ExportError
from ltdeploy.models.detectors.detector import Detector
from ltdeploy.pairing import pair

from .detector_checks import (
    BATCHES,
    EVERY_ROW,
    TOLERANCE,
    DetectorChecks,
    check_detector_graph,
    detections_of,
    rows_apart,
)
from .kept_detections import KEPT, KeptDetections, keep_inside
from .static_masks import KeptMasks
from .static_rcnn import StaticRcnn

if TYPE_CHECKING:
    import onnx

    from ltdeploy.models.detectors.onnx_detector import OnnxDetector

__all__ = ["KeptGraph", "gives_masks", "kept_graph"]

_MASK_TOLERANCE = 1e-3
_SHOWN = 0.05  # the score from which predict shows a detection


@dataclass(frozen=True, eq=False)
class KeptGraph:
    """A graph that suppresses itself, and how it compares.

    Attributes
    ----------
    checks : against what the predictor makes of the raw outputs, of what both keep.
    missing : how many detections the predictor keeps and the graph does not.
    missing_score : the highest of their scores; 0 without any.
    mask_difference : largest difference of a mask's probability from the reference's masks of the
        same boxes; None where there are none.
    """

    graph: onnx.ModelProto
    checks: DetectorChecks
    missing: int
    missing_score: float
    mask_difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return {
            **self.checks.to_dict(),
            "missing": self.missing,
            "missing_score": self.missing_score,
            "mask_difference": self.mask_difference,
        }


def gives_masks(model: Detector | OnnxDetector) -> bool:
    """Whether a graph that suppresses itself gives masks, too."""
    return isinstance(model, Detector) and model.has_masks


def kept_graph(
    model: Detector | OnnxDetector,
    raw: onnx.ModelProto,
    rules: tuple[ScoreRule, KeepRule, Canvas],
    open_graph: Callable[[onnx.ModelProto], Engine],
    canvases: npt.NDArray[np.uint8],
    *,
    exact: bool,
) -> KeptGraph:
    """Put scores, suppression and masks behind a graph of raw outputs, and check it.

    Parameters
    ----------
    rules : as :func:`~.kept_detections.rule_inside` gives them.
    canvases : array of shape (K, H, W, 3), uint8.
    exact : whether it must be the same; in low precision the gate says what may differ.

    Raises
    ------
    ExportError
        If it gives what the predictor would not, misses what is shown, or its masks are others.
    """
    kept = KeptDetections(*rules)
    if isinstance(model, Detector) and gives_masks(model):
        static = StaticRcnn(model.module, rules[2].height_px, rules[2].width_px)
        graph = keep_inside(raw, KeptMasks(kept, model.module, static), (*KEPT, "masks"))
    else:
        graph = keep_inside(raw, kept)
    rows, engine = open_graph(raw), open_graph(graph)
    try:
        outputs = rows.run({"images": canvases})
        expected = detections_of(outputs, *rules)
        found = detections_of(engine.run({"images": canvases}), *rules)
        every = replace(rules[1], suppression="none", top_k=EVERY_ROW)
        candidates = detections_of(outputs, rules[0], every, rules[2])
        # Masks cost more than the network, whose batches were compared already.
        batches = (2,) if gives_masks(model) else BATCHES
        checks = check_detector_graph(engine, canvases, found, *rules, batches=batches)
        apart = None
        if isinstance(model, Detector) and gives_masks(model):
            apart = _masks_apart(found, model, canvases, exact=exact)
    finally:
        rows.close()
        engine.close()
    score, box = rows_apart(found, candidates)
    missing = np.concatenate(
        [a.scores[pair(a, b) < 0] for a, b in zip(expected, found, strict=True)]
    )
    extra = np.concatenate([b.scores[pair(b, a) < 0] for a, b in zip(expected, found, strict=True)])
    highest = float(missing.max(initial=0.0))
    shown = max(highest, float(extra.max(initial=0.0)))
    if exact and not (score <= TOLERANCE.score and box <= TOLERANCE.box_px and shown < _SHOWN):
        raise ExportError(
            f"The suppression inside the graph differs from the predictor's: {len(missing)} "
            f"detections are missing and {len(extra)} too many, with scores up to {shown:.2g}, and "
            f"those kept differ by {score:.2g} in a score and {box:.2g} pixels in a box. Leave "
            "--nms-in-graph out."
        )
    checks = replace(
        checks,
        detections=sum(len(one) for one in expected),
        score_difference=score,
        box_difference_px=box,
    )
    return KeptGraph(graph, checks, len(missing), highest, apart)


def _masks_apart(
    found: Sequence[Detections], model: Detector, canvases: npt.NDArray[np.uint8], *, exact: bool
) -> float:
    """Return how far masks are from the reference's for the same boxes and labels."""
    reference = DetectorReference(model)
    try:
        expected = reference.masks(canvases, found)
    finally:
        reference.close()
    apart = 0.0
    for one, grids in zip(found, expected, strict=True):
        assert one.masks is not None
        apart = max(apart, float(np.abs(one.masks.grids - grids).max(initial=0.0)))
    if exact and not apart <= _MASK_TOLERANCE:
        raise ExportError(
            f"The exported graph's masks differ from the reference's by a probability of "
            f"{apart:.2g}; expected at most {_MASK_TOLERANCE:g}. The export changed the model; "
            "nothing was written."
        )
    return apart
