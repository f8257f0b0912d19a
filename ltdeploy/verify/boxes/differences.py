"""What two detectors find differently in the same photographs: pairs apart, and boxes alone."""

from __future__ import annotations

import numpy as np

from ...boxes import Detections
from ...pairing import pair

__all__ = ["BoxDifferences"]

_SHOWN_SCORE = 0.05  # what predict shows
_SAME_SCORE, _SAME_BOX_PX, _SAME_MASK = 1e-3, 0.5, 1e-2


class BoxDifferences:
    """Detections of one side that the other has not, by class, and how far pairs are apart."""

    def __init__(self, classes: int) -> None:
        self.lost, self.new = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
        self.score = self.box_px = self.mask = 0.0

    @property
    def equivalent(self) -> bool:
        """Whether both sides found the same, but for rounding."""
        same = self.score <= _SAME_SCORE and self.box_px <= _SAME_BOX_PX
        same = same and self.mask <= _SAME_MASK
        return same and not (self.lost.any() or self.new.any())

    def add(self, ours: Detections, theirs: Detections) -> None:
        counterpart = pair(ours, theirs)
        there = np.flatnonzero(counterpart >= 0)
        matched = counterpart[there]
        both = (ours.scores[there] >= _SHOWN_SCORE) | (theirs.scores[matched] >= _SHOWN_SCORE)
        scores = np.abs(ours.scores[there] - theirs.scores[matched])[both]
        boxes = np.abs(ours.boxes[there] - theirs.boxes[matched])[both]
        self.score = max(self.score, float(scores.max(initial=0.0)))
        self.box_px = max(self.box_px, float(boxes.max(initial=0.0)))
        if ours.masks is not None and theirs.masks is not None:
            masks = np.abs(ours.masks.grids[there] - theirs.masks.grids[matched])[both]
            self.mask = max(self.mask, float(masks.max(initial=0.0)))
        alone = ours.labels[(counterpart < 0) & (ours.scores >= _SHOWN_SCORE)]
        np.add.at(self.lost, alone, 1)
        unpaired = np.setdiff1d(np.arange(len(theirs)), matched)
        unpaired = unpaired[theirs.scores[unpaired] >= _SHOWN_SCORE]
        np.add.at(self.new, theirs.labels[unpaired], 1)
