"""Platt scaling of sigmoid heads, against scikit-learn and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import _SigmoidCalibration

from ltdeploy.errors import FixError
from ltdeploy.fixes import platt
from ltdeploy.fixes.affine import AffineMap
from ltdeploy.fixes.base import FixContext
from ltdeploy.fixes.platt import Platt
from ltdeploy.models.head import Head


def fit(logits: Any, labels: Any, weights: Any = None) -> AffineMap:
    head = Head("linear", np.eye(logits.shape[1]), activation="sigmoid")
    mapped = Platt().fit(FixContext(head=head, logits=logits, labels=labels, weights=weights))
    assert isinstance(mapped, AffineMap)
    return mapped


def drawn(seed: int = 0, images: int = 200, classes: int = 4) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=images)
    labels[:classes] = np.arange(classes)
    logits = 2 * np.eye(classes)[labels] + 1.5 * rng.normal(size=(images, classes)) - 3
    weights = rng.uniform(0.2, 2, size=images)
    return logits, labels, weights / weights.mean()


@pytest.mark.parametrize("weighted", [False, True])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_each_class_is_scikit_learns(weighted: bool, seed: int) -> None:
    logits, labels, weights = drawn(seed)
    weights = weights if weighted else None
    mapped = fit(logits, labels, weights)
    for label in range(4):
        theirs = _SigmoidCalibration().fit(logits[:, label], 1.0 * (labels == label), weights)
        # Their sigmoid is 1 / (1 + exp(a z + b)).
        assert mapped.scale[label] == pytest.approx(-theirs.a_, rel=1e-5, abs=1e-6)
        assert mapped.shift[label] == pytest.approx(-theirs.b_, rel=1e-5, abs=1e-6)


def test_two_values_in_closed_form() -> None:
    # Of z = 0 one image in four is positive, of z = 1 three in four: two points fix the curve at
    # the mean smoothed targets.
    column = np.repeat([0.0, 1.0], 4)
    labels = np.array([0, 1, 1, 1, 0, 0, 0, 1])
    mapped = fit(np.stack([column, -column], axis=1), labels)
    high, low = 5 / 6, 1 / 6
    at_zero, at_one = (high + 3 * low) / 4, (3 * high + low) / 4
    logit = lambda p: np.log(p / (1 - p))  # noqa: E731
    np.testing.assert_allclose(mapped.shift[0], logit(at_zero), atol=1e-9)
    np.testing.assert_allclose(mapped.scale[0], logit(at_one) - logit(at_zero), atol=1e-9)


def test_a_class_without_images_takes_the_curve_of_all_pairs() -> None:
    logits, labels, _ = drawn(classes=4)
    labels[labels == 2] = 0
    mapped = fit(logits, labels)
    pairs = np.eye(4)[labels].ravel()
    theirs = _SigmoidCalibration().fit(logits.ravel(), pairs)
    assert mapped.scale[2] == pytest.approx(-theirs.a_, rel=1e-5)
    assert mapped.shift[2] == pytest.approx(-theirs.b_, rel=1e-5)
    own = _SigmoidCalibration().fit(logits[:, 0], 1.0 * (labels == 0))
    assert mapped.scale[0] == pytest.approx(-own.a_, rel=1e-5)


def test_weights_of_zero_leave_images_out() -> None:
    logits, labels, _ = drawn()
    counted = labels != 1
    left_out, without = fit(logits, labels, 3.0 * counted), fit(logits[counted], labels[counted])
    np.testing.assert_allclose(left_out.scale, without.scale, rtol=1e-6)
    np.testing.assert_allclose(left_out.shift, without.shift, rtol=1e-6)


@pytest.mark.parametrize(("factor", "offset"), [(1e-6, 0.0), (1e5, 0.0), (1.0, 1e4)])
def test_units_of_the_logits_do_not_matter(factor: float, offset: float) -> None:
    logits, labels, _ = drawn()
    moved = factor * logits + offset
    np.testing.assert_allclose(
        fit(moved, labels).apply(moved), fit(logits, labels).apply(logits), atol=1e-6
    )


def test_classes_may_be_permuted_and_float32_gives_the_same() -> None:
    logits, labels, weights = drawn()
    order = np.array([2, 0, 3, 1])
    plain = fit(logits, labels, weights)
    moved = fit(logits[:, order], np.argsort(order)[labels], weights)
    np.testing.assert_allclose(moved.scale, plain.scale[order], rtol=1e-9)
    narrow = fit(logits.astype(np.float32), labels, weights)
    np.testing.assert_allclose(narrow.scale, plain.scale, rtol=1e-5)


@pytest.mark.parametrize("logits", [10.0 * np.eye(3), 1e6 * np.eye(3), np.zeros((3, 3))])
def test_separable_and_constant_logits_stay_finite(logits: Any) -> None:
    mapped = fit(logits, np.arange(3))
    scores = 1 / (1 + np.exp(-mapped.apply(logits)))
    if logits.any():  # smoothed targets: (1 + 1) / (1 + 2) and 1 / (2 + 2)
        np.testing.assert_allclose(scores, np.where(np.eye(3) > 0, 2 / 3, 1 / 4), atol=1e-6)
    else:
        np.testing.assert_allclose(scores, (2 / 3 + 2 * 1 / 4) / 3, atol=1e-6)


def test_softmax_heads_and_missing_heads_are_refused() -> None:
    logits, labels, _ = drawn()
    softmax = FixContext(head=Head("linear", np.eye(4)), logits=logits, labels=labels)
    with pytest.raises(FixError, match=r"sigmoid heads.*activation is softmax"):
        Platt().fit(softmax)
    with pytest.raises(FixError, match="activation is softmax"):
        Platt().fit(FixContext(logits=logits, labels=labels))
    with pytest.raises(FixError, match="platt: image 1 has the label 9"):
        fit(logits[:2], np.array([0, 9]))


def test_no_convergence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platt, "_STEPS", 1)
    with pytest.raises(FixError, match=r"platt: .* did not converge .* labels \[0, 1, 2, 3\]"):
        fit(*drawn())
