"""Arrays that fit in shape and not in sense are refused; what only looks odd is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from evidence_samples import CLASSES, evidence

from ltdeploy.arrays import sigmoid, softmax
from ltdeploy.calibrate import check_context
from ltdeploy.calibrate.plausible import refuse_probabilities, refuse_unrelated_labels
from ltdeploy.errors import DataError
from ltdeploy.fixes import FixContext

GIVEN = evidence(300).context
assert GIVEN.logits is not None
assert GIVEN.labels is not None
LOGITS, LABELS = GIVEN.logits, GIVEN.labels


def checked(**changes: object) -> FixContext:
    return check_context(replace(GIVEN, **{"features": None, **changes}))  # type: ignore[arg-type]


def test_probabilities_are_no_logits() -> None:
    with pytest.raises(DataError, match=r"every row sums to 1.*numpy\.log"):
        checked(logits=softmax(LOGITS))
    with pytest.raises(DataError, match=r"If they are probabilities of sigmoids.*'sigmoid'"):
        checked(logits=sigmoid(LOGITS))
    assert checked(logits=sigmoid(LOGITS), force=True).logits is not None  # cosines, say
    with pytest.raises(DataError, match="'target_logits' are probabilities"):
        checked(target_logits=softmax(LOGITS))
    with pytest.raises(DataError, match="sums to 1"):
        refuse_probabilities("logits", softmax(LOGITS).astype(np.float16))
    with pytest.raises(DataError, match="sums to 1"):
        refuse_probabilities("logits", softmax(LOGITS).round(2))
    with pytest.raises(DataError):
        checked(logits=softmax(LOGITS), force=True)  # there is no sense in which that is meant
    # Negative controls: logarithms, small logits, and logits that are all the same.
    refuse_probabilities("logits", np.log(softmax(LOGITS)))
    refuse_probabilities("logits", 0.01 * LOGITS)
    refuse_probabilities("logits", np.zeros((20, CLASSES)))


def test_labels_of_other_images_are_refused() -> None:
    shuffled = np.random.default_rng(0).permutation(LABELS)
    with pytest.raises(DataError, match=r"do not belong together.*guessing: 20 %.*--force"):
        checked(labels=shuffled)
    assert checked(labels=shuffled, force=True).labels is not None


def test_labels_that_are_one_too_high_or_low_are_told() -> None:
    inside = LABELS < CLASSES - 1
    with pytest.raises(DataError, match="if every label is lower by one"):
        checked(logits=LOGITS[inside], labels=LABELS[inside] + 1)
    with pytest.raises(DataError, match="if every label is higher by one"):
        checked(logits=LOGITS[LABELS > 0], labels=LABELS[LABELS > 0] - 1)


@pytest.mark.parametrize("lean", [0.0, 1.0, 8.0])
def test_a_model_that_names_one_class_alone_is_no_stranger_to_its_labels(lean: float) -> None:
    context = evidence(300, lean=lean).context
    assert context.logits is not None
    if lean == 8.0:
        assert (context.logits.argmax(axis=1) == 0).mean() > 0.99
    refuse_unrelated_labels(context.logits, LABELS)


def test_another_order_of_columns_is_refused_however_many_images_there_are() -> None:
    """All images of a class err together: they are no independent witnesses."""
    rng = np.random.default_rng(0)
    classes = 60
    labels = np.repeat(np.arange(classes), 20)
    alike = rng.normal(size=(classes, classes))  # which classes look alike
    logits = alike[labels] + 6 * np.eye(classes)[labels] + rng.normal(size=(1200, classes))
    refuse_unrelated_labels(logits, labels)
    refused = 0
    for _ in range(20):
        try:
            refuse_unrelated_labels(logits[:, rng.permutation(classes)], labels)
        except DataError:
            refused += 1
    assert refused >= 19


def test_a_model_that_is_right_far_more_often_than_guessing_passes_whatever_its_scale() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(20, size=400)
    scale = rng.lognormal(0, 2.5, size=(400, 1))
    refuse_unrelated_labels(scale * (np.eye(20)[labels] + rng.normal(size=(400, 20))), labels)


def test_three_positives_among_two_hundred_are_too_few_to_tell() -> None:
    labels = np.repeat([0, 1], [200, 3])
    logits = np.random.default_rng(2).normal(size=(203, 2))
    refuse_unrelated_labels(logits, labels)


def test_validation_data_of_nearly_one_class_pass() -> None:
    labels = np.repeat(np.arange(CLASSES), [296, 1, 1, 1, 1])
    refuse_unrelated_labels(np.eye(CLASSES)[labels] + 0.5 * evidence(labels).logits, labels)


def test_few_images_of_a_model_that_knows_little_pass() -> None:
    rng = np.random.default_rng(3)
    refuse_unrelated_labels(rng.normal(size=(49, CLASSES)), np.arange(49) % CLASSES)


def test_features_that_do_not_make_the_logits_are_refused() -> None:
    features = evidence(300).context.features
    assert features is not None
    for kept in (features, features.astype(np.float16)):
        assert checked(features=kept).features is not None
    normalised = np.log(softmax(LOGITS))  # the same logits, but for one number a row
    assert checked(logits=normalised, features=features).features is not None
    with pytest.raises(DataError, match=r"features @ weight\.T \+ bias is off by .* in row"):
        checked(features=features[::-1])
    assert checked(features=features[::-1], force=True).features is not None
    assert checked(features=features[::-1], head=None).features is not None
