"""Classifying many images: inputs, rows that survive a kill, on this machine or on Ray."""

from __future__ import annotations

from .inputs import Inputs, answers, open_inputs
from .on_ray import RayOptions, parse_ray
from .run import Written, predict_to_file

__all__ = [
    "Inputs",
    "RayOptions",
    "Written",
    "answers",
    "open_inputs",
    "parse_ray",
    "predict_to_file",
]
