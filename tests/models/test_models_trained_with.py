"""What a model was trained with, by one name; a typo must not let it be corrected twice."""

from __future__ import annotations

import pytest

from ltdeploy.errors import UsageError
from ltdeploy.models.trained_with import BALANCED_LOSSES, resolve_trained_with

WHERE = "--trained-with"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (None, None),
        ("", None),
        (" ", None),
        ("ce", "cross_entropy"),
        ("CrossEntropyLoss", "cross_entropy"),
        ("Balanced Softmax", "balanced_softmax"),
        ("balanced-softmax", "balanced_softmax"),
        ("BSCE", "balanced_softmax"),
        ("logit_adjusted", "logit_adjustment"),
        ("class_aware_sampler", "class_balanced_sampling"),
        ("WeightedRandomSampler", "class_balanced_sampling"),
        ("resample", "class_balanced_sampling"),
        ("drw", "class_balanced_weights"),
    ],
)
def test_losses_and_samplers_have_one_name(text: str | None, name: str | None) -> None:
    assert resolve_trained_with(text, WHERE) == name


@pytest.mark.parametrize("name", sorted(BALANCED_LOSSES))
def test_a_name_resolves_to_itself(name: str) -> None:
    assert resolve_trained_with(name, WHERE) == name


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("balanced_softmx", "balanced_softmax"),
        ("Balanced-Sofmax", "balanced_softmax"),
        ("logit_adjustmnt", "logit_adjustment"),
        ("seesaww", "seesaw"),
        ("cross_entrpy", "cross_entropy"),
    ],
)
def test_a_typo_is_refused_where_it_was_made(text: str, meant: str) -> None:
    for where in (WHERE, "'trained_with' in the .npz"):
        with pytest.raises(UsageError, match=f"Did you mean '{meant}'") as caught:
            resolve_trained_with(text, where)
        assert str(caught.value).startswith(f"{where} is {text!r}, which is unknown.")


@pytest.mark.parametrize(
    "text", ["foo", "focal", "ldam", "arcface", "label_smoothing", "BinaryCrossEntropy", "mse"]
)
def test_other_losses_pass_and_are_not_taken_for_balanced_ones(text: str) -> None:
    resolved = resolve_trained_with(text, WHERE)
    assert resolved is not None
    assert resolved not in BALANCED_LOSSES
