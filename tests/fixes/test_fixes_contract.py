"""One contract that every fix must hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    FIXES,
    AffineMap,
    Fix,
    FixContext,
    FixSpec,
    LogitAdjustment,
    TauNorm,
    Temperature,
)
from ltdeploy.models.head import Head

EVERY_FIX = [
    TauNorm(0.7),
    TauNorm(0.7, "drop"),
    TauNorm(0.7, "keep"),
    TauNorm(0.0),
    LogitAdjustment(1.0),
    LogitAdjustment(0.0),
    Temperature(2.5),
]
NEUTRAL = [TauNorm(0.0), TauNorm(0.0, "keep"), LogitAdjustment(0.0), Temperature(1.0)]


def make_context(seed: int = 0, classes: int = 6, bias: bool = True) -> FixContext:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(classes, 9)) * np.geomspace(3, 0.3, classes)[:, None]
    counts = [0, *np.geomspace(500, 1, classes - 1).astype(int).tolist()]
    return FixContext(
        head=Head("linear", weight, rng.normal(size=classes) if bias else None),
        classes=ClassTable.from_counts(counts),
    )


def logits_of(head: Head, features: np.ndarray) -> np.ndarray:
    return features @ head.weight.T + (0 if head.bias is None else head.bias)


def test_every_registered_fix_is_in_the_suite() -> None:
    assert {type(fix) for fix in EVERY_FIX} == set(FIXES.values())


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("bias", [True, False])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_fold_equals_unfused(fix: Fix, bias: bool, seed: int) -> None:
    context = make_context(seed, bias=bias)
    assert context.head is not None
    features = np.random.default_rng(seed).normal(size=(5, 9))
    mapped = fix.fit(context)
    weight, new_bias = mapped.fold(context.head.weight, context.head.bias)
    folded = features @ weight.T + (0 if new_bias is None else new_bias)
    np.testing.assert_allclose(
        folded, mapped.apply(logits_of(context.head, features)), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_inverse_undoes(fix: Fix) -> None:
    mapped = fix.fit(make_context())
    logits = np.random.default_rng(1).normal(size=(4, 6)) * 10
    np.testing.assert_allclose(mapped.inverse().apply(mapped.apply(logits)), logits, atol=1e-9)
    assert mapped.then(mapped.inverse()).apply(logits) == pytest.approx(logits, abs=1e-9)


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("other", EVERY_FIX, ids=Fix.describe)
def test_composition_is_one_after_the_other(fix: Fix, other: Fix) -> None:
    context = make_context()
    first, second = fix.fit(context), other.fit(context)
    logits = np.random.default_rng(2).normal(size=(4, 6))
    np.testing.assert_allclose(
        first.then(second).apply(logits), second.apply(first.apply(logits)), rtol=1e-12
    )


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_class_permutation_commutes(fix: Fix) -> None:
    context = make_context()
    assert context.head is not None
    assert context.head.bias is not None
    assert context.classes is not None
    order = np.random.default_rng(3).permutation(6)
    permuted = FixContext(
        head=Head("linear", context.head.weight[order], context.head.bias[order]),
        classes=ClassTable.from_counts([context.classes.counts[i] for i in order]),
    )
    logits = np.random.default_rng(4).normal(size=(3, 6))
    np.testing.assert_allclose(
        fix.fit(permuted).apply(logits[:, order]), fix.fit(context).apply(logits)[:, order]
    )


@pytest.mark.parametrize("fix", NEUTRAL, ids=Fix.describe)
def test_neutral_parameter_is_the_identity(fix: Fix) -> None:
    assert fix.fit(make_context()).is_identity


def test_dropping_the_bias_is_no_identity_at_zero() -> None:
    assert not TauNorm(0.0, "drop").fit(make_context()).is_identity


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_serialises_and_comes_back(fix: Fix) -> None:
    parameters = fix.parameters()
    spec = FixSpec(fix.method, parameters)
    assert spec.build(parameters[spec.tunable]) == fix


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_logits_stay_finite_and_keep_their_dtype(fix: Fix, size: float) -> None:
    logits = (np.random.default_rng(5).normal(size=(3, 6)) * size).astype(np.float32)
    mapped = fix.fit(make_context()).apply(logits)
    assert np.isfinite(mapped).all()
    assert mapped.dtype == np.float32


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_float32_agrees_with_float64(fix: Fix) -> None:
    mapped = fix.fit(make_context())
    logits = np.random.default_rng(6).normal(size=(8, 6))
    wide, narrow = mapped.apply(logits), mapped.apply(logits.astype(np.float32))
    np.testing.assert_allclose(narrow, wide, rtol=1e-5, atol=1e-5)


def test_tau_norm_by_hand() -> None:
    # Norms 5 and 1.25, geometric mean 2.5: at τ = 1 both rows get the norm 2.5.
    head = Head("linear", np.array([[3.0, 4.0], [0.75, 1.0]]), np.array([1.0, -2.0]))
    mapped = TauNorm(1.0).fit(FixContext(head=head))
    np.testing.assert_allclose(mapped.scale, [0.5, 2.0])
    np.testing.assert_allclose(mapped.fold(head.weight, head.bias)[0], [[1.5, 2.0], [1.5, 2.0]])
    np.testing.assert_allclose(mapped.fold(head.weight, head.bias)[1], [0.5, -4.0])
    drop = TauNorm(1.0, "drop").fit(FixContext(head=head))
    np.testing.assert_allclose(drop.fold(head.weight, head.bias)[1], [0, 0], atol=1e-15)
    keep = TauNorm(1.0, "keep").fit(FixContext(head=head))
    np.testing.assert_allclose(keep.fold(head.weight, head.bias)[1], [1.0, -2.0])


@given(tau=st.floats(0, 2), seed=st.integers(0, 1000))
def test_tau_norm_keeps_the_geometric_mean_of_norms(tau: float, seed: int) -> None:
    scale = TauNorm(tau).fit(make_context(seed)).scale
    assert np.log(scale).sum() == pytest.approx(0, abs=1e-9)


def test_logit_adjustment_by_hand() -> None:
    head = Head("linear", np.eye(2), None)
    table = ClassTable.from_counts([90, 10])
    mapped = LogitAdjustment(1.0).fit(FixContext(head=head, classes=table))
    np.testing.assert_allclose(mapped.shift, [-np.log(0.9), -np.log(0.1)])


def test_logit_adjustment_counts_an_unseen_class_as_one_image() -> None:
    head = Head("linear", np.eye(2), None)
    table = ClassTable.from_counts([99, 0])
    mapped = LogitAdjustment(1.0).fit(FixContext(head=head, classes=table))
    np.testing.assert_allclose(mapped.shift, [-np.log(0.99), -np.log(0.01)])


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: TauNorm(-0.1), r"tau is -0\.1; expected a number at least 0"),
        (lambda: TauNorm(float("nan")), "tau is nan"),
        (lambda: TauNorm(0.5, "scal"), "Did you mean 'scale'"),  # type: ignore[arg-type]
        (lambda: LogitAdjustment(-1.0), "--logit-adjust 1.0"),
        (lambda: Temperature(0.0), "above 0"),
    ],
)
def test_parameters_out_of_range_are_refused(build, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FixError, match=text):
        build()


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (Head("cosine", np.eye(3), None, scale=30.0), "does nothing on a cosine head"),
        (Head("linear", np.eye(3), None, foldable=False), "more than its last linear map"),
        (Head("linear", np.eye(3), None, background=0), "--force"),
        (Head("linear", np.diag([1.0, 0.0, 1.0]), None), r"labels \[1\] are all zero"),
    ],
)
def test_tau_norm_refuses_heads_it_does_not_suit(head: Head, text: str) -> None:
    with pytest.raises(FixError, match=text):
        TauNorm(0.5).fit(FixContext(head=head))


def test_double_correction_is_refused_unless_forced() -> None:
    context = make_context()
    balanced = FixContext(
        head=context.head, classes=context.classes, trained_with="balanced_softmax"
    )
    with pytest.raises(FixError, match="correct twice"):
        LogitAdjustment(1.0).fit(balanced)
    forced = FixContext(
        head=context.head, classes=context.classes, trained_with="balanced_softmax", force=True
    )
    assert not LogitAdjustment(1.0).fit(forced).is_identity


def test_missing_evidence_is_named() -> None:
    with pytest.raises(FixError, match="--classes FILE"):
        LogitAdjustment(1.0).fit(FixContext(head=make_context().head))


def test_affine_map_refuses_wrong_shapes_and_numbers() -> None:
    with pytest.raises(FixError, match="shape"):
        AffineMap(np.ones(3), np.zeros(4))
    with pytest.raises(FixError, match=r"labels \[1\]"):
        AffineMap(np.ones(2), np.array([0.0, np.inf]))
    with pytest.raises(FixError, match="3 and 2 classes"):
        AffineMap.identity(3).then(AffineMap.identity(2))
    with pytest.raises(FixError, match="inverted"):
        AffineMap(np.array([1.0, 0.0]), np.zeros(2)).inverse()
    with pytest.raises(FixError, match="singular"):
        AffineMap(np.ones((2, 2)), np.zeros(2)).inverse()


def test_full_matrices_compose_fold_and_invert() -> None:
    rng = np.random.default_rng(0)
    full = AffineMap(rng.normal(size=(4, 4)), rng.normal(size=4))
    diagonal = AffineMap(rng.uniform(0.5, 2, size=4), rng.normal(size=4))
    logits = rng.normal(size=(5, 4))
    np.testing.assert_allclose(
        full.then(diagonal).apply(logits), diagonal.apply(full.apply(logits))
    )
    np.testing.assert_allclose(full.inverse().apply(full.apply(logits)), logits)
    weight, bias = full.fold(np.eye(4), None)
    assert bias is not None
    np.testing.assert_allclose(logits @ weight.T + bias, full.apply(logits))
