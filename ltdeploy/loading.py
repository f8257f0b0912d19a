"""A bundle as something that answers, whether classes or boxes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

from .bundle import Bundle, open_bundle
from .detector import DetectionPredictor, DetectionResult
from .engines import open_engine
from .prediction import Prediction
from .predictor import Predictor

__all__ = ["Answer", "Model", "open_model", "open_proven"]

Model: TypeAlias = Predictor | DetectionPredictor
Answer: TypeAlias = Prediction | DetectionResult


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


def open_proven(
    bundle: str | os.PathLike[str],
    engine: str = "auto",
    *,
    threads: int | None = None,
    batch_sizes: Sequence[int] = (1,),
) -> Model:
    """Open a bundle that is to answer at once: its golden samples replayed, and warmed up.

    Parameters
    ----------
    batch_sizes : what it is warmed up with.

    Raises
    ------
    BundleError, EngineError, MissingExtraError
        As :func:`open_model`; also where the golden samples come out otherwise.
    """
    model = open_model(bundle, engine, threads=threads)
    try:
        model.replay_golden()
        model.warm_up(batch_sizes)
    except BaseException:
        model.close()
        raise
    return model
