"""Temperatures against scikit-learn, SciPy and closed forms; scale, edges, sigmoid heads, size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax, softmax
from sklearn.calibration import _TemperatureScaling

from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixContext, Temperature, fit_temperature, temperature
from ltdeploy.fixes.temperature import find_temperature
from ltdeploy.models.head import Activation, Head

ACTIVATIONS: tuple[Activation, ...] = ("softmax", "sigmoid")


def drawn(activation: Activation, seed: int = 0, images: int = 300, classes: int = 5) -> Any:
    """Logits that are too sure, labels drawn from the right ones, weights."""
    rng = np.random.default_rng(seed)
    right = 1.5 * rng.normal(size=(images, classes)) - (activation == "sigmoid")
    labels = (right + rng.gumbel(size=right.shape)).argmax(axis=1)
    labels[:classes] = np.arange(classes)
    logits = 2.5 * right + 0.5 * rng.normal(size=classes)
    return logits, labels, rng.uniform(0.1, 3, size=images)


def nll(logits: Any, labels: Any, weights: Any, activation: Activation) -> float:
    rows = np.arange(len(labels))
    if activation == "softmax":
        each = -log_softmax(logits, axis=1)[rows, labels]
    else:
        yes = np.zeros(logits.shape, dtype=bool)
        yes[rows, labels] = True
        each = -log_expit(np.where(yes, logits, -logits)).sum(axis=1)
    return float(np.average(each, weights=weights))


def scipys(logits: Any, labels: Any, weights: Any, activation: Activation) -> float:
    found = minimize_scalar(
        lambda log_t: nll(logits / np.exp(log_t), labels, weights, activation),
        bounds=(-4.6, 4.6),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(np.exp(found.x))


def context_of(logits: Any, labels: Any, activation: Activation = "softmax") -> FixContext:
    head = Head("linear", np.eye(logits.shape[1]), activation=activation)
    return FixContext(head=head, logits=logits, labels=labels)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weighted", [False, True])
@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_temperature_is_scipys(activation: Activation, weighted: bool, seed: int) -> None:
    logits, labels, weights = drawn(activation, seed)
    weights = weights if weighted else None
    t = fit_temperature(logits, labels, weights, activation)
    assert t == pytest.approx(scipys(logits, labels, weights, activation), rel=1e-6)
    if activation == "softmax":
        theirs = _TemperatureScaling().fit(logits, labels, weights)
        assert t == pytest.approx(1 / theirs.beta_, rel=1e-6)


def test_temperature_of_a_sigmoid_head_is_not_a_softmaxs() -> None:
    logits, labels, _ = drawn("sigmoid")
    softmax_t = fit_temperature(logits, labels)
    sigmoid_t = fit_temperature(logits, labels, activation="sigmoid")
    assert abs(softmax_t / sigmoid_t - 1) > 0.05
    assert find_temperature(context_of(logits, labels, "sigmoid")).t == sigmoid_t
    assert find_temperature(context_of(logits, labels)).t == softmax_t
    # It changes no decision, and lowers the likelihood's loss.
    fitted = Temperature(sigmoid_t).fit(context_of(logits, labels, "sigmoid")).apply(logits)
    np.testing.assert_array_equal(fitted.argmax(axis=1), logits.argmax(axis=1))
    assert nll(fitted, labels, None, "sigmoid") < nll(logits, labels, None, "sigmoid")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(exponent=st.floats(-8, 8), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_temperature_scales_with_the_logits(
    activation: Activation, exponent: float, seed: int
) -> None:
    logits, labels, weights = drawn(activation, seed, images=60)
    scale = 10.0**exponent
    assert fit_temperature(scale * logits, labels, weights, activation) == pytest.approx(
        scale * fit_temperature(logits, labels, weights, activation), rel=1e-9
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_temperatures_at_the_edges_scale_too(activation: Activation, scale: float) -> None:
    labels = np.arange(12) % 3
    for sign in (1.0, -1.0):
        logits = sign * (2 * np.eye(3)[labels] - 1)
        one = find_temperature(context_of(logits, labels, activation))
        other = find_temperature(context_of(scale * logits, labels, activation))
        assert other.t == pytest.approx(scale * one.t, rel=1e-9)
        assert other.note == one.note != ""


def test_temperature_of_two_classes_in_closed_form() -> None:
    # One image in four is wrong by a margin of 3: softmax(3 / t) = 3/4, so t = 3 / log 3.
    logits = np.tile([3.0, 0.0], (4, 1))
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(3 / np.log(3), rel=1e-9)
    three_to_one = fit_temperature(logits[:2], np.array([0, 1]), np.array([3.0, 1.0]))
    assert three_to_one == pytest.approx(3 / np.log(3), rel=1e-9)


def test_a_model_that_is_always_right_is_as_sure_as_a_rule_of_succession() -> None:
    # n right answers and one wrong one by the same lead: the confidence is n / (n + 1).
    labels = np.arange(50) % 2
    logits = 7.0 * np.eye(2)[labels]
    fit = find_temperature(context_of(logits, labels))
    assert "right on every image" in fit.note
    np.testing.assert_allclose(softmax(logits / fit.t, axis=1).max(axis=1), 50 / 51)
    with pytest.raises(FixError, match=r"right on every image, .* at the edge, 0\.$"):
        fit_temperature(logits, labels)
    # Negative control: one wrong image, and there is nothing to say.
    labels[0] = 1
    assert find_temperature(context_of(logits, labels)).note == ""


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_logits_that_say_nothing_are_made_almost_uniform(activation: Activation) -> None:
    labels = np.arange(30) % 3
    logits = -5 * (2 * np.eye(3)[labels] - 1)
    fit = find_temperature(context_of(logits, labels, activation))
    assert "say nothing of the labels" in fit.note
    np.testing.assert_allclose(softmax(logits / fit.t, axis=1), 1 / 3, atol=1e-3)
    with pytest.raises(FixError, match="at the edge, infinity; check that the labels"):
        fit_temperature(logits, labels, activation=activation)


def test_logits_that_are_all_alike_have_any_temperature() -> None:
    fit = find_temperature(context_of(np.ones((4, 2)), np.array([0, 1, 0, 1])))
    assert np.isfinite(fit.t)


def test_masked_classes_do_not_matter() -> None:
    logits, labels, _ = drawn("softmax")
    masked = np.column_stack([logits, np.full((300, 3), -1e9)])
    assert fit_temperature(masked, labels) == pytest.approx(fit_temperature(logits, labels))


def test_images_of_weight_0_are_not_looked_at() -> None:
    logits, labels, weights = drawn("softmax")
    part = np.arange(300) % 5 != 0
    alone = fit_temperature(logits[part], labels[part], weights[part])
    strange = np.where(part[:, None], logits, 1e12)
    assert fit_temperature(strange, labels, weights * part) == pytest.approx(alone, rel=1e-9)


@pytest.mark.parametrize("factor", [1e-9, 0.9, 1.0, 1e9])
def test_a_start_changes_no_result(factor: float) -> None:
    logits, labels, _ = drawn("softmax")
    context = context_of(logits, labels)
    cold = find_temperature(context).t
    assert find_temperature(context, start=factor * cold).t == pytest.approx(cold, rel=1e-7)


def test_the_map_goes_first() -> None:
    logits, labels, _ = drawn("softmax")
    one = AffineMap(np.full(5, 300.0), np.arange(5.0))
    fit = find_temperature(context_of(logits, labels), one)
    assert fit.t == pytest.approx(fit_temperature(one.apply(logits), labels), rel=1e-9)
    with pytest.raises(FixError, match="not finite behind the fix"), np.errstate(all="ignore"):
        find_temperature(
            context_of(logits.astype(np.float32), labels),
            AffineMap(np.full(5, 1e308), np.zeros(5)),
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (3000.0, -2e4)])
def test_single_precision_of_many_logits_keeps_six_digits(
    activation: Activation, scale: float, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels, _ = drawn(activation, images=2000, classes=50)
    offset = offset if activation == "softmax" else 0.0
    narrow = (scale * logits + offset).astype(np.float32)
    exact = scipys(narrow.astype(np.float64) / scale, labels, None, activation)
    t = fit_temperature(narrow, labels, activation=activation)
    assert t == pytest.approx(scale * exact, rel=1e-6)
    monkeypatch.setattr(temperature, "_NARROW_FROM", 1)
    t = fit_temperature(narrow, labels, activation=activation)
    assert t == pytest.approx(scale * exact, rel=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_few_passes_are_needed(activation: Activation, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []
    look = temperature._Scores.derivatives

    def counted(scores: Any, beta: float) -> tuple[float, float]:
        passes.append(beta)
        return look(scores, beta)

    monkeypatch.setattr(temperature._Scores, "derivatives", counted)
    for seed in range(20):
        logits, labels, _ = drawn(activation, seed)
        context = context_of(logits, labels, activation)
        cold = find_temperature(context).t
        assert len(passes) <= 7
        passes.clear()
        others = replace(context, weights=(np.arange(300) % 5 != 0).astype(float))
        find_temperature(others, start=cold)
        assert len(passes) <= 3
        passes.clear()


def test_data_that_are_no_logits_are_refused() -> None:
    logits, labels, _ = drawn("softmax")
    logits[4, 1] = np.nan
    with pytest.raises(FixError, match="temperature: image 4"):
        fit_temperature(logits, labels)
    with pytest.raises(FixError, match="2 images of 1 classes"):
        fit_temperature(np.eye(2), np.array([0, 0]))
