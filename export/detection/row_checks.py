"""Raw outputs of a graph and its reference row by row: classes too rare to score are seen, too.

Detections are compared from a score of 0.01 on, below which suppression may go one way or the
other. A class that has no such score on a few photographs would not be looked at, so the logits of
all columns are compared as well, of rows that have the same box.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ltdeploy.arrays import FloatArray
from ltdeploy.boxes import box_area
from ltdeploy.errors import ExportError

__all__ = ["require_same_logits"]

_SAME_BOX_PX = 0.01
_TOLERANCE = 1e-3  # of the largest logit
_LEAST_SHARE = 0.5  # of rows that must have a counterpart, or nothing was compared
_ROWS_AT_ONCE = 256


def require_same_logits(
    expected: Mapping[str, FloatArray], found: Mapping[str, FloatArray]
) -> float:
    """Return the largest difference of a logit, relative to the largest logit.

    Rows are paired by their boxes, not by position: proposals may change places.

    Parameters
    ----------
    expected, found : ``boxes`` (N, P, 4) or (N, P, F, 4) and ``logits`` (N, P, C) of the reference,
        fix applied, and of the graph; P may differ.

    Raises
    ------
    ExportError
        If a logit differs by more than a thousandth, or half of the rows have no counterpart.
    """
    rows = paired = 0
    worst = largest = 0.0
    column = 0
    for ours, theirs, our_logits, their_logits in zip(
        *(side[key] for key in ("boxes", "logits") for side in (expected, found)), strict=True
    ):
        a, b = _outline(ours), _outline(theirs)
        used = np.flatnonzero(box_area(a) > 0)
        rows += len(used)
        largest = max(largest, float(np.abs(our_logits[used]).max(initial=0.0)))
        for start in range(0, len(used), _ROWS_AT_ONCE):
            block = used[start : start + _ROWS_AT_ONCE]
            same = np.abs(a[block, None] - b).max(axis=2) <= _SAME_BOX_PX
            for row, alike in zip(block, same, strict=True):
                if not alike.any():
                    continue
                paired += 1
                # Two proposals may end on one box: the nearer logits are its counterpart's.
                apart = np.abs(their_logits[alike] - our_logits[row])
                nearest = apart[apart.max(axis=1).argmin()]
                if nearest.max() > worst:
                    worst, column = float(nearest.max()), int(nearest.argmax())
    if rows and paired < _LEAST_SHARE * rows:
        raise ExportError(
            f"Of {rows:,} boxes that the reference proposes, the exported graph has {paired:,}; "
            "expected more than half. The export changed the model; nothing was written."
        )
    relative = worst / max(1.0, largest)
    if not relative <= _TOLERANCE:
        raise ExportError(
            f"The exported graph's logits differ from the reference's by {worst:.2g}, most in "
            f"column {column}; expected at most {_TOLERANCE:g} of the largest, {largest:.2g}. The "
            "fold or the export changed the model; nothing was written."
        )
    return relative


def _outline(boxes: FloatArray) -> FloatArray:
    """Return one box per row, (P, 4): the mean of the classes' where each has its own."""
    if boxes.ndim == 2:
        return boxes
    mean: FloatArray = boxes.mean(axis=1)
    return mean
