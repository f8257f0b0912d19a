"""Which fix for a detector, and how strong: chosen by average precision on validation images."""

from .candidates import AUTO, box_candidates
from .evidence import BoxEvidence, evidence_of_detector
from .fix_out import fix_file_of_boxes
from .outputs import RawBoxes
from .report import render_box_report
from .result import BoxCalibration, BoxFigures, BoxMethodResult, shown_fix
from .run import calibrate_boxes

__all__ = [
    "AUTO",
    "BoxCalibration",
    "BoxEvidence",
    "BoxFigures",
    "BoxMethodResult",
    "RawBoxes",
    "box_candidates",
    "calibrate_boxes",
    "evidence_of_detector",
    "fix_file_of_boxes",
    "render_box_report",
    "shown_fix",
]
