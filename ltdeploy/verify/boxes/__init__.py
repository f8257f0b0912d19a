"""Did the rare classes survive? For detectors: average precision of both sides, paired by image."""

from __future__ import annotations

from .contenders import bundle_side
from .differences import BoxDifferences
from .gate import decide, precision_figures
from .report import render_box_report
from .result import BoxGroupResult, BoxVerifyResult, MatchedBy, sentence
from .run import BoxVerification, verify_detector
from .summary import box_rows, summarise_boxes

__all__ = [
    "BoxDifferences",
    "BoxGroupResult",
    "BoxVerification",
    "BoxVerifyResult",
    "MatchedBy",
    "box_rows",
    "bundle_side",
    "decide",
    "precision_figures",
    "render_box_report",
    "sentence",
    "summarise_boxes",
    "verify_detector",
]
