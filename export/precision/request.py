"""What precision is wanted, and what it may be chosen on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ltdeploy.datasets import Dataset
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.errors import UsageError
from ltdeploy.manifest import Precision
from ltdeploy.verify.gate import check_margin

__all__ = ["BoxPrecisionRequest", "Data", "PrecisionRequest", "Request"]

Data = TypeVar("Data", Dataset, BoxDataset)


@dataclass(frozen=True, eq=False)
class Request(Generic[Data]):
    """What precision is wanted, and what it may be chosen on.

    Parameters
    ----------
    precision : of all layers but the head, and for int8 but the first.
    calibration : training images; int8 takes its ranges from them, fp16 checks its range on them,
        or without them on images of ``gate``.
    calibration_images : how many of them, as many of each class as there are.
    gate : labelled images that the gate runs on; None applies the recipe ungated.
    engine : what the graph is run on while it is chosen.
    margin : points of class-averaged accuracy, of a detector of average precision, that a group may
        lose.
    search_seconds : after these no new measurement is begun.
    journals : folder for what a search has measured, so that it can go on; None keeps nothing.
    """

    precision: Precision = "fp32"
    calibration: Data | None = None
    calibration_images: int = 512
    gate: Data | None = None
    engine: str = "auto"
    margin: float = 1.0
    search_seconds: float = 600.0
    journals: Path | None = None

    def __post_init__(self) -> None:
        check_margin(self.margin)
        if not (math.isfinite(self.search_seconds) and self.search_seconds >= 0):
            raise UsageError(f"--search-seconds is {self.search_seconds}; expected 0 or more.")
        if self.calibration_images < 1:
            raise UsageError(
                f"--calibration-images is {self.calibration_images}; expected 1 or more."
            )
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                "--precision int8 takes the range of every layer from training images, and none "
                "were given; add --calibration DATA (the training set: a few images of every class "
                "are taken)."
            )

    @property
    def source(self) -> Data | None:
        """The data that ranges are measured on; None where there are none to measure, or none.

        The gate's images serve fp16 too: that a number is too large shows on any photograph.
        """
        if self.precision == "bf16":  # it has float32's range
            return None
        if self.precision == "fp16" and self.calibration is None:
            return self.gate
        return self.calibration


class PrecisionRequest(Request[Dataset]):
    """For a classifier."""


class BoxPrecisionRequest(Request[BoxDataset]):
    """For a detector."""
