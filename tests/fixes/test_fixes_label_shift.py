"""Label shift estimated without labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ltdeploy.arrays import log_softmax, softmax
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixContext
from ltdeploy.fixes.label_shift import (
    LabelShift,
    estimate_weights_bbse,
    estimate_weights_rlls,
)
from ltdeploy.fixes.shift_em import estimate_prior_em
from ltdeploy.fixes.target_prior import label_shares
from ltdeploy.models.head import Head

MEANS = 2.0 * np.eye(4)
SOURCE = np.array([0.5, 0.3, 0.15, 0.05])
TARGET = np.array([0.05, 0.15, 0.2, 0.6])


def sample(prior: np.ndarray, images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return exact log-posteriors under SOURCE, and labels drawn from ``prior``."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, size=images, p=prior)
    features = MEANS[labels] + rng.normal(size=(images, 4))
    return log_softmax(features @ MEANS.T - 2.0 + np.log(SOURCE)), labels


def make_context(seed: int = 0, shift: float = 0.0) -> FixContext:
    logits, labels = sample(SOURCE, 4000, seed)
    target, _ = sample(TARGET, 4000, seed + 1)
    tilt = shift * np.arange(4)
    return FixContext(
        classes=ClassTable.from_counts((1000 * SOURCE).astype(int).tolist()),
        logits=logits + tilt,
        labels=labels,
        target_logits=target + tilt,
    )


# ---- EM


def likelihood(logits: np.ndarray, prior: np.ndarray, smoothing: float) -> float:
    mixed = np.log(softmax(logits) / SOURCE @ prior).sum()
    return float(mixed + smoothing * len(logits) * SOURCE @ np.log(prior))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_em_never_lowers_the_likelihood(smoothing: float) -> None:
    logits, _ = sample(TARGET, 500, 0)
    loose = np.geomspace(1.0, 1e-7, 25)  # a looser tolerance stops after fewer iterations
    values = [
        likelihood(
            logits, estimate_prior_em(logits, SOURCE, smoothing=smoothing, tolerance=t), smoothing
        )
        for t in loose
    ]
    assert (np.diff(values) >= -1e-9).all()
    assert values[-1] > values[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_em_agrees_with_a_general_optimiser(smoothing: float) -> None:
    logits, _ = sample(TARGET, 500, 1)

    def loss(free: np.ndarray) -> float:
        return -likelihood(logits, softmax(np.array([*free, 0.0])), smoothing)

    best = softmax(np.array([*minimize(loss, np.zeros(3), tol=1e-12).x, 0.0]))
    found = estimate_prior_em(logits, SOURCE, smoothing=smoothing, tolerance=1e-9)
    np.testing.assert_allclose(found, best, atol=1e-5)


def test_em_finds_the_target_prior() -> None:
    logits, labels = sample(TARGET, 20_000, 2)
    found = estimate_prior_em(logits, SOURCE, smoothing=0)
    np.testing.assert_allclose(found, label_shares(labels, 4), atol=0.01)


def test_em_on_one_hot_probabilities_counts() -> None:
    logits = np.log(np.full((10, 2), 1e-300))
    logits[:7, 0] = logits[7:, 1] = 0
    found = estimate_prior_em(logits, np.array([0.5, 0.5]), smoothing=0)
    np.testing.assert_allclose(found, [0.7, 0.3])
    # Half of the weight of 10 images at the source prior: (7 + 2.5) / 15.
    found = estimate_prior_em(logits, np.array([0.5, 0.5]), smoothing=0.5)
    np.testing.assert_allclose(found, [9.5 / 15, 5.5 / 15])


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_em_ignores_what_is_added_to_a_row_and_follows_a_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, 5)) * 2
    source = rng.dirichlet(np.ones(5)) + 0.01
    order = rng.permutation(5)
    found = estimate_prior_em(logits, source)
    moved = estimate_prior_em(logits + rng.normal(size=(60, 1)) * 100, source)
    np.testing.assert_allclose(moved, found, atol=1e-6)
    permuted = estimate_prior_em(logits[:, order], source[order])
    np.testing.assert_allclose(permuted, found[order], atol=1e-6)
    assert found.sum() == pytest.approx(1)


def test_smoothing_is_strong_on_few_images_and_weak_on_many() -> None:
    few, many = sample(TARGET, 12, 3)[0], sample(TARGET, 5000, 3)[0]
    strongest = estimate_prior_em(few, SOURCE, smoothing=5.0)
    np.testing.assert_allclose(estimate_prior_em(few, SOURCE), strongest)
    assert np.abs(estimate_prior_em(many, SOURCE) - TARGET).max() < 0.08


@pytest.mark.parametrize("images", [1, 2, 4])
def test_em_takes_a_handful_of_images(images: int) -> None:
    found = estimate_prior_em(sample(TARGET, images, 4)[0], SOURCE)
    assert np.isfinite(found).all()
    assert (found > 0).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_em_survives_extreme_logits(size: float) -> None:
    logits = np.random.default_rng(0).normal(size=(30, 4)) * size
    assert np.isfinite(np.log(estimate_prior_em(logits, SOURCE))).all()


@pytest.mark.parametrize("smoothing", [None, 0.0], ids=["while smoothing is chosen", "after"])
def test_em_says_when_it_does_not_converge(smoothing: float | None) -> None:
    logits, _ = sample(TARGET, 500, 5)
    with pytest.raises(FixError, match="EM did not converge in 2 iterations"):
        estimate_prior_em(logits, SOURCE, smoothing=smoothing, max_iterations=2)


# ---- EM along the training counts

MANY = 20
UNIFORM = np.full(MANY, 1 / MANY)
TRAINING = np.geomspace(50.0, 1.0, MANY) / np.geomspace(50.0, 1.0, MANY).sum()


def weak(prior: np.ndarray, images: int, seed: int) -> np.ndarray:
    """Return exact log-posteriors of a weak model under the uniform prior."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(MANY, size=images, p=prior)
    return log_softmax(1.3 * (1.3 * np.eye(MANY)[labels] + rng.normal(size=(images, MANY))))


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.abs(found - truth).sum() / 2)


@pytest.mark.parametrize("power", [1.0, 0.5, -0.5, -1.0], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_the_training_prior_lets_few_images_tell_a_forward_or_backward_tail(
    power: float, seed: int
) -> None:
    truth = TRAINING**power / (TRAINING**power).sum()
    logits = weak(truth, 400, seed)
    with_counts = distance(estimate_prior_em(logits, UNIFORM, training_prior=TRAINING), truth)
    without = distance(estimate_prior_em(logits, UNIFORM), truth)
    assert with_counts < 0.75 * without
    # Control: counts in another order say nothing, and are left alone.
    order = np.random.default_rng(0).permutation(MANY)
    shuffled = estimate_prior_em(logits, UNIFORM, training_prior=TRAINING[order])
    assert distance(shuffled, truth) > 1.25 * with_counts


@pytest.mark.parametrize("seed", range(5))
def test_a_uniform_target_stays_uniform(seed: int) -> None:
    found = estimate_prior_em(weak(UNIFORM, 2000, seed), UNIFORM, training_prior=TRAINING)
    assert distance(found, UNIFORM) < 0.05


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_em_with_a_training_prior_follows_a_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(MANY)
    logits = weak(TRAINING, 60, seed)
    found = estimate_prior_em(logits, UNIFORM, training_prior=TRAINING)
    permuted = estimate_prior_em(logits[:, order], UNIFORM, training_prior=TRAINING[order])
    np.testing.assert_allclose(permuted, found[order], atol=1e-6)


def test_the_tilt_maximises_the_likelihood() -> None:
    logits = weak(TRAINING, 3000, 1)  # smoothing as strong as below leaves the centre alone
    found = estimate_prior_em(logits, UNIFORM, training_prior=TRAINING, smoothing=1e6)
    power = np.polyfit(np.log(TRAINING), np.log(found), 1)[0]
    best = minimize(
        lambda x: -np.log(softmax(logits) @ softmax(x[0] * np.log(TRAINING))).sum(), [0.0]
    ).x[0]
    assert 0 < power <= best + 0.0625
    assert power == pytest.approx(best, abs=0.2)


def test_too_few_images_are_not_asked_for_a_tilt() -> None:
    few, enough = weak(TRAINING, 29, 0), weak(TRAINING, 200, 0)
    for logits, same in ((few, True), (enough, False)):
        found = estimate_prior_em(logits, UNIFORM, training_prior=TRAINING)
        assert np.allclose(found, estimate_prior_em(logits, UNIFORM)) == same


@pytest.mark.parametrize(
    ("training", "text"),
    [
        (TRAINING[:-1], "training prior is not one share for each of 20"),
        (np.where(np.arange(MANY) == 7, 0.0, TRAINING), r"training prior .* labels \[7\]"),
    ],
)
def test_em_refuses_an_unusable_training_prior(training: np.ndarray, text: str) -> None:
    with pytest.raises(FixError, match=text):
        estimate_prior_em(weak(UNIFORM, 50, 0), UNIFORM, training_prior=training)


@pytest.mark.parametrize(
    ("logits", "source", "text"),
    [
        (np.zeros((3, 3)), SOURCE, r"target logits have shape \(3, 3\)"),
        (np.zeros((0, 4)), SOURCE, "at least one image"),
        (np.full((2, 4), np.nan), SOURCE, "target image 0 are not finite"),
        (np.zeros((2, 4)), np.array([1, 1, 0, 1]), r"above 0 for the labels \[2\]"),
    ],
)
def test_em_refuses_unusable_input(logits: np.ndarray, source: np.ndarray, text: str) -> None:
    with pytest.raises(FixError, match=text):
        estimate_prior_em(logits, source)


# ---- confusion matrices


def test_bbse_by_hand() -> None:
    # P(0|y=0) = 0.9, P(0|y=1) = 0.2; the target's mean P(0) is 0.41 = 0.9 q + 0.2 (1 − q): q = 0.3.
    logits = np.log(np.repeat([[0.9, 0.1], [0.2, 0.8]], 400, axis=0))
    labels = np.repeat([0, 1], 400)
    target = np.log(np.repeat([[0.9, 0.1], [0.2, 0.8]], [300, 700], axis=0))
    weights = estimate_weights_bbse(logits, labels, target)
    np.testing.assert_allclose(weights, [0.6, 1.4])


@pytest.mark.parametrize("estimate", [estimate_weights_bbse, estimate_weights_rlls])
def test_confusion_estimators_find_the_weights(estimate) -> None:  # type: ignore[no-untyped-def]
    logits, labels = sample(SOURCE, 20_000, 6)
    target, truth = sample(TARGET, 20_000, 7)
    found = label_shares(labels, 4) * estimate(logits, labels, target)
    np.testing.assert_allclose(found, label_shares(truth, 4), atol=0.03)
    # Weighted so that classes count alike, the weights are relative to the uniform prior.
    balanced = 1.0 / np.bincount(labels)[labels]
    weighted = estimate(logits, labels, target, balanced) / 4
    np.testing.assert_allclose(weighted, label_shares(truth, 4), atol=0.03)


def test_rlls_agrees_with_a_general_optimiser() -> None:
    logits, labels = sample(SOURCE, 300, 8)
    target, _ = sample(TARGET, 300, 9)
    found = estimate_weights_rlls(logits, labels, target)
    shares = label_shares(labels, 4)
    matrix = (
        np.stack([softmax(logits[labels == c]).mean(axis=0) for c in range(4)], axis=1) * shares
    )
    gap = softmax(target).mean(axis=0) - matrix.sum(axis=1)
    log = np.log(2 * 4 / 0.05)
    delta = 0.01 * 3 * (2 * log / (3 * 300) + np.sqrt(2 * log / 300))

    def loss(weights: np.ndarray) -> float:
        theta = weights - 1
        return float(np.linalg.norm(matrix @ theta - gap) + delta * np.linalg.norm(theta))

    best = min(
        (
            minimize(loss, start, method="Nelder-Mead", bounds=[(0, None)] * 4,
                     options={"maxiter": 20_000, "xatol": 1e-10, "fatol": 1e-14})
            for start in (found, np.full(4, 1.5), TARGET / SOURCE)
        ),
        key=lambda result: result.fun,
    )  # fmt: skip
    wanted = best.x * shares / (best.x @ shares)
    wanted = np.maximum(wanted, 0.5 / 300)  # what is not met keeps half an image
    np.testing.assert_allclose(found * shares, wanted / wanted.sum(), atol=1e-4)


def test_rlls_sees_no_shift_where_there_is_none() -> None:
    logits, labels = sample(SOURCE, 400, 10)
    np.testing.assert_allclose(estimate_weights_rlls(logits, labels, logits), 1.0, rtol=1e-12)


def test_bbse_names_a_singular_matrix_and_what_is_never_predicted() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 50)
    logits = rng.normal(size=(150, 3)) + 4 * np.eye(3)[np.minimum(labels, 1)]
    logits[:, 2] = -9.0  # class 2 looks like class 1 and is never predicted
    with pytest.raises(FixError, match=r"condition number .*labels \[2\] are never.*rlls or em"):
        estimate_weights_bbse(logits, labels, logits)
    # The same images are enough for the regularised form.
    assert np.isfinite(estimate_weights_rlls(logits, labels, logits)).all()


def test_a_class_that_is_not_met_keeps_half_an_image() -> None:
    logits, labels = sample(SOURCE, 4000, 11)
    target, _ = sample(np.array([0.5, 0.5, 0, 0]), 1000, 12)
    found = estimate_weights_bbse(logits, labels, target) * label_shares(labels, 4)
    assert found.min() >= 0.9 * 0.5 / 1000
    assert found[2:].max() < 0.03


# ---- the fix


@pytest.mark.parametrize("source", ["training", "validation"])
@pytest.mark.parametrize("estimator", ["em", "bbse", "rlls"])
def test_label_shift_moves_the_prior(estimator, source) -> None:  # type: ignore[no-untyped-def]
    mapped = LabelShift(estimator, source).fit(make_context())
    assert isinstance(mapped, AffineMap)
    wanted = np.log(TARGET / SOURCE)
    shift = mapped.shift - mapped.shift.mean()
    np.testing.assert_allclose(shift, wanted - wanted.mean(), atol=0.35)


@pytest.mark.parametrize("estimator", ["em", "bbse", "rlls"])
def test_validation_tells_the_prior_of_logits_that_were_moved(estimator) -> None:  # type: ignore[no-untyped-def]
    plain = LabelShift(estimator).fit(make_context())
    moved = LabelShift(estimator).fit(make_context(shift=1.5))
    assert isinstance(plain, AffineMap)
    assert isinstance(moved, AffineMap)
    difference = plain.shift - moved.shift
    np.testing.assert_allclose(difference - difference[0], 1.5 * np.arange(4), atol=1e-4)


def test_label_shift_raises_accuracy_on_the_target() -> None:
    context = make_context()
    logits, labels = sample(TARGET, 4000, 99)
    before = (logits.argmax(axis=1) == labels).mean()
    after = (LabelShift().fit(context).apply(logits).argmax(axis=1) == labels).mean()
    oracle = ((logits + np.log(TARGET / SOURCE)).argmax(axis=1) == labels).mean()
    assert after > before + 0.8 * (oracle - before)


def test_label_shift_takes_the_training_counts_where_they_fit() -> None:
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(MANY), 100)
    logits = log_softmax(1.3 * (1.3 * np.eye(MANY)[labels] + rng.normal(size=(len(labels), MANY))))
    without = FixContext(logits=logits, labels=labels, target_logits=weak(TRAINING, 400, 1))
    counted = replace(without, classes=ClassTable.from_counts((1e4 * TRAINING).astype(int)))
    found = LabelShift().target_prior(counted)
    assert distance(found, TRAINING) < 0.75 * distance(LabelShift().target_prior(without), TRAINING)
    # Counts of other classes than the head's (a background row) are no help.
    other = replace(
        without,
        classes=ClassTable.from_counts(range(1, MANY)),
        head=Head("linear", np.eye(MANY), None),
    )
    np.testing.assert_array_equal(
        LabelShift().target_prior(other), LabelShift().target_prior(without)
    )


def test_label_shift_without_validation_needs_em_and_counts() -> None:
    context = replace(make_context(), logits=None, labels=None)
    assert not LabelShift("em", "training").fit(context).is_identity
    for fix in (LabelShift("bbse", "training"), LabelShift("em", "validation")):
        with pytest.raises(FixError, match="labelled validation images"):
            fix.fit(context)
    with pytest.raises(FixError, match="--classes FILE"):
        LabelShift("em", "training").fit(replace(context, classes=None))
    with pytest.raises(FixError, match="--target DATA"):
        LabelShift().fit(replace(make_context(), target_logits=None))


def test_label_shift_refuses_what_it_cannot_use() -> None:
    context = make_context()
    with pytest.raises(FixError, match="Did you mean 'bbse'"):
        LabelShift("bbs")  # type: ignore[arg-type]
    with pytest.raises(FixError, match="Did you mean 'training'"):
        LabelShift("em", "train")  # type: ignore[arg-type]
    with pytest.raises(FixError, match="correct twice"):
        LabelShift("em", "training").fit(replace(context, trained_with="balanced_softmax"))
    assert LabelShift().fit(replace(context, trained_with="balanced_softmax")).classes == 4
    with pytest.raises(FixError, match=r"target logits have shape \(2, 3\)"):
        LabelShift().fit(replace(context, target_logits=np.zeros((2, 3))))
    assert context.logits is not None
    with pytest.raises(FixError, match=r"validation logits have shape \(4000, 3\)"):
        LabelShift().fit(replace(context, logits=context.logits[:, :3]))
    head = Head("linear", np.eye(4), None, activation="sigmoid")
    with pytest.raises(FixError, match="softmax heads"):
        LabelShift().fit(replace(context, head=head))
    assert context.labels is not None
    with pytest.raises(FixError, match="have no validation image"):
        LabelShift().fit(replace(context, labels=np.minimum(context.labels, 2)))
    assert LabelShift().freedom(context) == 6
    assert LabelShift("em", "training").freedom(context) == 3
