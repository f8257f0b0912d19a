"""ltdeploy ships long-tailed vision models without losing the tail.

::

    import ltdeploy

    model = ltdeploy.load("moths.ltd")
    print(model("photo.jpg").best.name)

Names are imported when they are first used, so that ``import ltdeploy`` stays fast and brings
neither torch nor an engine.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .boxes import Detections
    from .bundle import Bundle, open_bundle
    from .classes import ClassTable, GroupRule
    from .detector import DetectionPredictor, DetectionResult, FoundBox, load_detector
    from .errors import LtdeployError
    from .images import Preprocessing
    from .prediction import ClassScore, Prediction
    from .predictor import Predictor, load

__version__ = "0.1.0"

_HOME = {
    "Bundle": "bundle",
    "ClassScore": "prediction",
    "ClassTable": "classes",
    "DetectionPredictor": "detector",
    "DetectionResult": "detector",
    "Detections": "boxes",
    "FoundBox": "detector",
    "GroupRule": "classes",
    "LtdeployError": "errors",
    "Prediction": "prediction",
    "Predictor": "predictor",
    "Preprocessing": "images",
    "load": "predictor",
    "load_detector": "detector",
    "open_bundle": "bundle",
}

__all__ = [
    "Bundle",
    "ClassScore",
    "ClassTable",
    "DetectionPredictor",
    "DetectionResult",
    "Detections",
    "FoundBox",
    "GroupRule",
    "LtdeployError",
    "Prediction",
    "Predictor",
    "Preprocessing",
    "load",
    "load_detector",
    "open_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ltdeploy' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
