"""Fixes fitted by softmax likelihood, against scikit-learn, SciPy and closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from ltdeploy.errors import FixError
from ltdeploy.fixes import matrix, scaling
from ltdeploy.fixes.affine import AffineMap
from ltdeploy.fixes.base import Fix, FixContext
from ltdeploy.fixes.likelihood import labelled, minimise
from ltdeploy.fixes.matrix import Dirichlet, MatrixScaling, fit_matrix
from ltdeploy.fixes.scaling import (
    BiasCorrectedTemperature,
    LearnableWeightScaling,
    VectorScaling,
)
from ltdeploy.fixes.temperature import fit_temperature
from ltdeploy.models.head import Head

DIAGONAL = [VectorScaling, BiasCorrectedTemperature, LearnableWeightScaling]
EVERY = [*DIAGONAL, MatrixScaling, Dirichlet]


def drawn(seed: int = 0, images: int = 300, classes: int = 5) -> tuple[Any, Any, Any]:
    """Logits that are too sure and shifted, labels drawn from the right ones, weights."""
    rng = np.random.default_rng(seed)
    right = 1.5 * rng.normal(size=(images, classes))
    labels = (right + rng.gumbel(size=right.shape)).argmax(axis=1)
    labels[:classes] = np.arange(classes)
    logits = 2.5 * right + rng.normal(size=classes)
    return logits, labels, rng.uniform(0.1, 3, size=images)


def context_of(logits: Any, labels: Any, weights: Any = None) -> FixContext:
    return FixContext(logits=logits, labels=labels, weights=weights)


def nll(logits: Any, labels: Any, weights: Any = None) -> float:
    each = -log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return float(np.average(each, weights=weights))


def affine(fix: Fix, context: FixContext) -> AffineMap:
    mapped = fix.fit(context)
    assert isinstance(mapped, AffineMap)
    return mapped


def penalty(fix: Fix, theta: Any, classes: int) -> tuple[Any, Any, float]:
    """Return scale, shift and the ridge's value for a flat vector, written anew."""
    l2 = fix.parameters()["l2"]
    assert isinstance(l2, float)
    if isinstance(fix, VectorScaling):
        a, c = theta[:classes], theta[classes:]
        return a, c, l2 * (np.mean((a - 1) ** 2) + np.mean(c**2))
    if isinstance(fix, BiasCorrectedTemperature):
        return theta[0], theta[1:], l2 * ((theta[0] - 1) ** 2 + np.mean(theta[1:] ** 2))
    return theta, 0.0, l2 * np.mean((theta - 1) ** 2)


@pytest.mark.parametrize("kind", DIAGONAL)
@pytest.mark.parametrize("l2", [1.0, 0.001])
@pytest.mark.parametrize("weighted", [False, True])
def test_diagonal_optimum_is_scipys(kind: Any, l2: float, weighted: bool) -> None:
    logits, labels, weights = drawn()
    weights = weights if weighted else None
    fix = kind(l2)
    size = {VectorScaling: 10, BiasCorrectedTemperature: 6, LearnableWeightScaling: 5}[kind]

    def loss(theta: Any) -> float:
        scale, shift, ridge = penalty(fix, theta, 5)
        return nll(logits * scale + shift, labels, weights) + ridge

    found = minimize(loss, np.full(size, 0.5), jac="3-point", options={"gtol": 1e-9})
    scale, shift, _ = penalty(fix, found.x, 5)
    mapped = affine(fix, context_of(logits, labels, weights))
    np.testing.assert_allclose(mapped.scale, np.broadcast_to(scale, 5), atol=1e-6)
    np.testing.assert_allclose(mapped.shift, np.broadcast_to(shift, 5), atol=1e-6)
    theirs = loss(found.x)
    ours = np.concatenate([np.atleast_1d(mapped.scale), mapped.shift])
    if kind is BiasCorrectedTemperature:
        ours = ours[4:]
    assert loss(ours[:size]) <= theirs + 1e-9


def test_bias_corrected_temperature_without_ridge_matches_scikit_learn() -> None:
    # Two classes: (z1 − z0) / t + c1 − c0 is a logistic regression on the difference.
    logits, labels, weights = drawn(classes=2)
    mapped = affine(BiasCorrectedTemperature(1e-10), context_of(logits, labels, weights))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    theirs.fit(np.diff(logits, axis=1), labels, sample_weight=weights)
    assert mapped.scale == pytest.approx(theirs.coef_[0, 0], rel=1e-5)
    assert mapped.shift[1] - mapped.shift[0] == pytest.approx(theirs.intercept_[0], abs=1e-5)


@pytest.mark.parametrize("l2", [1.0, 0.01])
@pytest.mark.parametrize("kind", [MatrixScaling, Dirichlet])
def test_matrix_optimum_is_scipys(kind: Any, l2: float) -> None:
    logits, labels, weights = drawn(images=200, classes=4)
    inputs = log_softmax(logits, axis=1) if kind is Dirichlet else logits

    def loss(theta: Any) -> float:
        full = theta.reshape(4, 5)
        ridge = ((full - np.eye(4, 5)) ** 2).sum() * l2 / 4
        return nll(inputs @ full[:, :4].T + full[:, 4], labels, weights) + ridge

    found = minimize(loss, np.eye(4, 5).ravel(), jac="3-point", options={"gtol": 1e-9}).x
    fitted = kind(l2).fit(context_of(logits, labels, weights))
    full = found.reshape(4, 5)
    np.testing.assert_allclose(fitted.apply(logits), inputs @ full[:, :4].T + full[:, 4], atol=1e-5)


def test_matrix_of_constant_logits_in_closed_form() -> None:
    # Nothing to learn but the prior, as a shift of mean 0.
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=120)
    labels[:3] = np.arange(3)
    logits = np.zeros((120, 3))
    mapped = fit_matrix(logits, labels, None, 1e-9)
    prior = np.log(np.bincount(labels) / 120)
    np.testing.assert_allclose(mapped.shift, prior - prior.mean(), atol=1e-6)
    np.testing.assert_allclose(mapped.scale, np.eye(3), atol=1e-9)


@pytest.mark.parametrize("start", ["warm", "far"])
def test_the_start_does_not_change_the_matrix(start: str) -> None:
    logits, labels, weights = drawn()
    cold = fit_matrix(logits, labels, weights, 0.01)
    rng = np.random.default_rng(1)
    begin = {
        "warm": fit_matrix(logits, labels, weights, 0.1),
        "far": AffineMap(3 * rng.normal(size=(5, 5)), 3 * rng.normal(size=5)),
    }[start]
    again = fit_matrix(logits, labels, weights, 0.01, begin)
    np.testing.assert_allclose(again.scale, cold.scale, atol=1e-7)
    np.testing.assert_allclose(again.shift, cold.shift, atol=1e-7)


def test_logits_of_low_rank_and_many_classes() -> None:
    # A head of 6 features and 40 classes; blocks of the preconditioner smaller than the rank.
    rng = np.random.default_rng(0)
    features, weight = rng.normal(size=(500, 6)), rng.normal(size=(40, 6))
    logits = features @ weight.T
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    whole = fit_matrix(logits, labels, None, 0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matrix, "_BLOCK_NUMBERS", 40 * 3**2)
        partial = fit_matrix(logits, labels, None, 0.1)
    np.testing.assert_allclose(partial.scale, whole.scale, atol=1e-6)


@pytest.mark.parametrize("flags", [(False, True), (True, True), (False, False)])
def test_gradients_and_curvature(flags: tuple[bool, bool]) -> None:
    logits, labels, weights = drawn(images=40)
    sample = labelled("test", logits, labels, weights)
    diagonal = scaling._Diagonal(sample, 0.1, shared=flags[0], shifted=flags[1])
    objectives: list[tuple[Any, int]] = [
        (diagonal, len(diagonal.ridge)),
        (matrix._Full(sample, 0.1), 30),
    ]
    rng = np.random.default_rng(0)
    for objective, size in objectives:
        theta, direction = 0.1 * rng.normal(size=(2, size))
        error = check_grad(
            lambda x, o=objective: o.evaluate(x)[0],
            lambda x, o=objective: o.evaluate(x)[1],
            theta,
        )
        assert error < 1e-5
        ahead = objective.evaluate(theta + 1e-5 * direction)[1]
        behind = objective.evaluate(theta - 1e-5 * direction)[1]
        objective.evaluate(theta)
        np.testing.assert_allclose(
            objective.product(direction), (ahead - behind) / 2e-5, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("kind", EVERY)
def test_an_infinite_ridge_is_the_identity(kind: Any) -> None:
    logits, labels, _ = drawn()
    mapped = kind(1e9).fit(context_of(logits, labels))
    np.testing.assert_allclose(
        log_softmax(mapped.apply(logits), axis=1), log_softmax(logits, axis=1), atol=1e-5
    )


@pytest.mark.parametrize("kind", EVERY)
def test_the_likelihood_rises(kind: Any) -> None:
    logits, labels, weights = drawn()
    mapped = kind().fit(context_of(logits, labels, weights))
    assert nll(mapped.apply(logits), labels, weights) < nll(logits, labels, weights) - 0.01


@pytest.mark.parametrize("kind", EVERY)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_classes_may_be_permuted(kind: Any, seed: int) -> None:
    logits, labels, weights = drawn(seed, images=80)
    order = np.random.default_rng(seed).permutation(5)
    plain = kind(0.01).fit(context_of(logits, labels, weights)).apply(logits)
    moved = kind(0.01).fit(context_of(logits[:, order], np.argsort(order)[labels], weights))
    np.testing.assert_allclose(moved.apply(logits[:, order]), plain[:, order], atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
def test_float32_logits_give_the_same(kind: Any) -> None:
    logits, labels, weights = drawn()
    narrow = logits.astype(np.float32)
    ours = kind().fit(context_of(narrow, labels, weights)).apply(logits)
    wide = narrow.astype(np.float64)
    np.testing.assert_allclose(
        ours, kind().fit(context_of(wide, labels, weights)).apply(logits), atol=1e-4
    )


@pytest.mark.parametrize("kind", EVERY)
def test_weights_are_repetitions(kind: Any) -> None:
    logits, labels, _ = drawn(images=60)
    times = np.random.default_rng(0).integers(0, 4, size=60)
    times[:5] = 1
    weighted = kind(0.1).fit(context_of(logits, labels, 7.0 * times)).apply(logits)
    repeated = kind(0.1).fit(context_of(np.repeat(logits, times, axis=0), np.repeat(labels, times)))
    np.testing.assert_allclose(weighted, repeated.apply(logits), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [(kind, scale) for kind in EVERY for scale in (1e-6, 1e4)] + [(kind, 1e8) for kind in DIAGONAL],
)
def test_tiny_and_huge_logits(kind: Any, scale: float) -> None:
    logits, labels, _ = drawn()
    mapped = kind(0.01).fit(context_of(scale * logits, labels)).apply(scale * logits)
    assert np.isfinite(mapped).all()
    assert nll(mapped, labels) <= nll(scale * logits, labels)


@pytest.mark.parametrize("kind", EVERY)
def test_one_image_per_class_and_a_perfect_model(kind: Any) -> None:
    for logits in (3.0 * np.eye(4), np.random.default_rng(0).normal(size=(4, 4))):
        mapped = kind(0.001).fit(context_of(logits, np.arange(4)))
        assert np.isfinite(mapped.apply(logits)).all()
        assert nll(mapped.apply(logits), np.arange(4)) < nll(logits, np.arange(4))


@pytest.mark.parametrize("kind", EVERY)
def test_classes_without_images_do_not_count(kind: Any) -> None:
    logits, labels, _ = drawn(images=400)
    here = (labels != 1) & (labels != 3)
    context = context_of(logits[here], labels[here])
    mapped = kind(0.01).fit(context)
    zero = np.where(here, 1.0, 0.0)
    by_weight = kind(0.01).fit(context_of(logits, labels, zero))
    np.testing.assert_allclose(by_weight.apply(logits), mapped.apply(logits), atol=1e-5)
    seen = [0, 2, 4]
    inputs = log_softmax(logits, axis=1) if kind is Dirichlet else logits
    inner = MatrixScaling if kind is Dirichlet else kind
    alone = affine(
        inner(0.01), context_of(inputs[here][:, seen], np.searchsorted(seen, labels[here]))
    )
    np.testing.assert_allclose(
        mapped.apply(logits)[:, seen], alone.apply(inputs[:, seen]), atol=1e-5
    )
    mean = np.diagonal(alone.matrix()).mean()
    np.testing.assert_allclose(mapped.apply(logits)[:, 1], mean * inputs[:, 1], atol=1e-5)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": np.zeros(6, dtype=int)}, "6 images of 1 classes"),
        ({"logits": np.ones((1, 3)), "labels": np.array([0])}, "1 images of 1 classes"),
        ({"labels": np.array([0, 1, 2, 3, 1, 1])}, r"image 3 has the label 3; .* 0 to 2"),
        ({"labels": np.array([0, 1, -1, 0, 1, 1])}, "image 2 has the label -1"),
        ({"labels": np.array([0.0, 1, 2, 0, 1, 2])}, "labels are float64"),
        ({"labels": np.array([0, 1])}, r"\(6, 3\) and the labels \(2,\)"),
        ({"weights": np.ones(5)}, r"weights have shape \(5,\)"),
        ({"weights": np.array([1, 1, -1, 1, 1, 1.0])}, "image 2 has the weight -1"),
        ({"weights": np.zeros(6)}, "0 images of 0 classes"),
        ({"head": Head("linear", np.eye(3), activation="sigmoid")}, "softmax heads"),
    ],
)
def test_bad_data_is_refused(kind: Any, change: Any, text: str) -> None:
    rng = np.random.default_rng(0)
    good = context_of(rng.normal(size=(6, 3)), np.array([0, 1, 2, 0, 1, 2]))
    kind().fit(good)
    with pytest.raises(FixError, match=text):
        kind().fit(replace(good, **change))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e20])
def test_numbers_that_are_no_logits_are_named(number: float) -> None:
    logits = np.ones((6, 3))
    logits[4, 1] = number
    labels = np.array([0, 1, 2, 0, 1, 2])
    for kind in EVERY:
        with pytest.raises(FixError, match=rf"{kind.method}: image 4 .* class label 1"):
            kind().fit(context_of(logits, labels))
    with pytest.raises(FixError, match="temperature: image 4"):
        fit_temperature(logits, labels)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan")])
def test_a_ridge_is_always_on(kind: Any, l2: float) -> None:
    with pytest.raises(FixError, match=rf"{kind.method}: l2 is .* above 0"):
        kind(l2)


@pytest.mark.parametrize("kind", [MatrixScaling, Dirichlet])
def test_a_matrix_of_thousands_of_classes_is_refused(kind: Any) -> None:
    with pytest.raises(FixError, match=r"at most 1000 classes\. Use vector"):
        kind().fit(context_of(np.zeros((2, 1001)), np.array([0, 1])))


class Uphill:
    """A quadratic whose gradient has the wrong sign: no step along it helps."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def evaluate(self, theta: Any) -> tuple[float, Any]:
        return 0.5 * float(theta @ theta), self.sign * theta

    def product(self, direction: Any) -> Any:
        return direction

    def precondition(self, gradient: Any) -> Any:
        return gradient


def test_an_optimiser_that_does_not_converge_is_an_error() -> None:
    with pytest.raises(FixError, match=r"odd: .* not converge after 1 Newton steps .*norm 2\)"):
        minimise("odd", Uphill(-1.0), np.ones(4))
    np.testing.assert_allclose(minimise("even", Uphill(1.0), np.ones(4)), 0, atol=1e-12)
