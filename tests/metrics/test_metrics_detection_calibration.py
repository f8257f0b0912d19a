"""Calibration of detectors: scores against matches at IoU 0.5."""

from __future__ import annotations

import numpy as np
import pytest

from ltdeploy.boxes import Detections
from ltdeploy.errors import DataError
from ltdeploy.metrics.detection_calibration import detection_calibration
from ltdeploy.metrics.matching import ImageTruth, Limits, Matches, match


def scene(scores: list[float], crowd: bool = False) -> Matches:
    """Return matches of four boxes: right, right, wrong (of class 0); right (of class 1)."""
    left = np.array([0, 100, 500, 200], np.float32)
    boxes = np.stack([left, 0 * left, left + 50, 0 * left + 50], axis=1)
    there = np.array([0, 1, 3])
    truth = ImageTruth(
        boxes=boxes[there],
        labels=np.array([0, 0, 1]),
        crowd=np.array([False, crowd, False]),
        area=np.full(3, 2500.0),
    )
    found = Detections(boxes, np.array(scores, np.float32), np.array([0, 0, 0, 1]))
    return match([truth], [found], 3, Limits())


def test_by_hand() -> None:
    result = detection_calibration(scene([0.75, 0.875, 0.25, 0.5]), ["many", "few", "none"], bins=2)
    # Bins (0, 0.5] with 0.25 wrong and 0.5 right, (0.5, 1] with 0.75 and 0.875 right.
    assert result.overall.counts.tolist() == [2, 2]
    assert result.overall.error == pytest.approx((2 * 0.125 + 2 * 0.1875) / 4)
    assert result.by_group["many"].error == pytest.approx((1 * 0.25 + 2 * 0.1875) / 3)
    assert result.by_group["few"].error == pytest.approx(0.5)
    assert result.by_group["none"].error is None
    np.testing.assert_allclose(result.by_class, [0.625 / 3, 0.5, np.nan])
    assert result.class_averaged == pytest.approx((0.625 / 3 + 0.5) / 2)


def test_what_is_ignored_is_in_no_bin() -> None:
    result = detection_calibration(scene([0.75, 0.875, 0.25, 0.5], crowd=True), ["a", "b", "c"])
    assert result.overall.counts.sum() == 3


def test_scores_that_tell_the_truth_have_no_error() -> None:
    assert detection_calibration(scene([1, 1, 0, 1]), ["a", "a", "a"]).overall.error == 0


def test_nothing_found() -> None:
    empty = Detections.empty()
    nothing = ImageTruth(empty.boxes, empty.labels, empty.labels > 0, empty.scores)
    result = detection_calibration(match([nothing], [empty], 1, Limits()), ["many"])
    assert result.overall.error is None
    assert result.class_averaged is None


def test_scores_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(DataError, match=r"not in 0\.\.1, for example 3"):
        detection_calibration(scene([3.0, 0.5, 0.5, 0.5]), ["a", "a", "a"])
