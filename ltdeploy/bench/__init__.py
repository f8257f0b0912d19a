"""Benchmarks: how fast each engine is, next to what it does to the tail."""

from __future__ import annotations

from .report import render_report
from .result import BenchResult, sentence
from .rounds import BenchOptions
from .run import open_bundles, run_bench

__all__ = [
    "BenchOptions",
    "BenchResult",
    "open_bundles",
    "render_report",
    "run_bench",
    "sentence",
]
