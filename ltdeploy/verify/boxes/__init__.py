"""Did the rare classes survive? For detectors: average precision of both sides, paired by image."""

from __future__ import annotations

from .report import render_box_report
from .result import BoxGroupResult, BoxVerifyResult, sentence
from .run import BoxVerification, verify_detector

__all__ = [
    "BoxGroupResult",
    "BoxVerification",
    "BoxVerifyResult",
    "render_box_report",
    "sentence",
    "verify_detector",
]
