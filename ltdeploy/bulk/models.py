"""A bundle as something that answers a stream of images, whether classes or boxes."""

from __future__ import annotations

import os
from typing import TypeAlias

from ..bundle import Bundle, open_bundle
from ..detector import DetectionPredictor, DetectionResult
from ..engines import open_engine
from ..inference import batch_size_for
from ..predictor import Prediction, Predictor

__all__ = ["Answer", "Model", "batch_size", "default_top_k", "open_model"]

Model: TypeAlias = Predictor | DetectionPredictor
Answer: TypeAlias = Prediction | DetectionResult
_CLASSES, _BOXES = 5, 100


def open_model(
    bundle: Bundle | str | os.PathLike[str], engine: str = "auto", *, threads: int | None = None
) -> Model:
    """Open a bundle for prediction as what it is.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        As :func:`ltdeploy.load`.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    runs = open_engine(opened, engine, threads=threads)
    return DetectionPredictor(opened, runs) if opened.is_detector else Predictor(opened, runs)


def default_top_k(bundle: Bundle) -> int:
    """Return how many classes, or boxes, an answer has at most unless told otherwise."""
    return _BOXES if bundle.is_detector else _CLASSES


def batch_size(bundle: Bundle) -> int:
    """Return how many images a batch of this bundle has."""
    return batch_size_for(bundle.canvas if bundle.is_detector else bundle.preprocessing)
