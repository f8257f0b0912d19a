"""Precision of a graph: casts and quantisation, chosen so that the tail passes the gate."""

from __future__ import annotations

from .lowering import Lowered, lower, lower_for
from .open_graph import graph_opener
from .request import BoxPrecisionRequest, PrecisionRequest, Request
from .scaling import Scaling, judge_scaling
from .search import Found, GroupTrade, Trial

__all__ = [
    "BoxPrecisionRequest",
    "Found",
    "GroupTrade",
    "Lowered",
    "PrecisionRequest",
    "Request",
    "Scaling",
    "Trial",
    "graph_opener",
    "judge_scaling",
    "lower",
    "lower_for",
]
