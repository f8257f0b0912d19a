"""The rule of the choice: paired, within one standard error the simplest, the head protected."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.calibrate import Aim
from ltdeploy.calibrate.choice import (
    Comparison,
    Contestant,
    compare,
    paired_difference,
    reason_for,
)
from ltdeploy.calibrate.objective import Strata, strata_of
from ltdeploy.classes import ClassTable
from ltdeploy.metrics import Bootstrap, Figure

COUNTS = [500, 300, 90, 40, 9, 4]
TABLE = ClassTable.from_counts(COUNTS)
PER_CLASS = 50
LABELS = np.repeat(np.arange(6), PER_CLASS)
STRATA = strata_of(LABELS, TABLE, Aim())
MULTIPLICITIES = Bootstrap(LABELS, TABLE).multiplicities
UNFIXED = LABELS < 2  # right on the head, wrong on all else


def answers(**changed: int) -> np.ndarray:
    """Return the unfixed answers with images of some groups turned: gained, or lost where < 0."""
    right = UNFIXED.copy()
    begins = {"many": 0, "medium": 2 * PER_CLASS, "few": 4 * PER_CLASS}
    for group, images in changed.items():
        right[begins[group] : begins[group] + abs(images)] = images > 0
    return right


def barely_better() -> np.ndarray:
    """Return answers that are right once more than ``answers(few=80)``: three gained, two lost."""
    right = answers(few=83)
    right[4 * PER_CLASS : 4 * PER_CLASS + 2] = False
    return right


def standings(aim: Aim, *contestants: tuple[int, np.ndarray]) -> list[Comparison]:
    listed = [Contestant(str(i), freedom, right) for i, (freedom, right) in enumerate(contestants)]
    return compare(listed, UNFIXED, STRATA, MULTIPLICITIES, aim)


def statuses(aim: Aim, *contestants: tuple[int, np.ndarray]) -> list[str]:
    return [one.status for one in standings(aim, *contestants)]


def test_paired_differences_cancel_what_both_share() -> None:
    rng = np.random.default_rng(0)
    ours = rng.random((300, 2)) < 0.5
    theirs = ours.copy()
    theirs[:3, 0] ^= True
    found = [
        paired_difference(ours[:, i], theirs[:, i], STRATA, MULTIPLICITIES, "balanced")
        for i in range(2)
    ]
    expected = STRATA.values(ours, "balanced") - STRATA.values(theirs, "balanced")
    assert [figure.value for figure, _ in found] == pytest.approx(expected)
    assert found[1] == (Figure(0.0, 0.0, 0.0), 0.0)
    alone = STRATA.replicates(ours, "balanced", MULTIPLICITIES).std(axis=0)
    assert 0 < found[0][1] < 0.3 * alone[0]


def test_the_standard_error_and_the_interval_are_those_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 200)
    strata = strata_of(labels, TABLE, Aim())
    ours, theirs = rng.random(1200) < 0.6, rng.random(1200) < 0.5
    times = Bootstrap(labels, TABLE).multiplicities
    figure, error = paired_difference(ours, theirs, strata, times, "balanced")
    expected = 100 * np.std(ours.astype(float) - theirs) / np.sqrt(1200)
    assert error == pytest.approx(expected, rel=0.12)
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * expected, rel=0.15)
    assert figure.low < figure.value < figure.high


def test_the_interval_of_a_gain_holds_the_truth() -> None:
    truth = 100 * (0.55 - 0.5)
    rng = np.random.default_rng(1)
    times = Bootstrap(LABELS, TABLE, replicates=200).multiplicities
    held = 0
    for _ in range(200):
        draw = rng.random(len(LABELS))
        ours, theirs = draw < 0.55, (draw + 0.2 * (rng.random(len(draw)) - 0.5)) < 0.5
        figure, _ = paired_difference(ours, theirs, STRATA, times, "balanced")
        held += figure.low <= truth <= figure.high
    assert held >= 0.9 * 200


def test_the_best_is_chosen_where_it_is_clearly_the_best() -> None:
    assert statuses(Aim(), (0, UNFIXED), (1, answers(few=40)), (200, answers(few=90))) == [
        "behind",
        "behind",
        "chosen",
    ]


def test_within_one_standard_error_the_simpler_one_is_chosen() -> None:
    found = standings(Aim(), (0, UNFIXED), (1, answers(few=80)), (200, barely_better()))
    assert [one.status for one in found] == ["behind", "chosen", "candidate"]
    assert found[1].behind == pytest.approx(-100 / 300)
    assert 0 < -found[1].behind <= found[1].standard_error
    assert found[2].behind == 0.0
    # Negative control: the simpler one does not win beyond one standard error.
    assert statuses(Aim(), (0, UNFIXED), (1, answers(few=80)), (200, answers(few=86)))[1:] == [
        "behind",
        "chosen",
    ]


def test_of_equally_simple_ones_the_best_is_chosen() -> None:
    assert statuses(Aim(), (1, answers(few=80)), (1, barely_better())) == ["candidate", "chosen"]


def test_what_gains_nothing_is_not_chosen_over_no_fix() -> None:
    assert statuses(Aim(), (1, UNFIXED), (0, UNFIXED), (6, UNFIXED))[1] == "chosen"


def test_what_costs_the_head_too_much_is_left_out() -> None:
    contestants = [(0, UNFIXED), (1, answers(few=60, many=-6)), (9, answers(few=90, many=-20))]
    costly = "too costly for the head"
    assert statuses(Aim(), *contestants) == ["behind", "behind", "chosen"]
    found = standings(Aim(), *contestants)
    assert [one.head_change.value for one in found] == pytest.approx([0.0, -6.0, -20.0])
    low = found[1].head_change.low
    assert -12 < low < -8  # not the loss seen counts, but the one that cannot be ruled out
    assert found[0].head_change.low == 0.0
    limit = -low + 0.01
    assert statuses(Aim(max_head_loss=limit), *contestants) == ["behind", "chosen", costly]
    assert statuses(Aim(max_head_loss=-low - 0.01), *contestants) == ["chosen", costly, costly]
    found = standings(Aim(max_head_loss=limit), *contestants)
    assert found[2].behind > 0  # further than the best that is allowed


def test_where_nothing_is_allowed_the_least_costly_is_chosen() -> None:
    contestants = [(1, answers(few=90, many=-9)), (9, answers(few=10, many=-8))]
    found = standings(Aim(max_head_loss=2.0), *contestants)
    assert [one.status for one in found] == ["too costly for the head", "chosen"]
    assert found[1].behind == 0.0


@given(seed=st.integers(0, 2**31), limit=st.one_of(st.none(), st.floats(0, 40)))
@settings(max_examples=25, deadline=None)
def test_exactly_one_is_chosen_and_it_is_near_the_best(seed: int, limit: float | None) -> None:
    rng = np.random.default_rng(seed)
    aim = Aim(rng.choice(["balanced", "few", "harmonic", "overall"]), None, limit)
    contestants = [
        (int(rng.integers(3)), rng.random(len(LABELS)) < rng.uniform(0.3, 0.9))
        for _ in range(rng.integers(1, 5))
    ]
    found = standings(aim, *contestants)
    assert [one.status for one in found].count("chosen") == 1
    for one in found:
        if one.status != "too costly for the head":
            assert one.behind <= 0
        if one.status in ("chosen", "candidate"):
            assert -one.behind <= one.standard_error
    allowed = [one for one in found if one.status != "too costly for the head"]
    best = max(one.reached for one in allowed)
    assert [one.behind for one in found] == pytest.approx([one.reached - best for one in found])


def told(aim: Aim, shown: str, *contestants: tuple[str, int, np.ndarray]) -> str:
    listed = [Contestant(*one) for one in contestants]
    found = compare(listed, UNFIXED, STRATA, MULTIPLICITIES, aim)
    chosen = next(c for c, s in zip(listed, found, strict=True) if s.status == "chosen")
    gain, _ = paired_difference(chosen.correct, UNFIXED, STRATA, MULTIPLICITIES, aim.objective)
    before = float(STRATA.values(UNFIXED[:, None], aim.objective)[0])
    return reason_for(listed, found, before, gain, aim, shown, "many")


def test_the_reason_for_a_fix_names_gain_interval_and_price() -> None:
    text = told(
        Aim(), "tau_norm:tau=0.7", ("none", 0, UNFIXED), ("tau_norm", 1, answers(few=60, many=-3))
    )
    assert text.startswith(
        "tau_norm:tau=0.7 raises class-averaged accuracy on held-out images from 33.3 to 52.3 % "
        "(+19.0 points, 95 % interval +"
    )
    assert text.endswith(") and costs the many group 3.0 points.")
    assert "ahead" not in text


def test_the_reason_names_the_rival_that_learns_more() -> None:
    text = told(
        Aim("few"),
        "tau_norm:tau=0.7",
        ("tau_norm", 1, answers(few=80)),
        ("matrix", 10_100, barely_better()),
    )
    assert "accuracy of the rarest group" in text
    assert "; matrix is 1.0 points ahead, within one standard error (" in text
    assert text.endswith("and learns 10,100 numbers instead of 1.")


def test_the_reason_for_no_fix_says_what_the_best_would_have_gained() -> None:
    nothing = told(Aim("harmonic"), "", ("temperature", 0, UNFIXED), ("lws", 6, answers(few=-3)))
    assert nothing == (
        "No change of decisions: the harmonic mean of the groups' accuracies on held-out images is "
        "0.0 %, and nothing that was tried reaches more."
    )
    little = told(Aim(), "", ("temperature", 0, UNFIXED), ("lws", 6, answers(few=2, many=-1)))
    assert little == (
        "No change of decisions: class-averaged accuracy on held-out images is 33.3 %, and the "
        "best that was tried, lws, gains only 0.3 points, within one standard error (0.7)."
    )


def test_the_reason_for_no_fix_owns_up_to_the_limit() -> None:
    contestants = [("temperature", 0, UNFIXED), ("lws", 6, answers(few=90, many=-20))]
    text = told(Aim(max_head_loss=2.5), "", *contestants)
    assert "nothing that was tried and allowed reaches more; lws would reach 56.7 %, but" in text
    assert "costs the many group 20.0 points, and by its interval perhaps 2" in text
    assert text.endswith("more than the 2.5 allowed.")
    harmless = told(Aim(max_head_loss=2.5), "", ("temperature", 0, UNFIXED))
    assert harmless.endswith("nothing that was tried reaches more.")


def test_the_reason_for_a_fix_names_what_the_limit_ruled_out() -> None:
    contestants = [("tau_norm", 1, answers(few=60)), ("lws", 6, answers(few=90, many=-8))]
    text = told(Aim("overall", None, 2.0), "tau_norm:tau=0.7", *contestants)
    assert "accuracy over images" in text
    assert "and leaves the many group as it was; lws would reach" in text
    assert "lws" not in told(Aim("overall"), "lws:l2=0.1", *contestants)[11:]


def test_a_gain_that_may_be_chance_is_called_so() -> None:
    text = told(Aim(), "tau_norm:tau=0.7", ("tau_norm", 1, answers(few=2, many=-1)))
    assert ", which may be chance)" in text
    assert "chance" not in told(Aim(), "tau_norm:tau=0.7", ("tau_norm", 1, answers(few=60)))
    lost = told(Aim(), "tau_norm:tau=0.7", ("tau_norm", 1, answers(medium=-40)))
    assert "lowers class-averaged accuracy" in lost


def test_what_was_asked_for_gives_way_only_to_no_change_that_is_better() -> None:
    def chosen(fix: np.ndarray) -> str:
        listed = [Contestant("vector", 200, fix), Contestant("temperature", 0, UNFIXED, True)]
        found = compare(listed, UNFIXED, STRATA, MULTIPLICITIES, Aim())
        return next(c.name for c, s in zip(listed, found, strict=True) if s.status == "chosen")

    assert chosen(answers(few=50)) == "vector"
    assert chosen(UNFIXED) == "vector"
    assert chosen(answers(few=1, many=-2)) == "temperature"
    assert chosen(answers(many=-40)) == "temperature"


def test_a_harmonic_mean_of_a_group_near_zero_has_a_wide_interval() -> None:
    """Where no rare image is right under either, the bootstrap of the difference says 0 ± 0."""
    labels = np.repeat(np.arange(6), 30)
    strata = strata_of(labels, TABLE, Aim("harmonic"))
    times = Bootstrap(labels, TABLE, replicates=200).multiplicities
    before = labels < 4
    before[:10] = False
    after = before.copy()
    after[100:110] = False
    figure, _ = paired_difference(after, before, strata, times, "harmonic")
    one_more = before.copy()
    one_more[-1] = True
    worth = np.diff(strata.values(np.stack([before, one_more], axis=1), "harmonic"))[0]
    assert worth > 3
    assert figure.low < figure.value < figure.high
    assert figure.high - figure.low >= 2 * 1.95 * worth


@pytest.mark.parametrize(("images", "churn"), [(50, 0.02), (50, 0.04), (100, 0.02), (300, 0.01)])
def test_no_difference_is_seldom_taken_for_one(images: int, churn: float) -> None:
    """The bootstrap alone excludes a true difference of 0 in up to a quarter of such sets."""
    rng = np.random.default_rng(0)
    labels = np.arange(images) % len(TABLE)
    strata = strata_of(labels, TABLE, Aim())
    times = Bootstrap(labels, TABLE, replicates=200).multiplicities
    wrong = 0
    for _ in range(300):
        draw, both = rng.random(images), rng.random(images) < 0.5
        ours = np.where(draw < 2 * churn, draw < churn, both)
        theirs = np.where(draw < 2 * churn, draw >= churn, both)
        figure, _ = paired_difference(ours, theirs, strata, times, "balanced")
        wrong += not figure.low <= 0 <= figure.high
    assert wrong <= 0.06 * 300


def test_a_known_prior_learns_nothing_and_is_a_fix_all_the_same() -> None:
    text = told(Aim(), "target_prior:prior=[6 values]", ("target_prior", 0, answers(few=90)))
    assert text.startswith("target_prior:prior=[6 values] raises")


def test_strata_of_the_head_alone_are_what_the_limit_looks_at() -> None:
    """Negative control: what the tail loses is no loss of the head."""
    only = Strata(STRATA.head, STRATA.head, {"head": STRATA.head})
    lost = answers(medium=-50, few=-50)
    figure, _ = paired_difference(lost, UNFIXED, only, MULTIPLICITIES, "balanced")
    assert figure.value == 0.0
    assert statuses(Aim(max_head_loss=0.0), (0, answers(few=-50))) == ["chosen"]
