"""The reference of somebody's ONNX detector: its own network, decoded as the mapping says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, sigmoid, softmax
from ..errors import EngineError
from ..images import normalise
from ..models.detectors.onnx_decode import decode
from .base import Engine, TensorSpec, check_feeds
from .detector_reference import DetectorReference
from .onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector

__all__ = ["OnnxDetectorReference", "detector_reference"]

_TOLERANCE = 1e-4


def detector_reference(model: Detector | OnnxDetector) -> Engine:
    """Return what a detector's bundle is measured against: its float32 model without any fix."""
    from ..models.detectors.onnx_detector import OnnxDetector

    if isinstance(model, OnnxDetector):
        return OnnxDetectorReference(model)
    return DetectorReference(model)


class OnnxDetectorReference:
    """Somebody's ONNX detector on ONNX Runtime, one image at a time; all else happens outside it.

    Of the file's network only the activation of classes and objectness is taken off. Inputs and
    outputs are those of :class:`~ltdeploy.engines.detector_reference.DetectorReference`.

    Raises
    ------
    EngineError
        If the file cannot be run, or gives other answers without its activation than with it.
    """

    name = "onnxruntime-cpu (original graph)"

    def __init__(self, model: OnnxDetector) -> None:
        self._model = model
        self._engine = OnnxRuntimeEngine(model.bare().SerializeToString())
        size = (model.canvas.height_px, model.canvas.width_px)
        self.inputs = (TensorSpec("images", "uint8", (None, *size, 3)),)
        outputs = [
            TensorSpec("boxes", "float32", (None, None, 4)),
            TensorSpec("logits", "float32", (None, None, model.head.classes)),
        ]
        if model.mapping.has_quality:
            outputs.append(TensorSpec("quality", "float32", (None, None)))
        self.outputs = tuple(outputs)
        if model.trace.activations:
            self._require_the_same()

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        check_feeds(self.name, self.inputs, feeds)
        prepared = self._prepared(feeds["images"].astype(np.uint8, copy=False))
        found = [
            decode(self._model.mapping, self._given(self._engine, one[None]), self._model.canvas)
            for one in prepared
        ]
        return {
            spec.name: np.concatenate([one[spec.name] for one in found]) for spec in self.outputs
        }

    def close(self) -> None:
        """Release the session."""
        self._engine.close()

    def _prepared(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        planes = normalise(images, self._model.canvas.as_preprocessing())
        turned = self._model.mapping.canvas.channels == "bgr"
        return np.ascontiguousarray(planes[:, ::-1]) if turned else planes

    def _given(
        self, engine: OnnxRuntimeEngine, planes: npt.NDArray[np.float32]
    ) -> dict[str, FloatArray]:
        results = engine.run({self._model.input_name: planes})
        return {ours: results[theirs] for ours, theirs in self._model.names.items()}

    def _require_the_same(self) -> None:
        """Raise unless the activation, computed here, brings the file's own outputs back."""
        model = self._model
        size = (1, model.canvas.height_px, model.canvas.width_px, 3)
        drawn = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
        planes = self._prepared(drawn)
        original = OnnxRuntimeEngine(model.model.SerializeToString())
        try:
            expected = self._given(original, planes)
        finally:
            original.close()
        for name, values in self._given(self._engine, planes).items():
            again = values if name == "boxes" else _activated(model, values)
            if not np.allclose(again, expected[name], rtol=_TOLERANCE, atol=_TOLERANCE):
                apart = float(np.abs(again - expected[name]).max())
                raise EngineError(
                    f"{model.source.path}: without the activation of its classes, its output "
                    f"{model.names[name]!r} differs by {apart:.2g} beyond that; the graph is not "
                    "what was understood of it. Please report it."
                )


def _activated(model: OnnxDetector, values: FloatArray) -> FloatArray:
    """Return an output of the bare graph with the file's activations computed again."""
    usual, again = model.mapping.usual, values.copy()
    last = np.moveaxis(again, usual.axis, -1)
    logits = last[..., usual.first_class :]
    for one in model.trace.activations:
        if (one.labels == 0).any():
            logits[:] = softmax(logits) if one.kind == "softmax" else sigmoid(logits)
            break
    objectness = model.head.classes
    if usual.quality is not None and any(
        objectness in one.labels for one in model.trace.activations
    ):
        last[..., usual.quality] = sigmoid(last[..., usual.quality])
    return again
