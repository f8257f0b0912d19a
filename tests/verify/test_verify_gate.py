"""The gate, and the simulation of how often it errs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.errors import DataError, UsageError
from ltdeploy.verify.gate import bundle_verdict, check_margin, images_to_decide, judge
from ltdeploy.verify.statistics import paired_flips

GROUPS = {"many": np.arange(5), "medium": np.arange(5, 10), "few": np.arange(10, 15)}
IMAGES = np.full(15, 400)


def flips(**changes: int) -> np.ndarray:
    counts = np.zeros(15, dtype=int)
    for name, count in changes.items():
        counts[GROUPS[name]] = count
    return counts


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "gate_simulation.py"
    spec = importlib.util.spec_from_file_location("gate_simulation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def test_no_flip_and_enough_images_pass() -> None:
    judgement = judge(IMAGES, flips(), flips(), GROUPS)
    assert judgement.verdict == "pass"
    assert judgement.overall.difference == 0.0
    assert judgement.groups["few"].ci_low == pytest.approx(-0.1917, abs=1e-3)


def test_one_bad_group_fails_the_bundle_although_the_whole_passes() -> None:
    judgement = judge(IMAGES, flips(few=12), flips(many=12), GROUPS)  # 3 points of 'few'
    assert {name: d.verdict for name, d in judgement.groups.items()} == {
        "many": "pass",
        "medium": "pass",
        "few": "fail",
    }
    assert judgement.overall.verdict == "pass"
    assert judgement.verdict == "fail"
    assert judgement.groups["few"].difference == pytest.approx(-3.0)


def test_too_few_images_are_inconclusive_and_say_how_many_it_takes() -> None:
    images = np.r_[np.full(10, 400), np.full(5, 3)]
    judgement = judge(images, flips(), flips(), GROUPS)
    few = judgement.groups["few"]
    assert (judgement.verdict, few.verdict) == ("inconclusive", "inconclusive")
    assert few.images_to_decide == pytest.approx(381, abs=1)  # z² (1 − δ) / δ at δ = 1 %
    assert judgement.groups["many"].images_to_decide is None


def test_numerically_equivalent_passes_whatever_the_number_of_images() -> None:
    images = np.r_[np.full(10, 1), np.zeros(5, dtype=int)]
    judgement = judge(images, flips(), flips(), GROUPS, equivalent=True)
    assert judgement.verdict == judgement.groups["few"].verdict == "pass"
    assert judge(images, flips(), flips(), GROUPS).verdict == "inconclusive"


def test_a_group_without_images_is_not_proven_and_one_without_classes_is_no_group() -> None:
    images = np.r_[np.full(10, 400), np.zeros(5, dtype=int)]
    judgement = judge(images, flips(), flips(), {**GROUPS, "rare": np.arange(0)})
    assert judgement.groups["few"].verdict == "inconclusive"
    assert judgement.groups["few"].difference is None
    assert judgement.groups["rare"] is None
    assert judgement.verdict == "inconclusive"


@pytest.mark.parametrize(
    ("unmeasured", "verdict"), [(2, "pass"), (3, "inconclusive"), (4, "inconclusive")]
)
def test_a_group_of_whose_classes_most_have_no_images_is_not_proven(
    unmeasured: int, verdict: str
) -> None:
    images = IMAGES.copy()
    images[10 : 10 + unmeasured] = 0
    few = judge(images, flips(), flips(), GROUPS).groups["few"]
    assert (few.verdict, few.images_to_decide) == (verdict, None)
    assert few.ci_low > -1.0
    assert judge(images, flips(), flips(), GROUPS, equivalent=True).groups["few"].verdict == "pass"
    # What is seen to be lost is lost, however little is seen.
    lost = np.r_[np.zeros(14, dtype=int), 100]
    assert judge(images, lost, flips(), GROUPS).groups["few"].verdict == "fail"


def test_a_group_fails_by_the_corrected_limit_and_not_by_the_interval() -> None:
    lost = np.zeros(15, dtype=int)
    for count, verdict in ((5, "inconclusive"), (9, "fail")):
        lost[10] = count
        images = np.r_[np.full(10, 400), np.full(5, 20)]
        few = judge(images, lost, flips(), GROUPS).groups["few"]
        assert few.verdict == verdict
        assert few.difference <= -1.0
        assert few.ci_high < 0.0  # the 95 % interval alone would fail both
        assert (few.fail_high < 0.0) == (verdict == "fail")
    alone = judge(images, lost, flips(), {"all": np.arange(15)}).groups["all"]
    assert alone.fail_high == alone.ci_high


def test_a_loss_that_may_be_chance_does_not_fail() -> None:
    # 4 lost of 100: four points, beyond the margin, and one in sixteen by chance.
    images, groups = np.array([100, 5000]), {"few": np.array([0]), "many": np.array([1])}
    judgement = judge(images, np.array([4, 0]), np.array([0, 0]), groups)
    assert judgement.groups["few"].difference == pytest.approx(-4.0)
    assert judgement.groups["few"].verdict == "inconclusive"


@pytest.mark.parametrize("margin", [0.0, -1.0, 100.0, float("nan"), float("inf")])
def test_refuses_margins_that_decide_nothing(margin: float) -> None:
    with pytest.raises(UsageError, match="The margin is"):
        check_margin(margin)


def test_refuses_no_images_and_false_equivalence() -> None:
    with pytest.raises(DataError, match="no image to judge"):
        judge(np.zeros(15, dtype=int), flips(), flips(), GROUPS)
    with pytest.raises(DataError, match="5 images changed"):
        judge(IMAGES, flips(few=1), flips(), GROUPS, equivalent=True)


def test_bundle_verdicts_combine() -> None:
    rows = np.array([["pass", "pass"], ["pass", "inconclusive"], ["inconclusive", "fail"]])
    assert bundle_verdict(rows).tolist() == ["pass", "inconclusive", "fail"]


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n // 2), st.integers(0, n // 2))
    ),
    st.integers(1, 9),
)
def test_as_many_images_as_estimated_do_decide(counts: tuple[int, int, int], classes: int) -> None:
    images, lost, won = (np.full(classes, count) for count in counts)
    whole = np.ones((1, classes), dtype=bool)
    now = paired_flips(images, lost, won, whole)
    total = int(images.sum())
    needed = images_to_decide(now, total, 1.0, 1)
    if needed is None:
        assert np.isclose(now.difference[0], -0.01)
        return
    assert needed >= total
    factor = -(-needed // total)
    if factor > 1000:
        return
    groups = {"all": np.arange(classes)}
    assert judge(images * factor, lost * factor, won * factor, groups).verdict != "inconclusive"


@given(st.lists(st.integers(0, 30), min_size=15, max_size=15), st.integers(0, 14))
def test_one_more_loss_never_turns_a_verdict_for_the_better(lost: list[int], where: int) -> None:
    rank = {"fail": 0, "inconclusive": 1, "pass": 2}
    before, after = np.array(lost), np.array(lost)
    after[where] += 1
    verdicts = [judge(IMAGES, counts, flips(), GROUPS).verdict for counts in (before, after)]
    assert rank[verdicts[1]] <= rank[verdicts[0]]


def test_the_gate_errs_at_most_one_time_in_twenty(simulation: ModuleType) -> None:
    """Planted drops of twice the margin pass ≤ 5 %, innocents fail ≤ 5 %; 1,000 runs a setting."""
    random = np.random.default_rng(0)
    outcomes = [
        simulation.simulate(design, structure, churn, 1000, random)
        for design in simulation.DESIGNS
        if len(design.images) <= 200 or design.name.startswith("inat")
        for churn in simulation.CHURNS
        for structure in simulation.STRUCTURES
        if structure.independent
    ]
    assert len(outcomes) > 100
    broken = [outcome.line() for outcome in outcomes if not outcome.holds]
    assert not broken, "\n".join(broken)
    # A gate that always says "inconclusive" would hold the bounds too.
    large = [o for o in outcomes if o.design.startswith("cifar100") and o.churn == 0.002]
    assert min(o.planted_fail for o in large) > 0.95
    assert min(o.innocent_pass for o in large) > 0.95


@pytest.mark.parametrize(
    ("gate", "design", "churn", "structure"),
    [
        # Without flips a Wald interval is a point, and 15 images prove what they cannot.
        ("wald_gate", "tiny", 0.002, "average unmoved"),
        # Four uncorrected looks at an innocent bundle condemn it too often.
        ("wald_gate", "cifar100", 0.05, "classes swap"),
        # Kish's effective size does not see that two classes of one image carry four points.
        ("kish_gate", "two singles", 0.002, "few classes"),
    ],
)
def test_naive_gates_break_the_bound(
    simulation: ModuleType, gate: str, design: str, churn: float, structure: str
) -> None:
    """The negative control: what the simulation would say of a gate that is wrong."""
    chosen = next(d for d in simulation.DESIGNS if d.name.startswith(design))
    laid_out = next(s for s in simulation.STRUCTURES if s.name == structure)
    random = np.random.default_rng(0)
    naive = simulation.simulate(chosen, laid_out, churn, 2000, random, getattr(simulation, gate))
    assert not naive.holds
    random = np.random.default_rng(0)
    assert simulation.simulate(chosen, laid_out, churn, 2000, random).holds
