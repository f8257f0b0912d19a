"""Reliability bins and the expected calibration error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.arrays import softmax
from ltdeploy.errors import DataError
from ltdeploy.metrics import reliability, top1_of_logits


def test_error_by_hand() -> None:
    # Two bins of five: (0.6, 0.8] holds 0.7 and 0.8, half right; (0.8, 1] holds 0.9, right.
    diagram = reliability(np.array([0.7, 0.8, 0.9]), np.array([True, False, True]), bins=5)
    assert diagram.counts.tolist() == [0, 0, 0, 2, 1]
    assert diagram.confidence[3:] == pytest.approx([0.75, 0.9])
    assert diagram.accuracy[3:] == pytest.approx([0.5, 1.0])
    assert np.isnan(diagram.accuracy[:3]).all()
    assert diagram.error == pytest.approx((2 * 0.25 + 1 * 0.1) / 3)


def test_bins_are_closed_above() -> None:
    diagram = reliability(np.array([0.0, 0.2, 0.2001, 1.0]), np.ones(4, dtype=bool), bins=5)
    assert diagram.counts.tolist() == [2, 1, 0, 0, 1]


def test_no_images_have_no_error() -> None:
    assert reliability(np.zeros(0), np.zeros(0, dtype=bool)).error is None


@pytest.mark.parametrize(
    ("confidences", "correct", "bins", "said"),
    [
        ([0.5, 1.2], [1, 1], 15, "for example 1.2"),
        ([0.5, float("nan")], [1, 1], 15, "for example nan"),
        ([0.5], [1, 1], 15, r"\(1,\)"),
        ([0.5], [1], 0, "bins is 0"),
    ],
)
def test_refuses_what_is_not_a_confidence(
    confidences: list[float], correct: list[int], bins: int, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        reliability(np.array(confidences), np.array(correct), bins)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 20.0))
def test_top1_of_logits_is_the_softmax_and_ignores_shifts(seed: int, scale: float) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, 7)) * scale
    labels, confidences = top1_of_logits(logits)
    expected = softmax(logits)
    assert (labels == expected.argmax(axis=1)).all()
    assert confidences == pytest.approx(expected.max(axis=1), rel=1e-5)
    shifted_labels, shifted = top1_of_logits(logits + 1000.0)
    assert (shifted_labels == labels).all()
    assert shifted == pytest.approx(confidences, rel=1e-5)


def test_ties_go_to_the_lower_label() -> None:
    labels, confidences = top1_of_logits(np.zeros((1, 4), dtype=np.float32))
    assert labels.tolist() == [0]
    assert confidences == pytest.approx([0.25])


def test_a_calibrated_model_has_no_error_and_an_overconfident_one_has() -> None:
    random = np.random.default_rng(0)
    confidences = random.uniform(0.2, 1.0, 200_000)
    right = random.random(200_000) < confidences
    calibrated, overconfident = (
        reliability(confidences, right),
        reliability(np.minimum(confidences + 0.15, 1.0), right),
    )
    assert calibrated.error is not None
    assert overconfident.error is not None
    assert calibrated.error < 0.01
    assert overconfident.error > 0.1
