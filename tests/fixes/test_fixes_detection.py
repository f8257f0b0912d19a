"""Fixes of detectors' scores: against the published forms, by hand, and what all must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from detector_head_samples import (
    CASE_IDS,
    CASES,
    CLASSES,
    COUNTS,
    FIXED,
    LAYOUTS,
    NEUTRAL,
    features,
    logits_of,
    make_context,
    make_head,
    softmax_context,
    suits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.arrays import sigmoid, softmax
from ltdeploy.classes import LVIS_GROUPS, ClassTable
from ltdeploy.fixes import (
    FIXES,
    AffineMap,
    Fix,
    FixContext,
    GroupOdds,
    LogitAdjustment,
    LogN,
    NorCal,
    Odds,
    TauNorm,
    decode,
    effective_number,
    encode,
    foreground_columns,
)
from ltdeploy.models.head import Head


def published_norcal(
    logits: np.ndarray, counts: np.ndarray, gamma: float, background: int
) -> np.ndarray:
    """Scores of classes and background: exponentials over sizes, then normalised by their sum."""
    sizes = np.insert(counts.astype(float) ** gamma, background, 1.0)
    divided = np.exp(logits) / sizes
    return divided / divided.sum(axis=1, keepdims=True)


@given(
    seed=st.integers(0, 2**31),
    gamma=st.floats(0, 2),
    classes=st.integers(1, 30),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_norcal_is_the_published_form(
    seed: int, gamma: float, classes: int, data: st.DataObject
) -> None:
    background = data.draw(st.integers(0, classes))
    rng = np.random.default_rng(seed)
    counts = np.round(np.exp(rng.uniform(0, 10, classes))).astype(int)
    logits = rng.normal(0, 5, (6, classes + 1))
    mapped = NorCal(gamma).fit(softmax_context(tuple(counts.tolist()), background))
    expected = published_norcal(logits, counts, gamma, background)
    np.testing.assert_allclose(softmax(mapped.apply(logits)), expected, rtol=1e-9, atol=1e-12)
    narrow = softmax(mapped.apply(logits.astype(np.float32)))
    np.testing.assert_allclose(narrow, expected, atol=1e-5)


def test_norcal_by_hand() -> None:
    # 0.6 / 10, 0.1 / 1 and the background's 0.3: together 0.46.
    logits = np.log([[0.6, 0.1, 0.3]])
    mapped = NorCal(0.5).fit(softmax_context((100, 1), 2))
    np.testing.assert_allclose(mapped.shift, [-np.log(10), 0, 0], atol=1e-15)
    found = softmax(mapped.apply(logits))
    np.testing.assert_allclose(found, [[0.06 / 0.46, 0.1 / 0.46, 0.3 / 0.46]], rtol=1e-12)


def test_class_balanced_norcal_by_hand() -> None:
    # β = 0.5: E = 1 for one image, 1.75 for three; 0.35 / 1.75 = 0.2, 0.3 and 0.35: together 0.85.
    mapped = NorCal(1.0, 0.5).fit(softmax_context((3, 1), 0))
    found = softmax(mapped.apply(np.log([[0.35, 0.35, 0.3]])))
    np.testing.assert_allclose(found, [[0.35 / 0.85, 0.2 / 0.85, 0.3 / 0.85]], rtol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 0.9, 0.9999, 1 - 1e-9])
def test_the_effective_number_is_a_geometric_sum(beta: float) -> None:
    counts = np.array([1.0, 2.0, 17.0, 400.0])
    sums = [sum(beta**power for power in range(int(count))) for count in counts]
    np.testing.assert_allclose(effective_number(counts, beta), sums, rtol=1e-10)


def test_the_effective_number_grows_from_one_to_all_images() -> None:
    counts = np.array([1.0, 5.0, 1e5])
    np.testing.assert_array_equal(effective_number(counts, 0.0), [1, 1, 1])
    np.testing.assert_array_equal(effective_number(counts, 1.0), counts)
    np.testing.assert_allclose(effective_number(counts, 1 - 1e-14), counts, rtol=1e-3)


@pytest.mark.parametrize("size", [80.0, 1000.0])
def test_norcal_of_large_logits_stays_finite_and_right(size: float) -> None:
    rng = np.random.default_rng(0)
    counts = np.round(np.exp(rng.uniform(0, 10, 1203))).astype(int)
    logits = rng.choice([-size, size], (20, 1204)).astype(np.float32)
    mapped = NorCal(0.6).fit(softmax_context(tuple(counts.tolist()), 1203))
    found = softmax(mapped.apply(logits))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
    if size == 80:
        wide = published_norcal(logits.astype(np.float64), counts, 0.6, 1203)
        np.testing.assert_allclose(softmax(mapped.apply(logits.astype(float))), wide, atol=1e-12)
        np.testing.assert_allclose(found, wide, atol=1e-6)
    else:  # what taking no maximum off leads to
        with np.errstate(over="ignore", invalid="ignore"):
            assert np.isnan(published_norcal(logits, counts, 0.6, 1203)).any()


def test_norcal_of_a_seesaw_head_leaves_the_objectness() -> None:
    context = make_context("seesaw")
    assert context.logits is not None
    mapped = NorCal(0.6).fit(context)
    np.testing.assert_array_equal(mapped.apply(context.logits)[:, -2:], context.logits[:, -2:])
    scores = softmax(context.logits[:, :-2]) / np.maximum(COUNTS, 1) ** 0.6
    expected = scores / scores.sum(axis=1, keepdims=True)
    found = softmax(mapped.apply(context.logits)[:, :-2])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_odds_by_hand() -> None:
    # Geometric mean of 400 and 1 is 20: at γ = 0.5 the odds go by 1/√20 and √20.
    head = Head("linear", np.zeros((2, 1)), activation="sigmoid")
    context = FixContext(head=head, classes=ClassTable.from_counts([400, 1]))
    mapped = Odds(0.5).fit(context)
    found = sigmoid(mapped.apply(np.array([[np.log(0.8 / 0.2), np.log(0.1 / 0.9)]])))
    odds = np.array([0.8 / 0.2 / np.sqrt(20), 0.1 / 0.9 * np.sqrt(20)])
    np.testing.assert_allclose(found, [odds / (1 + odds)], rtol=1e-12)
    assert mapped.shift.sum() == pytest.approx(0, abs=1e-12)


def published_logn(logits: np.ndarray, statistics: np.ndarray) -> np.ndarray:
    """The authors' head at inference, background last, with plain instead of running statistics."""
    mean, std = statistics.mean(axis=0), statistics.std(axis=0)
    mean[-1], std[-1] = 0.0, 1.0
    beta = np.zeros_like(mean)
    beta[:-1] = mean[:-1].min()
    return (logits - (mean - beta)) / std


@given(seed=st.integers(0, 2**31), classes=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_logn_is_the_published_form(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.uniform(0.1, 4, classes + 1)
    statistics = rng.normal(rng.normal(0, 5, classes + 1), spread, (50, classes + 1))
    head = Head("linear", np.zeros((classes + 1, 1)), None, background=classes)
    logits = rng.normal(0, 5, (6, classes + 1))
    mapped = LogN().fit(FixContext(head=head, logits=statistics))
    np.testing.assert_allclose(mapped.apply(logits), published_logn(logits, statistics), rtol=1e-9)


def test_logn_by_hand() -> None:
    # Means 2 and 0, spreads 2 and 1, β = 0: z' = (z − 2) / 2 and z / 1; the background stays.
    statistics = np.array([[9.0, 0.0, -1.0], [-7.0, 4.0, 1.0]])
    head = Head("linear", np.zeros((3, 1)), None, background=0)
    mapped = LogN().fit(FixContext(head=head, target_logits=statistics))
    np.testing.assert_allclose(mapped.scale, [1, 0.5, 1])
    np.testing.assert_allclose(mapped.shift, [0, -1, 0])


def test_logn_changes_nothing_where_all_classes_are_alike() -> None:
    head = make_head("softmax, background first")
    logits = np.repeat([[-1.0], [1.0]], head.classes, axis=1) - 4.0
    assert LogN().fit(FixContext(head=head, logits=logits)).is_identity


def test_logn_of_more_boxes_than_a_block_holds() -> None:
    rng = np.random.default_rng(1)
    statistics = rng.normal(3, 2, (3000, 81)).astype(np.float32)
    head = Head("linear", np.zeros((81, 1)), None, background=80)
    mapped = LogN().fit(FixContext(head=head, logits=statistics))
    wide = statistics[:, :80].astype(float)
    np.testing.assert_allclose(mapped.scale[:80], 1 / wide.std(axis=0), rtol=1e-6)


def test_logit_adjustment_of_a_detector_has_a_prior_over_the_classes() -> None:
    mapped = LogitAdjustment(1.0).fit(softmax_context((90, 10), 1))
    np.testing.assert_allclose(mapped.shift, [-np.log(0.9), 0, -np.log(0.1)])
    norcal = NorCal(1.0).fit(softmax_context((90, 10), 1))
    level = mapped.shift - norcal.shift
    np.testing.assert_allclose(level, [np.log(100), 0, np.log(100)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_each_layout(layout: str) -> None:
    columns, background, _ = LAYOUTS[layout]
    found = foreground_columns(make_head(layout))
    assert len(found) == CLASSES
    assert background not in found
    assert set(found) <= set(range(columns))
    assert list(found) == sorted(found)


@pytest.mark.parametrize(("fix", "layout"), CASES, ids=CASE_IDS)
def test_other_columns_are_left_alone(fix: Fix, layout: str) -> None:
    context = make_context(layout)
    assert context.head is not None
    assert context.logits is not None
    mapped = fix.fit(context)
    assert isinstance(mapped, AffineMap)
    assert not mapped.is_identity
    others = np.setdiff1d(np.arange(context.head.classes), foreground_columns(context.head))
    kept = mapped.apply(context.logits)[:, others]
    np.testing.assert_array_equal(kept, context.logits[:, others])


@pytest.mark.parametrize(("fix", "layout"), CASES, ids=CASE_IDS)
def test_fold_equals_unfused_and_inverse_undoes(fix: Fix, layout: str) -> None:
    for seed in range(3):
        context = make_context(layout, seed)
        assert context.head is not None
        mapped = fix.fit(context)
        assert isinstance(mapped, AffineMap)
        weight, bias = mapped.fold(context.head.weight, context.head.bias)
        inputs = features(seed + 50)
        plain = logits_of(context.head, inputs)
        np.testing.assert_allclose(inputs @ weight.T + bias, mapped.apply(plain), atol=1e-9)  # type: ignore[operator]
        np.testing.assert_allclose(mapped.inverse().apply(mapped.apply(plain)), plain, atol=1e-9)
        found = decode(encode(mapped)).apply(plain)
        np.testing.assert_array_equal(found, mapped.apply(plain))


@pytest.mark.parametrize(("fix", "layout"), CASES, ids=CASE_IDS)
def test_class_permutation_commutes(fix: Fix, layout: str) -> None:
    context = make_context(layout)
    assert context.head is not None
    assert context.head.bias is not None
    assert context.logits is not None
    columns = foreground_columns(context.head)
    order = np.random.default_rng(3).permutation(CLASSES)
    moved = np.arange(context.head.classes)
    moved[columns] = columns[order]
    head = replace(context.head, weight=context.head.weight[moved], bias=context.head.bias[moved])
    table = ClassTable(tuple("abcde"), tuple(COUNTS[i] for i in order), LVIS_GROUPS)
    other = replace(context, head=head, classes=table, logits=context.logits[:, moved])
    found = fix.fit(other).apply(context.logits[:, moved])
    expected = fix.fit(context).apply(context.logits)[:, moved]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("background", [0, 2, CLASSES])
@pytest.mark.parametrize("fix", [f for f in FIXED if suits(f, "softmax, background last")])
def test_scores_do_not_depend_on_where_the_background_is(fix: Fix, background: int) -> None:
    context = make_context("softmax, background last")
    assert context.head is not None
    assert context.head.bias is not None
    assert context.logits is not None
    moved = np.insert(np.arange(CLASSES), background, CLASSES)
    head = replace(
        context.head,
        weight=context.head.weight[moved],
        bias=context.head.bias[moved],
        background=background,
    )
    other = replace(context, head=head, logits=context.logits[:, moved])
    found = fix.fit(other).apply(context.logits[:, moved])
    expected = fix.fit(context).apply(context.logits)[:, moved]
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("fix", "layout"),
    [(fix, layout) for layout in LAYOUTS for fix in NEUTRAL if suits(fix, layout)],
)
def test_neutral_parameters_are_the_identity(fix: Fix, layout: str) -> None:
    context = replace(make_context(layout), force=False, trained_with="seesaw")
    assert fix.fit(context).is_identity  # and a balanced model is no reason to refuse


def test_every_fix_of_detectors_is_here() -> None:
    kinds = {kind for kind in FIXES.values() if kind.of_detectors}
    assert kinds == {NorCal, Odds, LogN, GroupOdds}
    assert kinds <= {type(fix) for fix in FIXED}


def test_forced_tau_norm_takes_the_norms_of_the_classes_alone() -> None:
    # Norms 5 and 1.25 as without a background, whose row of norm 1000 must not count.
    weight = np.array([[3.0, 4.0], [600.0, 800.0], [0.75, 1.0]])
    context = FixContext(head=Head("linear", weight, np.ones(3), background=1), force=True)
    np.testing.assert_allclose(TauNorm(1.0).fit(context).scale, [0.5, 1, 2])
    folded = TauNorm(1.0, "drop").fit(context).fold(weight, np.ones(3))
    np.testing.assert_allclose(folded[1], [0, 1, 0], atol=1e-15)
