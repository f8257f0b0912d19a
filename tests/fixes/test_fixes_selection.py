"""Choosing a fix's strength, and reading fixes by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    Fix,
    FixContext,
    FixSpec,
    LogitAdjustment,
    TargetPrior,
    TauNorm,
    Temperature,
    choose_strength,
    fit_chain,
    fit_fixes,
    fit_temperature,
    parse_fix,
)
from ltdeploy.fixes.selection import stratified_folds
from ltdeploy.models.head import Head

COUNTS = [400, 100, 30, 8, 3]


def long_tailed(images: int = 400, seed: int = 0) -> FixContext:
    """Logits of the Bayes classifier under a long-tailed prior, labels drawn evenly."""
    rng = np.random.default_rng(seed)
    classes = len(COUNTS)
    labels = np.arange(images) % classes
    evidence = 1.2 * np.eye(classes)[labels] + 0.8 * rng.normal(size=(images, classes))
    prior = np.array(COUNTS) / sum(COUNTS)
    return FixContext(
        head=Head("linear", np.eye(classes), None),
        classes=ClassTable.from_counts(COUNTS),
        logits=2 * evidence + np.log(prior),
        labels=labels,
    )


def test_the_prior_that_was_planted_is_found() -> None:
    choice = choose_strength(LogitAdjustment, long_tailed(4000))
    assert choice.value == pytest.approx(1.0, abs=0.3)
    assert choice.after > choice.before + 10
    assert len(choice.per_fold) == 5
    assert choice.note == ""


def test_no_gain_means_no_fix() -> None:
    context = long_tailed()
    assert context.labels is not None
    useless = FixContext(
        head=context.head,
        classes=context.classes,
        logits=10.0 * np.eye(5)[context.labels],
        labels=context.labels,
    )
    choice = choose_strength(LogitAdjustment, useless)
    assert choice.value is None
    assert "none is applied" in choice.note


def test_folds_are_stratified_and_deterministic() -> None:
    labels = np.repeat([0, 1, 2], [50, 10, 3])
    fold = stratified_folds(labels, 5)
    np.testing.assert_array_equal(fold, stratified_folds(labels, 5))
    for label, images in ((0, 50), (1, 10), (2, 3)):
        sizes = np.bincount(fold[labels == label], minlength=5)
        assert sizes.sum() == images
        assert sizes.max() - sizes.min() <= 1


def test_later_fixes_see_the_logits_that_earlier_ones_give() -> None:
    context = long_tailed(4000)
    specs = [FixSpec("tau_norm", {"tau": 0.0}), FixSpec("logit_adjustment", {"tau": "auto"})]
    _, fitted = fit_fixes(specs, context)
    assert fitted[0].choice is None
    assert fitted[1].choice is not None
    assert context.logits is not None
    adjusted = LogitAdjustment(1.0).fit(context).apply(context.logits)
    done = FixContext(context.head, context.classes, adjusted, context.labels)
    _, again = fit_fixes([FixSpec("logit_adjustment", {"tau": "auto"})], done)
    assert again[0].fix is None or again[0].fix.parameters()["tau"] < 0.3


def test_later_fixes_see_the_head_that_earlier_ones_leave() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 7)) * [[5], [4], [3], [2], [1]], rng.normal(size=5)
    context = FixContext(head=Head("linear", weight, bias), classes=ClassTable.from_counts(COUNTS))
    drop = FixSpec("tau_norm", {"tau": 0.7, "bias": "drop"})
    for first in (FixSpec("temperature", {"t": 2.0}), FixSpec("logit_adjustment", {"tau": 1.0})):
        total, _ = fit_fixes([first, drop], context)
        _, folded = total.fold(weight, bias)
        assert folded is not None
        np.testing.assert_allclose(folded, 0, atol=1e-12)


def test_a_method_is_named_once() -> None:
    spec = FixSpec("temperature", {"t": 2.0})
    with pytest.raises(FixError, match="temperature is asked for more than once"):
        fit_fixes([spec, spec], long_tailed())


TWICE = [
    [LogitAdjustment(1.0), TargetPrior()],
    [TargetPrior(), LogitAdjustment(0.5)],
    [LogitAdjustment(0.0), TargetPrior()],
    [LogitAdjustment(1.0), TauNorm(0.7), TargetPrior((1.0, 1.0, 1.0, 1.0, 2.0))],
]


@pytest.mark.parametrize(
    "fixes", TWICE, ids=["adjust first", "prior first", "tau 0", "one between"]
)
def test_the_training_prior_is_taken_off_once(fixes: list[Fix]) -> None:
    specs = [FixSpec(fix.method, fix.parameters()) for fix in fixes]
    with pytest.raises(FixError, match=r"would correct twice.*--force \(force=True in Python\)"):
        fit_chain(fixes, long_tailed())
    with pytest.raises(FixError, match="each take the training prior off"):
        fit_fixes(specs, long_tailed())
    forced = replace(long_tailed(), force=True)
    fit_chain(fixes, forced)
    fit_fixes(specs, forced)


@pytest.mark.parametrize(
    "fixes",
    [
        [TauNorm(0.7), LogitAdjustment(1.0)],
        [LogitAdjustment(1.0), Temperature(2.0)],
    ],
    ids=["tau_norm", "temperature"],
)
def test_one_correction_beside_others_is_none_too_many(fixes: list[Fix]) -> None:
    assert not fit_chain(fixes, long_tailed()).is_identity


def test_a_strength_still_to_be_chosen_counts_as_a_correction() -> None:
    specs = [FixSpec("logit_adjustment", {"tau": "auto"}), FixSpec("target_prior", {})]
    with pytest.raises(FixError, match="logit_adjustment and target_prior each take"):
        fit_fixes(specs, long_tailed())


def test_a_chain_names_a_method_once() -> None:
    for force in (False, True):
        with pytest.raises(FixError, match="logit_adjustment is asked for more than once"):
            fit_chain(
                [LogitAdjustment(0.5), LogitAdjustment(1.0)], replace(long_tailed(), force=force)
            )


@pytest.mark.parametrize("fix", [LogitAdjustment(1.0), TargetPrior()])
def test_a_model_that_corrects_by_itself_is_named_with_both_ways_out(fix: Fix) -> None:
    context = replace(long_tailed(), trained_with="balanced_softmax")
    text = r"model was trained with balanced_softmax.*--force \(force=True in Python\)"
    with pytest.raises(FixError, match=text):
        fix.fit(context)
    assert not fix.fit(replace(context, force=True)).is_identity
    assert not fix.fit(replace(context, trained_with="cross_entropy")).is_identity


def test_dropping_a_bias_that_knows_the_answer_is_not_called_no_fix() -> None:
    labels = np.tile(np.arange(5), 40)
    bias = np.array([5.0, 3.0, 0.0, -3.0, -5.0])
    rng = np.random.default_rng(0)
    logits = 6 * np.eye(5)[labels] + 0.1 * rng.normal(size=(200, 5))
    context = FixContext(
        head=Head("linear", np.eye(5), bias),
        classes=ClassTable.from_counts(COUNTS),
        logits=logits,
        labels=labels,
    )
    spec = FixSpec("tau_norm", {"tau": "auto", "bias": "drop"})
    total, fitted = fit_fixes([spec], context)
    assert fitted[0].choice is not None
    assert fitted[0].choice.before == pytest.approx(100)
    assert fitted[0].fix is None
    assert total.is_identity


def test_auto_without_validation_is_refused() -> None:
    context = long_tailed()
    bare = FixContext(head=context.head, classes=context.classes)
    with pytest.raises(FixError, match="add --val DATA"):
        fit_fixes([FixSpec("tau_norm", {"tau": "auto"})], bare)


def test_one_class_cannot_choose() -> None:
    context = long_tailed()
    assert context.logits is not None
    one = FixContext(
        head=context.head,
        classes=context.classes,
        logits=context.logits[:3],
        labels=np.zeros(3, dtype=np.int64),
    )
    with pytest.raises(FixError, match="3 images of 1 classes"):
        choose_strength(LogitAdjustment, one)


def test_temperature_recovers_the_planted_one() -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(20_000, 4))
    gumbel = rng.gumbel(size=logits.shape)
    labels = (logits + gumbel).argmax(axis=1)  # drawn from softmax(logits)
    assert fit_temperature(2.5 * logits, labels) == pytest.approx(2.5, rel=0.05)


def test_temperature_of_a_perfect_model_is_refused() -> None:
    with pytest.raises(FixError, match="at the edge"):
        fit_temperature(np.eye(3) * 100, np.arange(3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tau_nrom:tau=1", "Did you mean 'tau_norm'"),
        ("tau_norm:tua=1", "Did you mean 'tau'"),
        ("tau_norm", "needs a value for 'tau'"),
        ("tau_norm:tau", "key=value"),
        ("tau_norm:tau=strong", "expected a number at least 0"),
        ("tau_norm:tau=-1", "at least 0"),
        ("missing.json", "no fix file at missing.json; 'ltdeploy calibrate .* writes one"),
    ],
)
def test_fixes_that_cannot_be_read_say_why(text: str, message: str) -> None:
    with pytest.raises(FixError, match=message):
        parse_fix(text)


def test_fix_files(tmp_path: Path) -> None:
    file = tmp_path / "fix.json"
    methods = [
        {"method": "tau_norm", "parameters": {"tau": 0.7, "bias": "drop"}},
        {"method": "temperature", "parameters": {"t": 1.5}},
    ]
    file.write_text(json.dumps({"schema": 1, "methods": methods}))
    specs = parse_fix(str(file))
    assert [spec.method for spec in specs] == ["tau_norm", "temperature"]
    file.write_text("{")
    with pytest.raises(FixError, match=r"cut short or damaged. Write it again .*calibrate"):
        parse_fix(str(file))
    file.write_text('{"schema": 2, "methods": []}')
    with pytest.raises(FixError, match="schema 2"):
        parse_fix(str(file))
    file.write_text('{"schema": 1}')
    with pytest.raises(FixError, match="lacks 'methods'"):
        parse_fix(str(file))
