"""Ensembles of classifiers that know different classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ltdeploy.arrays import log_softmax, softmax
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes.ensemble import Member, combine, fit_ensemble


def full(*rows: list[float]) -> Member:
    return Member(np.log(np.array(rows)), np.arange(len(rows[0])))


def expert(classes: list[int], *rows: list[float]) -> Member:
    return Member(np.log(np.array(rows)), np.array(classes))


def drawn(seed: int, images: int = 40) -> tuple[list[Member], np.ndarray]:
    """Return two full members of five classes, two experts for {1, 3}, one for {2, 4}; labels."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(5), rng.integers(0, 5, images - 5)])
    sets = [np.arange(5), rng.permutation(5), np.array([3, 1]), np.array([1, 3]), np.array([2, 4])]
    members = [
        Member(rng.normal(size=(images, len(s))) + 1.5 * (s == labels[:, None]), s) for s in sets
    ]
    return members, labels


# ---- combining


def test_one_member_is_its_log_softmax() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 4)) * 3
    found = combine([Member(logits, np.arange(4))], [0.3])
    np.testing.assert_allclose(found, log_softmax(logits), rtol=1e-12)
    order = np.array([2, 0, 3, 1])
    found = combine([Member(logits[:, order], order)], [1.0])
    np.testing.assert_allclose(found, log_softmax(logits), rtol=1e-12)


def test_two_full_members_are_averaged() -> None:
    found = combine([full([0.6, 0.3, 0.1]), full([0.2, 0.2, 0.6])], [3.0, 1.0])
    np.testing.assert_allclose(np.exp(found), [[0.5, 0.275, 0.225]])


def test_an_expert_divides_the_mass_of_its_classes_anew() -> None:
    # The full member gives {1, 2} the mass 0.4; the expert divides it 3 : 1; weights are alike.
    found = combine([full([0.6, 0.1, 0.3]), expert([1, 2], [0.75, 0.25])], [1.0, 1.0])
    np.testing.assert_allclose(np.exp(found), [[0.6, (0.1 + 0.3) / 2, (0.3 + 0.1) / 2]])
    # The expert's columns may stand in any order.
    turned = combine([full([0.6, 0.1, 0.3]), expert([2, 1], [0.25, 0.75])], [1.0, 1.0])
    np.testing.assert_allclose(turned, found)


def test_a_silent_expert_changes_nothing_and_a_loud_one_decides() -> None:
    members = [full([0.6, 0.1, 0.3]), expert([1, 2], [0.75, 0.25])]
    np.testing.assert_allclose(np.exp(combine(members, [1.0, 0.0])), [[0.6, 0.1, 0.3]])
    loud = np.exp(combine(members, [1.0, 1e9]))
    np.testing.assert_allclose(loud, [[0.6, 0.3, 0.1]], rtol=1e-6)


@given(seed=st.integers(0, 10_000), weights=st.lists(st.floats(0.01, 10), min_size=5, max_size=5))
@settings(max_examples=30, deadline=None)
def test_mass_is_kept_and_probabilities_sum_to_one(seed: int, weights: list[float]) -> None:
    members, _ = drawn(seed)
    found = np.exp(combine(members, weights))
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    plain = np.exp(combine(members[:2], weights[:2]))
    np.testing.assert_allclose(found[:, 0], plain[:, 0])  # no expert knows class 0
    for known in ([1, 3], [2, 4]):
        np.testing.assert_allclose(found[:, known].sum(axis=1), plain[:, known].sum(axis=1))
        assert np.abs(found[:, known] - plain[:, known]).max() > 1e-4


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_classes_members_and_weights_may_be_permuted(seed: int) -> None:
    members, _ = drawn(seed)
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.1, 2, 5)
    found = combine(members, weights)
    order = rng.permutation(5)
    np.testing.assert_allclose(combine([members[m] for m in order], weights[order]), found)
    renamed = [Member(m.logits, order[m.classes]) for m in members]
    np.testing.assert_allclose(combine(renamed, weights)[:, order], found)
    np.testing.assert_allclose(combine(members, 7 * weights), found)


def test_extreme_logits_stay_finite() -> None:
    members, _ = drawn(0)
    wild = [Member(m.logits * 1e30, m.classes) for m in members]
    assert np.isfinite(combine(wild, [1.0] * 5)).all()


# ---- fitting


def test_weights_agree_with_a_general_optimiser() -> None:
    members, labels = drawn(1, 400)
    image = np.random.default_rng(1).uniform(0.5, 2, 400)
    fitted = fit_ensemble(members, labels, weights=image)

    def loss(free: np.ndarray) -> float:
        gates = softmax(np.array([free[0], 0.0]))
        said = combine(members, [*gates, *np.exp(np.clip(free[1:], -30, 30))])
        return -float(image @ said[np.arange(400), labels] / image.sum())

    best = min((minimize(loss, start, tol=1e-12) for start in np.eye(4)), key=lambda r: r.fun)
    weights = np.array(fitted.weights)
    free = np.concatenate([[np.log(weights[0] / weights[1])], np.log(weights[2:])])
    assert loss(free) == pytest.approx(best.fun, abs=1e-6)
    assert weights[:2].sum() == pytest.approx(1)


def test_one_member_gets_all_the_weight() -> None:
    members, labels = drawn(2)
    assert fit_ensemble(members[:1], labels).weights == (1.0,)


def test_a_useless_member_is_left_out_and_a_perfect_expert_decides() -> None:
    members, labels = drawn(3, 300)
    noise = Member(np.random.default_rng(9).normal(size=(300, 5)) * 4, np.arange(5))
    known = np.array([1, 3])
    oracle = Member(20.0 * (known == labels[:, None]), known)
    weights = fit_ensemble([members[0], noise, oracle], labels).weights
    assert weights[1] < 0.05
    assert weights[2] > 1e3
    assert np.isfinite(weights).all()


def test_an_expert_for_the_tail_helps_the_tail() -> None:
    members, labels = drawn(4, 2000)
    held_out, truth = drawn(5, 2000)
    chosen = [0, 2]
    fitted = fit_ensemble([members[m] for m in chosen], labels)
    tail = np.isin(truth, [1, 3])
    before = (combine([held_out[0]], [1.0]).argmax(axis=1) == truth)[tail].mean()
    after = (fitted.apply([held_out[m] for m in chosen]).argmax(axis=1) == truth)[tail].mean()
    assert after > before + 0.02


def test_groups_are_boosted_on_top() -> None:
    members, labels = drawn(6, 1000)
    tilted = [Member(m.logits - 3.0 * np.isin(m.classes, [3, 4]), m.classes) for m in members[:2]]
    table = ClassTable.from_counts([500, 500, 500, 5, 5])
    fitted = fit_ensemble(tilted, labels, classes=table)
    assert fitted.boost.shift[0] == 0
    assert fitted.boost.shift[3] == fitted.boost.shift[4] > 1
    np.testing.assert_allclose(
        fitted.apply(tilted), combine(tilted, fitted.weights) + fitted.boost.shift
    )
    assert fit_ensemble(tilted, labels).boost.is_identity


# ---- refusals


MAIN = full([0.6, 0.1, 0.3], [0.2, 0.2, 0.6])


@pytest.mark.parametrize(
    ("members", "weights", "text"),
    [
        ([], [], "at least one member"),
        ([MAIN, full([0.5, 0.2, 0.3])], [1, 1], r"\[1, 2\] images"),
        ([expert([0, 2], [0.5, 0.5])], [1], r"lacks the labels \[1\]"),
        ([expert([0, 1], [0.5, 0.5]), expert([2], [1.0])], [1, 1], r"lacks the labels \[2\]"),
        (
            [full([0.4, 0.3, 0.3]), expert([0, 1], [0.5, 0.5]), expert([1, 2], [0.5, 0.5])],
            [1, 1, 1],
            "experts 1 and 2 .* class label 1",
        ),
        ([MAIN], [1, 1], "1 members and the weights"),
        ([MAIN], [-1], "not negative"),
        ([MAIN], [float("nan")], "finite weight"),
        ([MAIN], [0], "have the weight 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    members: list[Member], weights: list[float], text: str
) -> None:
    with pytest.raises(FixError, match=text):
        combine(members, weights)


@pytest.mark.parametrize(
    ("logits", "classes", "text"),
    [
        (np.zeros((2, 3)), [0, 1], r"shape \(2, 3\)"),
        (np.zeros(3), [0, 1, 2], r"shape \(3,\)"),
        (np.zeros((2, 2)), [1, 1], "same label twice"),
        (np.zeros((2, 2)), [-1, 0], "negative label"),
        (np.full((2, 2), np.inf), [0, 1], "image 0 that are not finite"),
    ],
)
def test_unusable_members_are_refused(logits: np.ndarray, classes: list[int], text: str) -> None:
    with pytest.raises(FixError, match=text):
        Member(logits, np.array(classes))


def test_unusable_labels_are_refused() -> None:
    with pytest.raises(FixError, match="2 images of 3 classes and the labels 1"):
        fit_ensemble([MAIN], np.array([0]))
    with pytest.raises(FixError, match="label from 0 to 2"):
        fit_ensemble([MAIN], np.array([0, 3]))
    with pytest.raises(FixError, match="class table has 2"):
        fit_ensemble([MAIN], np.array([0, 1]), classes=ClassTable.from_counts([2, 1]))
    with pytest.raises(FixError, match=r"expert 1 cannot be weighted.*labels \[1, 2\]"):
        fit_ensemble([MAIN, expert([1, 2], [0.5, 0.5], [0.5, 0.5])], np.array([0, 0]))
