"""Intervals: by hand, against brute force, and by how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, hmean

from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError
from ltdeploy.metrics import Bootstrap, harmonic_mean, wilson_interval
from ltdeploy.metrics.accuracy import strata_of
from ltdeploy.metrics.intervals import basic_interval, error_interval, harmonic_interval

COUNTS = [500, 300, 90, 40, 9, 4]  # two classes in each group
TABLE = ClassTable.from_counts(COUNTS)


@given(correct=st.integers(0, 40), more=st.integers(0, 40))
def test_wilson_is_scipy_s(correct: int, more: int) -> None:
    images = correct + more or 1
    low, high = wilson_interval(correct / images, images)
    expected = binomtest(correct, images).proportion_ci(method="wilson")
    assert (float(low), float(high)) == pytest.approx(tuple(expected), abs=1e-9)


def test_wilson_does_not_collapse_where_everything_is_right_or_wrong() -> None:
    low, high = wilson_interval([0.0, 1.0], 1)
    assert (low[0], high[1]) == (0.0, 1.0)
    assert high[0] > 0.5
    assert low[1] < 0.5


@given(
    st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_harmonic_mean_is_scipy_s(accuracies: list[float], columns: int) -> None:
    stacked = np.tile(np.array(accuracies)[:, None], (1, columns))
    np.testing.assert_allclose(harmonic_mean(stacked), np.full(columns, hmean(accuracies)))


def test_a_group_at_zero_makes_the_harmonic_mean_zero() -> None:
    accuracies = np.array([[0.5, 0.5, 0.0], [0.25, 0.0, 0.0]])
    np.testing.assert_allclose(harmonic_mean(accuracies), [1 / 3, 0.0, 0.0])


def test_groups_without_images_are_no_strata() -> None:
    strata = strata_of(np.array([0, 2]), TABLE)
    assert strata.names == ("many", "medium")
    assert strata.classes.tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="no images"):
        strata_of(np.array([], dtype=np.int64), TABLE)


def test_multiplicities_keep_the_size_of_each_group() -> None:
    labels = np.repeat(np.arange(6), [7, 1, 5, 1, 3, 1])
    bootstrap = Bootstrap(labels, TABLE, replicates=50)
    assert bootstrap.multiplicities.shape == (50, 18)
    for rows, size in zip(bootstrap.strata.rows, (8, 6, 4), strict=True):
        assert (bootstrap.multiplicities[:, rows].sum(axis=1) == size).all()
    again = Bootstrap(labels, TABLE, replicates=50)
    np.testing.assert_array_equal(bootstrap.multiplicities, again.multiplicities)
    other = Bootstrap(labels, TABLE, replicates=50, seed=1)
    assert not np.array_equal(bootstrap.multiplicities, other.multiplicities)


def test_the_basic_interval_is_around_the_estimate() -> None:
    drawn = np.linspace(4.0, 6.0, 401)
    assert basic_interval(3.0, drawn) == pytest.approx((2.05, 3.95))
    # Replicates 2 above the estimate say that the estimate is itself too high.
    low, high = error_interval(0.3, drawn / 10)
    assert high == pytest.approx(0.395)
    assert low == 0.0
    assert error_interval(0.5, drawn / 10) == pytest.approx((0.405, 0.595))


def test_two_groups_at_zero_leave_the_harmonic_mean_an_interval() -> None:
    shares = np.array([0.5, 0.0, 0.0])
    low, high = wilson_interval(shares, 2)
    ends = harmonic_interval(shares, low, high)
    assert ends[0] == 0.0
    assert ends[1] > 0.3


@pytest.mark.parametrize("per_class", [1, 4, 30])
def test_accuracy_intervals_hold_the_truth(per_class: int) -> None:
    truth = np.array([0.9, 0.7, 0.6, 0.3, 0.2, 0.02])
    rng = np.random.default_rng(per_class)
    labels = np.repeat(np.arange(6), per_class)
    strata = strata_of(labels, TABLE)
    n_eff = [1 / np.square(w).sum() for w in strata.weights]
    of_groups = truth.reshape(3, 2).mean(axis=1)
    harmonic = 3 / (1 / of_groups).sum()
    draws = 1000
    held = {"groups": 0.0, "harmonic": 0.0}
    for correct in rng.random((draws, len(labels))) < truth[labels]:
        pairs = zip(strata.rows, strata.weights, strict=True)
        shares = np.array([weights @ correct[rows] for rows, weights in pairs])
        low, high = wilson_interval(shares, n_eff)
        held["groups"] += np.mean((low <= of_groups) & (of_groups <= high)) / draws
        ends = harmonic_interval(shares, low, high)
        held["harmonic"] += (ends[0] <= harmonic <= ends[1]) / draws
    assert min(held.values()) > 0.93
