"""What is tried, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
from evidence_samples import evidence

from ltdeploy.calibrate import calibrate
from ltdeploy.calibrate.candidates import candidates, parse_candidate
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import FixContext, LogitAdjustment, Temperature


def test_candidates_are_read_from_their_names() -> None:
    grid = parse_candidate("logit_adjustment")
    assert (grid.parameter, grid.values[0], grid.values[-1]) == ("tau", 0.0, 2.0)
    assert grid.chains[20] == (LogitAdjustment(1.0),)
    assert parse_candidate("logit_adjustment:tau=auto").values == grid.values
    assert parse_candidate("logit_adjustment:tau=1").chains == ((LogitAdjustment(1.0),),)
    assert parse_candidate("logit_adjustment:tau=1").parameter is None
    assert parse_candidate("temperature").chains == ((),)
    assert parse_candidate("temperature").calibrates is False
    fixed = parse_candidate("temperature:t=2")
    assert fixed.chains == ((Temperature(2.0),),)
    assert fixed.calibrates
    with pytest.raises(FixError, match="tau is 'auto'"):
        parse_candidate("vector+logit_adjustment:tau=auto")


def test_auto_does_not_learn_more_than_images_can_tell() -> None:
    def left_out(classes: int, images: int) -> dict[str, str]:
        context = FixContext(
            classes=ClassTable.from_counts([9] * classes),
            logits=np.zeros((images, classes), dtype=np.float32),
            labels=np.arange(images) % classes,
        )
        assert len(candidates(["matrix"], context)[0]) == 1  # by name it is tried all the same
        return {one.method: one.reason for one in candidates(None, context)[1]}

    assert left_out(40, 160).keys() == {"matrix", "dirichlet"}
    assert "1,640 numbers, too many for 160 images" in left_out(40, 160)["matrix"]
    assert left_out(40, 170) == {}
    assert "takes long" in left_out(250, 7000)["dirichlet"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("tau_nrom", "Did you mean 'tau_norm'"),
        ("vector:strength=1", "has no parameter 'strength'; expected l2"),
        ("platt", "defined for sigmoid heads"),
        ("crt", "needs features of training images"),
        ("score_multiplier", "factors is not given; expected a list"),
    ],
)
def test_methods_asked_for_by_name_must_apply(method: str, message: str) -> None:
    bare = evidence(60, train_features=None, train_labels=None)
    with pytest.raises(FixError, match=message):
        calibrate(bare, methods=["temperature", method])


def test_auto_leaves_out_what_does_not_apply() -> None:
    bare = evidence(60, head=None, train_features=None, train_labels=None, target_logits=None)
    reasons = {one.method: one.reason for one in calibrate(bare).skipped}
    assert "--train DATA" in reasons["crt"]
    assert "head's weights" in reasons["tau_norm"]
    assert "--target DATA" in reasons["bias_corrected_temperature+label_shift:source=validation"]
    assert {"temperature", "logit_adjustment", "vector"}.isdisjoint(reasons)
