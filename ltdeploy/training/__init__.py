"""Training: plain cross-entropy, as far as a model is needed to fix, export and verify."""

from __future__ import annotations

from .checkpointing import save_checkpoint
from .loop import TrainOptions, TrainResult, train
from .quickstart import QUICKSTART, QUICKSTART_ARCH, QUICKSTART_PREPROCESSING

__all__ = [
    "QUICKSTART",
    "QUICKSTART_ARCH",
    "QUICKSTART_PREPROCESSING",
    "TrainOptions",
    "TrainResult",
    "save_checkpoint",
    "train",
]
