"""Verification: prove class by class, with statistics, that the tail survived."""

from __future__ import annotations

from .reporting import baseline_json, report_html
from .result import VerifyResult, sentence
from .run import Verification, compare_models, verify_bundle
from .summary import WORST_CLASSES, group_rows, summarise, worst_classes

__all__ = [
    "WORST_CLASSES",
    "Verification",
    "VerifyResult",
    "baseline_json",
    "compare_models",
    "group_rows",
    "report_html",
    "sentence",
    "summarise",
    "verify_bundle",
    "worst_classes",
]
