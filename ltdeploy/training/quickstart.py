"""What quickstart trains: a small residual network on the drawn species, in about two minutes."""

from __future__ import annotations

from ..preprocessing import Preprocessing
from .loop import TrainOptions

__all__ = ["QUICKSTART", "QUICKSTART_ARCH", "QUICKSTART_PREPROCESSING"]

QUICKSTART_ARCH = "timm:resnet10t"
QUICKSTART_PREPROCESSING = Preprocessing(height_px=64, width_px=64)
QUICKSTART = TrainOptions(epochs=18, batch_size=32)
