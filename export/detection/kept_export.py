"""A detector's graph made to suppress by itself, and compared with what the predictor would do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltdeploy.canvas import Canvas
from ltdeploy.detection_rules import KeepRule, ScoreRule
from ltdeploy.engines import Engine
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import ExportError
from ltdeploy.models.detectors.detector import Detector

from .detector_checks import BATCHES, DetectorChecks, check_detector_graph, detections_of
from .kept_detections import KEPT, KeptDetections, keep_inside
from .static_masks import KeptMasks
from .static_rcnn import StaticRcnn

if TYPE_CHECKING:
    import onnx

    from ltdeploy.models.detectors.onnx_detector import OnnxDetector

__all__ = ["KeptGraph", "gives_masks", "kept_graph"]

_MASK_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class KeptGraph:
    """A graph that suppresses itself, and how it compares.

    Attributes
    ----------
    checks : against what the predictor makes of the raw outputs.
    mask_difference : largest difference of a mask's probability from the reference's masks of the
        same boxes; None where there are none.
    """

    graph: onnx.ModelProto
    checks: DetectorChecks
    mask_difference: float | None


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
    exact : whether masks must be the reference's; in low precision they need not be.

    Raises
    ------
    ExportError
        If it keeps other detections than the predictor, or its masks are others.
    """
    kept = KeptDetections(*rules)
    if isinstance(model, Detector) and gives_masks(model):
        static = StaticRcnn(model.module, rules[2].height_px, rules[2].width_px)
        graph = keep_inside(raw, KeptMasks(kept, model.module, static), (*KEPT, "masks"))
    else:
        graph = keep_inside(raw, kept)
    rows, engine = open_graph(raw), open_graph(graph)
    try:
        expected = detections_of(rows.run({"images": canvases}), *rules)
        # Masks cost more than the network, whose batches were compared already.
        batches = (2,) if gives_masks(model) else BATCHES
        checks = check_detector_graph(
            engine, canvases, expected, *rules, rows=rows, batches=batches
        )
        apart = None
        if isinstance(model, Detector) and gives_masks(model):
            apart = _masks_apart(engine, model, canvases, rules, exact=exact)
    finally:
        rows.close()
        engine.close()
    return KeptGraph(graph, checks, apart)


def _masks_apart(
    engine: Engine,
    model: Detector,
    canvases: npt.NDArray[np.uint8],
    rules: tuple[ScoreRule, KeepRule, Canvas],
    *,
    exact: bool,
) -> float:
    """Return how far masks are from the reference's for the same boxes and labels."""
    found = detections_of(engine.run({"images": canvases}), *rules)
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
