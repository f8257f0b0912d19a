"""Known priors, multipliers, and what a model's logits speak under."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.arrays import softmax
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixContext, LogitAdjustment
from ltdeploy.fixes.multipliers import GroupBoost, ScoreMultiplier, fit_group_boosts
from ltdeploy.fixes.spec import parse_spec
from ltdeploy.fixes.target_prior import TargetPrior, fit_intercepts, label_shares
from ltdeploy.models.head import Head

COUNTS = ClassTable.from_counts([600, 300, 100])


def affine(mapped: object) -> AffineMap:
    assert isinstance(mapped, AffineMap)
    return mapped


# ---- target prior


def test_target_prior_by_hand() -> None:
    mapped = affine(TargetPrior((1, 1, 2)).fit(FixContext(classes=COUNTS)))
    np.testing.assert_allclose(mapped.shift, np.log([0.25 / 0.6, 0.25 / 0.3, 0.5 / 0.1]))
    # p* ∝ p π*/π: probabilities that equal the training prior become the target prior.
    logits = np.log([[0.6, 0.3, 0.1]])
    np.testing.assert_allclose(softmax(mapped.apply(logits)), [[0.25, 0.25, 0.5]])


def test_the_training_prior_as_target_changes_nothing() -> None:
    mapped = affine(TargetPrior((6, 3, 1)).fit(FixContext(classes=COUNTS)))
    np.testing.assert_allclose(mapped.shift, 0, atol=1e-15)


def test_a_uniform_target_is_logit_adjustment() -> None:
    context = FixContext(classes=COUNTS)
    mapped, adjusted = TargetPrior().fit(context), LogitAdjustment(1.0).fit(context)
    difference = affine(mapped).shift - affine(adjusted).shift
    np.testing.assert_allclose(difference, difference[0])


def test_an_impossible_class_gets_a_finite_logit_far_below() -> None:
    mapped = affine(TargetPrior((1, 0, 1)).fit(FixContext(classes=COUNTS)))
    assert mapped.shift[1] == pytest.approx(np.log(1e-30 / 0.3))
    logits = np.array([[0.0, 50.0, 0.0]])
    assert mapped.apply(logits).argmax() == 2
    assert np.isfinite(mapped.apply(logits)).all()


@pytest.mark.parametrize(
    ("prior", "text"),
    [
        ((1.0, -0.5, 1.0), r"class label 1 is -0\.5"),
        ((1.0, float("nan"), 1.0), "class label 1 is nan"),
        ((0.0, 0.0, 0.0), "all shares are zero"),
        ("unifrom", "Did you mean 'uniform'"),
    ],
)
def test_unusable_priors_are_refused(prior, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FixError, match=text):
        TargetPrior(prior)


def test_target_prior_refuses_what_does_not_fit() -> None:
    with pytest.raises(FixError, match="2 shares and the model 3 classes"):
        TargetPrior((1, 1)).fit(FixContext(classes=COUNTS))
    with pytest.raises(FixError, match="--classes FILE"):
        TargetPrior().fit(FixContext())
    head = Head("linear", np.eye(3), None, activation="sigmoid")
    with pytest.raises(FixError, match="softmax heads"):
        TargetPrior().fit(FixContext(head=head, classes=COUNTS))
    head = Head("linear", np.eye(4), None)
    with pytest.raises(FixError, match="4 rows"):
        TargetPrior().fit(FixContext(head=head, classes=COUNTS))


def test_target_prior_does_not_correct_twice_unless_forced() -> None:
    balanced = {"classes": COUNTS, "trained_with": "balanced_softmax"}
    with pytest.raises(FixError, match="correct twice"):
        TargetPrior().fit(FixContext(**balanced))
    assert not TargetPrior().fit(FixContext(**balanced, force=True)).is_identity


# ---- the prior that logits speak under


@given(seed=st.integers(0, 10_000))
def test_intercepts_meet_the_labels_shares(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(4), rng.integers(0, 4, 30)])
    logits = rng.normal(size=(34, 4)) * 3
    weights = rng.uniform(0.1, 2, 34)
    moved = softmax(logits + fit_intercepts(logits, labels, weights))
    met = weights @ moved / weights.sum()
    np.testing.assert_allclose(met, label_shares(labels, 4, weights), atol=1e-7)


def test_intercepts_agree_with_scikit_learn() -> None:
    from scipy.optimize import minimize
    from sklearn.metrics import log_loss

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [40, 20, 10])
    logits = rng.normal(size=(70, 3)) + 2 * np.eye(3)[labels]

    def loss(free: np.ndarray) -> float:
        return float(log_loss(labels, softmax(logits + np.array([0.0, *free]))))

    best = minimize(loss, np.zeros(2), tol=1e-14).x
    found = fit_intercepts(logits, labels)
    np.testing.assert_allclose(found[1:] - found[0], best, atol=1e-4)
    assert loss(found[1:] - found[0]) <= loss(best) + 1e-12


def test_intercepts_refuse_absent_classes_and_wrong_labels() -> None:
    logits = np.zeros((3, 3))
    with pytest.raises(FixError, match=r"labels \[2\]"):
        fit_intercepts(logits, np.array([0, 1, 1]))
    with pytest.raises(FixError, match="a validation label is 3"):
        fit_intercepts(logits, np.array([0, 1, 3]))
    with pytest.raises(FixError, match="validation image 1 are not finite"):
        fit_intercepts(np.array([[0, 0], [0, np.nan]]), np.array([0, 1]))


# ---- multipliers


def test_multipliers_by_hand() -> None:
    context = FixContext(logits=np.zeros((1, 3)), labels=np.zeros(1, np.int64))
    mapped = affine(ScoreMultiplier((1.0, 2.0, 0.5)).fit(context))
    probabilities = np.array([[0.5, 0.3, 0.2]])
    expected = probabilities * [1, 2, 0.5]
    found = softmax(mapped.apply(np.log(probabilities)))
    np.testing.assert_allclose(found, expected / expected.sum())
    assert ScoreMultiplier((1.0, 1.0, 1.0)).fit(context).is_identity


def test_multipliers_multiply_the_odds_of_sigmoid_scores() -> None:
    head = Head("linear", np.eye(2), None, activation="sigmoid")
    mapped = ScoreMultiplier((3.0, 1.0)).fit(FixContext(head=head))
    scores = 1 / (1 + np.exp(-mapped.apply(np.log([[0.2 / 0.8, 0.7 / 0.3]]))))
    np.testing.assert_allclose(scores / (1 - scores), [[3 * 0.2 / 0.8, 0.7 / 0.3]])


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ((1.0, 0.0), "class label 1 is 0; expected"),
        ((1.0, float("inf")), "class label 1 is inf"),
        ((), "no class is given"),
    ],
)
def test_unusable_factors_are_refused(factors: tuple[float, ...], text: str) -> None:
    with pytest.raises(FixError, match=text):
        ScoreMultiplier(factors)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("score_multiplier", "factors is not given; expected a list"),
        ("score_multiplier:factors=0.7", r"factors is 0\.7; expected a list"),
        ("score_multiplier:factors=x", "factors is 'x'; expected a list"),
        ("target_prior:prior=0.7", r"prior is 0\.7; expected a list"),
        ("target_prior:prior=unifrom", "Did you mean 'uniform'"),
    ],
)
def test_a_list_comes_from_a_file(text: str, said: str) -> None:
    with pytest.raises(FixError, match=said):
        parse_spec(text)


def test_factors_must_fit_the_classes() -> None:
    with pytest.raises(FixError, match="2 factors and the model 3 classes"):
        ScoreMultiplier((1.0, 1.0)).fit(FixContext(classes=COUNTS))


# ---- group boost

TABLE = ClassTable.from_counts([500, 400, 50, 10, 5])  # many, many, medium, few, few


def tilted(seed: int, per_class: int, gap: float) -> FixContext:
    """Return logits whose few-shot classes stand ``gap`` too low, medium half of that."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), per_class)
    logits = rng.normal(size=(len(labels), 5)) + 3 * np.eye(5)[labels]
    return FixContext(
        classes=TABLE, logits=logits - gap * np.array([0, 0, 0.5, 1, 1]), labels=labels
    )


def balanced(mapped: AffineMap, context: FixContext) -> float:
    assert context.logits is not None
    right = mapped.apply(context.logits).argmax(axis=1) == context.labels
    return float(np.mean([right[context.labels == c].mean() for c in range(5)]))


def test_group_boost_undoes_a_tilt() -> None:
    mapped = affine(GroupBoost().fit(tilted(0, 400, 4.0)))
    assert mapped.shift[0] == mapped.shift[1] == 0
    assert mapped.shift[3] == mapped.shift[4]
    assert mapped.shift[2] == pytest.approx(2.0, abs=0.6)
    assert mapped.shift[3] == pytest.approx(4.0, abs=0.6)
    held_out = tilted(1, 400, 4.0)
    identity = AffineMap.identity(5)
    assert balanced(mapped, held_out) > balanced(identity, held_out) + 0.2


def test_group_boost_goes_by_the_weights_of_the_images() -> None:
    context = tilted(0, 400, 4.0)
    assert context.labels is not None
    head_alone = np.where(context.labels < 2, 1.0, 1e-6)  # as a target prior may weigh them
    assert context.logits is not None

    def head(mapped: AffineMap) -> float:
        right = mapped.apply(context.logits).argmax(axis=1) == context.labels
        return float(right[context.labels < 2].mean())

    before = head(AffineMap.identity(5))
    assert head(affine(GroupBoost().fit(replace(context, weights=head_alone)))) >= before
    assert head(affine(GroupBoost().fit(context))) < before - 0.01
    as_classes = replace(context, weights=np.full(len(context.labels), 7.0))
    expected = affine(GroupBoost().fit(context)).shift
    np.testing.assert_array_equal(affine(GroupBoost().fit(as_classes)).shift, expected)


def test_group_boost_with_three_images_per_class_does_little_harm() -> None:
    held_out = tilted(1000, 400, 0.0)
    before = balanced(AffineMap.identity(5), held_out)
    gains = [
        balanced(affine(GroupBoost().fit(tilted(seed, 3, 0.0))), held_out) - before
        for seed in range(60)
    ]
    assert np.mean(gains) > -0.01
    assert np.median(gains) == 0  # most of the time it sees nothing worth a boost


def test_group_boost_leaves_a_perfect_model_alone() -> None:
    labels = np.arange(5)
    context = FixContext(classes=TABLE, logits=9 * np.eye(5), labels=labels)
    assert GroupBoost().fit(context).is_identity


def test_group_search_agrees_with_trying_every_boost() -> None:
    context = tilted(3, 200, 3.0)
    assert context.logits is not None
    assert context.labels is not None
    groups, grid = np.array([0, 0, 1, 1, 1]), np.linspace(-6, 6, 121)
    scores = [balanced(AffineMap(np.ones(5), boost * (groups == 1)), context) for boost in grid]
    found = fit_group_boosts(context.logits, context.labels, groups, 2)
    reached = balanced(AffineMap(np.ones(5), found[groups]), context)
    # Within one standard error of the best, on the near side of it.
    assert max(scores) - reached < 0.02
    assert 0 < found[1] <= grid[int(np.argmax(scores))] + 1e-9


def test_group_boost_is_deterministic_and_follows_a_permutation() -> None:
    context = tilted(5, 30, 3.0)
    assert context.logits is not None
    assert context.labels is not None
    order = np.array([3, 0, 4, 2, 1])
    permuted = FixContext(
        classes=ClassTable.from_counts([TABLE.counts[i] for i in order]),
        logits=context.logits[:, order],
        labels=np.argsort(order)[context.labels],
    )
    shift = affine(GroupBoost().fit(context)).shift
    np.testing.assert_array_equal(affine(GroupBoost().fit(permuted)).shift, shift[order])
    assert GroupBoost().freedom(context) == 2


def test_group_boost_refuses_what_it_cannot_learn_from() -> None:
    context = tilted(0, 3, 0.0)
    with pytest.raises(FixError, match="validation images"):
        GroupBoost().fit(FixContext(classes=TABLE))
    with pytest.raises(FixError, match="5 classes and the class table 3"):
        GroupBoost().fit(FixContext(classes=COUNTS, logits=context.logits, labels=context.labels))
    with pytest.raises(FixError, match="labels from 0 to 4"):
        fit_group_boosts(np.zeros((1, 5)), np.array([5]), np.zeros(5, np.int64), 1)
    with pytest.raises(FixError, match="got 0 images"):
        fit_group_boosts(np.zeros((0, 5)), np.zeros(0, np.int64), np.zeros(5, np.int64), 1)
