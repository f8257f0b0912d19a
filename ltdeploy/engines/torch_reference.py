"""The reference: the float32 model as its checkpoint has it, without any fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import EngineError
from ..images import normalise
from .base import Engine, TensorSpec
from .onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..models.onnx_classifier import OnnxClassifier

__all__ = ["OnnxReference", "TorchReference", "reference_engine"]


class TorchReference:
    """A PyTorch classifier run eagerly in float32 on the CPU.

    Input ``images`` uint8 (N, H, W, 3); output ``logits`` float32 (N, C), before any fix.
    """

    name = "torch-cpu"

    def __init__(self, model: Classifier) -> None:
        size = (model.preprocessing.height_px, model.preprocessing.width_px)
        self._model: Classifier | None = model
        self.inputs = (TensorSpec("images", "uint8", (None, *size, 3)),)
        self.outputs = (TensorSpec("logits", "float32", (None, model.head.classes)),)

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        import torch

        if self._model is None:
            raise EngineError(f"{self.name} was closed; load the checkpoint again.")
        images = normalise(np.asarray(feeds["images"], np.uint8), self._model.preprocessing)
        with torch.inference_mode():
            prepared = torch.from_numpy(images)
            logits = self._model.module(prepared)
        return {"logits": logits.float().numpy()}

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


class OnnxReference:
    """Somebody's ONNX classifier as it came, on ONNX Runtime; normalisation happens outside it."""

    name = "onnxruntime-cpu (original graph)"

    def __init__(self, model: OnnxClassifier) -> None:
        size = (model.preprocessing.height_px, model.preprocessing.width_px)
        self._model = model
        self._engine = OnnxRuntimeEngine(model.logits_model())
        self.inputs = (TensorSpec("images", "uint8", (None, *size, 3)),)
        self.outputs = (TensorSpec("logits", "float32", (None, model.head.classes)),)

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        prepared = normalise(np.asarray(feeds["images"], np.uint8), self._model.preprocessing)
        results = self._engine.run({self._model.input_name: prepared})
        return {"logits": results[self._model.output_name]}

    def close(self) -> None:
        """Release the session."""
        self._engine.close()


def reference_engine(model: Classifier | OnnxClassifier) -> Engine:
    """Return the engine that gives the model's logits before any fix."""
    from ..models.onnx_classifier import OnnxClassifier

    return OnnxReference(model) if isinstance(model, OnnxClassifier) else TorchReference(model)
