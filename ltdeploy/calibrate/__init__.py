"""Which fix, and how strong: chosen on validation data, with what the choice is worth."""

from .candidates import AUTO
from .estimator import FixEstimator
from .evidence import Evidence, check_context, read_npz
from .fix_out import fix_file_of
from .lean import Lean, measure_lean
from .objective import Aim
from .report import render_report
from .result import Calibration, MethodResult
from .run import calibrate
from .sources import DataSources, aim_for, estimated_prior, evidence_of_checkpoint, prior_of_table

__all__ = [
    "AUTO",
    "Aim",
    "Calibration",
    "DataSources",
    "Evidence",
    "FixEstimator",
    "Lean",
    "MethodResult",
    "aim_for",
    "calibrate",
    "check_context",
    "estimated_prior",
    "evidence_of_checkpoint",
    "fix_file_of",
    "measure_lean",
    "prior_of_table",
    "read_npz",
    "render_report",
]
