"""Precision of a graph: casts and quantisation, chosen so that the tail passes the gate."""

from __future__ import annotations

from .lowering import Lowered, PrecisionRequest, lower
from .open_graph import graph_opener
from .scaling import Scaling, judge_scaling
from .search import Found, GroupTrade, Trial

__all__ = [
    "Found",
    "GroupTrade",
    "Lowered",
    "PrecisionRequest",
    "Scaling",
    "Trial",
    "graph_opener",
    "judge_scaling",
    "lower",
]
