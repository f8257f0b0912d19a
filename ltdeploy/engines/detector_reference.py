"""The reference of a detector: the float32 model as its checkpoint has it, without any fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..boxes import Detections
from ..errors import EngineError
from ..images import normalise
from .base import TensorSpec, check_feeds

if TYPE_CHECKING:
    from ..models.detectors.detector import Detector

__all__ = ["DetectorReference"]


class DetectorReference:
    """A detector run eagerly in float32 on the CPU, by its library's own code.

    Input ``images`` uint8 (N, H, W, 3), canvases; outputs ``boxes`` (N, P, 4) or (N, P, F, 4) in
    canvas pixels, ``logits`` (N, P, C) before any fix, and ``quality`` (N, P) where it has one. P
    may differ from batch to batch.
    """

    name = "torch-cpu"

    def __init__(self, model: Detector) -> None:
        self._model: Detector | None = model
        size = (model.canvas.height_px, model.canvas.width_px)
        self.inputs = (TensorSpec("images", "uint8", (None, *size, 3)),)
        columns = model.head.classes
        classes = len(model.score_rule.foreground(columns))
        own = (classes,) if model.architecture.class_rows.own_boxes else ()
        outputs = [
            TensorSpec("boxes", "float32", (None, None, *own, 4)),
            TensorSpec("logits", "float32", (None, None, columns)),
        ]
        if model.score_rule.quality != "none":
            outputs.append(TensorSpec("quality", "float32", (None, None)))
        self.outputs = tuple(outputs)

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        import torch

        from ..models.detectors.reference import raw_outputs

        model = self._opened()
        check_feeds(self.name, self.inputs, feeds)
        canvas = model.canvas.as_preprocessing()
        images = normalise(feeds["images"].astype(np.uint8, copy=False), canvas)
        with torch.inference_mode():
            results = raw_outputs(model.module, model.architecture.kind, torch.from_numpy(images))
        return {name: values.float().numpy() for name, values in results.items()}

    @property
    def has_masks(self) -> bool:
        """Whether the model gives masks."""
        return self._opened().has_masks

    def masks(self, images: npt.NDArray[np.uint8], found: Sequence[Detections]) -> list[FloatArray]:
        """Return the masks of what was found, per image probabilities (K, S, S).

        Parameters
        ----------
        images : canvases, array of shape (N, H, W, 3), uint8.
        found : on each canvas, in its pixels.
        """
        import torch

        from ..models.detectors.reference_rcnn import rcnn_masks

        model = self._opened()
        pixels = torch.from_numpy(normalise(images, model.canvas.as_preprocessing()))
        boxes = [torch.from_numpy(one.boxes.astype(np.float32)) for one in found]
        labels = [torch.from_numpy(one.labels) for one in found]
        with torch.inference_mode():
            return [one.numpy() for one in rcnn_masks(model.module, pixels, boxes, labels)]

    def _opened(self) -> Detector:
        if self._model is None:
            raise EngineError(f"{self.name} was closed; load the checkpoint again.")
        return self._model

    def close(self) -> None:
        """Let go of the model."""
        self._model = None
