"""The reference: the float32 model as its checkpoint has it, without any fix."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import EngineError, FixError
from ..fixes.logit_map import LogitMap
from ..fixes.maps import Blend, NewHead, steps_of
from ..images import normalise
from .base import Engine, TensorSpec, check_feeds
from .onnxruntime_engine import OnnxRuntimeEngine

if TYPE_CHECKING:
    from ..models.classifier import Classifier
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector
    from ..models.onnx_classifier import OnnxClassifier

__all__ = ["OnnxReference", "TorchReference", "reference_engine", "require_suits"]


class TorchReference:
    """A PyTorch classifier run eagerly in float32 on the CPU.

    Input ``images`` uint8 (N, H, W, 3); output ``logits`` float32 (N, C), before any fix, and with
    ``features`` also what the head is given, float32 (N, D).
    """

    name = "torch-cpu"

    def __init__(self, model: Classifier, *, features: bool = False) -> None:
        self._model: Classifier | None = model
        self._features = features and model.head.foldable
        self._hooking = threading.Lock()
        self.inputs, self.outputs = _tensors(model, self._features)

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        import torch

        model = self._model
        if model is None:
            raise EngineError(f"{self.name} was closed; load the checkpoint again.")
        check_feeds(self.name, self.inputs, feeds)
        images = normalise(feeds["images"].astype(np.uint8, copy=False), model.preprocessing)
        with torch.inference_mode():
            prepared = torch.from_numpy(images)
            if not self._features:
                return {"logits": model.module(prepared).float().numpy()}
            given: list[torch.Tensor] = []

            def watch(layer: Any, arguments: tuple[torch.Tensor, ...]) -> None:
                given.append(arguments[0])

            with self._hooking:  # one hook at a time, or it would hear of another thread's batch
                handle = model.module.get_submodule(model.head_path).register_forward_pre_hook(
                    watch
                )
                try:
                    logits = model.module(prepared)
                finally:
                    handle.remove()
            features = given[-1].flatten(1).float().numpy()
        return {"logits": logits.float().numpy(), "features": features}

    def close(self) -> None:
        """Let go of the model."""
        self._model = None


class OnnxReference:
    """Somebody's ONNX classifier as it came, on ONNX Runtime; normalisation happens outside it.

    Inputs and outputs are those of :class:`TorchReference`.
    """

    name = "onnxruntime-cpu (original graph)"

    def __init__(self, model: OnnxClassifier, *, features: bool = False) -> None:
        self._model = model
        self._names = {model.output_name: "logits"}
        if features:
            self._names[model.features_name] = "features"
        self._engine = OnnxRuntimeEngine(model.logits_model(features=features))
        self.inputs, self.outputs = _tensors(model, features)

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        check_feeds(self.name, self.inputs, feeds)
        images = feeds["images"].astype(np.uint8, copy=False)
        prepared = normalise(images, self._model.preprocessing)
        results = self._engine.run({self._model.input_name: prepared})
        return {ours: results[theirs] for theirs, ours in self._names.items()}

    def close(self) -> None:
        """Release the session."""
        self._engine.close()


def _tensors(
    model: Classifier | OnnxClassifier, features: bool
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    size = (model.preprocessing.height_px, model.preprocessing.width_px)
    outputs = [TensorSpec("logits", "float32", (None, model.head.classes))]
    if features:
        outputs.append(TensorSpec("features", "float32", (None, model.head.weight.shape[1])))
    return (TensorSpec("images", "uint8", (None, *size, 3)),), tuple(outputs)


def reference_engine(model: Classifier | OnnxClassifier, *, features: bool = False) -> Engine:
    """Return the engine that gives the model's logits before any fix.

    Parameters
    ----------
    features : also give what the head is given, as a second output ``features`` (N, D). It is
        missing where the logits come from more than one linear layer: there is no one such input.
    """
    from ..models.onnx_classifier import OnnxClassifier

    if isinstance(model, OnnxClassifier):
        return OnnxReference(model, features=features)
    return TorchReference(model, features=features)


def require_suits(
    fix: LogitMap, model: Classifier | OnnxClassifier | Detector | OnnxDetector
) -> None:
    """Raise :class:`FixError` unless a fitted map can be applied to this model's outputs."""
    head, name = model.head, model.source.path.name
    if fix.classes != head.classes:
        raise FixError(
            f"{name} has {head.classes} classes and the fix {fix.classes}; they belong to "
            "different models. Fit the fix on this one."
        )
    if fix.needs_features and not head.foldable:
        raise FixError(
            f"The fix looks at the features that the head is given, and the logits of {name} "
            "come from more than one linear layer. Use a fix that looks at logits alone, such as "
            "logit_adjustment or vector scaling."
        )
    for step in steps_of(fix):
        length = head.weight.shape[1]
        if isinstance(step, NewHead):
            length = step.weight.shape[1]
        elif isinstance(step, Blend):
            length = step.gate_weight.shape[0]
        if length != head.weight.shape[1]:
            raise FixError(
                f"The fix was fitted on features of length {length}, and the head of {name} is "
                f"given {head.weight.shape[1]}; they belong to different models."
            )
