"""Paired statistics against published numbers, other implementations, and their own symmetries."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binomtest, false_discovery_control

from ltdeploy.errors import DataError, UsageError
from ltdeploy.verify.statistics import (
    PairedFlips,
    benjamini_hochberg,
    exact_loss_test,
    paired_flips,
    score_interval,
)


def one_class(won: int, lost: int, images: int) -> PairedFlips:
    return paired_flips(
        np.array([images]), np.array([lost]), np.array([won]), np.ones((1, 1), dtype=bool)
    )


@st.composite
def flips_per_class(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, lost and won of up to eight classes, none without images."""
    rows = draw(
        st.lists(
            st.integers(1, 40).flatmap(
                lambda n: st.integers(0, n).flatmap(
                    lambda lost: st.tuples(st.just(n), st.just(lost), st.integers(0, n - lost))
                )
            ),
            min_size=1,
            max_size=8,
        )
    )
    images, lost, won = (np.array(column) for column in zip(*rows, strict=True))
    return images, lost, won


def whole(images: np.ndarray) -> np.ndarray:
    return np.ones((1, len(images)), dtype=bool)


@pytest.mark.parametrize(
    ("won", "lost", "images", "confidence", "limits", "digits"),
    [
        # Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33, 2850–2875), Table V:
        # Tango's interval for their Table II, airway reactivity before and after transplantation.
        (1, 7, 21, 0.95, (-0.517, -0.026), 3),
        # R's PropCIs 0.3, scoreci.mp(25, 28, 618, conf.level = 0.90), which estimates (c − b) / n.
        (28, 25, 618, 0.90, (-0.0148, 0.0247), 4),
    ],
)
def test_equals_published_tango_intervals(
    won: int,
    lost: int,
    images: int,
    confidence: float,
    limits: tuple[float, float],
    digits: int,
) -> None:
    lower, upper = score_interval(one_class(won, lost, images), confidence)
    assert (round(lower[0], digits), round(upper[0], digits)) == limits


@given(st.integers(1, 300), st.data())
def test_equals_tango_solved_another_way(images: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, images - 1))
    won = data.draw(st.integers(0, images - 1 - lost))
    z = NormalDist().inv_cdf(0.975)

    def score(theta: float) -> float:  # Tango 1998, in counts, with Agresti and Min's z² form
        a, b = 2 * images, -won - lost + (2 * images - won + lost) * theta
        likely = (np.sqrt(b * b + 4 * a * lost * theta * (1 - theta)) - b) / (2 * a)
        variance = images * (2 * likely + theta * (1 - theta))
        return (won - lost - images * theta) ** 2 - z**2 * variance

    lower, _ = score_interval(one_class(won, lost, images))
    estimate = (won - lost) / images
    # Without flips the estimate is a root too; with every image lost the limit is −1 itself.
    assume(lost + won > 0 and score(-1 + 1e-12) > 0)
    assert lower[0] == pytest.approx(brentq(score, -1 + 1e-12, estimate), abs=1e-8)


@pytest.mark.parametrize("images", [1, 3, 15, 380, 24_426])
def test_without_flips_it_is_wide_and_known_in_closed_form(images: int) -> None:
    lower, upper = score_interval(one_class(0, 0, images))
    z2 = NormalDist().inv_cdf(0.975) ** 2
    assert upper[0] == pytest.approx(z2 / (images + z2))
    assert lower[0] == -upper[0]


def test_balanced_classes_are_one_sample() -> None:
    images = np.full(7, 3)
    lost, won = np.array([0, 3, 1, 0, 0, 0, 0]), np.array([1, 0, 0, 0, 0, 0, 0])
    several = paired_flips(images, lost, won, whole(images))
    assert 1 / several.weight[0] == pytest.approx(21)
    for one, other in zip(
        score_interval(several), score_interval(one_class(1, 4, 21)), strict=True
    ):
        assert one == pytest.approx(other)


def test_unseen_losses_are_bounded_by_the_smallest_classes() -> None:
    """With no flip, no honest bound can be below −ln 0.025 / (C n_min) for many small classes."""
    images = np.r_[np.full(10, 2), np.full(90, 200)]
    none = np.zeros(100, dtype=int)
    flips = paired_flips(images, none, none, whole(images))
    lower, _ = score_interval(flips)
    assert -lower[0] > -np.log(0.025) * flips.heaviest[0]
    # The mean over images, as if all weighed the same, would promise ten times as much.
    naive, _ = score_interval(one_class(0, 0, int(images.sum())))
    assert lower[0] < 10 * naive[0]


def test_variance_tends_to_the_linearised_one() -> None:
    random = np.random.default_rng(0)
    images = random.integers(20, 400, size=500)
    lost = random.binomial(images, 0.1)
    won = random.binomial(images - lost, 0.1)
    flips = paired_flips(images, lost, won, whole(images))
    assert flips.weight[0] * (flips.won + flips.lost)[0] == pytest.approx(flips.square[0], rel=0.02)


@given(flips_per_class(), st.floats(0.5, 0.999))
def test_swapping_the_models_mirrors_the_interval(
    counts: tuple[np.ndarray, np.ndarray, np.ndarray], confidence: float
) -> None:
    images, lost, won = counts
    lower, upper = score_interval(paired_flips(images, lost, won, whole(images)), confidence)
    mirrored = score_interval(paired_flips(images, won, lost, whole(images)), confidence)
    assert lower == pytest.approx(-mirrored[1], abs=1e-12)
    assert upper == pytest.approx(-mirrored[0], abs=1e-12)


@given(flips_per_class(), st.randoms(use_true_random=False))
def test_the_order_of_classes_does_not_matter(
    counts: tuple[np.ndarray, np.ndarray, np.ndarray], random: object
) -> None:
    images, lost, won = counts
    order = np.arange(len(images))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = score_interval(paired_flips(images, lost, won, whole(images)))
    other = score_interval(paired_flips(images[order], lost[order], won[order], whole(images)))
    assert one[0] == pytest.approx(other[0], abs=1e-9)
    assert one[1] == pytest.approx(other[1], abs=1e-9)


@given(flips_per_class())
def test_the_interval_holds_the_estimate_stays_in_range_and_grows_with_confidence(
    counts: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    images, lost, won = counts
    flips = paired_flips(images, lost, won, whole(images))
    assert flips.difference[0] == pytest.approx(np.mean((won - lost) / images))
    previous = (flips.difference, flips.difference)
    for confidence in (0.5, 0.9, 0.95, 0.9875):
        lower, upper = score_interval(flips, confidence)
        assert -1 <= lower[0] <= previous[0][0] + 1e-9
        assert previous[1][0] - 1e-9 <= upper[0] <= 1
        previous = (lower, upper)


@given(st.integers(2, 200), st.data())
def test_one_more_loss_never_raises_the_interval(images: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, images - 2))
    won = data.draw(st.integers(0, images - 1 - lost))
    one, other = (score_interval(one_class(won, n, images)) for n in (lost, lost + 1))
    assert other[0][0] <= one[0][0] + 1e-9
    assert other[1][0] <= one[1][0] + 1e-9


def test_simulations_and_strata_ride_on_leading_axes() -> None:
    random = np.random.default_rng(1)
    images = np.array([5, 9, 3, 40])
    lost = random.binomial(images, 0.1, size=(6, 4))
    won = random.binomial(images - lost, 0.1)
    strata = np.array([[True] * 4, [True, True, False, False]])
    lower, upper = score_interval(paired_flips(images, lost, won, strata))
    assert lower.shape == upper.shape == (6, 2)
    for row in range(6):
        alone = score_interval(paired_flips(images, lost[row], won[row], strata))
        assert lower[row] == pytest.approx(alone[0])
        assert upper[row] == pytest.approx(alone[1])


def test_refusals() -> None:
    one = np.ones(1, dtype=int)
    with pytest.raises(DataError, match="more flips than images"):
        paired_flips(one, one, one, whole(one))
    with pytest.raises(DataError, match=r"strata \[1\] have no image"):
        paired_flips(
            np.array([1, 0]), np.zeros(2, int), np.zeros(2, int), np.array([[1, 1], [0, 1]], bool)
        )
    with pytest.raises(UsageError, match=r"confidence is 95"):
        score_interval(one_class(0, 0, 1), 95)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=20))
def test_exact_test_is_the_binomial_one(pairs: list[tuple[int, int]]) -> None:
    lost, won = (np.array(column) for column in zip(*pairs, strict=True))
    expected = [
        binomtest(a, a + b, 0.5, alternative="greater").pvalue if a + b else 1.0 for a, b in pairs
    ]
    assert exact_loss_test(lost, won) == pytest.approx(expected)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=50))
def test_q_values_are_scipys(p_values: list[float]) -> None:
    assert benjamini_hochberg(np.array(p_values)) == pytest.approx(
        false_discovery_control(p_values, method="bh")
    )


def test_no_class_is_called_worse_by_chance() -> None:
    """8,142 innocent classes of 50 images: the corrected test stays silent, the plain one not."""
    random = np.random.default_rng(0)
    lost, won = random.binomial(50, 0.1, (2, 8142))
    p_values = exact_loss_test(lost, won)
    assert (benjamini_hochberg(p_values) < 0.05).sum() == 0
    assert (p_values < 0.05).sum() > 50
