"""Load whatever a checkpoint is: a classifier or a detector."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._optional import require
from ..canvas import Canvas
from ..errors import UsageError
from .classifier import LoadOptions, load_checkpoint, read_parts
from .detectors.onnx_guess import require_classifier

if TYPE_CHECKING:
    from .classifier import Classifier
    from .detectors.detector import Detector
    from .detectors.onnx_detector import OnnxDetector
    from .detectors.onnx_mapping import OutputMapping
    from .onnx_classifier import OnnxClassifier

__all__ = ["load_model"]


def load_model(
    path: str | os.PathLike[str],
    *,
    options: LoadOptions | None = None,
    canvas: Canvas | None = None,
    outputs: OutputMapping | None = None,
) -> Classifier | OnnxClassifier | Detector | OnnxDetector:
    """Load a checkpoint as what it says, or its weights show, that it is.

    Parameters
    ----------
    canvas : of a detector; None takes the file's.
    outputs : what an ``.onnx`` file of a detector takes and gives; without it such a file is a
        classifier.

    Raises
    ------
    UsageError
        If ``outputs`` is given for a file that is no ONNX, or does not fit it.
    CheckpointError, UnsafeCheckpointError
        As :func:`~ltdeploy.models.classifier.load_checkpoint`.
    """
    options = options or LoadOptions()
    path = Path(path)
    if path.suffix == ".onnx":
        if outputs is not None:
            from .detectors.onnx_detector import load_onnx_detector

            return load_onnx_detector(path, outputs, options, canvas)
        require_classifier(path)
    elif outputs is not None:
        raise UsageError(
            f"--outputs says what an ONNX file gives, and {path} is none; leave it out."
        )
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
