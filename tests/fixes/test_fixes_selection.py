"""Choosing a fix's strength, and reading fixes by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    FixContext,
    FixSpec,
    LogitAdjustment,
    choose_strength,
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
    assert choice.value == 0
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
    specs = [
        FixSpec("logit_adjustment", {"tau": 1.0}),
        FixSpec("logit_adjustment", {"tau": "auto"}),
    ]
    _, fixes, choices = fit_fixes(specs, context)
    assert choices[0] is None
    assert fixes[1].parameters()["tau"] == pytest.approx(0.0, abs=0.3)


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
        ("tau_norm:tau=strong", "expected a number or 'auto'"),
        ("tau_norm:tau=-1", "at least 0"),
        ("missing.json", "Cannot read the fix file"),
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
    with pytest.raises(FixError, match="not JSON"):
        parse_fix(str(file))
    file.write_text('{"schema": 2, "methods": []}')
    with pytest.raises(FixError, match="schema 2"):
        parse_fix(str(file))
    file.write_text('{"schema": 1}')
    with pytest.raises(FixError, match="lacks 'methods'"):
        parse_fix(str(file))
