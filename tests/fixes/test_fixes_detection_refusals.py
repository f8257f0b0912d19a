"""Where fixes of detectors' scores do not belong, and what they say there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from detector_head_samples import CLASSES, COUNTS, FIXED, make_context, make_head

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    Fix,
    FixContext,
    FixSpec,
    GroupOdds,
    LogitAdjustment,
    LogN,
    NorCal,
    Odds,
    TauNorm,
    fit_fixes,
    foreground_columns,
    parse_spec,
)
from ltdeploy.models.head import Head


@pytest.mark.parametrize("fix", [f for f in FIXED if type(f).of_detectors], ids=Fix.describe)
def test_a_classifier_is_refused(fix: Fix) -> None:
    head = Head("linear", np.eye(CLASSES), None)
    context = replace(make_context("sigmoid"), head=head)
    with pytest.raises(FixError, match=f"{fix.method} is a fix for detectors.*For a classifier"):
        fix.fit(context)
    with pytest.raises(FixError, match="which column of the logits is the background"):
        fix.fit(replace(context, head=None))


@pytest.mark.parametrize("activation", ["sigmoid", "eqlv2"])
def test_norcal_names_what_suits_a_sigmoid_head(activation: str) -> None:
    with pytest.raises(FixError, match=f"{activation}.*--fix odds:gamma=0.6"):
        NorCal(0.6).fit(make_context(activation))


@pytest.mark.parametrize("layout", ["softmax, background first", "seesaw"])
def test_odds_names_what_suits_a_softmax_head(layout: str) -> None:
    with pytest.raises(FixError, match=r"--fix norcal:gamma=0\.4"):
        Odds(0.4).fit(make_context(layout))


@pytest.mark.parametrize("fix", [NorCal(0.6), Odds(0.6), LogN()], ids=Fix.describe)
def test_a_balanced_model_is_not_corrected_twice(fix: Fix) -> None:
    layout = "sigmoid" if isinstance(fix, Odds) else "softmax, background last"
    context = replace(make_context(layout), force=False, trained_with="balanced_softmax")
    with pytest.raises(FixError, match="correct twice"):
        fix.fit(context)
    assert not fix.fit(replace(context, force=True)).is_identity
    if not isinstance(fix, Odds):
        with pytest.raises(FixError, match="trained with seesaw"):
            fix.fit(replace(make_context("seesaw"), force=False))


def test_two_corrections_of_the_prior_are_refused() -> None:
    context = replace(make_context("softmax, background last"), force=False)
    for second in ("logit_adjustment:tau=1", "logn"):
        specs = [parse_spec("norcal:gamma=0.6"), parse_spec(second)]
        with pytest.raises(FixError, match="correct twice"):
            fit_fixes(specs, context)


def test_a_class_table_with_the_background_in_it_is_named() -> None:
    context = make_context("softmax, background last")
    with_background = ClassTable.from_counts((*COUNTS, 10**6))
    text = "5 classes .of 6 columns 1 are none. and the class table 6.*background out of"
    for fix in (NorCal(0.6), LogitAdjustment(1.0), GroupOdds((1.0, 2.0, 3.0))):
        with pytest.raises(FixError, match=text):
            fix.fit(replace(context, classes=with_background))
        with pytest.raises(FixError, match=r"class table 3\.$"):
            fix.fit(replace(context, classes=ClassTable.from_counts((1, 2, 3))))


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (Head("linear", np.eye(3), background=3), "column 3 and the head has the columns 0 to 2"),
        (Head("linear", np.eye(3), background=-1), "column -1"),
        (Head("linear", np.eye(1), background=0), "none of them is a class"),
        (Head("linear", np.eye(2), activation="seesaw"), "none of them"),  # type: ignore[arg-type]
        (Head("linear", np.eye(3), activation="eqlv2"), "names none; give its"),  # type: ignore[arg-type]
    ],
)
def test_layouts_that_cannot_be(head: Head, text: str) -> None:
    with pytest.raises(FixError, match=text):
        foreground_columns(head)


@pytest.mark.parametrize(
    ("logits", "text"),
    [
        (np.ones((4, CLASSES + 1)), r"labels \[0, 1, 2, 3, 4\] are the same for all 4 boxes"),
        (np.full((4, CLASSES + 1), np.nan), "hold NaN or infinity"),
        (np.array([[np.inf] * 6, [-np.inf] * 6]), "hold NaN or infinity"),
        (np.ones((4, CLASSES)), r"shape \(4, 5\); expected \(boxes, 6\)"),
        (np.ones((1, CLASSES + 1)), "at least two boxes"),
    ],
)
def test_logits_that_logn_cannot_use(logits: np.ndarray, text: str) -> None:
    with pytest.raises(FixError, match=text):
        LogN().fit(replace(make_context("softmax, background last"), logits=logits))


def test_missing_evidence_is_named() -> None:
    head = make_head("softmax, background last")
    with pytest.raises(FixError, match="logn needs logits of some images"):
        LogN().fit(FixContext(head=head))
    with pytest.raises(FixError, match="norcal needs training counts"):
        NorCal(0.6).fit(FixContext(head=head))


def test_tau_norm_on_a_softmax_detector_says_what_it_costs() -> None:
    context = replace(make_context("softmax, background first"), force=False)
    with pytest.raises(
        FixError, match=r"20\.98 to 11\.01 .*norcal:gamma=0\.6 instead, or use --force"
    ):
        TauNorm(0.7).fit(context)
    with pytest.raises(FixError, match="odds:gamma"):
        TauNorm(0.7).fit(replace(make_context("eqlv2"), force=False))
    with pytest.raises(FixError, match="the seesaw loss balances already"):
        TauNorm(0.7).fit(replace(make_context("seesaw"), force=False))
    assert not TauNorm(0.7).fit(replace(make_context("sigmoid"), force=False)).is_identity


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("norcal:gamma=0.6", NorCal(0.6)),
        ("norcal:gamma=1,beta=0.999", NorCal(1.0, 0.999)),
        ("odds:gamma=0.5", Odds(0.5)),
        ("logn", LogN()),
    ],
)
def test_fixes_are_read_from_the_command_line(text: str, fix: Fix) -> None:
    assert parse_spec(text).fixed() == fix
    assert FixSpec(fix.method, dict(fix.parameters())).fixed() == fix
    assert parse_spec("norcal:gamma=auto").is_auto
    assert parse_spec("logn").needs_validation
    assert not parse_spec("norcal:gamma=0.6").needs_validation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("norcal", "norcal needs a value for 'gamma'"),
        ("norcal:gamma=-1", "gamma is -1.0; expected a number at least 0"),
        ("norcal:gamma=0.6,beta=1.5", "beta is 1.5; expected a number from 0 to 1"),
        ("odds:gamma=0.6,beta=nan", "beta is nan"),
        ("norcal:gama=0.6", "Did you mean 'gamma'"),
        ("norcall:gamma=1", "Did you mean 'norcal'"),
        ("group_odds", "factors is not given; expected a list of numbers, one per frequency group"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(FixError, match=message):
        parse_spec(text)
