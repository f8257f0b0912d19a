"""Load whatever a checkpoint is: a classifier or a detector."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._optional import require
from ..canvas import Canvas
from .classifier import LoadOptions, load_checkpoint, read_parts

if TYPE_CHECKING:
    from .classifier import Classifier
    from .detectors.detector import Detector
    from .onnx_classifier import OnnxClassifier

__all__ = ["load_model"]


def load_model(
    path: str | os.PathLike[str],
    *,
    options: LoadOptions | None = None,
    canvas: Canvas | None = None,
) -> Classifier | OnnxClassifier | Detector:
    """Load a checkpoint as what it says, or its weights show, that it is.

    Parameters
    ----------
    canvas : of a detector; None takes the file's.

    Raises
    ------
    CheckpointError, UnsafeCheckpointError
        As :func:`~ltdeploy.models.classifier.load_checkpoint`.
    """
    options = options or LoadOptions()
    path = Path(path)
    if path.is_dir():
        require("torch", extra="torch", purpose="load checkpoints")
        from .detectors.huggingface_detectors import detector_from_folder, is_detector_folder

        if is_detector_folder(path):
            return detector_from_folder(path, options, canvas)
    if path.suffix != ".onnx" and path.is_file():
        from .detectors.detector import detector_from, is_detector

        parts = read_parts(path, options)
        if is_detector(parts):
            return detector_from(path, parts, options, canvas)
    return load_checkpoint(path, options=options)
