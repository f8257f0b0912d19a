"""Fixes in scikit-learn's habit: the same maps as `Fix.fit`, on plain arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from ltdeploy.arrays import sigmoid, softmax
from ltdeploy.calibrate import FixEstimator
from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError, FixError, UsageError
from ltdeploy.fixes import FIXES, Fix, FixContext, LogitAdjustment, Temperature, parse_spec
from ltdeploy.models.head import Head

COUNTS = [300, 80, 30, 10, 4]
CLASSES = len(COUNTS)
_RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(CLASSES), 20)
WEIGHT, BIAS = _RNG.normal(size=(CLASSES, 6)), np.log(COUNTS) / 2
TRAIN_LABELS = np.repeat(np.arange(CLASSES), COUNTS)
FEATURES = WEIGHT[LABELS] * 0.5 + _RNG.normal(size=(len(LABELS), 6))
TRAIN_FEATURES = WEIGHT[TRAIN_LABELS] * 0.5 + _RNG.normal(size=(len(TRAIN_LABELS), 6))
LOGITS = FEATURES @ WEIGHT.T + BIAS
EVIDENCE: dict[str, Any] = {
    "counts": COUNTS,
    "weight": WEIGHT,
    "bias": BIAS,
    "features": FEATURES,
    "train_features": TRAIN_FEATURES,
    "train_labels": TRAIN_LABELS,
    "target_logits": LOGITS[:40],
}
CONTEXT = FixContext(
    head=Head("linear", WEIGHT, BIAS),
    classes=ClassTable.from_counts(COUNTS),
    logits=LOGITS,
    labels=LABELS,
    features=FEATURES,
    train_features=TRAIN_FEATURES,
    train_labels=TRAIN_LABELS,
    target_logits=LOGITS[:40],
)
# One spec of each fix that a name can tell, with every parameter that has no default.
SPECS = {
    "tau_norm": "tau_norm:tau=0.7",
    "logit_adjustment": "logit_adjustment:tau=1.0",
    "target_prior": "target_prior",
    "label_shift": "label_shift",
    "group_boost": "group_boost",
    "lws": "lws:l2=0.1",
    "temperature": "temperature:t=1.7",
    "bias_corrected_temperature": "bias_corrected_temperature:l2=0.1",
    "vector": "vector:l2=0.1",
    "matrix": "matrix:l2=0.1",
    "dirichlet": "dirichlet:l2=0.1",
    "platt": "platt",
    "ncm": "ncm",
    "crt": "crt:l2=0.01",
    "disalign": "disalign:rho=0.5",
}


def fixes_of(name: str) -> str | Fix:
    """Return a fix as it may be given: by name, or as an object where a name cannot tell it."""
    if name == "score_multiplier":
        return FIXES[name](tuple(np.linspace(0.5, 2, CLASSES).tolist()))  # type: ignore[call-arg]
    return SPECS[name]


@pytest.mark.parametrize("name", [name for name, kind in FIXES.items() if not kind.of_detectors])
def test_every_fix_equals_its_own_fit(name: str) -> None:
    given = fixes_of(name)
    fix = given if isinstance(given, Fix) else parse_spec(given).fixed()
    activation = "sigmoid" if name == "platt" else "softmax"
    assert CONTEXT.head is not None
    context = replace(CONTEXT, head=replace(CONTEXT.head, activation=activation))
    expected = fix.fit(context).apply(LOGITS, FEATURES)
    estimator = FixEstimator(given)
    assert estimator.fit(LOGITS, LABELS, activation=activation, **EVIDENCE) is estimator
    found = estimator.transform(LOGITS, FEATURES)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert estimator.calibration_ is None
    np.testing.assert_array_equal(estimator.classes_, np.arange(CLASSES))
    np.testing.assert_array_equal(estimator.predict(LOGITS, FEATURES), expected.argmax(axis=1))
    probabilities = sigmoid(expected) if name == "platt" else softmax(expected)
    np.testing.assert_allclose(
        estimator.predict_proba(LOGITS, FEATURES), probabilities, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("name", ["logit_adjustment", "tau_norm", "vector", "disalign", "ncm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_floating_type_stays(name: str, dtype: type[np.floating]) -> None:
    logits, features = LOGITS.astype(dtype), FEATURES.astype(dtype)
    evidence = {**EVIDENCE, "features": features}
    wide = FixEstimator(SPECS[name]).fit(LOGITS, LABELS, **EVIDENCE).transform(LOGITS, FEATURES)
    estimator = FixEstimator(SPECS[name])
    found = estimator.fit_transform(logits, LABELS, **evidence)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, wide, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(found, estimator.transform(logits, features))


def test_lists_are_as_good_as_arrays() -> None:
    arrays = FixEstimator("vector:l2=0.1").fit(LOGITS, LABELS, counts=np.array(COUNTS))
    lists = FixEstimator("vector:l2=0.1").fit(LOGITS.tolist(), LABELS.tolist(), counts=COUNTS)
    np.testing.assert_array_equal(lists.transform(LOGITS.tolist()), arrays.transform(LOGITS))
    whole = [[3, 1, 0], [0, 2, 2], [1, 0, 5]]
    found = FixEstimator("logit_adjustment:tau=1").fit(whole, counts=[8, 1, 1]).transform(whole)
    np.testing.assert_allclose(found, whole - np.log([0.8, 0.1, 0.1]))


def test_auto_chooses_what_helps_and_says_why() -> None:
    estimator = FixEstimator(folds=4).fit(LOGITS, LABELS, counts=COUNTS)
    done = estimator.calibration_
    assert done is not None
    assert done.folds == 4
    assert "→" not in done.reason
    before = balanced_accuracy_score(LABELS, LOGITS.argmax(axis=1))
    assert balanced_accuracy_score(LABELS, estimator.predict(LOGITS)) > before + 0.05
    assert done.chosen.objective.value > 100 * before
    again = FixEstimator(folds=4).fit(LOGITS, LABELS, counts=COUNTS)
    np.testing.assert_array_equal(again.transform(LOGITS), estimator.transform(LOGITS))


def test_a_name_without_its_strength_has_it_chosen() -> None:
    free = FixEstimator("logit_adjustment").fit(LOGITS, LABELS, counts=COUNTS)
    held = FixEstimator("logit_adjustment", max_head_loss=0.0)
    held.fit(LOGITS, LABELS, counts=COUNTS)
    assert free.calibration_ is not None
    assert held.calibration_ is not None
    strengths = [e.calibration_.chosen.fixes[0].tau for e in (free, held)]  # type: ignore[union-attr]
    assert strengths[0] > strengths[1]
    with pytest.raises(UsageError, match="Did you mean 'balanced'"):
        FixEstimator("logit_adjustment", objective="balancd").fit(LOGITS, LABELS, counts=COUNTS)


def test_a_chain_is_fitted_one_after_the_other() -> None:
    chain = FixEstimator("temperature:t=2+logit_adjustment:tau=1").fit(LOGITS, counts=COUNTS)
    expected = LOGITS / 2 - np.log(np.array(COUNTS) / sum(COUNTS))
    np.testing.assert_allclose(chain.transform(LOGITS), expected, rtol=1e-12)


def test_image_weights_are_repetitions() -> None:
    times = _RNG.integers(1, 4, size=len(LABELS))
    weighted = FixEstimator("vector:l2=0.01").fit(LOGITS, LABELS, sample_weight=times)
    repeated = FixEstimator("vector:l2=0.01").fit(np.repeat(LOGITS, times, 0), LABELS.repeat(times))
    plain = FixEstimator("vector:l2=0.01").fit(LOGITS, LABELS)
    found = weighted.transform(LOGITS)
    np.testing.assert_allclose(found, repeated.transform(LOGITS), atol=1e-4)
    assert np.abs(found - plain.transform(LOGITS)).max() > 1e-2
    with pytest.raises(UsageError, match="a choice weighs images by what it is for"):
        FixEstimator("vector").fit(LOGITS, LABELS, counts=COUNTS, sample_weight=times)
    with pytest.raises(DataError, match=r"shape \(2,\); expected .* \(100,\)"):
        FixEstimator("vector:l2=0.1").fit(LOGITS, LABELS, sample_weight=[1, 1])


def test_a_matrix_is_what_scikit_learn_fits() -> None:
    """Without a penalty worth the name both minimise the same likelihood of the same family."""
    logits = _RNG.normal(size=(400, 3))
    labels = np.array([_RNG.choice(3, p=p) for p in softmax(1.5 * logits + [1.0, 0.0, -1.0])])
    ours = FixEstimator("matrix:l2=1e-9").fit(logits, labels).predict_proba(logits)
    theirs = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(logits, labels)
    np.testing.assert_allclose(ours, theirs.predict_proba(logits), atol=1e-4)


def test_it_is_cloned_unfitted_and_set_by_name() -> None:
    estimator = FixEstimator(Temperature(2.0), objective="few", folds=3, seed=7)
    assert estimator.get_params() == {
        "fix": Temperature(2.0),
        "objective": "few",
        "max_head_loss": None,
        "folds": 3,
        "seed": 7,
        "force": False,
    }
    estimator.fit(LOGITS)
    copy = clone(estimator)
    assert copy is not estimator
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "map_")
    with pytest.raises(UsageError, match="not fitted; call fit"):
        copy.transform(LOGITS)
    assert copy.set_params(fix="auto", folds=4) is copy
    assert (copy.fix, copy.folds) == ("auto", 4)
    assert repr(copy).startswith("FixEstimator(fix='auto', objective='few'")
    with pytest.raises(UsageError, match="no parameter 'fxi'"):
        copy.set_params(fxi="auto")


@pytest.mark.parametrize("call", ["transform", "predict", "predict_proba"])
def test_what_is_not_fitted_says_so(call: str) -> None:
    with pytest.raises(UsageError, match=r"not fitted; call fit\(logits, …\) first"):
        getattr(FixEstimator(LogitAdjustment(1.0)), call)(LOGITS)


@pytest.mark.parametrize(
    ("fix", "known", "error", "text"),
    [
        ("auto", {}, UsageError, r"give fit\(logits, labels, counts=…\)"),
        ("auto", {"labels": LABELS}, UsageError, "training counts"),
        ("vectro", {"labels": LABELS}, FixError, "Did you mean 'vector'"),
        (None, {}, UsageError, "'fix' is None; expected 'auto'"),
        (Temperature, {}, UsageError, "or a Fix object"),
        ("logit_adjustment:tau=1", {}, FixError, "needs training counts"),
        ("logit_adjustment:tau=1", {"counts": [5, 3]}, DataError, "expected 5 whole numbers"),
        ("logit_adjustment:tau=1", {"counts": [0.5] * 5}, DataError, "whole numbers"),
        ("logit_adjustment:tau=1", {"counts": [np.nan] * 5}, DataError, "whole numbers"),
        ("logit_adjustment:tau=1", {"counts": [-1] * 5}, DataError, "count -1"),
        ("vector:l2=0.1", {}, FixError, "vector needs"),
        ("vector:l2=0.1", {"labels": LABELS[1:]}, DataError, "expected 100 whole numbers"),
        ("vector:l2=0.1", {"labels": LABELS + 1}, DataError, "outside 0..4"),
        ("vector:l2=0.1", {"labels": LABELS * 0}, DataError, "100 images of 1 class"),
        ("tau_norm:tau=1", {}, FixError, "'weight' in the .npz"),
        ("ncm", {"labels": LABELS}, FixError, "features of training images"),
        ("platt", {"labels": LABELS, "weight": WEIGHT}, FixError, "sigmoid heads"),
        ("platt", {"activation": "sigmoidd"}, UsageError, "Did you mean 'sigmoid'"),
        (
            "logit_adjustment:tau=1",
            {"counts": COUNTS, "trained_with": "Balanced Softmax"},
            FixError,
            "twice",
        ),
        (
            "crt",
            {
                "labels": LABELS,
                "counts": COUNTS[::-1],
                "train_features": TRAIN_FEATURES,
                "train_labels": TRAIN_LABELS,
            },
            DataError,
            "contradict the training data",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_named(
    fix: Any, known: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        FixEstimator(fix).fit(LOGITS, **known)


def test_logits_of_other_shapes_are_refused() -> None:
    estimator = FixEstimator("temperature:t=2").fit(LOGITS)
    with pytest.raises(DataError, match="3 columns and the fix was fitted on 5 classes"):
        estimator.transform(LOGITS[:, :3])
    for odd in (LOGITS[0], LOGITS[None], [["a", "b"]]):
        with pytest.raises(DataError, match=r"expected numbers of shape \(images, classes\)"):
            estimator.transform(odd)
        with pytest.raises(DataError, match="expected numbers of shape"):
            FixEstimator("temperature:t=2").fit(odd)
    broken = LOGITS.copy()
    broken[3, 2] = np.inf
    with pytest.raises(DataError, match="row 3 has inf for the class 2"):
        FixEstimator("vector:l2=0.1").fit(broken, LABELS)
    with pytest.raises(DataError, match="row 3 has inf"):
        estimator.transform(broken)


def test_a_strength_is_chosen_without_counts_where_nothing_looks_at_them() -> None:
    for name in ("temperature", "vector", "bias_corrected_temperature"):
        chosen = FixEstimator(name).fit(LOGITS, LABELS)
        with_counts = FixEstimator(name).fit(LOGITS, LABELS, counts=COUNTS)
        assert chosen.calibration_ is not None
        np.testing.assert_allclose(chosen.transform(LOGITS), with_counts.transform(LOGITS))
    hot = FixEstimator("temperature").fit(3 * LOGITS, LABELS).calibration_
    cool = FixEstimator("temperature").fit(LOGITS, LABELS).calibration_
    assert hot is not None
    assert cool is not None
    assert hot.chosen.t == pytest.approx(3 * cool.chosen.t, rel=1e-4)
    for name in ("auto", "logit_adjustment"):
        with pytest.raises(UsageError, match=r"training counts; give fit\(.*counts=…\)"):
            FixEstimator(name).fit(LOGITS, LABELS)


def test_groups_need_counts() -> None:
    for known in ({"objective": "few"}, {"objective": "harmonic"}, {"max_head_loss": 3.0}):
        with pytest.raises(UsageError, match="is about many, medium and few classes"):
            FixEstimator("vector", **known).fit(LOGITS, LABELS)
    reason = FixEstimator("vector").fit(LOGITS, LABELS).calibration_
    assert reason is not None
    assert "group" not in reason.reason


def test_target_logits_tell_what_to_choose_for_as_on_the_command_line() -> None:
    target = np.concatenate([LOGITS[LABELS == 4]] * 3 + [LOGITS])
    told = FixEstimator("auto").fit(LOGITS, LABELS, counts=COUNTS, target_logits=target)
    assert told.calibration_ is not None
    assert told.calibration_.aim.prior_name == "estimated"
    assert told.calibration_.aim.objective == "overall"
    with pytest.raises(DataError, match="10 unlabelled images are too few"):
        FixEstimator("auto").fit(LOGITS, LABELS, counts=COUNTS, target_logits=LOGITS[:10])
    with pytest.raises(DataError, match="'logits' are probabilities"):
        FixEstimator("logit_adjustment:tau=1.0").fit(softmax(LOGITS), counts=COUNTS)


def test_it_is_scored_as_scikit_learn_scores() -> None:
    fitted = FixEstimator("logit_adjustment:tau=1.0").fit(LOGITS, counts=COUNTS)
    assert fitted.score(LOGITS, LABELS) == (fitted.predict(LOGITS) == LABELS).mean()
    with pytest.raises(DataError, match="expected one label per row"):
        fitted.score(LOGITS, LABELS[:, None])


def test_halves_are_widened_before_anything_can_overflow() -> None:
    fixed = FixEstimator("temperature:t=1e-5").fit(LOGITS).transform(LOGITS.astype(np.float16))
    assert fixed.dtype == np.float32
    assert np.isfinite(fixed).all()


def test_counts_are_not_needed_where_nothing_looks_at_them() -> None:
    known = {"train_features": TRAIN_FEATURES, "train_labels": TRAIN_LABELS, "features": FEATURES}
    with_counts = FixEstimator("ncm").fit(LOGITS, LABELS, counts=COUNTS, **known)
    without = FixEstimator("ncm").fit(LOGITS, LABELS, **known)
    expected = with_counts.transform(LOGITS, FEATURES)
    np.testing.assert_array_equal(without.transform(LOGITS, FEATURES), expected)
    with pytest.raises(DataError, match="'train_labels' holds"):
        FixEstimator("ncm").fit(LOGITS, LABELS, **{**known, "train_labels": TRAIN_LABELS - 1})
