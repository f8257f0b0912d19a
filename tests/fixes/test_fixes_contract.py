"""One contract that every fix must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    FIXES,
    AffineMap,
    BiasCorrectedTemperature,
    ClassifierRetraining,
    Dirichlet,
    DisAlign,
    Fix,
    FixContext,
    FixSpec,
    GroupBoost,
    LabelShift,
    LearnableWeightScaling,
    LogitAdjustment,
    LogitMap,
    MatrixScaling,
    NearestClassMean,
    Platt,
    ScoreMultiplier,
    TargetPrior,
    TauNorm,
    Temperature,
    VectorScaling,
    compose,
    decode,
    encode,
)
from ltdeploy.models.head import Head

CLASSES, DEPTH = 6, 9
# Zero, one and many training images; label 0 is a class that is known and was never seen.
COUNTS = (0, 130, 60, 25, 8, 1)
EVERY_FIX = [
    TauNorm(0.7),
    TauNorm(0.7, "drop"),
    TauNorm(0.7, "keep"),
    TauNorm(0.0),
    LogitAdjustment(1.0),
    LogitAdjustment(0.0),
    Temperature(2.5),
    TargetPrior("uniform"),
    TargetPrior((0.3, 0.1, 0.2, 0.1, 0.2, 0.1)),
    LabelShift("em", "training"),
    LabelShift("em"),
    LabelShift("rlls"),
    ScoreMultiplier((1.0, 0.5, 2.0, 3.0, 1.0, 10.0)),
    GroupBoost(),
    LearnableWeightScaling(0.01),
    BiasCorrectedTemperature(0.01),
    VectorScaling(0.01),
    MatrixScaling(0.1),
    Dirichlet(0.1),
    Platt(),
    NearestClassMean(),
    NearestClassMean("l2"),
    NearestClassMean("centred_l2"),
    ClassifierRetraining(0.01),
    DisAlign(1.0),
]
NEUTRAL = [
    TauNorm(0.0),
    TauNorm(0.0, "keep"),
    LogitAdjustment(0.0),
    Temperature(1.0),
    ScoreMultiplier((1.0,) * CLASSES),
    ScoreMultiplier((3.0,) * CLASSES),
]
# A ridge this strong leaves nothing but the identity.
NEARLY_NEUTRAL = [
    LearnableWeightScaling(1e9),
    VectorScaling(1e9),
    MatrixScaling(1e9),
    BiasCorrectedTemperature(1e9),
]
# Named by what they cannot do, so that a new fix has to say which it is.
LOOKS_AT_FEATURES = (NearestClassMean, ClassifierRetraining, DisAlign)
NOT_AFFINE = (*LOOKS_AT_FEATURES, Dirichlet)


def features_of(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    centres = np.random.default_rng(42).normal(size=(CLASSES, DEPTH))
    return centres[labels] + 0.9 * rng.normal(size=(len(labels), DEPTH))


def make_context(seed: int = 0, bias: bool = True, activation: str = "softmax") -> FixContext:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(CLASSES, DEPTH)) * np.geomspace(3, 0.3, CLASSES)[:, None]
    head = Head(
        "linear",
        weight,
        rng.normal(size=CLASSES) if bias else None,
        activation=activation,  # type: ignore[arg-type]
    )
    labels = np.repeat(np.arange(CLASSES), (20, 20, 20, 20, 20, 1))  # the rarest has one image
    features = features_of(labels, rng)
    train_labels = np.repeat(np.arange(CLASSES), COUNTS)
    return FixContext(
        head=head,
        classes=ClassTable.from_counts(COUNTS),
        logits=logits_of(head, features),
        labels=labels,
        features=features,
        train_features=features_of(train_labels, rng),
        train_labels=train_labels,
        target_logits=logits_of(head, features_of(rng.integers(0, CLASSES, 200), rng)),
    )


def context_for(fix: Fix, seed: int = 0, bias: bool = True) -> FixContext:
    return make_context(seed, bias, "sigmoid" if isinstance(fix, Platt) else "softmax")


def permuted(context: FixContext, order: np.ndarray) -> FixContext:
    """The same evidence with the classes in another order."""
    assert context.head is not None
    assert context.classes is not None
    assert context.logits is not None
    assert context.labels is not None
    assert context.train_labels is not None
    assert context.target_logits is not None
    place = np.argsort(order)
    bias = context.head.bias
    return replace(
        context,
        head=replace(
            context.head,
            weight=context.head.weight[order],
            bias=None if bias is None else bias[order],
        ),
        classes=ClassTable.from_counts([context.classes.counts[i] for i in order]),
        logits=context.logits[:, order],
        labels=place[context.labels],
        train_labels=place[context.train_labels],
        target_logits=context.target_logits[:, order],
    )


def in_other_order(fix: Fix, order: np.ndarray) -> Fix:
    """The fix for classes in another order, where its parameters are per class."""
    for name, value in fix.parameters().items():
        if isinstance(value, tuple):
            return replace(fix, **{name: tuple(value[i] for i in order)})  # type: ignore[type-var]
    return fix


def logits_of(head: Head, features: np.ndarray) -> np.ndarray:
    return features @ head.weight.T + (0 if head.bias is None else head.bias)


def some(context: FixContext, images: int = 5, seed: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features of images that nothing was fitted on."""
    assert context.head is not None
    rng = np.random.default_rng(seed)
    features = features_of(rng.integers(0, CLASSES, images), rng)
    return logits_of(context.head, features), features


def test_every_registered_fix_is_in_the_suite() -> None:
    # Those of detectors hold theirs in test_fixes_detection.py.
    assert {type(fix) for fix in EVERY_FIX} == {f for f in FIXES.values() if not f.of_detectors}


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("bias", [True, False])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_fold_equals_unfused(fix: Fix, bias: bool, seed: int) -> None:
    context = context_for(fix, seed % 3, bias=bias)
    assert context.head is not None
    mapped = fix.fit(context)
    logits, features = some(context, seed=seed)
    if not isinstance(mapped, AffineMap):
        assert isinstance(fix, NOT_AFFINE)
        with pytest.raises(FixError, match="cannot be undone"):
            mapped.inverse()
        return
    weight, new_bias = mapped.fold(context.head.weight, context.head.bias)
    folded = features @ weight.T + (0 if new_bias is None else new_bias)
    np.testing.assert_allclose(folded, mapped.apply(logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_inverse_undoes(fix: Fix) -> None:
    context = context_for(fix)
    mapped = fix.fit(context)
    if not isinstance(mapped, AffineMap):
        pytest.skip("not affine; that it says so is tested with the fold")
    logits, _ = some(context)
    np.testing.assert_allclose(mapped.inverse().apply(mapped.apply(logits)), logits, atol=1e-8)
    assert mapped.then(mapped.inverse()).apply(logits) == pytest.approx(logits, abs=1e-8)


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("other", EVERY_FIX[::3], ids=Fix.describe)
def test_composition_is_one_after_the_other(fix: Fix, other: Fix) -> None:
    context = context_for(fix)
    first, second = fix.fit(context), other.fit(context_for(other))
    logits, features = some(context)
    np.testing.assert_allclose(
        compose(first, second).apply(logits, features),
        second.apply(first.apply(logits, features), features),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_class_permutation_commutes(fix: Fix) -> None:
    context = context_for(fix)
    order = np.random.default_rng(3).permutation(CLASSES)
    logits, features = some(context)
    other = in_other_order(fix, order).fit(permuted(context, order))
    # Fitted twice: equal up to the optimiser's tolerance, and up to a shift that softmax ignores.
    found = other.apply(logits[:, order], features)
    expected = fix.fit(context).apply(logits, features)[:, order]
    np.testing.assert_allclose(centred(found), centred(expected), atol=2e-4)


def centred(logits: np.ndarray) -> np.ndarray:
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("fix", NEUTRAL, ids=Fix.describe)
def test_neutral_parameter_is_the_identity(fix: Fix) -> None:
    logits, _ = some(make_context())
    mapped = fix.fit(make_context())
    np.testing.assert_allclose(centred(mapped.apply(logits)), centred(logits), atol=1e-12)


@pytest.mark.parametrize("fix", NEARLY_NEUTRAL, ids=Fix.describe)
def test_a_strong_ridge_leaves_the_decisions(fix: Fix) -> None:
    context = make_context()
    logits, _ = some(context, images=50)
    mapped = fix.fit(context).apply(logits)
    assert (mapped.argmax(axis=1) == logits.argmax(axis=1)).all()


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_only_what_is_said_to_needs_features(fix: Fix) -> None:
    mapped = fix.fit(context_for(fix))
    assert mapped.needs_features == isinstance(fix, LOOKS_AT_FEATURES)
    # What looks at labelled images learns something from them.
    assert (fix.freedom(context_for(fix)) > 0) >= bool(fix.needs & {"validation", "training"})


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_missing_evidence_is_named_and_nothing_else_raised(fix: Fix) -> None:
    for lacking in sorted(fix.needs):
        names = {
            "head": ("head",),
            "counts": ("classes",),
            "validation": ("logits", "labels"),
            "training": ("train_features", "train_labels"),
            "target": ("target_logits",),
        }[lacking]
        context = replace(context_for(fix), **dict.fromkeys(names))
        with pytest.raises(FixError, match=fix.method):
            fix.fit(context)


def test_dropping_the_bias_is_no_identity_at_zero() -> None:
    assert not TauNorm(0.0, "drop").fit(make_context()).is_identity


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_serialises_and_comes_back(fix: Fix) -> None:
    assert FixSpec(fix.method, dict(fix.parameters())).fixed() == fix
    context = context_for(fix)
    mapped = fix.fit(context)
    again: LogitMap = decode(encode(mapped))
    logits, features = some(context)
    np.testing.assert_array_equal(again.apply(logits, features), mapped.apply(logits, features))


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_logits_stay_finite_and_keep_their_dtype(fix: Fix, size: float) -> None:
    context = context_for(fix)
    logits, features = some(context)
    mapped = fix.fit(context).apply((logits * size).astype(np.float32), features)
    assert np.isfinite(mapped).all()
    assert mapped.dtype == np.float32


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_float32_agrees_with_float64(fix: Fix) -> None:
    context = context_for(fix)
    mapped = fix.fit(context)
    logits, features = some(context, images=8)
    wide = mapped.apply(logits, features)
    narrow = mapped.apply(logits.astype(np.float32), features.astype(np.float32))
    np.testing.assert_allclose(narrow, wide, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_fitting_twice_gives_the_same(fix: Fix) -> None:
    context = context_for(fix)
    logits, features = some(context)
    first, second = (fix.fit(context).apply(logits, features) for _ in range(2))
    np.testing.assert_array_equal(first, second)


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
